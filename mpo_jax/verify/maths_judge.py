"""Mathematics by math-verify, and evidence for what it says. Runs in workers alone.

math-verify takes for equal what differs by less than 15 digits behind the point,
whatever the size, and unpacks equations. So ``right`` needs its word and an agreement
of values to ``_DIGITS`` significant digits; ``wrong`` needs values that differ, since
its "no" may mean that it ran out of memory or of rules. All else is undecided.

No text reaches ``sympify``: it would be evaluated as Python.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable
from typing import Any

import math_verify
import sympy
from latex2sympy2_extended import NormalizationConfig
from sympy.functions.elementary.trigonometric import (
    TrigonometricFunction as _Trigonometric,
)

from mpo_jax.verify import expression, maths_tokens
from mpo_jax.verify.expression import Equation, Form, Inequality, Many, Scalar, Union
from mpo_jax.verify.verdict import RIGHT, UNDECIDED, WRONG, Verdict

logging.getLogger("math_verify").setLevel(logging.CRITICAL)

RULE = "maths"
UNPARSED, MEMORY, ERROR = "maths_unparsed", "maths_memory", "maths_error"
SHAPE = "maths_shape"
"""A list and a number, brackets of two kinds: not comparable."""
ROUNDED = "maths_rounded"
"""A decimal that is the other value rounded."""
UNSETTLED = "maths_unsettled"
"""No proof that they are equal, no evidence that they differ."""

_DIGITS = 40
_POINTS = (  # values that symbols take in turn; both signs, no special numbers
    *("1.3717", "0.6173", "2.2361", "0.2837", "3.1713", "1.7129"),
    *("-0.7319", "-1.6247", "0.4581", "-2.3719"),
)
_ROUNDS = 6
_MIN_ROUNDS = 3
_MAX_SET = 12

_LATEX = [
    math_verify.LatexExtractionConfig(
        boxed_match_priority=-1,
        normalization_config=NormalizationConfig(
            basic_latex=False, boxed="none"
        ),  # expression.py leaves nothing to mend, and mending drops characters
    )
]

Value = Any  # sympy.Expr or sympy.MatrixBase, whose types say less than they can


class _Undecided(Exception):
    """Carries the rule."""


def judge(prediction: str, truth: str) -> Verdict:
    """Compare two answers.

    Raises:
      MemoryError, RecursionError: from the algebra.
    """
    try:
        left, right = expression.form_of(prediction), expression.form_of(truth)
        _check_letters(prediction, truth)
        return _verdict(_same(left, right))
    except (maths_tokens.NoExpression, RecursionError):
        return Verdict(UNDECIDED, UNPARSED)
    except _Undecided as why:
        return Verdict(UNDECIDED, str(why))


def _verdict(same: bool) -> Verdict:
    return Verdict(RIGHT if same else WRONG, RULE)


def _check_letters(prediction: str, truth: str) -> None:
    """The parser reads A as a, and log as that of ten."""
    letters = maths_tokens.letters_of(prediction) | maths_tokens.letters_of(truth)
    if any(name != name.lower() and name.lower() in letters for name in letters):
        raise _Undecided(UNSETTLED)
    if maths_tokens.has_bare_log(prediction) != maths_tokens.has_bare_log(truth):
        raise _Undecided(UNSETTLED)


def _same(left: Form, right: Form) -> bool:
    """Are they the same? `left` is the prediction, but nothing depends on it.

    Raises:
      _Undecided: names the rule.
    """
    if isinstance(left, Equation) or isinstance(right, Equation):
        return _same_equation(left, right)
    if isinstance(left, Scalar) and isinstance(right, Scalar):
        return _same_scalar(left, right)
    if isinstance(left, Many) and isinstance(right, Many):
        return _same_many(left, right)
    if isinstance(left, Union) and isinstance(right, Union):
        return _same_set(left.items, right.items)
    if isinstance(left, Inequality) and isinstance(right, Inequality):
        return _same_inequality(left, right)
    raise _Undecided(SHAPE)


def _same_many(left: Many, right: Many) -> bool:
    if left.kind != right.kind or (
        left.name and right.name and left.name != right.name
    ):
        raise _Undecided(SHAPE)
    if left.kind == expression.SET:
        return _same_set(left.items, right.items)
    if len(left.items) != len(right.items):
        if left.kind == expression.LIST:  # one may name a value twice
            raise _Undecided(SHAPE)
        return False
    in_order = _all(
        lambda pair=pair: _same(*pair)
        for pair in zip(left.items, right.items, strict=True)
    )
    if in_order or left.kind != expression.LIST:
        return in_order
    if _same_set(left.items, right.items):
        if all(isinstance(item, Equation) for item in left.items):
            return True
        raise _Undecided(SHAPE)  # the order may matter
    return False


def _all(checks: Iterable[Callable[[], bool]]) -> bool:
    """Are all true? One that is false decides, even beside undecided ones."""
    why = None
    for check in checks:
        try:
            if not check():
                return False
        except _Undecided as undecided:
            why = why or undecided
    if why:
        raise why
    return True


def _same_set(left: tuple[Form, ...], right: tuple[Form, ...]) -> bool:
    """In any order; every element has one partner and no other."""
    if max(len(left), len(right)) > _MAX_SET:
        raise _Undecided(UNSETTLED)
    if len(left) != len(right):
        raise _Undecided(SHAPE)  # {1, 1} is {1}
    free = list(right)
    for item in left:
        partner = _partner(item, free)
        if partner is None:
            return False
        del free[partner]
    return True


def _partner(item: Form, among: list[Form]) -> int | None:
    """Which one is the same; None if each differs."""
    why = None
    for i, other in enumerate(among):
        try:
            if _same(item, other):
                return i
        except _Undecided as undecided:
            why = undecided
    if why:
        raise why
    return None


def _same_equation(left: Form, right: Form) -> bool:
    if isinstance(left, Equation) and isinstance(right, Equation):
        if left.name and left.name == right.name:
            return _same(left.right, right.right)
        return _same_line(left, right)
    equation, other = (left, right) if isinstance(left, Equation) else (right, left)
    assert isinstance(equation, Equation)
    if not equation.name or isinstance(other, Inequality):
        raise _Undecided(SHAPE)
    is_letter = "(" not in equation.name  # f(x) = 2x is 2x, x = 2x is not
    if is_letter and isinstance(other, Scalar):
        name = _parse(equation.left).free_symbols
        if name & _parse(other).free_symbols:
            raise _Undecided(SHAPE)
    return _same(equation.right, other)


def _difference(relation: Equation | Inequality) -> Value:
    if not isinstance(relation.right, Scalar):
        raise _Undecided(SHAPE)
    sides = _parse(relation.left), _parse(relation.right)
    if not all(isinstance(side, sympy.Expr) for side in sides):
        raise _Undecided(SHAPE)
    return sides[0] - sides[1]


def _ratio(left: Value, right: Value) -> Value | None:
    """The number that one is times the other; None if it is none that is seen."""
    if left.free_symbols != right.free_symbols or not left.free_symbols:
        raise _Undecided(UNSETTLED)
    ratio = sympy.simplify(left / right)
    proven = ratio.is_number and ratio.is_finite and ratio.is_zero is False
    if proven and _compare(left, ratio * right) is True:
        return ratio
    return None


def _same_line(left: Equation, right: Equation) -> bool:
    """Equations are one where one is a multiple of the other."""
    a, b = _difference(left), _difference(right)
    if _ratio(a, b) is not None:
        return True
    symbols = sorted(a.free_symbols, key=str)
    for side in (a, b):
        if not side.is_polynomial(*symbols) or sympy.Poly(side, *symbols).degree() < 1:
            raise _Undecided(UNSETTLED)
        if sympy.Poly(side, *symbols).total_degree() != 1:
            raise _Undecided(UNSETTLED)  # x^2 = 0 and x = 0 have one solution
    return False


def _same_inequality(left: Inequality, right: Inequality) -> bool:
    ratio = _ratio(_difference(left), _difference(right))
    if ratio is None or left.strict != right.strict:
        raise _Undecided(UNSETTLED)
    return bool(ratio.is_positive)


def _same_scalar(left: Scalar, right: Scalar) -> bool:
    a, b = _parse(left), _parse(right)
    if isinstance(a, sympy.MatrixBase) or isinstance(b, sympy.MatrixBase):
        return _same_matrix(a, b)
    same = _same_value(a, b)
    if not same and _is_rounded(left, a, right, b):
        raise _Undecided(ROUNDED)
    return same


def _same_matrix(a: Value, b: Value) -> bool:
    if not isinstance(a, sympy.MatrixBase) or not isinstance(b, sympy.MatrixBase):
        raise _Undecided(SHAPE)
    if a.shape != b.shape:
        raise _Undecided(SHAPE)
    pairs = zip(a.flat(), b.flat(), strict=True)
    return _all(lambda pair=pair: _same_value(*pair) for pair in pairs)


def _parse(scalar: Scalar) -> Value:
    """The algebra's object of a term."""
    found = math_verify.parse(
        f"${scalar.latex}$",
        extraction_config=_LATEX,
        fallback_mode="no_fallback",
        parsing_timeout=None,  # type: ignore[arg-type]
        raise_on_error=True,
    )
    if len(found) != 1 or not isinstance(found[0], sympy.Expr | sympy.MatrixBase):
        raise _Undecided(UNPARSED)
    value = _with_plain_symbols(found[0])
    if value.has(sympy.nan, sympy.zoo, sympy.Derivative, sympy.Integral):
        raise _Undecided(UNPARSED)
    if value.has(sympy.oo, -sympy.oo) and value not in (sympy.oo, -sympy.oo):
        raise _Undecided(UNPARSED)
    for function in value.atoms(_Trigonometric):
        if function.args[0].is_Rational:  # sin 30 is that of degrees, or of radians
            raise _Undecided(UNSETTLED)
    return value


def _with_plain_symbols(value: Value) -> Value:
    """Symbols of one kind; the parser's differ by what stands beside them, and its i
    is a symbol."""
    return value.xreplace(
        {
            s: sympy.I if str(s) == "i" else sympy.Symbol(str(s), real=True)
            for s in value.free_symbols
        }
    )


def _same_value(a: Value, b: Value) -> bool:
    a, b = sympy.sympify(a), sympy.sympify(b)
    if a == b or (a.is_Rational and b.is_Rational):
        return bool(a == b)
    agree = _compare(a, b)
    if agree is True and _algebra_says_equal(a, b):
        return True
    # Other symbols may be other units or names: 50 cm is 0.5 m.
    if agree is False and a.free_symbols == b.free_symbols and not _are_angles(a, b):
        return False
    raise _Undecided(UNSETTLED)


def _are_angles(a: Value, b: Value) -> bool:
    """Is one in degrees what the other is in radians?"""
    a, b = a.doit(), b.doit()
    half = {a * sympy.pi / 180 - b, b * sympy.pi / 180 - a}
    return a.has(sympy.pi) != b.has(sympy.pi) and 0 in map(sympy.expand, half)


def _algebra_says_equal(a: Value, b: Value) -> bool:
    """math-verify's word, both ways."""
    return all(
        math_verify.verify(
            gold,
            target,
            numeric_precision=_DIGITS,
            strict=True,
            timeout_seconds=None,
            raise_on_error=True,
        )
        for gold, target in ((a, b), (b, a))
    )


def _compare(a: Value, b: Value) -> bool | None:
    """Do the values agree (True) or differ (False) wherever both have one?

    None: neither, or there are too few places to say.
    """
    symbols: list[Any] = sorted({*a.free_symbols, *b.free_symbols}, key=str)
    rounds = _ROUNDS if symbols else 1
    found: list[bool] = []
    for first in range(rounds):
        places = itertools.islice(itertools.cycle(_POINTS), first, None)
        at = {s: sympy.Rational(p) for s, p in zip(symbols, places, strict=False)}
        agree = _agree(_value(a, at), _value(b, at))
        if agree is not None:
            found.append(agree)
    if len(found) < min(_MIN_ROUNDS, rounds) or len(set(found)) != 1:
        return None
    return found[0]


def _value(x: Value, at: dict[Any, Any]) -> Value:
    return x.xreplace(at).evalf(_DIGITS + 15)


def _agree(a: Value, b: Value) -> bool | None:
    """Do two values agree to ``_DIGITS`` significant digits? None: they are none."""
    if a in (sympy.oo, -sympy.oo) or b in (sympy.oo, -sympy.oo):
        return a == b if a.is_comparable or a.is_infinite else None
    if not all(x.is_number and x.is_finite and _is_numeral(x) for x in (a, b)):
        return None
    size = max(abs(a), abs(b))
    if size == 0:
        return True
    if size < sympy.Float(10) ** -_DIGITS and (a == 0 or b == 0):
        return None  # rounding, or a tiny value
    return bool(abs(a - b) <= size * sympy.Float(10, 60) ** -_DIGITS)


def _is_numeral(x: Value) -> bool:
    return all(part.is_Float or part.is_Rational for part in x.as_real_imag())


def _is_rounded(left: Scalar, a: Value, right: Scalar, b: Value) -> bool:
    """Is one side a decimal that the other rounds to, or holds a term a decimal?"""
    if not (left.decimal or right.decimal) or a.free_symbols:
        return bool(left.decimal or right.decimal)
    for scalar, own, other in ((left, a, b), (right, b, a)):
        if scalar.places is not None:
            unit = sympy.Rational(1, 10**scalar.places)
            if bool(abs(_value(own - other, {})) <= unit):
                return True
    lone = all(s.places is not None or not s.decimal for s in (left, right))
    return not lone and bool(
        abs(_value(a - b, {})) <= sympy.Rational(1, 50) * abs(_value(b, {}))
    )
