"""What the algebra and its evidence say; in workers, as it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mpo_jax.verify import maths
from mpo_jax.verify.verdict import RIGHT, UNDECIDED, WRONG

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mathematics():
    with maths.Mathematics(2) as made:
        yield made


RIGHT_ONES = [
    *(("0.5", r"\frac12"), ("sqrt(8)", r"2\sqrt{2}"), ("3*pi/2", r"\frac{3\pi}{2}")),
    *((r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), ("10{,}000", "10000")),
    *(("x=5", "5"), ("5", "x=5"), ("y=2x+3", "2x-y+3=0"), ("f(x)=x^2", "x^2")),
    *((r"(-\infty, 3]", r"x \le 3"), ("3<x<5", "(3,5)"), (r"x\in(3,5)", "3<x<5")),
    *((r"\{1,2\}", r"\{2,1\}"), ("x=1,x=2", "x=2,x=1")),
    *((r"1\pm\sqrt{5}", r"1+\sqrt5, 1-\sqrt5"), (r"2\frac{1}{2}", "2.5")),
    *(("x^2+2x+1", "(x+1)^2"), ("x^10", "x^{10}"), ("i^2", "-1"), (r"e^{i\pi}", "-1")),
    *(
        (
            r"\begin{pmatrix}1\\0.5\end{pmatrix}",
            r"\begin{pmatrix}1\\\frac12\end{pmatrix}",
        ),
    ),
    *((r"\sin^2 x+\cos^2 x", "1"), (r"\binom{5}{2}", "10"), ("5!", "120")),
    *(("(2)(3)", "6"), (r"\binom{5}{2}3", "30"), (r"\cos(x) y", r"y\cos x")),
    *((r"\log_2 8", "3"), (r"\log_{2}8", "3")),
    *((r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)"), ("3(4)", "12")),
    *(("2x+y>0", "-4x-2y<0"), ("2^-3", "0.125"), ("0.1+0.2", "0.3"), ("f(x)", "f(x)")),
]

WRONG_ONES = [
    *(
        ("1/2004!", "1/2006!"),
        ("1/2^99", "1/2^98"),
        (r"1+1/\mathrm{e}", r"1-1/\mathrm{e}"),
    ),
    *(("3x+4y+14=0", "3x-y+13=0"), ("6", "5"), ("2.4", r"\sqrt2"), ("2x", "3x")),
    *(("(1,2)", "(2,1)"), ("[1,2]", "[1,3]"), ("(1,2,3)", "(1,2)"), ("x>3", "x>4")),
    *(
        (r"\{1,2\}", r"\{1,3\}"),
        ("3(4)", "7"),
        (r"2\frac{1}{2}", "1"),
        ("2^{100}", "2^{101}"),
    ),
    *((r"\sqrt{2}+10^{-30}", r"\sqrt{2}"), ("e^{-20}", "0"), (r"-\infty", r"\infty")),
    *((r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),),
    *(("(2)(3)", "5"), ("{2}{3}", "5"), (r"\binom{5}{2}3", "13")),
    *(("1, 2", "1, 3"), ("x=3", "x=4"), ("2x+y>0", "2x+y<0"), (r"e^{i\pi}", "1")),
]

UNDECIDED_ONES = [
    ("4 or 5", "5", "maths_shape"),
    ("5", "4 and 5", "maths_shape"),
    ("5, not 4", "4", "maths_unparsed"),
    ("2,3", "2.3", "maths_unparsed"),
    ("10:30", "10:45", "maths_unparsed"),
    (r"50\%", "50", "maths_unparsed"),
    (r"50\%", "0.5", "maths_unparsed"),
    ("0.333", r"\frac13", "maths_rounded"),
    (r"\pi", "3.14", "maths_rounded"),
    ("3.14r", r"\pi r", "maths_rounded"),
    ("3x=5", "5", "maths_shape"),
    ("x=5", "y=5", "maths_unsettled"),
    ("x = 2x + 1", "2x+1", "maths_shape"),
    ("x^2=0", "x=0", "maths_unsettled"),
    ("(1, 2)", "1, 2", "maths_shape"),
    ("(1, 2)", "[1, 2]", "maths_shape"),
    ("1, 2", "2, 1", "maths_shape"),
    ("x > 3", "y > 3", "maths_shape"),
    ("1 < x < 2", "1 < y < 2", "maths_shape"),
    ("1, 2, 3", "1, 2", "maths_shape"),
    ("50 cm", "0.5 m", "maths_unsettled"),
    ("5 m", "5", "maths_unsettled"),
    ("A+b", "a+b", "maths_unsettled"),
    (r"\Delta + 1", r"\delta + 1", "maths_unsettled"),
    (r"\frac{dy}{dx}", r"\frac{y}{x}", "maths_unparsed"),
    (r"\infty - 1", r"\infty", "maths_unparsed"),
    (r"\log 100", "2", "maths_unsettled"),
    ("e^{-200}", "0", "maths_unsettled"),
    (r"\pi+10^{-41}", r"\pi", "maths_unsettled"),
    (r"\sqrt{x^2}", "x", "maths_unsettled"),
    ("f(x)", "f(y)", "maths_unsettled"),
    (r"\sin 30", r"\frac12", "maths_unsettled"),
    (r"\frac{\pi}{4}", "45", "maths_unsettled"),
    (r"\arctan 1", "45", "maths_unsettled"),
    (r"\frac{1}{0}", "0", "maths_unparsed"),
    ("cat", "act", "maths_unparsed"),
    ("5" * 9000, "5", "maths_unparsed"),
]


def test_right(mathematics):
    verdicts = mathematics.check_many(RIGHT_ONES)
    found = [p for p, v in zip(RIGHT_ONES, verdicts, strict=True) if v.outcome != RIGHT]
    assert not found
    assert {verdict.rule for verdict in verdicts} == {"maths"}


def test_wrong(mathematics):
    both_ways = WRONG_ONES + [(b, a) for a, b in WRONG_ONES]
    verdicts = mathematics.check_many(both_ways)
    found = [p for p, v in zip(both_ways, verdicts, strict=True) if v.outcome != WRONG]
    assert not found


def test_undecided(mathematics):
    both_ways = UNDECIDED_ONES + [(b, a, rule) for a, b, rule in UNDECIDED_ONES]
    verdicts = mathematics.check_many((a, b) for a, b, _ in both_ways)
    found = [
        (case, verdict)
        for case, verdict in zip(both_ways, verdicts, strict=True)
        if (verdict.outcome, verdict.rule) != (UNDECIDED, case[2])
    ]
    assert not found


@pytest.mark.parametrize(
    "text", ["__import__('os').system('touch hacked')", "[].append"]
)
def test_no_text_is_run(mathematics, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mathematics.check(text, text).rule == "maths_unparsed"
    assert not list(tmp_path.iterdir())


def test_the_caller_imports_no_algebra(root):
    code = (
        "import sys; from mpo_jax.verify import maths, cache, expression\n"
        "with maths.Mathematics(1) as m: assert m.check('x+x', '2x').right\n"
        "found = {'sympy', 'math_verify', 'jax', 'mpmath'} & set(sys.modules)\n"
        "sys.exit(f'{found}' if found else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
