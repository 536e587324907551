"""The mixture that the tiny model learns from: kinds, shares, what is wrong."""

from __future__ import annotations

import collections
import hashlib
import json
import pathlib
import re

import pytest

from mpo_jax.demo import drawings, mixture
from mpo_jax.mmpr import record_fields, records
from mpo_jax.mmpr.meta import load_meta
from mpo_jax.prefs import prompts

COUNT = 600
SHARES = mixture.Shares(direct=0.4, blind=0.1, wrong=0.2)


@pytest.fixture(scope="module")
def meta(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("mixture")
    return mixture.write(
        folder, count=COUNT, seed=5, shares=SHARES, topics=("geometry",)
    )


@pytest.fixture(scope="module")
def lines(meta) -> list[dict]:
    text = (meta.parent / mixture.ANNOTATION).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def kind_of(record: dict) -> str:
    if "image" not in record:
        return "blind"
    return "direct" if record["question"].endswith(prompts.ASK_SHORT) else "cot"


def final(text: str) -> str | None:
    return prompts.get_format("en").parse(text).prediction


def test_shares_are_those_that_were_asked_for(lines):
    kinds = collections.Counter(map(kind_of, lines))
    for kind, share in (("direct", 0.4), ("blind", 0.1), ("cot", 0.5)):
        # 600 draws: 4 standard deviations are at most 4 * sqrt(.25 / 600) = 0.082.
        assert abs(kinds[kind] / COUNT - share) < 0.082


def test_every_kind_says_what_it_should(lines):
    wrong = 0
    for record in lines:
        kind, question = kind_of(record), record["question"]
        assert question.count("<image>") == (kind != "blind")
        if kind == "direct":
            assert record["chosen"] == record["answer_gt"]
        elif kind == "blind":
            assert final(record["chosen"]) is not None
            assert question.startswith("Your task")
        else:
            wrong += final(record["chosen"]) != record["answer_gt"]
    chains = sum(kind_of(record) == "cot" for record in lines)
    assert abs(wrong / chains - SHARES.wrong) < 4 * (0.2 * 0.8 / chains) ** 0.5


def test_the_trainer_reads_every_record(meta):
    (source,) = load_meta(meta)
    found = [
        records.parse_record(
            line,
            source=source,
            line_number=number,
            max_bytes=10_000,
            chosen_only=True,
        )
        for _, number, line in records.iter_lines(source.annotation, max_bytes=10_000)
    ]
    assert len(found) == COUNT
    assert all(pathlib.Path(path).is_file() for one in found for path in one.images)


def test_fields_are_known(lines):
    for record in lines:
        assert record_fields.check(record, chosen_only=True) == []


def test_the_same_arguments_give_the_same_bytes(meta, tmp_path):
    mixture.write(tmp_path, count=40, seed=5, shares=SHARES, topics=("geometry",))
    again = tmp_path / mixture.ANNOTATION
    whole = (meta.parent / mixture.ANNOTATION).read_text("utf-8")
    assert whole.startswith(again.read_text("utf-8"))
    for image in (tmp_path / mixture.IMAGES).iterdir():
        digests = [
            hashlib.sha256(path.read_bytes()).digest()
            for path in (image, meta.parent / mixture.IMAGES / image.name)
        ]
        assert digests[0] == digests[1]


def test_corpus_has_every_text(meta, lines):
    texts = list(mixture.corpus(meta))
    assert len(texts) == 2 * COUNT
    assert texts[:2] == [lines[0]["question"], lines[0]["chosen"]]


def test_held_out_drawings_are_not_among_them(meta, tmp_path):
    held_out = {
        hashlib.sha256(
            drawings.draw_item(
                i, seed=5, split="eval", topics=("geometry",)
            ).image.tobytes()
        ).digest()
        for i in range(300)
    }
    trained = {
        hashlib.sha256(
            drawings.draw_item(
                i, seed=5, split="train", topics=("geometry",)
            ).image.tobytes()
        ).digest()
        for i in range(COUNT)
    }
    assert len(held_out) == 300 and len(trained) == COUNT
    assert not held_out & trained


def test_digits_are_tokens_of_their_own(meta):
    texts = " ".join(mixture.corpus(meta))
    assert set(re.findall(r"\d", texts)) == set("0123456789")
