r"""The value of an expression of numbers, as LaTeX.

For graders of which the released ones run a model's words as a program. Here they are
parsed: numbers, ``+ - * / : ^``, brackets, ``\frac``, ``\sqrt``, ``\pi`` and sines.
Whole numbers and fractions are exact, with bounds.
"""

from __future__ import annotations

import fractions
import math
import re

Number = int | float | fractions.Fraction

MAX_LENGTH = 256
"""Characters of an expression; longer ones are no answers."""

MAX_DEPTH = 32
"""Brackets and roots within one another."""

MAX_BITS = 1 << 14
"""Of an exact power."""

_TOKEN = re.compile(
    r"""(?P<number>\d+(?:,\d{3})*(?:\.\d+)?(?![\d.])|\.\d+)
    |(?P<command>\\[a-zA-Z]+)
    |(?P<sign>\*\*|[-+*/:^(){}\[\]])
    |(?P<space>\s+|\\[,;:\ ]|\$|~)""",
    re.VERBOSE,
)
_SIGNS = {"\\cdot": "*", "\\times": "*", "\\div": "/", "**": "^", ":": "/"}
_IGNORED = {"\\left", "\\right", "\\displaystyle", "\\quad"}
_FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac"}
_FUNCTIONS = {"\\sin": math.sin, "\\cos": math.cos, "\\tan": math.tan}
_CLOSING = {"(": ")", "{": "}", "[": "]"}


def value(text: str) -> float | None:
    """The number that an expression is, or None where it is none.

    It is none with an unknown or a unit in it, and where its value has no bounds.
    """
    if len(text) > MAX_LENGTH:
        return None
    try:
        found = float(_Expression(_tokens(text)).value())
    except (_NoValue, ZeroDivisionError, OverflowError, ValueError):
        return None
    return found if math.isfinite(found) else None


class _NoValue(Exception):
    """The text is no expression of numbers."""


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _NoValue
        at = match.end()
        if match.lastgroup != "space" and match.group() not in _IGNORED:
            tokens.append(_SIGNS.get(match.group(), match.group()))
    return tokens


class _Expression:
    """Recursive descent: sums of products of powers."""

    def __init__(self, tokens: list[str]):
        self._tokens, self._at, self._depth = tokens, 0, 0

    def value(self) -> Number:
        found = self._sum()
        if self._at < len(self._tokens):
            raise _NoValue
        return found

    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        token = self._next()
        if token in wanted:
            self._at += 1
            return token
        return ""

    def _sum(self) -> Number:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NoValue
        found = self._product()
        while sign := self._take("+", "-"):
            found += self._product() if sign == "+" else -self._product()
        self._depth -= 1
        return found

    def _product(self) -> Number:
        found = self._signed()
        while True:
            if sign := self._take("*", "/"):
                factor = self._signed()
                found = found * factor if sign == "*" else _ratio(found, factor)
            elif self._next() in _CLOSING or _begins(self._next()):
                found *= self._power()  # 2\pi, 3(4)
            else:
                return found

    def _signed(self) -> Number:
        sign = 1
        while token := self._take("+", "-"):
            sign = -sign if token == "-" else sign
        return sign * self._power()

    def _power(self) -> Number:
        base = self._atom()
        if not self._take("^"):
            return base
        exponent = self._signed() if self._next() != "{" else self._group()
        return _raised(base, exponent)

    def _atom(self) -> Number:
        token = self._next()
        self._at += 1
        if token and (token[0].isdigit() or token[0] == "."):
            return _number(token.replace(",", ""))
        if token in _CLOSING:
            self._at -= 1
            return self._group()
        if token == "\\pi":
            return math.pi
        if token in _FRACTIONS:
            above, below = self._argument(), self._argument()
            return _ratio(above, below)
        if token == "\\sqrt":
            degree = self._group() if self._next() == "[" else 2
            return _raised(float(self._argument()), 1 / degree)
        if token in _FUNCTIONS:
            return _FUNCTIONS[token](float(self._power()))
        raise _NoValue

    def _group(self) -> Number:
        closing = _CLOSING[self._take(*_CLOSING) or self._fail()]
        found = self._sum()
        if not self._take(closing):
            raise _NoValue
        return found

    def _argument(self) -> Number:
        r"""Of a command: a group, or one digit as in ``\frac12``."""
        token = self._next()
        if len(token) > 1 and token.isdigit():
            self._tokens[self._at : self._at + 1] = [token[0], token[1:]]
        return self._group() if self._next() in _CLOSING else self._atom()

    def _fail(self) -> str:
        raise _NoValue


def _begins(token: str) -> bool:
    """Does a factor begin with it, without a sign before?"""
    return token.startswith("\\") or token[:1].isdigit() or token[:1] == "."


def _number(digits: str) -> Number:
    return float(digits) if "." in digits else int(digits)


def _ratio(above: Number, below: Number) -> Number:
    if isinstance(above, float) or isinstance(below, float):
        return above / below
    return fractions.Fraction(above) / below


def _raised(base: Number, exponent: Number) -> Number:
    whole = isinstance(exponent, int) or (
        isinstance(exponent, fractions.Fraction) and exponent.denominator == 1
    )
    if whole and not isinstance(base, float):
        exact = fractions.Fraction(base)
        bits = max(exact.numerator.bit_length(), exact.denominator.bit_length())
        if bits * abs(exponent) > MAX_BITS:
            raise _NoValue
        return exact ** int(exponent)
    found = float(base) ** float(exponent)
    if isinstance(found, complex):
        raise _NoValue
    return found
