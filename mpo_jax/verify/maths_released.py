r"""LaTeX compared as InternVL's released pipeline does. Runs in workers alone.

Both texts go to sympy's own parser, and ``equals`` decides. The parser refuses every
ANTLR runtime but 4.11; math-verify brings a later one, on which the grammar works as
well (a test has all of sympy's own cases), so it is told the version that it asks for.
It reads as much as it can and stops there: ``\frac{1}{2}}`` is a half.

No text reaches ``sympify``: the parser makes numbers and symbols of its tokens.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

from sympy.core import random
from sympy.parsing.latex import LaTeXParsingError, _parse_latex_antlr

from mpo_jax.verify.verdict import RIGHT, UNDECIDED, WRONG, Verdict

RULE = "latex"
UNPARSED = "latex_unparsed"

WARM = (
    *((r"\frac{1}{2}", "0.5"), (r"\sqrt{8}", r"2\sqrt{2}"), ("x^2-1", "(x-1)(x+1)")),
    *((r"\sin^2 x+\cos^2 x", "1"), (r"\log_2 8", "3"), ("y=2x", "2x=y"), ("1/2", "a")),
)


def judge(prediction: str, truth: str) -> Verdict:
    """Compare two answers.

    Returns:
      Right or wrong by ``latex``; ``latex_unparsed`` where either is no expression.

    Raises:
      Exception: any, from the algebra.
    """
    try:
        left, right = parse(prediction), parse(truth)
    except LaTeXParsingError:
        return Verdict(UNDECIDED, UNPARSED)
    random.seed(0)  # `equals` tries random values; the same ones in every process
    return Verdict(RIGHT if left.equals(right) else WRONG, RULE)


def parse(text: str) -> Any:
    """What sympy's ``parse_latex(text)`` gives.

    Raises:
      LaTeXParsingError: the text does not begin with an expression.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # the runtime tells its version
        return _parse_latex_antlr.parse_latex(text)


def _version(distribution_name: str) -> str:
    del distribution_name
    return "4.11"


_parse_latex_antlr.version = _version
