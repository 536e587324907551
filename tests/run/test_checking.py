"""Lines of a file that are judged: what is read, kept, named and written."""

from __future__ import annotations

import json
import pathlib

import pytest

from mpo_jax import ledger
from mpo_jax.run import checking
from mpo_jax.verify import formats
from mpo_jax.verify.verdict import RIGHT, WRONG, Truth, Verdict


class Judge:
    """Same words are right."""

    def __init__(self):
        self.asked = []

    def check_many(self, pairs, questions):
        self.asked += zip(pairs, questions, strict=True)
        return [
            Verdict(RIGHT if said == truth.answer else WRONG, "words")
            for said, truth in pairs
        ]


def write(path: pathlib.Path, lines: list[object]) -> pathlib.Path:
    text = "".join(
        line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines
    )
    path.write_text(text, encoding="utf-8")
    return path


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_lines_keep_order_and_fields(tmp_path: pathlib.Path, monkeypatch):
    monkeypatch.setattr(checking, "_CHUNK_LINES", 3)
    lines = [
        {"id": i, "answer_gt": "5", "prediction": str(i), "note": {"é": [1.5, None]}}
        for i in range(10)
    ]
    source = write(tmp_path / "in.jsonl", [*lines[:4], "\n", *lines[4:]])
    output = tmp_path / "new" / "out.jsonl"
    summary = checking.check_file(source, output, Judge())
    found = read(output)
    assert [{k: f[k] for k in lines[0]} for f in found] == lines
    assert [f["verdict"] for f in found] == [
        RIGHT if i == 5 else WRONG for i in range(10)
    ]
    assert all(f["rule"] == "words" for f in found)
    assert summary.verdicts == {Verdict(RIGHT, "words"): 1, Verdict(WRONG, "words"): 9}
    assert sorted(p.name for p in output.parent.iterdir()) == ["out.jsonl"]


def test_bad_lines_are_named_and_the_rest_is_judged(tmp_path: pathlib.Path):
    good = {"answer_gt": 5, "response": r"so \boxed{5}"}
    bad = ["nonsense\n", "[1]\n", {"answer": 5, "prediction": "5"}, {"answer_gt": "5"}]
    bad += [good | {"kind": "poem"}, good | {"options": "A"}, good | {"question": 3}]
    bad += ['{"answer_gt": NaN, "prediction": "5"}\n', good | {"answer_gt": [5]}]
    bad += [good | {"options": {"A": "x", "C": "y"}}, good | {"options": ["x"] * 27}]
    bad += [good | {"response": 7}, "[" * 100_000 + "\n", good | {"options": {"x": 1}}]
    source = write(tmp_path / "in.jsonl", [good, *bad, good])
    output = tmp_path / "out.jsonl"
    summary = checking.check_file(source, output, Judge())
    assert [line["prediction"] for line in read(output)] == ["5", "5"]
    entries = list(ledger.read(f"{output}.ledger.jsonl"))
    assert [entry.line for entry in entries] == list(range(2, 2 + len(bad)))
    assert all(entry.file == str(source) and entry.detail for entry in entries)
    assert sum(summary.left_out.values()) == len(bad)
    assert "did you mean answer?" in entries[2].detail
    write(source, [good])
    checking.check_file(source, output, Judge())
    assert not pathlib.Path(f"{output}.ledger.jsonl").exists()


def test_a_line_that_is_too_long_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(checking.questions, "MAX_LINE_BYTES", 100)
    good = {"answer_gt": "5", "prediction": "5"}
    source = write(tmp_path / "in.jsonl", [good | {"note": "x" * 1000}, good])
    checking.check_file(source, tmp_path / "out.jsonl", Judge())
    assert len(read(tmp_path / "out.jsonl")) == 1
    (entry,) = ledger.read(tmp_path / "out.jsonl.ledger.jsonl")
    assert entry.line == 1 and "100 bytes" in entry.detail


def test_nothing_is_written_when_the_judge_fails(tmp_path: pathlib.Path):
    class Failing(Judge):
        def check_many(self, pairs, questions):
            raise RuntimeError("no workers")

    source = write(tmp_path / "in.jsonl", [{"answer_gt": "5", "prediction": "5"}])
    with pytest.raises(RuntimeError):
        checking.check_file(source, tmp_path / "out.jsonl", Failing())
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_the_input_is_not_overwritten(tmp_path: pathlib.Path):
    source = write(tmp_path / "in.jsonl", [])
    with pytest.raises(ValueError, match="is the input"):
        checking.check_file(source, source, Judge())


def test_lone_surrogates_survive(tmp_path: pathlib.Path):
    line = '{"answer_gt": "\\ud800", "prediction": "\\ud800"}\n'
    source = write(tmp_path / "in.jsonl", [line])
    checking.check_file(source, tmp_path / "out.jsonl", Judge())
    (found,) = read(tmp_path / "out.jsonl")
    assert found["answer_gt"] == "\ud800" and found["verdict"] == RIGHT


def test_no_answer_is_undecided_and_not_asked(tmp_path: pathlib.Path):
    judge = Judge()
    lines = [
        {"answer_gt": "5", "response": r"\boxed{5"},
        {"answer_gt": "5", "response": " "},
    ]
    source = write(tmp_path / "in.jsonl", lines)
    checking.check_file(source, tmp_path / "out.jsonl", judge)
    found = read(tmp_path / "out.jsonl")
    assert [line["rule"] for line in found] == [formats.UNCLOSED, formats.EMPTY]
    assert all(line["verdict"] == "undecided" for line in found)
    assert all(line["prediction"] is None for line in found) and not judge.asked


def parsed(**fields: object) -> checking.Answer:
    return checking.parse(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "value, text",
    [(5, "5"), (0.5, "0.5"), (True, "true"), (False, "false"), ("x", "x")],
)
def test_values(value, text):
    answer = parsed(answer_gt=value, prediction=value)
    assert (answer.truth.answer, answer.parsed.prediction) == (text, text)


def test_truths():
    answer = parsed(
        answer_gt="B",
        prediction="b",
        options={"B": 2, "A": "one"},
        kind="option",
        question="Which?",
    )
    assert answer.truth == Truth("B", ("one", "2"), "option")
    assert answer.question == "Which?"
    for nothing in (None, [], {}, ""):
        assert parsed(answer_gt=1, prediction=1, options=nothing).truth.options == ()
    assert parsed(answer_gt=1, prediction=1, kind=None).truth.kind == ""


def test_a_prediction_goes_before_a_response():
    answer = parsed(answer_gt="5", prediction="4", response=r"\boxed{5}")
    assert answer.parsed.prediction == "4"
    answer = parsed(answer_gt="5", prediction=None, response=r"\boxed{5}")
    assert answer.parsed.prediction == "5"


@pytest.mark.parametrize(
    "response, prediction",
    [
        (r"It is \boxed{4}, no, \boxed{5}.", "5"),
        ("Steps.\nFinal answer: 5", "5"),
        ("步骤。\n答案: 5", "5"),
        ("5", "5"),
        ("The answer is 4.\nNo: the answer is (B).", "(B)"),
        ("So 3 < 4.\n\n**Answer:**\n5\nDone.", "5"),
        ("所以答案是5", "5"),
        ("It answers 5", "It answers 5"),
        (r"<think>\boxed{4}</think> Final answer: 5", "5"),
        (r"<think>a</think><think>b</think>\boxed{5}", "5"),
    ],
)
def test_a_final_answer_is_found(response, prediction):
    assert checking.parse_any(response) == formats.Parsed(prediction)


def test_what_is_no_final_answer_is_named():
    assert checking.parse_any("<think>5").problem == formats.NO_THOUGHT
    assert checking.parse_any("Final answer:").problem == formats.EMPTY


@pytest.mark.parametrize("name", ["en", "zh", "en_v2", "zh_v2", "en_r1", "zh_r1"])
def test_a_prompt_of_ours_decides_how_its_response_is_read(name):
    question = formats.FORMATS[name].wrap("How many?")
    assert checking.parse_any("5", question) == formats.FORMATS[name].parse("5")
    assert checking.parse_any("5", question).prediction is None


def test_a_format_is_followed():
    line = json.dumps({"answer_gt": "5", "response": "Final answer: 5"}).encode()
    assert checking.parse(line, "en").parsed.prediction == "5"
    assert checking.parse(line, "en_v2").parsed.problem == formats.NO_ANSWER
