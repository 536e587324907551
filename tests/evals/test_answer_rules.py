"""Small rules that benchmarks share."""

from __future__ import annotations

import math
import random

import pytest

from mpo_jax.evals import arithmetic, edit_distance, extract, latex_text, vlmevalkit


@pytest.mark.parametrize(
    "text, answer",
    [
        ("a\nFinal answer: 3 \nAnswer: 4", "3"),
        ("answer:\n\n B", "B"),
        ("none here", "none here"),
        ("final ANSWER:", ""),
    ],
)
def test_quick_takes_the_first(text, answer):
    assert extract.quick(text) == answer


@pytest.mark.parametrize(
    "text, cot, direct",
    [
        ("a\nFinal answer: 3\nFinal answer: 4", "4", "4"),
        ("So the answer is 3.\n\nI hope this helps!", "3", "3"),
        ("B</s>", "B", "B"),
        ("The answer to the question is (D) no.<|im_end|>", "(D) no", "(D) no"),
        ("**Answer**: B. 12 cm", "B. 12 cm", "B. 12 cm"),
        ("the answer is definitely **(A) Yes**.", "(A) Yes", "(A) Yes"),
        ("Hence, the correct choice is (C). Bye", "(C)", "(C)"),
        ("x \\boxed{\\frac{1}{2}} y", "\\frac{1}{2}", "\\frac{1}{2}"),
        ("答案是 12。", "12", "12"),
        ("A\n\nbecause the answer is in it", "in it", "A"),
        ("(A) the answer is option B", *["(A) the answer is option B"] * 2),
        ("one\ntwo", "", "one"),
        ("The answers are many\nfoo", "", "The answers are many"),
        ("3.5 cm. It is so", "3.5 cm", "3.5 cm"),
        (" ", "", ""),
    ],
)
def test_final_answer(text, cot, direct):
    assert extract.final_answer(text, "cot") == cot
    assert extract.final_answer(text, "direct") == direct


def test_final_answer_is_quick_on_long_texts():
    for text in ("answer " * 50_000, "answer to " * 20_000, "\\boxed{" * 50_000):
        assert isinstance(extract.final_answer(text, "cot"), str)


def _distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
        row = new
    return row[-1]


def test_levenshtein_is_that_of_the_table():
    draw = random.Random(0)
    for _ in range(400):
        a, b = ("".join(draw.choices("abc", k=draw.randrange(9))) for _ in range(2))
        assert edit_distance.levenshtein(a, b) == _distance(a, b), (a, b)
    long = "abcdefghij" * 20
    assert edit_distance.levenshtein(long, "x" + long[:-1]) == 2
    assert edit_distance.nearest("cot", ("dog", "cat", "cut")) == 1


@pytest.mark.parametrize(
    "text, value",
    [
        ("2+3*4", 14),
        ("-3^2", -9),
        ("2^{-2}", 0.25),
        ("\\frac12", 0.5),
        ("\\frac{3^{1008}-1}{3^{1009}}", 1 / 3),
        ("4\\sqrt{3}", 4 * math.sqrt(3)),
        ("\\sqrt[3]{8}", 2),
        ("2\\pi(1-.5)", math.pi),
        ("$1: 4$", 0.25),
        ("79,501", 79501),
        ("2^{12} 13^2", 4096 * 169),
        ("1/0", None),
        ("x", None),
        ("3 cm", None),
        ("(1", None),
        ("", None),
        ("(-8)^{1/3}", None),
        ("9^{9^{9^9}}", None),
        ("2^{-99999999}", None),
        ("10^{1000}", None),
        ("(" * 200, None),
        ("1" * 300, None),
        ("__import__('os')", None),
        ("1.2.3", None),
    ],
)
def test_value(text, value):
    found = arithmetic.value(text)
    assert found == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    "text, boxed",
    [
        ("\\boxed{1} \\boxed{\\frac{2}{3}}", "\\frac{2}{3}"),
        ("\\fbox{4}", "4"),
        ("\\boxed{1", None),
        ("none", None),
        ("\\boxed{}", ""),
    ],
)
def test_last_boxed(text, boxed):
    assert latex_text.last_boxed(text) == boxed


OPTIONS = ("a red car", "a blue car", "nothing of these")


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"),
        ("(B).", "B"),
        ("A or B", ""),
        ("B is what I would say in this case", ""),  # not among the last five words
        ("the option is B", "B"),
        ("so B is this one", "B"),  # the last but four
        ("B is this one here", ""),
        ("A blue car", "A"),
        ("It is a BLUE car", "B"),
        ("red", ""),
        ("a red car, or a blue car", ""),
        ("Z", "Z"),
        ("Cannot determine the answer", "Z"),
        ("x " * 60 + "a red car", ""),  # longer than twice the options
        ("", ""),
    ],
)
def test_option_inferred(answer, letter):
    assert vlmevalkit.infer(answer, OPTIONS) == letter


def test_chinese_questions_are_asked_in_chinese():
    text = vlmevalkit.multiple_choice("哪个？", ("x", "y"))
    assert text == "哪个？\nA. x\nB. y\n请直接回答选项字母。"
