"""Dropout-NTP pairs of a file: both steps, counts, resuming, refusals, training."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import ntp_place
import pytest
import speaking
import tiny_mmpr

from mpo_jax import ledger
from mpo_jax.generate import requests
from mpo_jax.inputs import tokenizer as tokenizers
from mpo_jax.mmpr import meta
from mpo_jax.prefs import dropout_ntp, seam
from mpo_jax.run import answerer, answering, dropping

HOW = requests.Sampling(max_new_tokens=64, temperature=1.0, seed=3)
STOP = 999
OWN = "there are three red circles"


class Scripted:
    """Tells `OWN` where nothing is begun, goes on with " green" otherwise."""

    def __init__(self, tokenizer, *, fails=()):
        self.asked: list[requests.Question] = []
        self._tokenizer, self._fails = tokenizer, fails

    def __call__(self, lines, sampling):
        return self

    def answers(self, questions, sampling, *, skip):
        for question in questions:
            if skip(question.id, 0):
                continue
            self.asked.append(question)
            if any(word in question.question for word in self._fails):
                yield requests.Failure(question.id, 0, "endpoint", "no answer", True)
                continue
            text = self.text(question)
            ids = (*self._tokenizer.encode(text, bos=False, start=False), STOP)
            yield requests.Answer(
                *(question.id, 0, text, "stop", 3, len(ids), 0.0, ids),
                tuple(0.0 for _ in ids),
            )

    def text(self, question):
        return " green" if question.prefix else OWN

    def describe(self):
        return {"answerer": "scripted"}


@pytest.fixture(scope="module")
def tokens_path(tmp_path_factory):
    return tiny_mmpr.write_tokenizer(tmp_path_factory.mktemp("bytes") / "tokenizer")


@pytest.fixture(scope="module")
def tokens(tokens_path):
    return tokenizers.load_tokenizer(tokens_path)


RECORDS = [
    {"id": "a", "question": "<image>\nHow many?", "image": "0.png"},
    {"question": "Which?", "image": "1.png", "chosen": "图中有三个红色的圆形"},
    {"question": "Text alone?", "chosen": "yes, it is"},
    {"question": "Which?", "image": "none.png"},
    {"id": "a", "question": "<image>\nHow many?", "image": "0.png"},
    {"question": "x", "image": "0.png", "chosen": 3},
    {"question": "Short?", "image": "0.png", "chosen": "y"},
    {"question": "<image><image>\nTwo?", "image": ["0.png", "2.png"]},
    {"question": "Bad?", "image": "0.png", "chosen": "a<|im_end|>b"},
    {"question": "x", "image": "../far.png"},
    {"question": "x", "image": "0.png", "history": [["a", "b"]]},
]


@pytest.fixture
def given(tmp_path):
    speaking.write_images(tmp_path)
    return speaking.write_lines(tmp_path / "in.jsonl", RECORDS)


def task_of(given: pathlib.Path, **changes) -> dropping.Task:
    task = dropping.Task(
        input=given,
        output=given.parent / "out",
        root="",
        name="ntp",
        variant=dropout_ntp.Variant(),
        sampling=HOW,
        max_tiles=4,
    )
    return dataclasses.replace(task, **changes)


def pairs_of(task: dropping.Task) -> list[dict]:
    return speaking.read_lines(task.output / "annotations" / f"{task.name}.jsonl")


def test_pairs_of_own_and_of_given_answers(given, tokens):
    task, scripted = task_of(given), Scripted(tokens)
    manifest = dropping.make(task, tokens, scripted)
    own = [q for q in scripted.asked if not q.prefix]
    assert [len(q.images) for q in own] == [1, 2]
    assert own[0].question == "<image>\nHow many?"
    cut = [q for q in scripted.asked if q.prefix]
    assert [(q.question, q.images) for q in cut] == [
        *(("How many?", ()), ("Which?", ()), ("Two?", ())),
    ]
    assert tokens.decode(cut[0].prefix) == OWN[: len(OWN) // 2]
    first, second, third = pairs_of(task)
    start = OWN[: len(OWN) // 2]
    made = {"reason": "dropout_ntp", "variant": "tokens-0.5-without_image"}
    assert first == made | {
        **{"id": "a", "image": "0.png", "question": "<image>\nHow many?"},
        **{"chosen": OWN, "rejected": start + " green"},
    }
    assert second == made | {
        **{"image": "1.png", "question": "Which?"},
        **{"chosen": "图中有三个红色的圆形", "rejected": "图中有三个 green"},
    }
    assert third["image"] == ["0.png", "2.png"]
    assert manifest["counts"] == {
        **{"lines": 11, "pairs": 3},
        "dropped": {"duplicate": 1, "text_only": 1, "too_short": 1},
        "left_out": {
            **{"image_missing": 2, "bad_field": 1, "chat_marker": 1},
            "unsupported": 1,
        },
    }
    counts = manifest["counts"]
    parts = (*counts["dropped"].values(), *counts["left_out"].values())
    assert counts["lines"] == counts["pairs"] + sum(parts)
    written = json.loads((task.output / "manifest.json").read_text())
    assert written == json.loads(json.dumps(manifest))
    assert manifest["answerer"] == {"answerer": "scripted"} and not manifest["seam"]
    lines = {e.line: e.detail for e in ledger.read(task.output / "ledger.jsonl")}
    assert list(lines) == [4, 6, 9, 10, 11]
    assert "does not lie below" in lines[10] and "history=" in lines[11]


def test_training_takes_the_pairs_at_once(given, tokens, tokens_path, tmp_path):
    task = task_of(given)
    dropping.make(task, tokens, Scripted(tokens))
    built = tiny_mmpr.build_index(
        task.output / "meta.json", tmp_path / "index", tokens_path
    )
    assert len(built) == 3 and built.ledger() == []
    assert not built.counts[0].unread
    record = built.record(2)
    assert record.images == (str(tmp_path / "0.png"), str(tmp_path / "2.png"))
    (source,) = meta.load_meta(task.output / "meta.json")
    assert (source.name, source.length, source.max_tiles) == ("ntp", 3, 4)


def test_with_the_image_and_by_words(given, tokens):
    task = task_of(given, variant=dropout_ntp.Variant(0.5, "words", True))
    scripted = Scripted(tokens)
    manifest = dropping.make(task, tokens, scripted)
    asked = {q.question: q for q in scripted.asked if q.id.endswith("-with_image")}
    assert len(asked["<image><image>\nTwo?"].images) == 2
    assert tokens.decode(asked["Text alone?"].prefix) == "yes,"
    assert asked["Which?"].prefix == ()  # no spaces: released, an empty beginning
    rejected = {line["question"]: line["rejected"] for line in pairs_of(task)}
    assert rejected["Text alone?"] == "yes, green" and rejected["Which?"] == OWN
    assert manifest["counts"]["dropped"] == {"duplicate": 1}


def test_what_is_there_is_not_asked_again(given, tokens):
    task = task_of(given)
    with pytest.raises(dropping.Incomplete):
        dropping.make(task, tokens, Scripted(tokens, fails=("Two",)))
    assert not (task.output / "meta.json").exists()
    second = Scripted(tokens)
    first_of = dropping.make(task, tokens, second)
    assert len([q for q in second.asked if not q.prefix]) == 1
    third = Scripted(tokens)
    (task.output / "meta.json").unlink()
    assert dropping.make(task, tokens, third) == first_of and not third.asked
    whole = task_of(given, output=given.parent / "whole")
    dropping.make(whole, tokens, Scripted(tokens))
    for name in ("annotations/ntp.jsonl", "manifest.json", "meta.json"):
        assert (whole.output / name).read_text() == (task.output / name).read_text()


def test_what_failed_for_good_is_counted(given, tokens):
    class Refused(Scripted):
        def answers(self, questions, sampling, *, skip):
            for found in super().answers(questions, sampling, skip=skip):
                if isinstance(found, requests.Failure):
                    found = dataclasses.replace(found, reason="too_long", retry=False)
                yield found

    task = task_of(given)
    manifest = dropping.make(task, tokens, Refused(tokens, fails=("How many", "Two")))
    assert manifest["counts"]["dropped"]["no_answer"] == 2
    assert [line["question"] for line in pairs_of(task)] == ["Which?"]
    first = task_of(given, output=given.parent / "first")
    dropping.make(first, tokens, Refused(tokens, fails=("Which", "<image>\nHow")))
    (pair,) = pairs_of(first)
    assert pair["question"] == "<image><image>\nTwo?" and pair["chosen"] == OWN


def test_another_image_is_another_question(given, tokens):
    task = task_of(given)
    dropping.make(task, tokens, Scripted(tokens))
    keys = [line["id"] for line in speaking.read_lines(task.work("cut.jsonl"))]
    assert all(key.endswith(".tokens-0.5-without_image") for key in keys)
    shutil.copy(given.parent / "3.png", given.parent / "0.png")
    with pytest.raises(ValueError, match="own.jsonl has answers.*an image has other"):
        dropping.make(task, tokens, Scripted(tokens))
    other = task_of(given, output=given.parent / "other")
    dropping.make(other, tokens, Scripted(tokens))
    new = [line["id"] for line in speaking.read_lines(other.work("cut.jsonl"))]
    assert [a == b for a, b in zip(keys, new, strict=True)] == [False, True, False]


def test_other_settings_are_refused(given, tokens):
    dropping.make(task_of(given), tokens, Scripted(tokens))
    other = task_of(given, variant=dropout_ntp.Variant(ratio=0.25))
    with pytest.raises(ValueError, match="another run: variant.ratio was 0.5, now 0.2"):
        dropping.make(other, tokens, Scripted(tokens))
    with pytest.raises(ValueError, match="n=2: a question gives one pair"):
        task_of(given, sampling=dataclasses.replace(HOW, n=2))
    with pytest.raises(ValueError, match="name='a/b': must be the name of a file"):
        task_of(given, name="a/b")


def test_the_seam_is_checked(tmp_path, tokens):
    speaking.write_images(tmp_path)
    records = [
        {"question": f"Which {i}?", "image": "0.png", "chosen": f"{i} circles {i} red"}
        for i in range(60)
    ]
    task = task_of(speaking.write_lines(tmp_path / "in.jsonl", records))
    found = dropping.make(task, tokens, Scripted(tokens))["seam"]
    assert found["pairs"] == 60 and found["low"] > 0.5 and not found["at_chance"]
    assert "NOT at chance" in seam.words(found)
    assert "at chance" in seam.words(found | {"at_chance": True})
    assert seam.words(None).endswith("pairs, not checked")


@pytest.mark.slow
def test_a_model_makes_pairs(tmp_path):
    model = ntp_place.write_model(tmp_path / "model")
    records = ntp_place.records(speaking.write_images(tmp_path), 16)
    given = speaking.write_lines(tmp_path / "in.jsonl", records)
    speaker = answerer.load(str(model), dtype="float32", max_tiles=4)

    def asker(lines, sampling):
        return answering.local_answerer(
            speaker, lines, sampling, slots=0, max_prompt_tokens=0
        )

    how = dataclasses.replace(HOW, max_new_tokens=12)
    task = task_of(given, sampling=how)
    manifest = dropping.make(task, speaker.tokenizer, asker)
    pairs = pairs_of(task)
    assert len(pairs) == manifest["counts"]["pairs"] >= 8, manifest["counts"]
    answers = {
        line["id"]: line for line in speaking.read_lines(task.answers("own.jsonl"))
    }
    said = {line["text"] for line in answers.values()}
    for pair in pairs:
        assert pair["chosen"] in said or "图" in pair["chosen"]
        assert pair["chosen"] != pair["rejected"]
    built = tiny_mmpr.build_index(task.output / "meta.json", tmp_path / "index", model)
    assert len(built) == len(pairs)
