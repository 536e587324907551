"""MathVista: Bard's extracted answers and whole responses."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import pytest
import scored

from mpo_jax.evals.benchmarks import mathvista


@pytest.fixture(scope="module")
def folder(shared) -> pathlib.Path:
    return scored.published(shared, "mathvista")


@pytest.fixture(scope="module")
def bard(folder) -> dict[str, dict]:
    with open(folder / "output_bard.json") as file:
        return json.load(file)


@pytest.fixture(scope="module")
def own_labels(folder, tmp_path_factory) -> pathlib.Path:
    """The questions with the labels that they had when Bard was scored."""
    path = tmp_path_factory.mktemp("labels")
    shutil.copy(folder / "output_bard.json", path / "testmini.json")
    return path


def _answers(bard, field):
    return {pid: row[field] for pid, row in bard.items()}


def _table(scores: Mapping[str, Any]) -> dict:
    return {
        axis: {value: (n["correct"], n["total"]) for value, n in rows.items()}
        for axis, rows in scores.items()
        if axis != "average"
    }


def test_every_figure_is_the_authors(folder, own_labels, bard):
    found = scored.Scored(
        "mathvista", "official", own_labels, _answers(bard, "extraction")
    )
    assert (found.right, found.score) == (348, pytest.approx(34.8))
    with open(folder / "scores_bard.json") as file:
        assert _table(found.details) == _table(json.load(file))
    for one in found.graded:
        stored = bard[one.item.id]
        assert one.grade.verdict.right == stored["true_false"], one.item.id
        # In those days 3.4 was no whole number to them, now it is 3.
        if stored["prediction"] is not None:
            assert one.grade.prediction == stored["prediction"], one.item.id


def test_todays_labels_differ_in_grade_and_skills_alone(folder, own_labels, bard):
    answers = _answers(bard, "extraction")
    then = scored.Scored("mathvista", "official", own_labels, answers)
    now = scored.Scored("mathvista", "official", folder, answers)
    assert now.right == 348
    differ = {axis for axis in now.details if now.details[axis] != then.details[axis]}
    assert differ == {"grade", "skills"}


def test_whole_responses_without_a_judge(folder, bard):
    """What the rule gives where the authors' extraction (348) is by a model."""
    found = scored.Scored("mathvista", "official", folder, _answers(bard, "response"))
    pairs = [
        (one.grade.verdict.right, bard[one.item.id]["true_false"])
        for one in found.graded
    ]
    assert found.right == 256
    assert (pairs.count((True, False)), pairs.count((False, True))) == (6, 98)


def test_corrected_makes_no_option_of_nothing(own_labels, bard):
    answers = _answers(bard, "extraction")
    mended = scored.Scored("mathvista", "official", own_labels, answers, corrected=True)
    refused = [g for g in mended.graded if g.response.startswith("Sorry, I can")]
    assert len(refused) > 50
    assert not any(one.grade.points for one in refused)


def test_queries_are_the_authors(bard):
    made = {
        pid: mathvista.query(row, tuple(row["choices"] or ()))
        for pid, row in bard.items()
    }
    other = [pid for pid, row in bard.items() if made[pid] != row["query"]]
    # Their options were drawn and shuffled again after Bard was asked.
    assert len(other) == 10
    heads = [(made[p].split("Choices:")[0], bard[p]["query"]) for p in other]
    assert all(query.startswith(head) for head, query in heads)


def _item(kind: str, answer: str, options=(), precision=0):
    question = "multi_choice" if options else "free_form"
    return mathvista.Item(
        id="1",
        question="q",
        answer=answer,
        options=tuple(options),
        categories={"question_type": question, "answer_type": kind},
        fields={"precision": precision, "query": "q", "skills": ()},
    )


@pytest.mark.parametrize(
    "extraction, form",
    [
        ("B", "dog"),
        ("(b) cat", "dog"),  # the letter, whatever stands beside it
        ("dgo", "dog"),
        ("x", "cat"),  # the first of equally far ones
        ("AB", "cat"),
        ("F", "cat"),
    ],
)
def test_normalised_option(extraction, form):
    item = _item("text", "cat", ("cat", "dog"))
    assert mathvista.normalised(extraction, item) == form


@pytest.mark.parametrize(
    "kind, precision, extraction, form",
    [
        ("integer", 0, "3.7", "3"),
        ("integer", 0, "three", None),
        ("integer", 0, "inf", None),
        ("integer", 0, "1e400", None),
        ("float", 1, "1.25", "1.2"),
        ("float", 2, "7", "7.0"),
        ("float", 2, "$7", None),
        ("list", 0, "[1, 2]", "[1, 2]"),
    ],
)
def test_normalised_number(kind, precision, extraction, form):
    found = mathvista.normalised(extraction, _item(kind, "1", precision=precision))
    assert found == form


@pytest.mark.parametrize(
    "protocol, mode, response, right",
    [
        ("official", "direct", 'I think so. The answer is "5".', True),
        ("official", "direct", "5", True),
        ("official", "direct", "5.9", True),  # 5 of 5.9
        ("official", "direct", "Final answer: 5", False),
        ("official", "cot", "Final answer: 5", True),
        ("paper", "direct", "Final answer: 5", True),
        ("paper", "cot", "Answer: 4\nFinal answer: 5", False),  # the first
        ("vlmevalkit", "cot", "so\nFinal answer: 5", True),
        ("vlmevalkit", "direct", "5.0", False),
    ],
)
def test_integers_by_rule(protocol, mode, response, right):
    grade = mathvista.BENCHMARK.protocols[protocol].grade
    found = grade(_item("integer", "5"), response, mode, scored.TOOLS)
    assert found.verdict.right is right


@pytest.mark.parametrize(
    "kind, precision, answer, response, outcome",
    [
        ("integer", 0, "5", "Answer: 4\nFinal answer: 5", "right"),
        ("integer", 0, "5", "Final answer: 5.9", "wrong"),
        ("float", 1, "1.2", "Final answer: 1.21", "right"),
        ("float", 1, "1.2", "Final answer: 1.31", "wrong"),
        ("list", 0, "[1, 2]", "Final answer: [1,2]", "right"),
        ("integer", 0, "5", "first\nsecond", "wrong"),
    ],
)
def test_corrected(kind, precision, answer, response, outcome):
    grade = mathvista.BENCHMARK.protocols["paper"].corrected
    assert grade is not None
    item = _item(kind, answer, precision=precision)
    assert grade(item, response, "cot", scored.TOOLS).verdict.outcome == outcome


def test_vlmevalkit_finds_no_list_right():
    grade = mathvista.BENCHMARK.protocols["vlmevalkit"].grade
    found = grade(_item("list", "[1, 2]"), "[1, 2]", "direct", scored.TOOLS)
    assert not found.verdict.right


@pytest.mark.parametrize("protocol", ["paper", "vlmevalkit", "official"])
def test_judge(protocol):
    judge = mathvista.BENCHMARK.protocols[protocol].judge
    assert judge is not None and judge.temperature == 0.0
    item = _item("integer", "5")
    text = judge.prompt(item, "five, I {think}")
    assert text.endswith("q\n\nModel response: five, I {think}\n\nExtracted answer:")
    assert judge.parse(item, "Extracted answer: 5\nmore").verdict.right
    assert judge.parse(item, "6").verdict.outcome == "wrong"
    assert judge.parse(item, "None").verdict.rule == "unparsed"
    assert judge.parse(item, " \n").verdict.outcome == "undecided"
