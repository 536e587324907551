"""Files for other harnesses, read back as those read them."""

from __future__ import annotations

import ast
import csv
import json
import pathlib

import pandas as pd
import pytest
import table_files
from table_files import picture

from mpo_jax.evals import exports, lines, registry, sources
from mpo_jax.evals.benchmark import Ask, Grade, Item

NASTY = 'one\ttab, two\nlines, a "quote", \r\n a return and 新しい'


def line(id: str, answer: str, *, sample: int = 0, points: float = 1.0, **changes):
    grade = Grade(answer.strip(), Grade.of("x", bool(points), "rule").verdict, points)
    values = {"benchmark": "b", "protocol": "paper", "mode": "direct"} | changes
    return lines.Line(id=id, answer=answer, grade=grade, sample=sample, **values)


ITEMS = [
    Item("7", NASTY, ("a", "b's"), categories={"split": "human"}, images=(b"png",)),
    Item("8", "Which?", "B", options=("fox", "hare"), fields={"hint": "h", "x": [1]}),
    Item("9", "Unanswered?", None),
]
LINES = [
    line("8", "None", sample=1, points=0.0),
    line("8", " B "),
    line("7", NASTY),
]


def test_a_table_reads_back_with_csv_and_pandas(tmp_path):
    path = tmp_path / "model_B.tsv"
    assert exports.vlmevalkit_table(path, ITEMS, LINES) == 2
    with open(path, encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file, delimiter="\t"))
    assert list(found[0]) == [
        *("index", "question", "answer", "split", "A", "B", "hint", "prediction")
    ]
    assert found[0]["question"] == found[0]["prediction"] == NASTY
    assert ast.literal_eval(found[0]["answer"]) == ["a", "b's"]
    assert found[1]["prediction"] == " B " and found[1]["A"] == "fox"
    table = pd.read_csv(path, sep="\t", keep_default_na=False)
    assert table["index"].tolist() == [7, 8]
    assert table["prediction"].tolist() == [NASTY, " B "]
    assert "image" not in table and "x" not in table


def test_a_table_of_vlmevalkit_keeps_its_keys(tmp_path):
    """Read as the benchmark reads it, written as predictions, joined by ``index``."""
    table_files.write_tsv(
        tmp_path / "DocVQA_VAL.tsv",
        [
            {"index": 40 + k, "questionId": f"q{k}", "question": f"{k}?",
             "answer": str([f"a{k}", "z"]), "image": picture() if not k else 40}
            for k in range(3)
        ],
    )  # fmt: skip
    items = list(registry.get("docvqa").read(sources.Folder(tmp_path)))
    answers = [line(item.id, f"said {item.id}") for item in reversed(items)]
    path = tmp_path / "out.tsv"
    exports.vlmevalkit_table(path, items, answers)
    data = pd.read_csv(tmp_path / "DocVQA_VAL.tsv", sep="\t").set_index("index")
    predictions = pd.read_csv(path, sep="\t").set_index("index")
    joined = data.join(predictions, rsuffix="_written")
    assert joined["prediction"].tolist() == ["said q0", "said q1", "said q2"]
    assert joined["question"].tolist() == joined["question_written"].tolist()
    assert joined["answer"].tolist() == joined["answer_written"].tolist()


def test_samples_read_back(tmp_path):
    path = tmp_path / "samples.jsonl"
    count = exports.lmms_eval_samples(
        path, ITEMS, LINES, lambda item: Ask(f"{item.question} now", 5), metric="acc"
    )
    found = [json.loads(text) for text in path.read_text("utf-8").splitlines()]
    assert count == len(found) == 2
    assert found[1] == {
        "doc_id": 1,
        "doc": {
            "index": "8",
            "question": "Which?",
            "A": "fox",
            "B": "hare",
            "answer": "B",
            "hint": "h",
        },
        "target": "B",
        "arguments": [["Which? now", {"max_new_tokens": 5}]],
        "resps": [[" B ", "None"]],
        "filtered_resps": ["B", "None"],
        "acc": 0.5,
    }
    assert found[0]["resps"] == [[NASTY]] and found[0]["doc_id"] == 0


def test_odd_characters_are_written(tmp_path):
    odd = [line("8", "half \ud800 and \0 zero")]
    exports.vlmevalkit_table(tmp_path / "a.tsv", ITEMS, odd)
    with open(tmp_path / "a.tsv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert row["prediction"] == "half \\ud800 and \0 zero"
    exports.lmms_eval_samples(tmp_path / "a.jsonl", ITEMS, odd, lambda i: Ask("q", 1))
    text = (tmp_path / "a.jsonl").read_text("utf-8")
    assert json.loads(text)["resps"] == [["half \ud800 and \0 zero"]]


def test_nothing_answered_is_a_header(tmp_path):
    path: pathlib.Path = tmp_path / "a.tsv"
    assert exports.vlmevalkit_table(path, ITEMS, []) == 0
    assert path.read_text() == '"index"\t"prediction"\n'


@pytest.mark.parametrize(
    "others, words",
    [
        ([line("8", "x", mode="cot")], "write a file of each"),
        ([line("8", "x", protocol="official")], "write a file of each"),
        ([line("99", "x")], "id='99': an answer to none of the items"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, others, words):
    for write in (
        lambda: exports.vlmevalkit_table(tmp_path / "a", ITEMS, LINES + others),
        lambda: exports.lmms_eval_samples(
            tmp_path / "a", ITEMS, LINES + others, lambda item: Ask("q", 1)
        ),
    ):
        with pytest.raises(ValueError, match=words):
            write()
    assert not (tmp_path / "a").exists()
