"""Multiple choice: letters, texts, values."""

from __future__ import annotations

import pytest
from judged import judged, rule

from mpo_jax.verify import options

ANIMALS = ("dog", "cat", "a man on a horse", "fish")
FORMS = [
    *("B", "b", "(B)", "(b)", "B.", "B)", "B:", "**B**", "$B$", "\\boxed{B}", "Ｂ"),
    *("\\text{B}", "(\\text{B})", "Option B", "option (B)", "The answer is B."),
    *("The correct answer is (B).", "Answer: B", "Therefore, the answer is B",
      "答案：B", "选B", "选项B", "答案是 B。", "故选：B", "正确答案是B"),
]  # fmt: skip


@pytest.mark.parametrize("said", FORMS)
def test_a_letter_in_many_dresses(said):
    assert judged(said, "B", *ANIMALS) == "right"
    assert judged(said, "A", *ANIMALS) == "wrong"
    assert judged(said, "B") == "right"
    assert judged(said, "C") == "wrong"


@pytest.mark.parametrize("gold", ["B", "(B)", "B.", "b", "B. cat", "(B) cat", "cat"])
def test_the_truth_too(gold):
    assert judged("B", gold, *ANIMALS) == "right"
    assert judged("cat", gold, *ANIMALS) == "right"
    assert judged("A", gold, *ANIMALS) == "wrong"
    assert judged("dog", gold, *ANIMALS) == "wrong"


@pytest.mark.parametrize(
    "said",
    [
        *("B. cat", "B) cat", "(B) cat", "B: Cat.", "B cat", "cat (B)", "(B), cat"),
        *(
            "The answer is (B) cat",
            "B. a cat",
            "B, because it purrs",
            "B because it is",
        ),
        *("The animal in the picture is (B).", "The right one is B", "动物是B"),
        *("Cat", "the cat", "The answer is: the cat.", "It is a cat", "**cat**"),
    ],
)
def test_with_the_options_text(said):
    assert judged(said, "B", *ANIMALS) == "right"
    assert judged(said, "D", *ANIMALS) == "wrong"


def test_an_article_is_no_option():
    assert judged("A man on a horse", "A", *ANIMALS) == "wrong"
    assert judged("A man on a horse", "C", *ANIMALS) == "right"
    assert judged("A man", "A", *ANIMALS) == "undecided"
    assert judged("A man", "A") == "undecided"
    assert judged("I think so", "I") == "undecided"


@pytest.mark.parametrize(
    "said",
    [
        *("A or B", "B or C", "A and B", "A, B", "A) or B)", "(A) (B)", "Not B"),
        *("B. dog", "(B) fish", "B is wrong, so A", "B, not A", "neither", "dog (B)"),
        *(
            "The one that is not (B) is (A)",
            "It is not B",
            "B. not a dog",
            "B, because C is wrong",
            "cat or dog",
            "AB",
        ),
    ],
)
@pytest.mark.parametrize("gold", ["B", "A"])
def test_two_letters_or_a_contradiction_are_undecided(said, gold):
    assert judged(said, gold, *ANIMALS) == "undecided"


def test_names_of_what_kept_from_deciding():
    assert rule("A or B", "B", *ANIMALS) == "ambiguous"
    assert rule("A or B", "B") == "ambiguous"
    assert rule("B. dog", "B", *ANIMALS) == "option_contradiction"


def test_a_letter_beyond_the_options_is_wrong():
    assert judged("E", "B", *ANIMALS) == "wrong"
    assert judged("(H)", "B", *ANIMALS) == "wrong"
    assert judged("F", "E", "1", "2", "3", "4", "5") == "wrong"


@pytest.mark.parametrize(
    "said, gold, outcome",
    [
        ("60", "C", "right"),
        ("60°", "C", "right"),
        ("60 degrees", "C", "right"),
        ("$60^\\circ$", "C", "right"),
        ("C. 60", "C", "right"),
        ("B. 60", "C", "undecided"),
        ("B. 61", "B", "undecided"),
        ("B 60", "C", "undecided"),
        ("30", "C", "wrong"),
        ("61", "C", "wrong"),
        ("C", "60", "right"),
        ("B", "60^\\circ", "wrong"),
        ("D", "60", "wrong"),
        ("\\frac{90}{1}", "D", "right"),
        ("6", "C", "wrong"),
        ("-60", "C", "wrong"),
    ],
)
def test_the_options_value(said, gold, outcome):
    options = ("$30^{\\circ}$", "$45^{\\circ}$", "$60^{\\circ}$", "$90^{\\circ}$")
    assert judged(said, gold, *options) == outcome


def test_options_that_are_letters():
    letters = ("A", "B", "C", "D", "C or D")
    assert judged("D", "D", *letters) == "right"
    assert judged("C or D", "E", *letters) == "right"
    assert judged("C or D", "D", *letters) == "wrong"
    assert judged("E", "E", *letters) == "right"
    assert judged("3", "C", *letters) == "undecided"
    for form in ("(A)", "A)", "A."):
        options = [form.replace("A", letter) for letter in "ABCD"]
        assert judged("B", "B", *options) == "right"
        assert judged("(C)", "B", *options) == "wrong"


def test_options_that_are_other_letters():
    """The fifth letter or the text of the fourth option?"""
    letters = ("A", "B", "C", "E", "Impossible to determine")
    assert judged("D", "D", *letters) == "right"
    assert judged("E", "D", *letters) == "undecided"
    assert judged("E", "A", *letters) == "wrong"
    assert judged("Impossible to determine", "E", *letters) == "undecided"
    assert judged("E", "E", *letters) == "right"
    assert judged("D. E", "D", *letters) == "right"


def test_duplicate_texts_are_ambiguous():
    options = ("5", "7", "7", "9")
    assert judged("7", "B", *options) == "undecided"
    assert judged("7", "A", *options) == "wrong"
    assert judged("C", "B", *options) == "wrong"
    assert judged("B. 7", "B", *options) == "right"
    assert judged("B", "7", *options) == "undecided"


def test_yes_and_no_as_options():
    assert judged("Yes, because it is", "A", "Yes", "No") == "right"
    assert judged("No", "A", "Yes", "No") == "wrong"
    assert judged("B", "no", "Yes", "No") == "right"
    assert judged("是", "A", "是", "否") == "right"


def test_several_right_options():
    options = ("1", "2", "3", "4")
    assert judged("A, C", "AC", *options) == "right"
    assert judged("AC", "A,C", *options) == "right"
    assert judged("A and C", "AC", *options) == "right"
    assert judged("A", "AC", *options) == "wrong"
    assert judged("AD", "AC", *options) == "wrong"


def test_without_options_letters_compare_with_letters():
    assert judged("B. cat", "B") == "right"
    assert judged("(B) cat", "B") == "right"
    assert judged("C) cat", "B") == "wrong"
    assert judged("cat", "B") == "undecided"
    assert judged("5", "B") == "undecided"
    assert judged("B", "B. cat", kind="option") == "right"
    assert judged("cat", "B. cat", kind="option") == "right"
    assert judged("b", "B", kind="option") == "right"
    assert judged("(B)", "b") == "right"
    assert judged("a", "b") == "wrong"
    assert judged("X", "x") != "right"
    assert judged("(B) 4", "C. 4") != "right"
    assert judged("B", "5") == "undecided"  # the letter may be that of the 5


def test_mathematics_is_asked_about_the_options_text():
    from mpo_jax.verify import ladder
    from mpo_jax.verify.verdict import Truth

    truth = Truth("B", ("$2$", "$\\sqrt{2}-1$"))
    assert ladder.decide("$-1+\\sqrt{2}$", truth) is None
    said, gold = ladder.for_mathematics("$-1+\\sqrt{2}$", truth)
    assert (said, gold) == ("-1+\\sqrt{2}", "\\sqrt{2}-1")


def test_values_of_options_allow_no_tolerance():
    from mpo_jax.verify.policy import Policy

    policy = Policy(relative=0.05)
    assert judged("102", "B", "100", "102", policy=policy) == "right"
    assert judged("101", "B", "100", "102", policy=policy) == "wrong"


def test_a_sign_is_no_separator():
    options = ("1 km", "2 km", "-0.4 km")
    for said in ("(C) -0.4 km", "C) -0.4 km", "(C): -0.4 km"):
        assert judged(said, "C", *options) == "right"
    assert rule("(C) -2 km", "C", *options) == "option_contradiction"
    assert judged("(B) - red", "B", "blue", "red") == "right"


@pytest.mark.parametrize("said", ["A, b, c", "A. b", "A) b and c", "(A) b"])
def test_further_letters_are_further_answers(said):
    assert rule(said, "A", "x", "y", "z") == "ambiguous"
    assert rule(said, "A") == "ambiguous"
    assert judged("A. b", "A", "b", "a") == "right"


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("Which?\nA. red\nB. blue", ("red", "blue")),
        ("Which?\n(A) red\n(B) dark blue\n(C) 3\n", ("red", "dark blue", "3")),
        ("Which? (A) red (B) blue (C) I don't know", ("red", "blue", "I don't know")),
        ("选哪个？\nA、红\nB、蓝", ("红", "蓝")),
        ("Which?\nA: red\nB: blue\nAnswer with the letter.", ("red", "blue")),
        ("In triangle (A) is right.", ()),
        ("A. Smith and B. Jones meet.", ()),
        ("Which?\nA. red\nC. blue", ()),
        ("Which?\nB. red\nC. blue", ()),
        ("Which?\nA. \nB. blue", ()),
        ("As in:\nA. one\nB. two\nbut which?\nA. red\nB. blue", ("red", "blue")),
        ("What is f(A) + f(B)?", ()),
        ("", ()),
    ],
)
def test_options_are_found_in_a_question(question, found):
    assert options.in_question(question) == found
