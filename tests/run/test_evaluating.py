"""An evaluation from a benchmark's files to its reports, without a model."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import speaking
from PIL import Image

from mpo_jax import config
from mpo_jax.evals import benchmark, lines
from mpo_jax.generate import endpoint_reply, requests
from mpo_jax.run import eval_judging, eval_report, eval_tasks, evaluating
from mpo_jax.verify import verifier

NAME = "own_benchmarks.signs"
OPTIONS = ["stop", "give way", "no entry", "one way"]


@pytest.fixture
def data(tmp_path):
    """Six signs; the fourth's picture is missing."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    records = []
    for i in range(6):
        name = f"images/{i % 2}.png"  # two pictures in all
        Image.fromarray(np.full((8, 8, 3), i % 2, np.uint8)).save(folder / name)
        records.append(
            {
                **{"id": i, "question": "Which sign is it?", "options": OPTIONS},
                **{"image": name, "answer": "ABCD"[i % 4]},
                "country": "fr" if i % 2 else "de",
            }
        )
    records[3]["image"] = "images/none.png"
    speaking.write_lines(folder / "signs.jsonl", records)
    return folder


class Scripted:
    """Says the same letter always; silent at one item, cut off at another."""

    def __init__(self, letter: str, *, fails: tuple[str, ...] = ()):
        self.letter, self.fails = letter, fails
        self.asked: list[tuple[str, str, int]] = []

    def answers(self, questions, sampling, *, skip):
        for question in questions:
            for sample in range(sampling.n):
                if skip(question.id, sample):
                    continue
                self.asked.append((question.id, question.question, sample))
                if question.id in self.fails:
                    yield requests.Failure(question.id, sample, "endpoint", "no", True)
                    continue
                cot = "Final answer" in question.question
                text = (
                    f"I think.\n\nFinal answer: {self.letter}" if cot else self.letter
                )
                text = {"2": "", "4": "so it must"}.get(question.id, text)
                ended = "length" if question.id == "4" else "stop"
                yield requests.Answer(question.id, sample, text, ended, 30, 5, -1.0)

    def describe(self):
        return {"scripted": self.letter}


def configured(data: pathlib.Path, **fields) -> config.EvaluationConfig:
    cfg = config.EvaluationConfig(benchmarks=(NAME,), data=str(data), **fields)
    cfg.validate()
    return cfg


def evaluate(cfg, workdir, answerer, **given):
    """The report, as scripts/evaluate.py makes it."""
    limits = []

    def asker(questions, sampling, max_tiles):
        limits.append((sampling.max_new_tokens, max_tiles))
        return answerer

    tasks = eval_tasks.tasks(cfg)
    with verifier.Verifier() as judged_by:
        outcome = evaluating.answered_by_model(
            tasks, cfg, workdir, asker, judged_by.check
        )
        assert outcome is not None
        found = eval_report.write(
            *("mine", workdir, cfg, tasks, outcome),
            scorer=judged_by.pins,
            check=judged_by.check,
            **given,
        )
    return found, limits


def test_from_files_to_a_report(data, tmp_path):
    work = tmp_path / "work"
    found, limits = evaluate(configured(data), work, Scripted("A"))
    assert limits == [(16, 6), (1024, 6)]  # of the benchmark, in both modes
    score = found["scores"][NAME]["cot"]
    # Items 0 and 4 are A; 4 said nothing useful, 2 nothing, 3 could not be asked.
    assert (score["correct"], score["total"], score["score"]) == (1, 5, 20.0)
    assert (score["empty"], score["truncated"], score["failed"]) == (1, 1, 1)
    assert score["categories"]["country"]["de"]["total"] == 3
    written = lines.read(work / "items.jsonl")
    assert [(line.mode, line.id) for line in written] == [
        (mode, i) for mode in ("direct", "cot") for i in "01245"
    ]
    assert (written[0].prompt_tokens, written[0].tokens) == (30, 5)
    assert len(list((work / "images").iterdir())) == 2
    assert all((work / image).exists() for line in written for image in line.images)
    (entry, _) = lines.read_unanswered(work / "unanswered.jsonl")
    assert entry.id == "3" and entry.failure.startswith("image_missing: ")
    for name in ("report.md", "report.html", "report.json", "plots"):
        assert (work / name).exists()


def test_it_goes_on_where_it_stopped(data, tmp_path):
    cfg, work = configured(data, modes=("cot",), n=2), tmp_path / "work"
    with pytest.raises(evaluating.Incomplete):
        evaluate(cfg, work, Scripted("A", fails=("5",)))
    again = Scripted("A")
    found, _ = evaluate(cfg, work, again)
    assert [(name, k) for name, _, k in again.asked] == [("5", 0), ("5", 1)]
    whole, _ = evaluate(cfg, tmp_path / "whole", Scripted("A"))
    assert found["scores"] == whole["scores"] and found["pin"] == whole["pin"]
    assert "cot@vote" in found["scores"][NAME]


class Voters(Scripted):
    """Three samples: two say the same in other words, one something else."""

    def answers(self, questions, sampling, *, skip):
        for question in questions:
            for sample, text in enumerate(("B", "A", "(A) stop")):
                answer = (question.id, sample, text, "stop", 30, 5, -1.0)
                yield requests.Answer(*answer)


def test_votes_count_answers_that_mean_the_same(data, tmp_path):
    cfg = configured(data, modes=("direct",), n=3, temperature=1.0)
    found, _ = evaluate(cfg, tmp_path / "work", Voters("A"))
    scores = found["scores"][NAME]
    # Of the five that can be asked, 0 and 4 are A, 1 and 5 are B.
    assert scores["direct"]["correct"] == 2 and scores["direct@vote"]["correct"] == 2
    voted = scores["direct@vote"]
    assert voted["categories"]["country"]["de"]["correct"] == 2  # of A, not of B
    assert scores["direct@any"]["correct"] == 4


def test_what_pins_a_score_says_what_differs(data, tmp_path):
    first, _ = evaluate(configured(data), tmp_path / "first", Scripted("A"))
    other = configured(data, max_tiles=12)
    second, limits = evaluate(
        other, tmp_path / "second", Scripted("B"), base=str(tmp_path / "first")
    )
    assert limits == [(16, 12), (1024, 12)]
    assert set(second["base"]["pin_differences"]) == {"weights", f"tiles/{NAME}"}
    assert first["pin"]["id"] != second["pin"]["id"]


def test_stored_answers_are_graded_and_bad_lines_named(data, tmp_path, capsys):
    records = [
        *({"id": i, "answer": "ABCD"[i % 4]} for i in range(4)),
        {"id": 0, "mode": "cot", "answer": "Final answer: (A) stop"},
        {"id": 0, "answer": "B"},
        {"id": 77, "answer": "B"},
        {"id": 5, "answer": ["B"]},
        {"id": 5, "mode": "both", "answer": "B"},
        {"id": 5, "anwser": "B"},
        3,
    ]
    path = speaking.write_lines(tmp_path / "answers.jsonl", records)
    cfg, work = configured(data), tmp_path / "work"
    tasks = eval_tasks.tasks(cfg)
    with verifier.Verifier() as judged_by:
        outcome = evaluating.answered_by_file(tasks, cfg, work, path, judged_by.check)
    right = [(x.mode, x.id, x.grade.verdict.right) for x in outcome.lines]
    assert right == [("direct", str(i), True) for i in range(4)] + [("cot", "0", True)]
    assert [(x.mode, x.id) for x in outcome.unanswered] == [
        *(("direct", i) for i in "45"),
        *(("cot", i) for i in "12345"),
    ]
    bad = [
        json.loads(line)
        for line in (work / "ledger.jsonl").read_text().split("\n")
        if line
    ]
    assert [(entry["line"], entry["reason"]) for entry in bad] == [
        *((6, "bad_field"), (7, "unknown_id"), (8, "bad_field")),
        *((9, "bad_field"), (10, "bad_field"), (11, "bad_json")),
    ]
    assert "line 1 too" in bad[0]["detail"] and "answer" in bad[4]["detail"]
    assert "Lines left out" in capsys.readouterr().err
    empty = speaking.write_lines(tmp_path / "none.jsonl", [{"id": 99, "answer": "A"}])
    with pytest.raises(ValueError, match="holds no answer.*has no item id='99'"):
        evaluating.answered_by_file(tasks, cfg, work, empty, judged_by.check)


def test_limits_take_items_from_everywhere(data):
    found = eval_tasks.tasks(configured(data, limit=3, modes=("cot",)))
    assert [item.id for item in found[0].items] == ["0", "2", "4"]
    assert found[0].ids == set("012345")


def test_mistakes_are_answered_with_what_to_do(data, tmp_path):
    for fields, said in (
        ({"benchmarks": ("pop",)}, "pope"),
        ({"benchmarks": (f"{NAME}:official",)}, f"name one of {NAME}:paper"),
        ({"benchmarks": (NAME, f"{NAME}:paper")}, "named twice"),
        ({"benchmarks": ("pope",)}, "llava_pope_test.jsonl"),
    ):
        cfg = dataclasses.replace(configured(data), **fields)
        with pytest.raises(ValueError, match=said):
            eval_tasks.tasks(cfg)
    speaking.write_lines(data / "signs.jsonl", [])
    with pytest.raises(ValueError, match="hold no item"):
        eval_tasks.tasks(configured(data))


def test_items_that_occur_twice_are_refused(data):
    path = data / "signs.jsonl"
    path.write_text(path.read_text() + path.read_text().split("\n")[0] + "\n")
    with pytest.raises(ValueError, match="1 ids .* occur twice, such as '0'"):
        eval_tasks.tasks(configured(data))


class Teacher:
    """A judge that thinks every answer right, fails at some and refuses others."""

    model = "teacher-1"

    def __init__(self, *, fails: str = "", refuses: str = ""):
        self.fails, self.refuses, self.asked = fails, refuses, 0

    def answers(self, questions, *, temperature, max_new_tokens):
        for question in questions:
            self.asked += 1
            name = question.question.partition(":")[0]
            if name in (self.fails, self.refuses):
                again = name == self.fails
                yield requests.Failure(question.id, 0, "endpoint", f"no {name}", again)
            else:
                yield endpoint_reply.NamedAnswer(
                    *(question.id, 0, "right", "stop", 9, 1, None), model=self.model
                )


@pytest.fixture
def judged_task(data):
    """The signs' direct answers, with a judge."""
    (task,) = eval_tasks.tasks(configured(data, modes=("direct",)))
    judge = benchmark.Judge(
        "teacher-1",
        lambda item, response: f"{item.id}: is {response} right?",
        lambda item, text: benchmark.Grade.of(text, text == "right", "judge"),
    )
    protocol = dataclasses.replace(task.protocol, judge=judge)
    return dataclasses.replace(task, protocol=protocol)


def test_a_judge_stands_beside_the_rule(judged_task, tmp_path, capsys):
    work = tmp_path / "work"

    def asker(questions, sampling, max_tiles):
        return Scripted("A")

    def judged_by(teacher):
        return eval_judging.judged([judged_task], outcome, teacher, work)

    with verifier.Verifier() as checks:
        outcome = evaluating.answered_by_model(
            [judged_task], configured(data_of(judged_task)), work, asker, checks.check
        )
    assert outcome is not None
    with pytest.raises(evaluating.Incomplete, match="1 answers .* teacher-1 said"):
        judged_by(Teacher(fails="5"))
    again = Teacher(refuses="5")
    found = judged_by(again)
    assert again.asked == 1  # what was judged is kept; nothing said is not asked about
    assert "1 answers are not judged" in capsys.readouterr().err
    judged = {line.id: line.judge for line in found.lines}
    assert judged["5"] is None and not judged["2"].grade.verdict.right
    assert all(judged[i].grade.verdict.right for i in "014")
    assert [line.grade for line in found.lines] == [x.grade for x in outcome.lines]


def data_of(task) -> pathlib.Path:
    return task.folder.path
