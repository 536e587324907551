"""``items.jsonl``: what is written is read again, and bad lines are named."""

from __future__ import annotations

import json

import graded_lines
import pytest

from mpo_jax.evals import lines


def full() -> lines.Line:
    return graded_lines.line(
        answer='Räume\n"quoted" </script> \u2028 答案',
        mode="cot",
        sample=3,
        group="g",
        categories={"subject": "algebra"},
        options=("a", "b"),
        truth=("6", "six"),
        images=("images/a b.png",),
        corrected=graded_lines.grade("wrong"),
        judge=graded_lines.judgement("undecided"),
        finish_reason="length",
        tokens=12,
        prompt_tokens=300,
        logprob=-3.25,
    )


def test_lines_come_back(tmp_path):
    path = tmp_path / "items.jsonl"
    written = [full(), graded_lines.line("2", "wrong", answer="", truth=None)]
    lines.write(path, written)
    assert lines.read(path) == written
    first = json.loads(path.read_text("utf-8").splitlines()[0])
    assert first["verdict"] == "right" and first["judge"]["verdict"] == "undecided"
    second = json.loads(path.read_text("utf-8").splitlines()[1])
    assert "corrected" not in second and second["truth"] is None


def test_unanswered_come_back(tmp_path):
    path = tmp_path / "unanswered.jsonl"
    written = [
        lines.Unanswered("sums", "paper", "cot", "1", "endpoint: 500", 2),
        lines.Unanswered("sums", "paper", "cot", "2", "missing: no answer"),
    ]
    lines.write_unanswered(path, written)
    assert lines.read_unanswered(path) == written
    assert [entry.missing for entry in written] == [False, True]


def test_half_a_surrogate_pair_is_kept(tmp_path):
    path = tmp_path / "items.jsonl"
    lines.write(path, [graded_lines.line(answer="a\ud800b")])
    assert lines.read(path)[0].answer == "a\ud800b"


def test_blank_lines_and_further_fields_are_left_alone(tmp_path):
    path = tmp_path / "items.jsonl"
    value = lines.as_json(graded_lines.line()) | {"token_ids": [1]}
    path.write_text("\n" + json.dumps(value) + "\n\n")
    assert lines.read(path) == [graded_lines.line()]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"verdict": "true"}, "verdict='true': expected one of"),
        ({"mode": "cot@vote"}, "mode='cot@vote'"),
        ({"points": 1.5}, "points=1.5: expected a number from 0 to 1"),
        ({"points": True}, "points=True"),
        ({"points": None}, "points=None"),
        ({"id": 7}, "id=7: expected a text"),
        ({"answer": None}, "answer=None: expected a text"),
        ({"sample": -1}, "sample=-1"),
        ({"tokens": 1.0}, "tokens=1.0"),
        ({"logprob": 10**400}, "logprob=1000"),
        ({"options": "ab"}, "options='ab'"),
        ({"truth": [1]}, "truth=.1."),
        ({"categories": {"a": 1}}, "categories="),
        ({"finish_reason": "tool"}, "finish_reason='tool'"),
        ({"corrected": []}, r"corrected=\[\]: expected an object"),
        ({"judge": {"model": "m"}}, "judge: text=None"),
        ({"images": ["/etc/passwd"]}, "images="),
        ({"images": ["a/../../b"]}, "images="),
        ({"images": ["https://host/x.png"]}, "images="),
        ({"images": ["//host/x.png"]}, "images="),
    ],
)
def test_a_bad_field_is_named(tmp_path, change, message):
    path = tmp_path / "items.jsonl"
    good = lines.as_json(graded_lines.line())
    bad = lines.as_json(graded_lines.line("2")) | change
    path.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    with pytest.raises(ValueError, match=rf"items.jsonl:2: .*{message}"):
        lines.read(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", ":1: not JSON"),
        ("[1]", ":1: expected an object"),
        ('{"points": NaN}', ":1: not JSON .*NaN"),
        ("[" * 100_000, ":1: not JSON"),
        ("<!doctype html><html>", "is an HTML page"),
    ],
)
def test_what_is_no_line_is_named(tmp_path, text, message):
    path = tmp_path / "items.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match=message):
        lines.read(path)


def test_a_line_that_is_too_long_is_named(tmp_path, monkeypatch):
    from mpo_jax.evals import line_fields

    monkeypatch.setattr(line_fields, "MAX_LINE_BYTES", 2_000)
    path = tmp_path / "items.jsonl"
    lines.write(path, [graded_lines.line(answer="a" * 1_000)])
    assert len(lines.read(path)) == 1
    lines.write(path, [graded_lines.line(answer="a" * 3_000)])
    with pytest.raises(ValueError, match=":1: longer than 2,000 bytes"):
        lines.read(path)


def test_an_answer_stands_once(tmp_path):
    path = tmp_path / "items.jsonl"
    two = [graded_lines.line(), graded_lines.line("1", "wrong")]
    lines.write(path, two)
    with pytest.raises(ValueError, match=":2: sums direct id='1' sample=0 stands in"):
        lines.read(path)


@pytest.mark.parametrize(
    "answer, prediction, empty, unparsed",
    [(" \n", "", True, False), ("hm", "", False, True), ("6", "6", False, False)],
)
def test_what_an_answer_lacks(answer, prediction, empty, unparsed):
    grade = graded_lines.grade("wrong", prediction)
    line = graded_lines.line(answer=answer, grade=grade)
    assert (line.empty, line.unparsed) == (empty, unparsed)
