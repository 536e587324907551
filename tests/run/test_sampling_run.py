"""Rollouts of questions with truths, by something that answers without a model."""

from __future__ import annotations

import json

import pytest
import speaking

from mpo_jax import ledger
from mpo_jax.generate import requests
from mpo_jax.prefs import rollouts
from mpo_jax.run import sampling

HOW = requests.Sampling(n=3, max_new_tokens=50, temperature=1.0, seed=3)


class Scripted:
    """Says in reversed order what it was asked; breaks off after some answers."""

    def __init__(self, *, breaks: int = 10**9, silent: tuple[str, ...] = ()):
        self.asked: list[tuple[str, int]] = []
        self._breaks, self._silent = breaks, silent

    def answers(self, questions, sampling, *, skip):
        for question in reversed(list(questions)):
            for sample in range(sampling.n):
                if skip(question.id, sample):
                    continue
                if len(self.asked) == self._breaks:
                    raise KeyboardInterrupt
                self.asked.append((question.id, sample))
                if question.id in self._silent:
                    yield requests.Failure(
                        question.id, sample, "image_unreadable", "no", False
                    )
                    continue
                text = f"{question.id} {sample}\n\nFinal answer: {sample}"
                ended = "length" if sample == 2 else "stop"
                yield requests.Answer(question.id, sample, text, ended, 9, 4, -0.5)

    def describe(self):
        return {"answerer": "scripted"}


@pytest.fixture
def given(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    records = [
        {"id": 1, "question": "a?", "answer": "1", "image": "a.png", "source": "geo"},
        {"id": 2, "question": "b?", "answer": "B", "options": ["r", "s"]},
        {"id": 3, "quest": "c?", "answer": "B"},
        {"id": 4, "question": "d?", "answer": "no", "kind": "yes_no"},
    ]
    return speaking.write_lines(folder / "questions.jsonl", records)


def job(given) -> sampling.Job:
    return sampling.Job(str(given), "", ("en", "direct"), HOW)


def test_rollouts_of_every_format_in_order(given, tmp_path):
    out = tmp_path / "out"
    assert sampling.sample(job(given), out, lambda lines: Scripted())
    found = speaking.read_lines(out / "rollouts.jsonl")
    assert [(x["id"], x["format"], x["sample"]) for x in found] == [
        (i, form, k) for i in (1, 2, 4) for form in ("en", "direct") for k in range(3)
    ]
    assert found[0] == {
        **{"id": 1, "sample": 0, "format": "en", "question": "a?", "image": "a.png"},
        **{"answer_gt": "1", "source": "geo", "finish_reason": "stop"},
        **{"response": "en:1 0\n\nFinal answer: 0", "tokens": 4, "logprob": -0.5},
    }
    assert found[6]["options"] == ["r", "s"] and found[6]["source"] == "questions"
    assert found[12]["kind"] == "yes_no" and found[14]["finish_reason"] == "length"
    (entry,) = ledger.read(out / "ledger.jsonl")
    assert (entry.line, entry.file) == (3, str(given))
    manifest = json.loads((out / "sampling.json").read_text())
    assert manifest["root"] == "../data" and manifest["rollouts"] == 18
    assert manifest["sampling"]["temperature"] == 1.0
    asked = speaking.read_lines(out / "questions.jsonl")
    assert asked[0]["question"].startswith("<image>\nYour task is")
    # What was written is what build_pairs reads.
    read = rollouts.read(out / "rollouts.jsonl", root=str(given.parent))
    groups = [one for one in read if isinstance(one, rollouts.Group)]
    assert [len(group.rollouts) for group in groups] == [3] * 6
    assert [group.prompt for group in groups] == [line["question"] for line in asked]
    lines = [r.line() for group in groups for r in group.rollouts]
    assert lines == found


def test_a_broken_run_goes_on_and_gives_the_same(given, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    sampling.sample(job(given), whole, lambda lines: Scripted())
    with pytest.raises(KeyboardInterrupt):
        sampling.sample(job(given), broken, lambda lines: Scripted(breaks=7))
    assert not (broken / "rollouts.jsonl").exists()
    again = Scripted()
    assert sampling.sample(job(given), broken, lambda lines: again)
    assert len(again.asked) == 18 - 7
    for name in ("rollouts.jsonl", "sampling.json", "questions.jsonl"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_questions_without_answers_are_passed_over(given, tmp_path):
    out = tmp_path / "out"
    silent = ("direct:1", "en:2", "direct:4")
    assert sampling.sample(job(given), out, lambda lines: Scripted(silent=silent))
    found = speaking.read_lines(out / "rollouts.jsonl")
    assert [(x["id"], x["format"]) for x in found[::3]] == [
        *((1, "en"), (2, "direct"), (4, "en")),
    ]
    assert all(x["response"].startswith(f"{x['format']}:{x['id']}") for x in found)


def test_other_questions_are_refused(given, tmp_path):
    out = tmp_path / "out"
    sampling.sample(job(given), out, lambda lines: Scripted())
    given.write_text(given.read_text().replace("a?", "A?"))
    with pytest.raises(ValueError, match="answers of another run: questions was"):
        sampling.sample(job(given), out, lambda lines: Scripted())


def test_the_cost_is_known_beforehand(given):
    found = sampling.cost(job(given))
    assert found == sampling.Cost(prompts=6, samples=3, tokens=50, left_out=1)
    assert found.words() == (
        "6 prompts x 3 answers = 18 answers of at most 50 tokens: at most 900 tokens; "
        "1 lines left out"
    )
    with pytest.raises(ValueError, match="format 'cot': use one of"):
        sampling.Job(str(given), "", ("cot",), HOW)
