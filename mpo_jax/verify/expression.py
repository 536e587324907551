r"""Text of an answer to one mathematical expression, or to none.

A computer-algebra parser takes what it recognises and drops the rest: ``5, not 4`` is 4
to it, ``3(4)`` is a mixed number, ``10:45`` is 10. So structure (lists, intervals,
equations) is read here, and of what is left only a text in which every token is known
and whose meaning is one alone goes to the parser, in LaTeX that leaves it no choice.
"""

from __future__ import annotations

import dataclasses
import re

from mpo_jax.verify.maths_latex import latex_of
from mpo_jax.verify.maths_tokens import (
    CLOSE,
    GREEK,
    OPEN,
    NoExpression,
    flat,
    split,
    tokens_of,
)

LIST, SET = "", "{}"
"""Kinds of :class:`Many` beside ``()``, ``[]``, ``(]`` and ``[)``."""


@dataclasses.dataclass(frozen=True)
class Scalar:
    """A value: number, term or matrix.

    Attributes:
      latex: every decimal is a fraction, every product of a number is written out.
      places: digits behind the point where it is a lone decimal, else None.
      decimal: does it hold a decimal, which may have been rounded?
    """

    latex: str
    places: int | None = None
    decimal: bool = False


@dataclasses.dataclass(frozen=True)
class Many:
    """Several expressions.

    Attributes:
      kind: the pair of brackets around them.
      name: what is said to lie in them, where something is: ``x`` of ``x > 3``.
    """

    kind: str
    items: tuple[Form, ...]
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Union:
    """Sets or intervals joined by a cup."""

    items: tuple[Form, ...]


@dataclasses.dataclass(frozen=True)
class Equation:
    """``left = right``; `name` where the left side is one: ``x``, ``f(x)``."""

    left: Scalar
    right: Form
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Inequality:
    """``left < right`` (`strict`) or at most; those the other way are turned."""

    left: Scalar
    right: Scalar
    strict: bool


Form = Scalar | Many | Union | Equation | Inequality

_NAME = re.compile(
    r"(?:[a-zA-Z]|\\(?:" + "|".join(GREEK) + r"))"
    r"(?:_(?:\w|\{\w+\}))?(?:\([a-zA-Z](?:,[a-zA-Z])*\))?"
)


def form_of(text: str) -> Form:
    """Read a whole text as one expression.

    Raises:
      NoExpression: it is none, holds a word or an unknown command, or may mean two
        things; says which.
    """
    return _form(tokens_of(text))


def _form(tokens: list[str]) -> Form:
    """Structure from the outside in."""
    parts = split(tokens, (",", ";"))
    items = tuple(item for part in parts for item in _items(part))
    return items[0] if len(items) == 1 else Many(LIST, items)


def _items(tokens: list[str]) -> list[Form]:
    r"""One expression, or the two that a ``\pm`` stands for."""
    if not tokens:
        raise NoExpression("a part is empty")
    for reader in (_membership, _union, _bracketed):
        found = reader(tokens)
        if found is not None:
            return [found]
    if r"\pm" not in tokens:
        return [_relation(tokens) or _scalar(tokens)]
    if tokens.count(r"\pm") > 1:
        raise NoExpression(r"more than one \pm")
    both = [[sign if t == r"\pm" else t for t in tokens] for sign in "+-"]
    return [_relation(signed) or _scalar(signed) for signed in both]


def _membership(tokens: list[str]) -> Form | None:
    r"""``x \in S`` is S."""
    parts = split(tokens, (r"\in",))
    if len(parts) == 1:
        return None
    if len(parts) > 2 or not _NAME.fullmatch("".join(parts[0])):
        raise NoExpression(r"\in is not behind one name")
    form = _form(parts[1])
    if isinstance(form, Many):
        return dataclasses.replace(form, name=_name(parts[0]))
    return form


def _relation(tokens: list[str]) -> Form | None:
    """Equations, and inequalities; those that bound one name are intervals."""
    signs = ("=", "<", ">", r"\le", r"\ge", r"\ne")
    parts = split(tokens, signs)
    if len(parts) == 1:
        return None
    depth_free = [t for t in flat(tokens) if t in signs]
    if r"\ne" in depth_free:
        raise NoExpression(r"\ne says what something is not")
    if depth_free == ["="]:
        name = "".join(parts[0])
        is_name = _NAME.fullmatch(name) is not None
        return Equation(
            _scalar(parts[0]),
            _form(parts[1]) if is_name else _scalar(parts[1]),
            _name(parts[0]) if is_name else "",
        )
    if "=" in depth_free or len(parts) > 3:
        raise NoExpression("several relations in one")
    return _bounds(parts, depth_free)


def _bounds(parts: list[list[str]], signs: list[str]) -> Form:
    if all(sign in (">", r"\ge") for sign in signs):
        parts, signs = parts[::-1], signs[::-1]
        signs = ["<" if sign == ">" else r"\le" for sign in signs]
    if any(sign not in ("<", r"\le") for sign in signs):
        raise NoExpression("relations of two directions")
    names = [_NAME.fullmatch("".join(part)) is not None for part in parts]
    if len(parts) == 3 and names[1] and not (names[0] or names[2]):
        ends = _scalar(parts[0]), _scalar(parts[2])
        brackets = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
        return Many(brackets, ends, _name(parts[1]))
    if len(parts) == 3:
        raise NoExpression("relations that bound no name")
    strict = signs[0] == "<"
    if names == [True, False]:
        ends = Scalar(r"-\infty"), _scalar(parts[1])
        return Many("()" if strict else "(]", ends, _name(parts[0]))
    if names == [False, True]:
        ends = _scalar(parts[0]), Scalar(r"\infty")
        return Many("()" if strict else "[)", ends, _name(parts[1]))
    return Inequality(_scalar(parts[0]), _scalar(parts[1]), strict)


def _name(tokens: list[str]) -> str:
    """``x_1`` and ``x_{1}`` are one name."""
    return re.sub(r"[{}]", "", "".join(tokens))


def _union(tokens: list[str]) -> Form | None:
    parts = split(tokens, (r"\cup",))
    if len(parts) == 1:
        return None
    items = tuple(_form(part) for part in parts)
    if not all(isinstance(item, Many) and item.kind for item in items):
        raise NoExpression(r"\cup joins what is no set")
    return Union(items)


def _bracketed(tokens: list[str]) -> Form | None:
    """What one pair of brackets holds, where that is several, or a set."""
    first, last = tokens[0], tokens[-1]
    if first not in ("(", "[", r"\{") or last not in (")", "]", r"\}"):
        return None
    inner = tokens[1:-1]
    if not _one_pair(tokens):
        return None
    parts = split(inner, (",", ";"))
    if len(parts) == 1:
        return Many(SET, tuple(_items(inner))) if first == r"\{" else None
    kind = SET if first == r"\{" else first + last
    return Many(kind, tuple(item for part in parts for item in _items(part)))


def _one_pair(tokens: list[str]) -> bool:
    """Does the first bracket close with the last token?"""
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token in OPEN) - (token in CLOSE)
        if depth == 0:
            return i == len(tokens) - 1
    return False


def _scalar(tokens: list[str]) -> Scalar:
    """A term, in LaTeX with one meaning."""
    if not tokens:
        raise NoExpression("a part is empty")
    if any(t in (",", ";", "=", "<", ">", r"\le", r"\ge", r"\in") for t in tokens):
        raise NoExpression("a list or a relation inside a term")
    if r"\infty" in tokens and [t for t in tokens if t not in "+-"] != [r"\infty"]:
        raise NoExpression("a term with infinity in it")
    decimals = [t for t in tokens if "." in t]
    bare = [t for t in tokens if t not in ("-", "+")]
    places = len(bare[0].partition(".")[2]) if bare == decimals else None
    return Scalar(latex_of(tokens), places, bool(decimals))
