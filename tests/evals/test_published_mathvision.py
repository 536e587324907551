"""MATH-Vision: the authors' rule on two systems' outputs, item by item."""

from __future__ import annotations

import json
import pathlib

import pytest
import scored

from mpo_jax.evals.benchmarks import mathvision

SYSTEMS = {"Qwen-VL-Max": 474, "Gemini-Pro-CoT": 436}


@pytest.fixture(scope="module")
def folder(shared) -> pathlib.Path:
    return scored.published(shared, "mathvision")


def _stored(folder, system):
    return scored.lines(folder / "outputs" / f"{system}.jsonl")


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_verdict_is_the_authors(folder, system):
    rows = {row["id"]: row for row in _stored(folder, system)}
    answers = {name: row["response"] for name, row in rows.items()}
    found = scored.Scored("mathvision", "official", folder, answers)
    assert found.right == SYSTEMS[system] and len(found.graded) == 3040
    for one in found.graded:
        stored = rows[one.item.id]
        assert one.grade.prediction == stored["model_answer"], one.item.id
        assert one.grade.verdict.right == stored["correct"], one.item.id


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_category_is_the_authors(folder, system):
    rows = {row["id"]: row["response"] for row in _stored(folder, system)}
    found = scored.Scored("mathvision", "official", folder, rows)
    with open(folder / "outputs" / f"{system}_result.json") as file:
        table = json.load(file)
    ours = {"-all": (found.right, 3040)}
    ours |= {f"-level{level}": n for (level,), n in found.by("level").items()}
    ours |= {subject: n for (subject,), n in found.by("subject").items()}
    for (level, subject), counts in found.by("level", "subject").items():
        ours[f"-level{level}_{subject}"] = ours[f"{subject}_level{level}"] = counts
    assert {key: f"{n}/{of}" for key, (n, of) in ours.items()} == {
        key: value.split("=")[0] for key, value in table.items()
    }


def test_testmini_is_a_part(folder):
    mini = scored.read("mathvision_testmini", folder)
    whole = {item.id: item for item in scored.read("mathvision", folder)}
    assert len(mini) == 304
    assert all(whole[item.id] == item for item in mini)


@pytest.mark.parametrize(
    "response, answer",
    [
        ("so it is (B).", "b"),
        ("A\nbecause", "a"),
        ("The answer is 12. That is all.", "12"),
        ("first \\boxed{3}, then \\boxed{4}", "4"),
        ("\\boxed{x=\\frac12 \\text{ km}}", "\\frac12"),
        ("\\boxed{0.5}", "\\frac{1}{2}"),
        ("\\boxed{3/4}", "\\frac{3}{4}"),
        ("\\boxed{\\sqrt3}", "\\sqrt{3}"),
        ("$\\boxed{$.25}$", "0.25"),
        ("\\boxed{{B}}", "b"),
        ("", ""),
    ],
)
def test_extracted(response, answer):
    assert mathvision.extracted(response) == answer


@pytest.mark.parametrize(
    "said, true, same",
    [
        ("b", "B", True),
        ("\\frac{1}{12}", "1/13", True),  # two decimals
        ("\\frac{1}{12}", "1/15", False),
        ("(1/2, 3)", "(0.5,3)", True),
        ("(1/2, 3)", "(3,0.5)", False),
        ("[a,\\infty]", "[a, \\infty]", False),
        ("x", "y", False),
        (" ", "", False),
        ("10:30", "$\\frac{1}{3}$", True),  # a quotient
    ],
)
def test_equal(said, true, same):
    assert mathvision.equal(said, true) is same


def test_an_option_counts_by_its_text_too():
    item = mathvision.Item(
        id="1", question="q", answer="B", options=("$1$", "$\\frac{1}{4}$", "3")
    )
    grade = mathvision.BENCHMARK.protocols["official"].grade
    for response, right in (("B", 1), ("0.25", 1), ("1", 0), ("$", 0)):
        found = grade(item, response, "direct", scored.TOOLS)
        assert found.points == right, response
    assert found.verdict.rule == "unparsed"


def test_vlmevalkit_without_a_judge():
    grade = mathvision.BENCHMARK.protocols["vlmevalkit"].grade
    free = mathvision.Item(id="1", question="q", answer="$\\frac{1}{12}$")
    for response, right in (
        ("\\boxed{\\frac{1}{12}}", False),  # its box ends at the first brace
        ("so\nFinal answer: 1/12", True),
        ("so\nFinal answer: 1/13", False),
    ):
        found = grade(free, response, "cot", scored.TOOLS)
        assert found.points == right, response
    item = mathvision.Item(
        id="1", question="q", answer="B", options=("one cat", "two dogs")
    )
    for response, right, rule in (
        ("it is two dogs", 1, "text, option or value"),
        ("A", 0, "text, option or value"),
        ("A or B", 0, "unparsed"),
    ):
        found = grade(item, response, "direct", scored.TOOLS)
        assert (found.points, found.verdict.rule) == (right, rule)
