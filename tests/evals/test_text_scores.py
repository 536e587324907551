"""Scores of short answers against plain definitions and hand-made tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo_jax.evals import edit_distance, text_scores

short = st.text(alphabet="abcé ", max_size=12)


def by_table(left: str, right: str) -> int:
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


@given(short, short)
def test_levenshtein_is_the_distance(left, right):
    assert edit_distance.levenshtein(left, right) == by_table(left, right)


def test_levenshtein_of_long_texts():
    left, right = "ab" * 400 + "x", "ba" * 300 + "y" * 90  # beyond a machine word
    assert edit_distance.levenshtein(left, right) == by_table(left, right)
    assert edit_distance.levenshtein("x" * 300, "x" * 100_000) == 99_700


@pytest.mark.parametrize(
    "answer, truths, points",
    [
        ("19 March  2001", ["19 march 2002"], 1 - 1 / 13),
        ("xyz", ["12345"], 0.0),
        ("abcd", ["abxy"], 0.5),  # the threshold itself counts
        ("abcd", ["axyz"], 0.0),
        ("abc", ["zzz", "abd"], 2 / 3),
        ("", ["a"], 0.0),
        ("", [" "], 1.0),
        ("None", ["none"], 1.0),
        ("a " * 20_000, ["a"], 0.0),
        ("twenty", ["twentytwenty"], 0.5),
    ],
)
def test_likeness(answer, truths, points):
    found = max(text_scores.likeness(answer, truth) for truth in truths)
    assert found == pytest.approx(points)


@pytest.mark.parametrize(
    "answer, truth, right",
    [
        ("104", "100", True),
        ("105", "100", True),
        ("105.1", "100", False),
        ("95", "100", True),
        ("94.9", "100", False),
        ("-104", "-100", True),
        ("104", "-100", False),
        ("0", "0", True),
        ("0.0", "0", False),  # a truth of 0 wants its text
        ("0.04", "0", False),
        ("50%", "0.5", True),
        ("50%", "50", False),  # as released
        ("50", "50%", False),
        ("51%", "50%", True),
        ("2011", "2012", True),  # years are numbers
        ("1,000", "1000", False),  # and this is none
        ("None", "none", True),
        ("Yes", "yes", True),
        ("yes.", "yes", False),
        ("nan", "3", False),
        ("nan", "nan", True),
        ("inf", "inf", True),
        ("5", "inf", False),
        ("%", "3", False),
        ("3 cm", "3", False),
    ],
)
def test_relaxed_accuracy(answer, truth, right):
    assert text_scores.relaxed(answer, truth) is right


@pytest.mark.parametrize(
    "text, normal",
    [
        ("The dog", "dog"),
        ("two", "2"),
        ("None", "0"),
        ("30,594", "30594"),
        ("a, b", "b"),
        ("Coca-Cola", "coca cola"),
        ("Coca- Cola", "coca cola"),
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("im", "im"),  # its entry in the table has a capital letter
        ("what?", "what"),
        ("John's", "john 's"),
        ("a\nb\tc", "b c"),
        ("A.", ""),  # the articles' rule
        ("x" + "." * 40, "x" + "." * 8),  # 32 periods at most
    ],
)
def test_the_normaliser_of_the_vqa_challenge(text, normal):
    assert text_scores.evalai(text) == normal


def test_vlmevalkits_normaliser_keeps_some_marks_longer():
    assert text_scores.evalai("John's", commas=False) == "john's"
    assert text_scores.evalai("red,blue", commas=False) == "red blue"
    assert text_scores.evalai("red,blue") == "redblue"


@pytest.mark.parametrize(
    "count, points", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_soft_accuracy_over_ten_answers(count, points):
    truths = ["yes"] * count + ["no"] * (10 - count)
    assert text_scores.soft_accuracy("yes", truths) == pytest.approx(points)


def test_words_in_common():
    assert text_scores.token_f1("The red car", "a red bus") == pytest.approx(0.5)
    assert text_scores.token_f1("red red", "red") == pytest.approx(2 / 3)
    assert text_scores.token_f1("", "red") == 0
    assert text_scores.contains_words("It is 3.50 euros.", "3.50")
    assert not text_scores.contains_words("It is 13", "3")
    assert not text_scores.contains_words("It is 3.5", "3")
    assert text_scores.contains_words("x = -1 or x = -5", "-5")
    assert not text_scores.contains_words("anything", "the")
