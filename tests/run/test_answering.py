"""A file of questions answered: order, ledger, resuming, refusals, adapters."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import pytest
import small_runs
import speaking

from mpo_jax import api, ledger
from mpo_jax.generate import requests, results
from mpo_jax.models import adapted
from mpo_jax.nn import lora
from mpo_jax.nn import params as params_lib
from mpo_jax.run import answerer, answering, train

HOW = requests.Sampling(n=2, max_new_tokens=6, temperature=1.0, seed=3)


class Scripted:
    """Answers without a model, the last question first."""

    def __init__(self, *, fails=(), retry=True, about="scripted"):
        self.asked: list[tuple[str | int, int]] = []
        self._fails, self._retry, self._about = fails, retry, about

    def answers(self, questions, sampling, *, skip):
        for question in reversed(list(questions)):
            for sample in range(sampling.n):
                if skip(question.id, sample):
                    continue
                self.asked.append((question.id, sample))
                if question.id in self._fails:
                    yield requests.Failure(
                        question.id, sample, "endpoint", "no answer", self._retry
                    )
                    continue
                yield requests.Answer(
                    question.id, sample, f"{question.question}!", "stop", 3, 2, -0.5
                )

    def describe(self):
        return {"answerer": self._about, "sizes": (1, 2)}


@pytest.fixture
def given(tmp_path):
    """Four questions and a bad line in their midst."""
    records = [{"id": i, "question": f"q{i}"} for i in range(4)]
    return speaking.write_lines(
        tmp_path / "in.jsonl", [*records[:2], {"id": 9}, *records[2:]]
    )


def run(given, scripted, *, how=HOW, output="out/answers.jsonl") -> bool:
    lines = answering.Lines(str(given), "")
    target = str(given.parent / output)
    return answering.answer_file(scripted, lines, target, how, save_tokens=False)


def test_answers_come_in_the_order_of_the_questions(given):
    assert run(given, Scripted())
    folder = given.parent / "out"
    found = speaking.read_lines(folder / "answers.jsonl")
    assert [(x["id"], x["sample"]) for x in found] == [
        (i, k) for i in range(4) for k in range(2)
    ]
    assert [x["text"] for x in found[::2]] == ["q0!", "q1!", "q2!", "q3!"]
    (entry,) = ledger.read(folder / "answers.jsonl.ledger.jsonl")
    assert (entry.line, entry.reason, entry.file) == (3, "bad_field", str(given))
    manifest = json.loads((folder / "answers.jsonl.run.json").read_text())
    assert manifest["answers"] == 8 and manifest["left_out"] == {"bad_field": 1}
    assert manifest["sampling"]["seed"] == 3 and not manifest["save_tokens"]
    assert manifest["answerer"] == {"answerer": "scripted", "sizes": [1, 2]}
    assert {path.name for path in folder.iterdir()} == {
        *("answers.jsonl", "answers.jsonl.ledger.jsonl", "answers.jsonl.run.json")
    }


def test_what_is_finished_is_left_alone_and_other_settings_refused(given, capsys):
    assert run(given, Scripted())
    output = given.parent / "out/answers.jsonl"
    before = output.stat().st_mtime_ns
    again = Scripted()
    assert run(given, again) and not again.asked
    assert output.stat().st_mtime_ns == before
    with pytest.raises(ValueError) as error:
        run(given, Scripted(), how=requests.Sampling(n=2, max_new_tokens=6, seed=3))
    message = "answers of another run: sampling.temperature was 1.0, now 0.0. Name"
    assert message in str(error.value)
    with pytest.raises(ValueError, match="answerer.answerer was 'scripted', now 'ot"):
        run(given, Scripted(about="other"))
    text = given.read_text()
    given.write_text('{"id": 1, "question": "other"}')
    with pytest.raises(ValueError, match="another run: questions was '.*', now '"):
        run(given, Scripted())
    given.write_text(text)
    (given.parent / "out/answers.jsonl.run.json").unlink()
    with pytest.raises(ValueError, match="no answers.jsonl.run.json says what it is"):
        run(given, Scripted())


def test_what_failed_is_asked_again_and_nothing_else(given, capsys):
    assert not run(given, Scripted(fails=(1, 2)))
    output = given.parent / "out/answers.jsonl"
    assert not output.exists()
    entries = list(ledger.read(given.parent / "out/answers.jsonl.ledger.jsonl"))
    assert [(e.line, e.reason) for e in entries] == [
        *((2, "endpoint"), (2, "endpoint"), (3, "bad_field")),
        *((4, "endpoint"), (4, "endpoint")),
    ]
    assert "id=1: sample 1: no answer" in [entries[0].detail, entries[1].detail]
    with pytest.raises(
        ValueError, match="sampling.max_new_tokens was 6, now 7;.* Repe"
    ):
        run(given, Scripted(), how=requests.Sampling(max_new_tokens=7))
    again = Scripted()
    assert run(given, again)
    assert sorted(again.asked) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert len(speaking.read_lines(output)) == 8
    (entry,) = ledger.read(given.parent / "out/answers.jsonl.ledger.jsonl")
    assert entry.line == 3


def test_what_cannot_be_answered_is_left_out_for_good(given):
    assert run(given, Scripted(fails=(1,), retry=False))
    assert len(speaking.read_lines(given.parent / "out/answers.jsonl")) == 6


def test_a_clean_file_leaves_no_ledger(tmp_path):
    given = speaking.write_lines(tmp_path / "in.jsonl", [{"id": 1, "question": "q"}])
    stale = tmp_path / "out.jsonl.ledger.jsonl"
    stale.write_text("{}")
    assert run(given, Scripted(), output="out.jsonl")
    assert not stale.exists()


def test_nothing_but_bad_lines(tmp_path):
    given = speaking.write_lines(tmp_path / "in.jsonl", [{}, [], 3])
    assert run(given, Scripted(), output="out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    assert len(list(ledger.read(tmp_path / "out.jsonl.ledger.jsonl"))) == 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, pictures and twelve questions, some of which cannot be asked."""
    folder = tmp_path_factory.mktemp("speaking")
    speaking.write_model(folder / "model")
    names = speaking.write_images(folder)
    (folder / "torn.png").write_bytes((folder / names[0]).read_bytes()[:300])
    records = speaking.questions(names, 12)
    records[6:6] = [
        {"id": "missing", "question": "q", "image": "none.png"},
        {"id": "torn", "question": "q", "image": "torn.png"},
        {"id": "count", "question": "<image><image>", "image": names[0]},
        {"id": "smuggled", "question": "<IMG_CONTEXT>"},
        {"id": "marker", "question": "<|im_end|>"},
        {"id": "ids", "question": "q", "prefix": [10**6]},
        {"id": "long", "question": "how many? " * 300},
    ]
    speaking.write_lines(folder / "in.jsonl", records)
    return folder


@pytest.fixture(scope="module")
def model(place):
    return answerer.load(str(place / "model"), dtype="float32")


def answered(place, model, output: pathlib.Path, how=HOW, **options) -> list[dict]:
    lines = answering.Lines(str(place / "in.jsonl"), "")
    options = {"slots": 0, "max_prompt_tokens": 0, **options}
    found = answering.local_answerer(model, lines, how, **options)
    assert answering.answer_file(found, lines, str(output), how, save_tokens=True)
    return speaking.read_lines(output)


@pytest.mark.slow
def test_the_model_answers_and_names_what_it_cannot(place, model, tmp_path):
    found = answered(place, model, tmp_path / "out.jsonl", max_prompt_tokens=600)
    assert len(found) == 24
    records = speaking.read_lines(place / "in.jsonl")
    wanted = [r["id"] for r in records if r["id"] in {x["id"] for x in found}]
    assert [x["id"] for x in found[::2]] == wanted and len(wanted) == 12
    for line in found:
        assert len(line["token_ids"]) == len(line["token_logprobs"]) == line["tokens"]
        assert line["logprob"] == pytest.approx(sum(line["token_logprobs"]))
        assert line["tokens"] == 6 or line["finish_reason"] == "stop"
    assert any(a["text"] != b["text"] for a, b in zip(*[iter(found)] * 2, strict=True))
    entries = list(ledger.read(tmp_path / "out.jsonl.ledger.jsonl"))
    assert [(e.line, e.reason) for e in entries] == [
        *((7, "image_missing"), (8, "image_unreadable"), (9, "image_count")),
        *((10, "smuggled_token"), (11, "chat_marker"), (12, "bad_field")),
        *((13, "too_long"),),
    ]
    assert all(f"id='{records[e.line - 1]['id']}'" in e.detail for e in entries)
    manifest = json.loads((tmp_path / "out.jsonl.run.json").read_text())
    assert manifest["answerer"]["model"].endswith("model")
    assert manifest["answerer"]["dtype"] == "float32"


@pytest.mark.slow
def test_a_longest_prompt_is_kept_to_the_token(place, model, tmp_path):
    """Not to the next length that a program is compiled for."""
    first = answered(place, model, tmp_path / "all.jsonl", max_prompt_tokens=600)
    lengths = sorted({line["prompt_tokens"] for line in first})
    limit = lengths[len(lengths) // 2]
    some = answered(place, model, tmp_path / "some.jsonl", max_prompt_tokens=limit)
    kept = [line["id"] for line in first if line["prompt_tokens"] <= limit]
    assert [line["id"] for line in some] == kept and len(kept) < len(first)
    entries = ledger.read(tmp_path / "some.jsonl.ledger.jsonl")
    details = [e.detail for e in entries if e.reason == "too_long"]
    assert len(details) == 1 + (len(first) - len(some)) // 2
    assert all(f"the longest is {limit};" in detail for detail in details)


@pytest.mark.slow
def test_greedy_answers_are_those_of_the_notebook(place, model, tmp_path):
    how = requests.Sampling(max_new_tokens=8)
    found = answered(place, model, tmp_path / "out.jsonl", how, max_prompt_tokens=600)
    by_id = {line["id"]: line["text"] for line in found}
    ours = api.InternVL.from_pretrained(place / "model")
    for record in speaking.read_lines(place / "in.jsonl"):
        if record["id"] not in by_id or "history" in record:
            continue
        images = record.get("image")
        images = [images] if isinstance(images, str) else images or []
        said = ours.generate(
            record["question"],
            [place / name for name in images],
            prefix=record.get("prefix", ""),
            system=record.get("system"),
            max_tiles=4,
            max_new_tokens=8,
        )
        assert said == by_id[record["id"]], record


@pytest.mark.slow
def test_adapters_merged_or_beside_say_the_same(world, tmp_path):
    """Of a run's last checkpoint; its base model says something else."""
    cfg = small_runs.small(world)
    for part in adapted.PARTS:
        setattr(cfg.model, f"freeze_{part}", True)
    cfg.model.lora.language_rank, cfg.model.lora.vision_rank = 4, 2
    cfg.reference.mode = "online"
    cfg.checkpoint.export_hf = False
    cfg.optim.learning_rate = 0.3
    cfg.optim.max_steps = 3
    train.train(cfg, tmp_path / "run", devices=jax.devices()[:1])
    images = sorted(pathlib.Path(world["meta"]).parent.rglob("*.png"))[:3]
    records = [
        {"id": i, "question": "How many circles?", "image": str(path)}
        for i, path in enumerate(images)
    ]
    records += [{"id": 9, "question": "One?", "prefix": "There"}]
    given = speaking.write_lines(tmp_path / "in.jsonl", records)
    how = requests.Sampling(max_new_tokens=12)
    found = {}
    for adapters in answerer.ADAPTERS:
        model = answerer.load(str(tmp_path / "run"), dtype="float32", adapters=adapters)
        lines = answering.Lines(str(given), "")
        local = answering.local_answerer(
            model, lines, how, slots=0, max_prompt_tokens=0
        )
        output = tmp_path / f"{adapters}.jsonl"
        assert answering.answer_file(local, lines, str(output), how, save_tokens=True)
        found[adapters] = speaking.read_lines(output)
        rank = json.loads((tmp_path / f"{adapters}.jsonl.run.json").read_text())
        adapters_of = rank["answerer"]["adapters"]
        assert bool(adapters_of["language"]["rank"]) == (adapters == "beside")
    for merged, beside in zip(*found.values(), strict=True):
        assert merged["token_ids"] == beside["token_ids"]
        assert merged["logprob"] == pytest.approx(beside["logprob"], abs=1e-3)
    # And they matter: without them the last model says something else.
    weights = {
        path: 0 * leaf if lora.is_adapter(path) else leaf
        for path, leaf in params_lib.flatten(model.weights)
    }
    bare = dataclasses.replace(model, weights=params_lib.unflatten(weights))
    local = answering.local_answerer(bare, lines, how, slots=0, max_prompt_tokens=0)
    said = {a.id: list(a.token_ids) for a in local.answers(lines.mine(), how)}
    assert said != {line["id"]: line["token_ids"] for line in found["beside"]}


def test_a_job_of_another_file_is_refused(given):
    run(given, Scripted(fails=(1,)))
    with open(given, "a") as file:
        file.write('{"id": 77, "question": "more"}\n')
    with pytest.raises(ValueError, match="questions was '.*', now '"):
        run(given, Scripted())
    assert results.Parts(given.parent / "out/answers.jsonl").folder.is_dir()


def test_what_a_kill_during_the_merge_left_is_removed(given):
    folder = given.parent / "out"
    folder.mkdir()
    left = folder / "answers.jsonl.0123456789ab.tmp"
    for path in (left, folder / "mine.tmp"):
        path.write_text("half", encoding="utf-8")
    assert run(given, Scripted())
    assert not left.exists() and (folder / "mine.tmp").exists()
