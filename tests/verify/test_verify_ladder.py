"""Yes and no, words, times, dates, lists, equations: what is settled, and what goes to
mathematics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import judged, rule

from mpo_jax.verify import ladder
from mpo_jax.verify.policy import DEFAULT
from mpo_jax.verify.verdict import KINDS, OUTCOMES, Truth


@pytest.mark.parametrize(
    "said, gold, outcome",
    [
        ("Yes", "yes", "right"),
        ("yes.", "Yes", "right"),
        ("**No**", "no", "right"),
        ("Yes, because it is.", "yes", "right"),
        ("No. There is none.", "yes", "wrong"),
        ("The answer is yes.", "Yes", "right"),
        ("yes", "no", "wrong"),
        ("True", "true", "right"),
        ("False", "true", "wrong"),
        ("true", "yes", "undecided"),
        ("yes", "True", "undecided"),
        ("yes and no", "yes", "undecided"),
        ("Yes, no", "yes", "undecided"),
        ("yes or no", "no", "undecided"),
        ("No. 5", "no", "undecided"),
        ("Nothing", "no", "undecided"),
        ("not sure", "no", "undecided"),
        ("Yesterday", "yes", "undecided"),
        ("是", "是", "right"),
        ("是的", "是", "right"),
        ("是，因为它是红色的", "是", "right"),
        ("否", "是", "wrong"),
        ("不是", "否", "right"),
        ("是", "yes", "right"),
        ("错误", "正确", "wrong"),
        ("对", "正确", "right"),
        ("不对", "错", "right"),
        ("是", "对", "undecided"),
        ("是否", "是", "undecided"),
        ("yes", "5", "undecided"),
    ],
)
def test_yes_and_no(said, gold, outcome):
    assert judged(said, gold) == outcome


def test_under_its_kind_yes_is_true():
    assert judged("true", "yes", kind="yes_no") == "right"
    assert judged("false", "yes", kind="yes_no") == "wrong"
    assert judged("N", "no", kind="yes_no") == "right"
    assert judged("N", "no") == "undecided"
    assert judged("5", "yes", kind="yes_no") == "undecided"


@pytest.mark.parametrize(
    "said, gold, outcome",
    [
        ("Paris", "paris", "right"),
        ("the Eiffel  Tower.", "Eiffel tower", "right"),
        ("“red”", "red", "right"),
        ("\\text{blue}", "Blue", "right"),
        ("cat", "dog", "undecided"),
        ("a cat", "catalogue", "undecided"),
        ("北京", "北京。", "right"),
        ("北京", "上海", "undecided"),
        ("ＡＢＣ", "abc", "right"),
        ("5", "cat", "undecided"),
        ("", "cat", "undecided"),
        ("cat", "", "undecided"),
        ("inside", "in side", "undecided"),
    ],
)
def test_words(said, gold, outcome):
    assert judged(said, gold) == outcome


def test_under_the_kind_text_other_words_are_wrong():
    assert judged("The cat.", "cat", kind="text") == "right"
    assert judged("dog", "cat", kind="text") == "wrong"
    assert judged("5.0", "5", kind="text") == "wrong"


@pytest.mark.parametrize(
    "said, gold, outcome",
    [
        ("10:30", "10:30", "right"),
        ("10 : 30", "10:30", "right"),
        ("10：30", "10:30", "right"),
        ("10:30", "10:45", "wrong"),
        ("10:30", "11:30", "wrong"),
        ("10:30 am", "10:30 a.m.", "right"),
        ("10:30AM", "10:30 am", "right"),
        ("10:30 am", "10:30 pm", "wrong"),
        ("22:30", "10:30 pm", "right"),
        ("22:30", "10:30 am", "wrong"),
        ("10:30", "10:30 am", "right"),
        ("4:30", "\\text{4:30 p.m.}", "undecided"),
        ("4:30 \\text{ p.m.}", "\\text{4:30 p.m.}", "right"),
        ("12:00 am", "0:00", "right"),
        ("12:15 pm", "12:15", "undecided"),
        ("10:30:00", "10:30", "right"),
        ("10:30:15", "10:30", "undecided"),
        ("10 am", "10:00 am", "right"),
        ("3 o'clock", "3:00", "right"),
        ("3 o'clock", "4:00", "wrong"),
        ("下午3点20分", "15:20", "right"),
        ("3点20分", "3:20", "right"),
        ("10:30", "10.5", "undecided"),
        ("10:30", "1030", "undecided"),
        ("6.30 pm", "6:30 pm", "right"),
        ("6.30", "6:30", "undecided"),
        ("10:75", "10:75", "right"),
    ],
)
def test_times(said, gold, outcome):
    assert judged(said, gold) == outcome
    assert judged(gold, said) == outcome


def test_a_time_that_may_be_a_ratio():
    assert judged("12:36", "10:30") == "undecided"
    assert judged("12:36", "10:30", kind="time") == "wrong"
    assert judged("half past ten", "10:30", kind="time") == "undecided"


@pytest.mark.parametrize(
    "said, gold, outcome",
    [
        ("19 March 2001", "2001-03-19", "right"),
        ("March 19, 2001", "2001-03-19", "right"),
        ("19th of March, 2001", "Mar 19 2001", "right"),
        ("Monday, 19 March 2001", "19 March 2001", "right"),
        ("2001/3/19", "2001-03-19", "right"),
        ("2001年3月19日", "19 March 2001", "right"),
        ("19/03/2001", "2001-03-19", "right"),
        ("19 March 2001", "19 March 2002", "wrong"),
        ("19 March 2001", "20 March 2001", "wrong"),
        ("19 March 2001", "19 May 2001", "wrong"),
        ("03/04/2001", "03/04/2001", "right"),
        ("03/04/2001", "3 April 2001", "undecided"),
        ("03/04/2001", "4 April 2001", "wrong"),
        ("03/03/2001", "3 March 2001", "right"),
        ("March 2001", "19 March 2001", "undecided"),
        ("March 2001", "19 April 2001", "wrong"),
        ("19 March", "March 19", "right"),
        ("3月19日", "19 March", "right"),
        ("2001", "19 March 2001", "undecided"),
        ("in the spring", "19 March 2001", "undecided"),
        ("45 March 2001", "19 March 2001", "undecided"),
    ],
)
def test_dates(said, gold, outcome):
    assert judged(said, gold) == judged(gold, said) == outcome
    assert judged(said, gold, kind="date") == outcome


@pytest.mark.parametrize(
    "said, gold, outcome",
    [
        ("1:2", "1 : 2", "right"),
        ("8: 5", "$8: 5$", "right"),
        ("1:2", "2:4", "undecided"),
        ("1:2", "1:3", "wrong"),
        ("1:2:3", "1:2:3", "right"),
        ("1:2:3", "1:2", "undecided"),
        ("3 to 4", "3:4", "right"),
        ("1:4", "\\frac{1}{4}", "right"),
        ("1:4", "4", "undecided"),
        ("3:1", "3", "undecided"),
        ("1:2", "0.5", "right"),
        ("1:4", "1/3", "undecided"),
    ],
)
def test_ratios(said, gold, outcome):
    assert judged(said, gold) == judged(gold, said) == outcome


@pytest.mark.parametrize(
    "said, gold, outcome",
    [
        ("1, 2, 3", "1,2,3", "right"),
        ("1,2,3.0", "1, 2, 3", "right"),
        ("[1, 2]", "1, 2", "right"),
        ("1 and 2", "1, 2", "right"),
        ("1, 2 and 3", "1, 2, 3", "right"),
        ("1、2和3", "1,2,3", "right"),
        ("{2, 1}", "\\{1, 2\\}", "right"),
        ("{1,2}", "{1, 3}", "wrong"),
        ("2 and 1", "1 and 2", "undecided"),
        ("2 or 1", "1 or 2", "right"),
        ("3, 2, 1", "1, 2, 3", "undecided"),
        ("1, 2, 4", "1, 2, 3", "wrong"),
        ("1, 2", "1, 2, 3", "wrong"),
        ("4 or 5", "4, 5", "right"),
        ("5", "4, 5", "undecided"),
        ("4 or 5", "5", "undecided"),
        ("(3, -4)", "(3,-4)", "right"),
        ("(3, \u22124)", "\\left(3, -4\\right)", "right"),
        ("(-4, 3)", "(3,-4)", "wrong"),
        ("3, -4", "(3,-4)", "right"),
        ("(0.5, 2)", "(\\frac{1}{2}, 2)", "right"),
        ("(1,2]", "[1,2]", "wrong"),
        ("(1,2]", "(1,2)", "wrong"),
        ("[1,2)", "[1, 2.0)", "right"),
        ("(1,2)", "[1,2]", "undecided"),
        ("(1,2)", "{1,2}", "undecided"),
        ("1,2", "(1,2]", "undecided"),
        ("[2,1]", "[1,2]", "undecided"),
        ("1,234, 5", "1234, 5", "right"),
        ("(100,200)", "(100, 200)", "right"),
        ("{1,1,2}", "{1,2}", "undecided"),
        ("x = 1, 2", "1, 2", "right"),
        ("1; 2", "1, 2", "right"),
        ("x = 2 or x = 3", "2, 3", "right"),
        ("x = 3 or x = 2", "x=2, x=3", "right"),
        ("x = 2 or y = 3", "2, 3", "undecided"),
        ("5 or -5", "±5", "right"),
        ("\\pm 5", "5, -5", "right"),
        ("±5", "5", "undecided"),
        ("5, since it is odd", "5, 6", "undecided"),
        ("5, I think", "1, 2, 3", "undecided"),
        ("Tom and Jerry", "Jerry and Tom", "undecided"),
        ("Tom or Jerry", "Jerry or Tom", "right"),
        ("3, 2 and 1", "1, 2 and 3", "undecided"),
        ("red, blue", "red, green", "undecided"),
        ("(1, \\sqrt{2})", "(1, 2^{0.5})", "maths"),
        ("(2, \\sqrt{2})", "(1, 2^{0.5})", "wrong"),
        ("\\{\\sqrt{2}, 1\\}", "\\{1, 2^{0.5}\\}", "maths"),
        ("1 cm, 2 cm", "10 mm, 20 mm", "right"),
        ("(1,2),(3,4)", "(1, 2), (3, 4)", "right"),
        ("(1,2),(3,4)", "(1,2),(3,5)", "wrong"),
    ],
)
def test_lists(said, gold, outcome):
    assert judged(said, gold) == outcome


@pytest.mark.parametrize(
    "said, gold, outcome",
    [
        ("3x+4y+14=0", "3x-y+13=0", "undecided"),
        ("3x + 4y + 14 = 0", "3x+4y+14=0", "right"),
        ("y = 2x+1", "y=2x+1", "right"),
        ("y = 1+2x", "y=2x+1", "maths"),
        ("y=2x+1", "2x+1", "right"),
        ("x > 5", "x \\ge 5", "undecided"),
        ("x \\leq 5", "x ≤ 5", "right"),
        ("x^{2}", "x^2", "right"),
        ("x ^ 2 + 1", "x^2+1", "right"),
        ("x^2+1", "1+x^2", "maths"),
        ("7\\pi", "7π", "right"),
        ("7\\pi", "\\pi7", "maths"),
        ("7 \\pi \\mathrm{~cm}", "7\\pi", "right"),
        ("\\sqrt{2} cm", "\\sqrt{2} kg", "undecided"),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}", "maths"),
        ("\\sqrt{4}", "2", "maths"),
        ("4t", "4t", "right"),
        ("4a-2", "4a - 2", "right"),
        ("\\sqrt{2}", "the root of two", "undecided"),
        ("\\sqrt{2}:1", "1.41:1", "undecided"),
        ("50\\sqrt{2}\\%", "50\\sqrt{2}", "undecided"),
        ("x=\\sqrt{2}", "\\sqrt{2}", "right"),
        ("x^{10}", "x^10", "maths"),
        ("e^{x}", "E^{x}", "maths"),
    ],
)
def test_mathematics(said, gold, outcome):
    assert judged(said, gold) == outcome


@pytest.mark.parametrize(
    "said, gold",
    [
        *(("5 a.m.", "5"), ("5 th", "5"), ("5-", "5"), ("5^", "5"), ("2nd", "2")),
        *(("10-12", "-2"), ("1 2", "12"), ("10'", "10"), ("5 to 6", "5")),
        *(("1 \\pm \\sqrt{2}", "1+\\sqrt{2}"), ("less than 5", "5"), ("5 :", "5")),
    ],
)
def test_mathematics_is_not_asked_about_fragments(said, gold):
    """It would take the number out of them."""
    assert judged(said, gold) == judged(gold, said) == "undecided"


def test_kinds_keep_other_rules_away():
    assert judged("10:30", "10:45", kind="maths") == "undecided"
    assert judged("3, 4", "3, 4.0", kind="list") == "right"
    assert judged("1/2", "0.5", kind="maths") == "right"
    assert judged("cat", "cats", kind="maths") == "undecided"


def test_what_mathematics_gets():
    def asked(said, gold, *options):
        return ladder.for_mathematics(said, Truth(gold, options))

    assert asked("The answer is $y = 2x+1$.", "y=1+2x") == ("2x+1", "1+2x")
    assert asked("6\\sqrt{2} \\mathrm{~cm}", "\\sqrt{72}") == (
        "6\\sqrt{2}",
        "\\sqrt{72}",
    )
    assert asked("1+1/\\mathrm{e}", "1-1/e") == ("1+1/ e", "1-1/e")
    assert asked("cos(x)+sqrt(2)", "√2") == ("\\cos (x)+\\sqrt{2}", "\\sqrt{2}")
    assert asked("2π", "\\pi·2") == ("2\\pi ", "\\pi \\cdot 2")


def test_long_answers_are_looked_at_for_equality_alone():
    long = "word " * 1000
    assert judged(long, long.strip()) == "right"
    assert rule(long, "word") == "too_long"
    assert judged("B. " + long, "B", "x", "y") == "undecided"
    assert judged("9" * 1_000_000, "5") == "undecided"


@pytest.mark.parametrize(
    "part", ["(", "[1,", "\\text{", "1,", "1 ", "{", "a ", "1:", "$"]
)
def test_the_longest_answer_is_judged_quickly(part):
    text = (part * ladder.LONGEST)[: ladder.LONGEST]
    for options in ((), ("5", "6", "7", "8")):
        assert judged(text, "5", *options) != "right"
        judged("5", text, *options)


@given(st.text(max_size=80), st.text(max_size=80), st.sampled_from(("", *KINDS)))
def test_nothing_raises(said, gold, kind):
    for options in ((), ("1", "cat", said, gold)):
        verdict = ladder.decide(said, Truth(gold, options, kind), DEFAULT)
        assert verdict is None or (verdict.outcome in OUTCOMES and verdict.rule)
        ladder.for_mathematics(said, Truth(gold, options, kind))


understood = st.one_of(
    st.sampled_from(
        [
            *("B", "(C)", "yes", "no", "True", "10:30", "10:30 pm", "19 March 2001"),
            *("1:2", "(3,-4)", "{1, 2}", "[1,2)", "5 cm", "50%", "$6", "北京", "是"),
            *("\\frac{1}{2}", "x^2+1", "\\sqrt{2}", "the cat", "3x+4y=0", "x > 5"),
        ]
    ),
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.lists(st.integers(), min_size=2, max_size=5).map(str),
    st.dates().map(str),
    st.times().map(lambda time: f"{time:%H:%M}"),
)


@given(understood)
def test_reflexive(answer):
    assert judged(answer, answer) == "right"


@given(understood, understood)
def test_symmetric_in_what_is_right(one, other):
    assert (judged(one, other) == "right") == (judged(other, one) == "right")
