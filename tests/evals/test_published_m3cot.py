"""M3CoT: three stored runs by the authors' rule and by InternVL's."""

from __future__ import annotations

import pathlib

import pytest
import scored

from mpo_jax.evals import choices


@pytest.fixture(scope="module")
def folder(shared) -> pathlib.Path:
    return scored.published(shared, "m3cot")


def _answers(folder, run):
    rows = scored.lines(folder / f"{run}.jsonl")
    return {
        row["id"]: row["text"] if "text" in row else row["messages"][-1] for row in rows
    }


@pytest.mark.parametrize(
    "run, official, paper",
    [
        ("llava-13b_cot", 915, 806),
        ("llava-13b_direct", 627, 871),
        ("gemini_direct", 1046, 1026),
    ],
)
def test_right_answers(folder, run, official, paper):
    mode = run.rpartition("_")[2]
    answers = _answers(folder, run)
    for protocol, right in (("official", official), ("paper", paper)):
        found = scored.Scored("m3cot", protocol, folder, answers, mode)
        assert (found.right, len(found.graded)) == (right, 2318)


def test_the_published_figure(folder):
    answers = _answers(folder, "llava-13b_cot")
    found = scored.Scored("m3cot", "official", folder, answers, "cot")
    assert round(found.score, 2) == 39.47
    domains = found.by("domain")
    assert {name[0]: total for name, (_, total) in domains.items()} == {
        "science": 1622,
        "commonsense": 455,
        "mathematics": 241,
    }


def test_end_tokens_are_no_part_of_a_word(folder):
    """The authors' rule finds no letter in ``B</s>``; the corrected one does."""
    answers = {
        name: text
        for name, text in _answers(folder, "llava-13b_direct").items()
        if len(text.removesuffix("</s>")) == 1
    }
    assert len(answers) == 455
    released = scored.Scored("m3cot", "official", folder, answers)
    mended = scored.Scored("m3cot", "official", folder, answers, corrected=True)
    # One letter is found where it is the text of an option.
    assert released.right < 20 < 200 < mended.right
    assert all(one.grade.prediction for one in mended.graded)


OPTIONS = ("red", "green", "Blue sky")


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("(b) no, (c)", "C"),
        ("(z)", "Z"),
        ("it is RED or green", "B"),
        ("A, or C!", "C"),
        ("B.", "B"),
        ("a or b", "B"),
        ("x [Answer] (A) [Rationale] (B)", "A"),
        ("[Answer] (A) [Answer] (B) [Context] (C)", "B"),
        ("B</s>", ""),
        ("none", ""),
    ],
)
def test_authors_rule(answer, letter):
    assert choices.m3cot(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("b", "b"),
        ("A man", "A"),
        ("the Blue sky", "C"),
        ("so green and red", "A"),  # the first option whose text occurs
        ("(B) x", "B"),
        ("D. x", "D"),
        ("(B", "(B"),
        ("(", "("),
        ("  ", ""),
    ],
)
def test_internvls_rule(answer, letter):
    assert choices.internvl(answer, OPTIONS) == letter
