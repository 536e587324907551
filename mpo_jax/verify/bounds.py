r"""What mathematics is not asked, because it would run for long or judge wrongly.

Reading ``9^{9^9}`` costs nothing; evaluating it costs all there is. And mathematics
compares floats to some 15 digits, so that 1/2^99 is 1/2^98 to it.
"""

from __future__ import annotations

import math
import re

LONGEST = 512
"""Characters on either side."""

_DEEPEST = 16
"""Brackets within brackets."""

_LARGEST_EXPONENT = 32
_LARGEST_FACTORIAL = 10
_LONGEST_NUMBER = 40
_SMALLEST_POWER = 12
"""Decimal digits that a power in a denominator may have."""

_FACTORIAL = re.compile(r"(\d+|[^\s\d])?\s*!(?![=,])|\\(?:factorial|Gamma)(?![a-zA-Z])")
_UNBOUNDED = re.compile(
    r"\\(sum|prod|i*int|oint|lim|binom|choose|bigcup|bigcap)(?![a-zA-Z])|∑|∏|∫"
)
_POWER = re.compile(r"(\d+(?:\.\d+)?|\S)?\s*(?:\^|\*\*)\s*")
_INNER_POWER = re.compile(r"[\d)}\]]\s*(?:\^|\*\*)")
_BARE_EXPONENT = re.compile(r"[+-]?\s*(?:\d+(?:\.\d+)?|\\[a-zA-Z]+|\S)?")
_NUMBER = re.compile(r"\d+")
_SCIENTIFIC = re.compile(r"\d[eE][+-]?(\d+)")


def guard(prediction: str, truth: str) -> str | None:
    r"""Why mathematics must not be asked about these two texts; None: it may.

    ``2^{10}``, ``x^{2n+1}`` and ``3!`` pass; ``2^{99}``, ``(1+x)^{100000}``, ``20!``,
    ``n!``, ``9^{9^9}`` and ``\sum …`` do not. Takes time linear in the length.

    Args:
      prediction, truth: texts as `ladder.for_mathematics` gives them.
    """
    for text in (prediction, truth):
        reason = _reason(text)
        if reason is not None:
            return reason
    return None


def _reason(text: str) -> str | None:
    if len(text) > LONGEST:
        return "too_long"
    if _depth(text) > _DEEPEST:
        return "too_deep"
    if _UNBOUNDED.search(text):
        return "sum_or_limit"
    if any(not _small(m[1], _LARGEST_FACTORIAL) for m in _FACTORIAL.finditer(text)):
        return "factorial"
    if any(len(number) > _LONGEST_NUMBER for number in _NUMBER.findall(text)):
        return "long_number"
    if any(int(e) > _LARGEST_EXPONENT for e in _SCIENTIFIC.findall(text)):
        return "large_exponent"
    divides = "/" in text or "frac" in text or "÷" in text or "\\div" in text
    for match in _POWER.finditer(text):
        if reason := _power(match[1] or "", *_exponent(text, match.end()), divides):
            return reason
    return None


def _exponent(text: str, start: int) -> tuple[str, str]:
    """The exponent that begins at `start`, and what follows it."""
    closing = {"{": "}", "(": ")"}.get(text[start : start + 1])
    if closing is None:
        match = _BARE_EXPONENT.match(text, start)
        end = match.end() if match else start
        return text[start:end], text[end:]
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == text[start]) - (text[at] == closing)
        if depth == 0:
            return text[start : at + 1], text[at + 1 :]
    return text[start:], ""


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _small(digits: str | None, most: int) -> bool:
    return digits is not None and digits.isdigit() and int(digits) <= most


def _power(base: str, exponent: str, rest: str, divides: bool) -> str | None:
    """Why a power is too much; variables in an exponent are harmless, and so are
    powers of them there."""
    if _INNER_POWER.search(exponent) or re.match(r"\s*(?:\^|\*\*)", rest):
        return "exponent_tower"
    sizes = [int(digits) for digits in _NUMBER.findall(exponent)]
    if not sizes:
        return None
    if max(sizes) > _LARGEST_EXPONENT:
        return "large_exponent"
    if (divides or "-" in exponent) and base[:1].isdigit():
        if max(sizes) * math.log10(float(base) or 1) > _SMALLEST_POWER:
            return "tiny_power"
    return None
