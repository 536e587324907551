"""What counts as one expression."""

from __future__ import annotations

import pytest

from mpo_jax.verify import expression, maths_tokens
from mpo_jax.verify.expression import Equation, Many, Scalar, Union


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "5, not 4", "10:30", "50%", r"50\%", "cat", "act", "AB", "Yes"),
        *("1,234", "0,5", "3 4", "1 000", "x2", "1e3", "1/2x", r"1/2\pi", "II", "(5"),
        *("5 )", "5 $ 6", r"\text{east}", r"5\text{ cm}", r"\sum_{i=1}^{9} i", "f'"),
        *(
            r"\pm 1 \pm 2",
            "a = b = c",
            "1 < x > 0",
            r"x \ne 3",
            r"\sqrt12",
            r"\frac12x/2y",
        ),
        *(r"\cos x\cdot y", r"\sin x/2", r"\sin(x)^2", r"\frac12^2", "x^2^3", "2/(3)4"),
        *(
            r"\frac{dy}{dx}",
            r"\infty - 1",
            "3*",
            "*3",
            "|x-|y||",
            r"\sin\cos x",
            "a/b(c)",
        ),
        *(r"45^\circ", "()", "1,,2", "[1,2", "5 because of 4", r"\foo", "x^", "2^--3"),
        *("1<2<3", r"x \cup y", r"\frac{1, 2}{3}", "#", "__import__('os')"),
        *("(" * 41 + "1" + ")" * 41, r"x\in y\in z", r"2\frac{1}{2}x"),
    ],
)
def test_what_is_none_is_refused(text: str):
    with pytest.raises(maths_tokens.NoExpression):
        expression.form_of(text)


@pytest.mark.parametrize(
    "text, latex",
    [
        ("5", "5"),
        ("$5$", "5"),
        (r"\( 5 \).", "5"),
        ("0.5", r"( \frac{5}{10} )"),
        ("-.25", r"- ( \frac{25}{100} )"),
        ("10{,}000", "10000"),
        (r"1\,234\,567", "1234567"),
        (r"\left(1+2\right)", "( 1 + 2 )"),
        (r"1+\mathrm{e}", "1 + e"),
        (r"\dfrac34", r"\frac { 3 } { 4 }"),
        (r"\frac{x}2", r"\frac { x } { 2 }"),
        ("x^(n+1)", "x ^ { n + 1 }"),
        ("x^10", "x ^ { 10 }"),
        ("2^-3", "2 ^ { - 3 }"),
        ("π²", r"\pi ^ { 2 }"),
        ("sqrt(8)", r"\sqrt { 8 }"),
        (r"\sqrt[3]{2}", r"\sqrt [ 3 ] { 2 }"),
        ("|-3|", "| - 3 |"),
        (r"\lfloor x \rfloor", r"\lfloor x \rfloor"),
        ("(n+1)!", "( n + 1 ) !"),
        ("a_{n}^2", "a _ { n } ^ { 2 }"),
        # Mixed numbers are sums, all other neighbours products.
        (r"2\frac12", r"( 2 + \frac { 1 } { 2 } )"),
        (r"-2\frac{1}{2}", r"- ( 2 + \frac { 1 } { 2 } )"),
        (r"2\frac{x}{2}", r"2 \cdot \frac { x } { 2 }"),
        ("3(4)", r"3 \cdot ( 4 )"),
        ("(2)(3)4", r"( 2 ) \cdot ( 3 ) \cdot 4"),
        ("{2}{3}", r"( 2 ) \cdot ( 3 )"),
        (r"2\sqrt3", r"2 \cdot \sqrt { 3 }"),
        (r"\binom{5}{2}3", r"\binom { 5 } { 2 } \cdot 3"),
        ("2*pi", r"2 \cdot \pi"),
        ("|x||y|", r"| x | \cdot | y |"),
        ("x(3)", r"x \cdot ( 3 )"),
        ("2d", r"2 \cdot ( d )"),
        # Functions get brackets.
        (r"\sin x^2", r"\sin ( x ^ { 2 } )"),
        (r"\sin^2 x + 1", r"\sin ^ { 2 } ( x ) + 1"),
        (r"\cos x \sin y", r"\cos ( x ) \cdot \sin ( y )"),
        (r"\ln(2x)y", r"\ln ( 2 \cdot x ) \cdot y"),
        (r"\log_2 8", r"\log _ { 2 } ( 8 )"),
        ("f(x)", "f ( x )"),
        (
            r"\begin{pmatrix} 1 & 2x \\ 3 & 4 \end{pmatrix}",
            r"\begin{pmatrix} 1 & 2 \cdot x \\ 3 & 4 \end{pmatrix}",
        ),
    ],
)
def test_a_term_is_written_in_one_way(text: str, latex: str):
    form = expression.form_of(text)
    assert isinstance(form, Scalar)
    assert form.latex == latex


def test_decimals_are_marked():
    lone, inside = expression.form_of("-3.14"), expression.form_of("3.14x")
    assert isinstance(lone, Scalar) and isinstance(inside, Scalar)
    assert (lone.places, lone.decimal) == (2, True)
    assert (inside.places, inside.decimal) == (None, True)
    assert expression.form_of("3") == Scalar("3")


@pytest.mark.parametrize(
    "text, kind, count",
    [
        ("4 or 5", "", 2),
        (r"4\text{ and }5", "", 2),
        ("1, 2; 3", "", 3),
        ("x = 1, 2", "", 2),
        (r"1 \pm \sqrt{5}", "", 2),
        ("(1,2)", "()", 2),
        ("(1,2]", "(]", 2),
        ("[1,2,3]", "[]", 3),
        (r"\{1,2\}", "{}", 2),
        (r"\{5\}", "{}", 1),
        ("x > 3", "()", 2),
        ("3 >= x", "(]", 2),
        ("1 < x <= 2", "(]", 2),
        (r"x \in (1, 2)", "()", 2),
    ],
)
def test_several_are_told_apart(text: str, kind: str, count: int):
    form = expression.form_of(text)
    assert isinstance(form, Many)
    assert (form.kind, len(form.items)) == (kind, count)


def test_bounds_keep_their_sides():
    form = expression.form_of("3 > x")
    assert form == Many("()", (Scalar(r"-\infty"), Scalar("3")), "x")
    assert expression.form_of(r"2 \le x") == Many(
        "[)", (Scalar("2"), Scalar(r"\infty")), "x"
    )


def test_equations_and_unions():
    form = expression.form_of("f(x) = x^2")
    assert isinstance(form, Equation) and form.name == "f(x)"
    form = expression.form_of("3x + y = 1")
    assert isinstance(form, Equation) and form.name == ""
    form = expression.form_of(r"(1,2) \cup [3,4)")
    assert isinstance(form, Union) and len(form.items) == 2


def test_letters_and_logs():
    assert maths_tokens.letters_of(r"Ax + \sin b") == {"A", "x", "b"}
    assert maths_tokens.letters_of(r"\Delta + \frac{1}{2}") == {"Delta"}
    assert maths_tokens.has_bare_log(r"\log x") and not maths_tokens.has_bare_log(
        r"\log_2 x"
    )
