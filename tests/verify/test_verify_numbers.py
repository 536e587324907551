"""Numbers: notations, units, percent, tolerance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import judged, rule

from mpo_jax.verify.policy import Policy

SAME = [
    ("5", "5.0"), ("5.", "5"), ("+5", "5"), ("05", "5"), (".5", "0.5"),
    ("1,234", "1234"), ("1 234", "1234"), ("1 234 567", "1,234,567"),
    ("10{,}000", "10000"), ("900,\\!000,\\!000", "900000000"), ("\u22125", "-5"),
    ("–5", "-5"), ("minus 5", "-5"), ("½", "0.5"), ("1½", "3/2"), ("3/4", "0.75"),
    ("\\frac{3}{4}", "3/4"), ("\\frac34", "0.75"), ("\\dfrac{3}{4}", "\\tfrac{3}{4}"),
    ("\\frac{6}{8}", "\\frac{3}{4}"), ("1\\frac{1}{2}", "1.5"), ("1 1/2", "1.5"),
    ("-\\frac{1}{2}", "-0.5"), ("1e3", "1000"), ("1.5e-2", "0.015"),
    ("1.5 \\times 10^{3}", "1500"), ("10^3", "1000"), ("2×10^-2", "0.02"),
    ("10²", "100"), ("two", "2"), ("Twenty", "20"), ("twenty-one", "21"), ("zero", "0"),
    ("二", "2"), ("十二", "12"), ("二十", "20"), ("５", "5"), ("１２．５", "12.5"),
    ("5 million", "5,000,000"), ("3万", "30000"), ("$5$", "5"), ("\\(5\\)", "5"),
    ("**5**", "5"), ("(5)", "5"), ("{5}", "5"), ("The answer is 5.", "5"),
    ("x = 5", "5"), ("5", "x=5"), ("x=5", "x = 5.0"), ("答案是5", "5"), ("≈5", "5"),
    ("about 5", "5"), ("2h 48m", "168 min"),
    ("one half", "1/2"), ("a third", "1/3"), ("two thirds", "2/3"), ("half", "0.5"),
    ("three quarters", "75/100"), ("The area is 5 cm^2.", "5"), ("There are 5", "5"),
    ("面积是5", "5"), ("共有5个", "5"), ("Area = 5", "5"), ("AB = 5", "5"),
    ("∠A = 30°", "30"), ("\\angle ABC = 30°", "30°"), ("5 mph", "5 miles per hour"),
    ("(B) 4", "4"), ("C. 4", "4"), ("1 m 20 cm", "120 cm"),
]  # fmt: skip

DIFFERENT = [
    ("5", "6"), ("5", "-5"), ("5.9", "5"), ("12.9", "12"), ("0.5", "0"), ("15", "5"),
    ("1,234", "1.234"), ("1,234", "1235"), ("3/4", "4/3"), ("1½", "1/2"),
    ("11/2", "1 1/2"), ("\\frac{1}{2}", "\\frac{1}{3}"), ("1e3", "100"),
    ("10^3", "103"), ("10²", "102"), ("two", "3"), ("2011", "2012"),
    ("5 million", "6 million"), ("x=5", "x=6"), ("9999", "10{,}000"), ("二十", "12"),
    ("1.5\\times10^3", "1.5\\times10^4"), ("2h 48m", "2h 59m"), ("104", "100"),
]  # fmt: skip

NEITHER = [
    ("2,3", "2.3"), ("4 or 5", "5"), ("4 and 5", "5"), ("5, not 4", "4"),
    ("5 (not 4)", "5"), ("not 5", "5"), ("less than 10", "10"), ("more than 5", "5"),
    ("at least 5", "5"), (">5", "5"), ("x > 5", "5"), ("5 or more", "5"),
    ("between 4 and 6", "5"), ("4-6", "5 apples"), ("3–5", "-2"), ("5 dozen", "5"),
    ("5 million", "5"), ("None", "0"), ("none", "0"), ("5 fifths", "5"),
    ("5 tenths", "5"), ("5 squared", "5"), ("5x", "5 apples"), ("5个半", "5"),
    ("5 more than x", "5"), ("±5", "5"), ("1.2.3", "1.2"), ("5?", "50"),
    ("1 2", "12"), ("0.33", "1/3"), ("3.14", "3.14159"), ("5 halves", "5"),
    ("x=5", "y=5"), ("5 pairs", "5"), ("5t", "5"), ("5m", "5"), ("2³", "23"),
    ("5²", "52"), ("third", "1/3"), ("1st", "1"), ("5 a.m.", "5"), ("5-", "5"),
    ("10-12", "-2"), ("3/19", "19 March"), ("The area is not 5", "5"),
    ("It is false that it is 5", "5"), ("x is greater than 5", "5"), ("5 th", "5"),
    ("If it is 5", "5"), ("The sum is 5 or 6", "5"), ("不是5", "5"), ("5 3", "53"),
    ("Either it or that is 5", "5"), ("AB = 5", "CD = 5"), ("10°", "10'"),
    ("1, 234", "1,234"), ("5!", "5"), ("5 minus 2", "5"), ("5 per cent", "0.05"),
]  # fmt: skip


@pytest.mark.parametrize("one, other", SAME)
def test_the_same_number(one, other):
    assert judged(one, other) == judged(other, one) == "right"


@pytest.mark.parametrize("one, other", DIFFERENT)
def test_another_number(one, other):
    assert judged(one, other) == "wrong"
    assert judged(other, one) in ("wrong", "maths")


@pytest.mark.parametrize("one, other", NEITHER)
def test_never_right(one, other):
    assert judged(one, other) != "right"
    assert judged(other, one) != "right"


@pytest.mark.parametrize(
    "said, gold, outcome",
    [
        ("5 cm", "5", "right"),
        ("5", "5 cm", "right"),
        ("5cm", "5 centimeters", "right"),
        ("5 cm", "50 mm", "right"),
        ("1.5 km", "1500 m", "right"),
        ("5 cm", "5 mm", "wrong"),
        ("5 cm", "5 kg", "wrong"),
        ("5 cm", "5 cm^2", "wrong"),
        ("5 cm²", "5 square centimeters", "right"),
        ("36 \\mathrm{~cm}^{2}", "36 cm^2", "right"),
        ("1 m^2", "10000 cm²", "right"),
        ("1 L", "1000 ml", "right"),
        ("1 ml", "1 cm^3", "right"),
        ("60 km/h", "60 kilometers per hour", "right"),
        ("36 km/h", "10 m/s", "right"),
        ("90°", "90", "right"),
        ("90 degrees", "90^\\circ", "right"),
        ("90度", "90°", "right"),
        ("60 min", "1 h", "right"),
        ("2 hours", "120 minutes", "right"),
        ("$5", "5", "right"),
        ("\\$6", "6", "right"),
        ("\\$6", "6 dollars", "right"),
        ("$6.00", "6 dollars", "right"),
        ("50 cents", "\\$0.50", "right"),
        ("€5", "$5", "wrong"),
        ("5元", "5", "right"),
        ("5元", "¥5", "right"),
        ("5厘米", "5 cm", "right"),
        ("0.05米", "5厘米", "right"),
        ("3千克", "3 kg", "right"),
        ("12 apples", "12", "right"),
        ("12 apples", "12 apple", "right"),
        ("12", "12个", "right"),
        ("12 apples", "12 oranges", "undecided"),
        ("12 apples", "13", "wrong"),
        ("100 square units", "100", "right"),
        ("100\\text{ square units}", "100 units^2", "undecided"),
        ("5 cm", "50", "undecided"),  # 50 of what? perhaps millimetres
        ("5 cm", "51", "wrong"),
        ("2 hours", "120", "undecided"),
        ("30°", "30°C", "undecided"),
        ("6 m", "6", "right"),
        ("6m", "6 m", "right"),
        ("9 litres", "9", "right"),
        ("\\frac{1}{2} turn", "\\frac{1}{2}", "right"),
        ("1200 cm^3", "1.2 L", "right"),
        ("5 miles", "5 km", "wrong"),
        ("0", "0 cm", "right"),
        ("0", "5 cm", "wrong"),
    ],
)
def test_units(said, gold, outcome):
    assert judged(said, gold) == outcome


@pytest.mark.parametrize(
    "said, gold, outcome",
    [
        ("50%", "50", "right"),
        ("50", "50\\%", "right"),
        ("50 %", "50 percent", "right"),
        ("百分之五十", "50%", "right"),
        ("百分之50", "50%", "right"),
        ("５０％", "50%", "right"),
        ("50%", "0.5", "undecided"),
        ("0.5", "50\\%", "undecided"),
        ("50%", "\\frac{1}{2}", "undecided"),
        ("50%", "5", "wrong"),
        ("50%", "51%", "wrong"),
        ("0.5%", "0.5", "right"),
        ("198", "198\\%", "right"),
        ("0%", "0", "right"),
    ],
)
def test_percent(said, gold, outcome):
    assert judged(said, gold) == outcome


def test_every_field_of_a_policy_changes_something():
    strict = Policy(percent="strict")
    assert judged("50%", "50") == "right"
    assert judged("50%", "50", policy=strict) == "wrong"
    assert judged("50%", "50%", policy=strict) == "right"
    assert judged("50%", "0.5", policy=strict) == "undecided"
    loose = Policy(relative=0.05)
    assert judged("104", "100") == "wrong"
    assert judged("104", "100", policy=loose) == "right"
    assert judged("105", "100", policy=loose) == "right"
    assert judged("106", "100", policy=loose) == "wrong"
    assert judged("2011", "2012", policy=loose) == "wrong"
    assert judged("0.001", "0", policy=loose) == "wrong"
    assert judged("104%", "100%", policy=loose) == "right"
    needed = Policy(units_optional=False)
    assert judged("5 cm", "5", policy=needed) == "undecided"
    assert judged("5 cm", "5 cm", policy=needed) == "right"
    assert judged("5 cm", "6", policy=needed) == "wrong"
    literal = Policy(convert_units=False)
    assert judged("5 cm", "50 mm", policy=literal) == "undecided"
    assert judged("5 cm", "5 centimetres", policy=literal) == "right"
    assert judged("5 cm", "51 mm", policy=literal) == "wrong"


def test_a_policy_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="percent='free'"):
        Policy(percent="free")
    with pytest.raises(ValueError, match="relative=5"):
        Policy(relative=5)


def test_rules_are_named():
    assert rule("5", "5.0") == "number"
    assert rule("50%", "50") == "percent"
    assert rule("5 cm", "5") == "number_unit_missing"
    assert rule("5 cm", "5 kg") == "unit"
    assert rule("0.33", "1/3") == "rounded"
    assert rule("5 cm", "50") == "unit_missing"
    assert rule("5 million", "5") == "scale_missing"
    assert rule("5t", "5") == "unit_or_variable"


def test_the_kind_number_reads_numbers_alone():
    assert judged("10:30", "10:30", kind="number") == "right"
    assert judged("5", "5.0", kind="number") == "right"
    assert judged("\\sqrt{2}", "1.5", kind="number") == "maths"
    assert judged("five cats, I think", "5", kind="number") == "undecided"


numbers = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.decimals(-1000, 1000, places=3).map(str),
    st.fractions(max_denominator=1000).map(str),
    st.integers(0, 10**9).map("{:,}".format),
)


@given(numbers, numbers)
def test_symmetric(one, other):
    assert judged(one, other) == judged(other, one)


@given(numbers)
def test_reflexive(number):
    assert judged(number, number) == "right"


@given(st.integers(0, 10**12), st.integers(0, 12), st.integers(1, 9))
def test_a_changed_digit_is_never_right(number, place, step):
    digits = str(number)
    at = place % len(digits)
    changed = str((int(digits[at]) + step) % 10)
    other = digits[:at] + changed + digits[at + 1 :]
    for form in ("{}", "{}.0", "{} cm", "{}%", "${}$", "0.{}1", "\\frac{{{}}}{{7}}"):
        assert judged(form.format(other), form.format(digits)) != "right"


@given(st.text(max_size=60))
def test_no_text_is_a_number_that_it_does_not_name(text):
    assert judged(text, "8675309") != "right" or "8675309" in "".join(
        c for c in text if c.isdigit()
    )


@given(st.text("0123456789+-*/^_{}()[]\\.,:;%$° abcefimnort=", max_size=40))
def test_no_text_near_a_number_raises(text):
    assert judged(text, "8675309") in ("right", "wrong", "undecided", "maths")
    assert judged("8675309", text) in ("right", "wrong", "undecided", "maths")
