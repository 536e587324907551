"""LaTeX by sympy's own parser: what it reads, what it says, and that it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sympy.parsing.tests import test_latex as sympys
from test_verify_pool import BOMBS

from mpo_jax.verify import maths, maths_released

pytestmark = pytest.mark.slow


def test_the_grammar_reads_as_sympy_tests_it():
    """On an ANTLR runtime that sympy has not been tested with."""
    assert len(sympys.GOOD_PAIRS) > 150 and len(sympys.BAD_STRINGS) > 30
    for text, wanted in sympys.GOOD_PAIRS:
        assert maths_released.parse(text) == wanted, text
    for text in sympys.BAD_STRINGS:
        with pytest.raises(maths_released.LaTeXParsingError):
            maths_released.parse(text)


def test_the_runtimes_warning_is_not_printed(capfd):
    maths_released.parse("1")
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def released():
    with maths.Mathematics(2, judge=maths.RELEASED) as made:
        yield made


@pytest.mark.parametrize(
    "prediction, truth, outcome, rule",
    [
        (r"\frac{1}{2}", "0.5", "right", "latex"),
        ("2/4", r"\dfrac12", "right", "latex"),
        (r"\sqrt{8}", r"2\sqrt{2}", "right", "latex"),
        ("(x+1)^2/1", "x^2+2x+1", "right", "latex"),
        (r"\frac{1}{2}}", "1/2", "right", "latex"),  # the rest is not read
        (r"\frac{1}{2}", "1/3", "wrong", "latex"),
        (r"\frac{1}{3}", "0.333", "wrong", "latex"),
        (r"x=\frac{1}{2}", r"\frac{1}{2}", "wrong", "latex"),
        (r"50^\circ", "50", "wrong", "latex"),
        (r"(1, \pi)", r"(1, \pi)", "undecided", "latex_unparsed"),
        (r"50\%", "1/2", "undecided", "latex_unparsed"),
        ("", "1/2", "undecided", "latex_unparsed"),
    ],
)
def test_verdicts(released, prediction, truth, outcome, rule):
    found = released.check(prediction, truth)
    assert (found.outcome, found.rule) == (outcome, rule)


def test_bombs_end_by_the_limits_of_the_workers(released):
    assert released.check("1/2", "0.5").right
    verdicts = released.check_many([(bomb, "7x+1") for bomb in BOMBS])
    rules = {verdict.rule for verdict in verdicts}
    assert {"maths_timeout", "maths_memory", "maths_error"} <= rules
    assert not any(verdict.right for verdict in verdicts)
    assert released.check("1/2", "0.5").right


def test_code_in_an_answer_is_not_run(released, tmp_path):
    path = tmp_path / "made"
    code = f"__import__('pathlib').Path('{path}').touch()"
    for text in (code, rf"\{code}", rf"\frac{{{code}}}{{2}}", rf"\text{{{code}}}"):
        released.check(text, text)
    assert not path.exists() and released.check("1/2", "0.5").rule == "latex"


def test_others_do_not_load_the_parser(root):
    code = (
        "import sys; from mpo_jax.verify import maths_worker\n"
        "maths_worker._warm('ours')\n"
        "assert 'sympy.parsing.latex' not in sys.modules, 'loaded'\n"
        "maths_worker._warm('released')\n"
        "assert 'sympy.parsing.latex' in sys.modules, 'not loaded'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_an_unknown_judge_is_refused():
    with pytest.raises(ValueError, match="judge='their': use one of ours, released"):
        maths.Mathematics(judge="their")
