"""MMMU: LLaVA-1.5-13B's stored answers by the authors' parser."""

from __future__ import annotations

import json
import pathlib

import pytest
import scored

from mpo_jax.evals import corrected, mmmu_rules


@pytest.fixture(scope="module")
def folder(shared) -> pathlib.Path:
    return scored.published(shared, "mmmu")


@pytest.fixture(scope="module")
def answers(folder) -> dict[str, str]:
    with open(folder / "llava1.5_13b_val.json") as file:
        return json.load(file)


def test_right_answers(folder, answers):
    found = scored.Scored("mmmu", "official", folder, answers)
    kinds = [(one.item.fields["kind"], one.grade.verdict.right) for one in found.graded]
    # Stored answers to options are letters already: equality is all there is to it.
    letters = sum(
        one.response in corrected.answers(one.item)
        for one in found.graded
        if one.item.fields["kind"] == "multiple-choice"
    )
    assert letters == kinds.count(("multiple-choice", True)) == 322
    right = {one.response for one in found.graded if one.grade.verdict.right}
    assert kinds.count(("open", True)) == 2 and {"3", "Step b"} <= right
    assert len(found.graded) == 900


def test_categories(folder, answers):
    found = scored.Scored("mmmu", "official", folder, answers)
    subjects = found.by("discipline", "subject")
    assert len(subjects) == 30
    assert all(total == 30 for _, total in subjects.values())
    assert len(found.by("discipline")) == 6


def test_other_protocols_know_letters_without_options(folder, answers):
    official = scored.Scored("mmmu", "official", folder, answers)
    paper = scored.Scored("mmmu", "paper", folder, answers)
    assert paper.right == official.right
    # An open question has two options there, of which B is "Other Answers".
    vlmevalkit = scored.Scored("mmmu", "vlmevalkit", folder, answers)
    right = [g.item for g in vlmevalkit.graded if g.grade.verdict.right]
    choices = [item for item in right if item.fields["kind"] == "multiple-choice"]
    assert len(choices) == 322


@pytest.mark.parametrize(
    "response, letter",
    [
        ("B", "B"),
        ("B.", "B"),
        ("(A) is wrong, (C) is right", "C"),
        ("A or B", "B"),
        ("A man walks by the river, cat", "A"),
        ("a", ""),
        ("dog", ""),  # texts count in long responses alone
        ("I think that it is the dog, no, the cat", "A"),
        ("I do not know what it is", ""),
    ],
)
def test_option(response, letter):
    assert mmmu_rules.option(response, ("cat", "dog", "cow"), "ABC") == letter


@pytest.mark.parametrize(
    "response, found",
    [
        ("3", {3.0}),
        ("1,234.567", {1234.57}),
        ("So the answer is 5 cm\nOr x = 7", {"5 cm", 5.0, 7.0}),
        ("the result is 2e3.", {2000.0}),
        ("B", {" b", "b "}),
        ("x is ", {"x is"}),
    ],
)
def test_open_answers(response, found):
    assert found <= mmmu_rules.open_answers(response)


@pytest.mark.parametrize(
    "response, answers, right",
    [
        ("It is 24.321", ("24.32",), True),
        ("24.31", ("24.32",), False),
        ("not known", ("no",), True),  # part of a text
        ("0", ("-120",), False),
        ("either", ("x", "3.429", "either"), True),
        ("Trans", ("trans-1-chloro",), False),
    ],
)
def test_open_right(response, answers, right):
    assert mmmu_rules.open_right(mmmu_rules.open_answers(response), answers) is right
