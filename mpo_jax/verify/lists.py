"""Lists, sets, tuples and intervals, judged element by element."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from mpo_jax.verify import numbers
from mpo_jax.verify import text as texts
from mpo_jax.verify.verdict import RIGHT, UNDECIDED, WRONG, Verdict

_MOST = 64
"""Elements of a list; a longer one is left to others."""

Judge = Callable[[str, str], Verdict | None]


@dataclasses.dataclass(frozen=True)
class Listing:
    """A list that was read.

    Attributes:
      items: its elements, unified texts.
      brackets: the pair around it, ``()``, ``[]``, ``(]``, ``{}``; empty: none.
      unordered: is it a set, or are they alternatives (``4 or 5``)? Of ``4 and 5``
        nobody knows; the order may have been asked for.
    """

    items: tuple[str, ...]
    brackets: str = ""
    unordered: bool = False


_JOIN = re.compile(r",?\s+(?:and|or|&)\s+|\s*[和或与及]\s*|\s*[;；]\s*|\s*\\\\\s*")
_EITHER = re.compile(r"\sor\s|或")
_CLOSING = {"(": ")]", "[": "])", "{": "}"}


def read(text: str) -> Listing | None:
    """The list that a unified text is; None for a single answer."""
    if text.startswith("±") and text.count("±") == 1:
        value = text[1:].strip()
        return Listing((value, f"-{value}"), unordered=True)
    brackets, inner = "", text
    if text[:1] in _CLOSING and text[-1:] in _CLOSING[text[0]] and _is_whole(text):
        brackets, inner = text[0] + text[-1], text[1:-1].strip()
    either = _EITHER.search(inner) is not None and not brackets
    items = [item.strip() for item in _split(_JOIN.sub(" , ", inner), not brackets)]
    if len(items) > _MOST or not all(items):
        return None
    if len(items) < 2:
        # (5) is 5, {5} may be a set of one; [5] is a list of one
        return Listing(tuple(items), brackets) if brackets == "[]" else None
    return Listing(tuple(items), brackets, unordered=brackets == "{}" or either)


def _is_whole(text: str) -> bool:
    """Does the bracket that opens `text` close at its very end?"""
    depth = 0
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return at == len(text) - 1
    return False


def _split(text: str, thousands: bool) -> list[str]:
    """At commas outside brackets, without those of `thousands` such as 1,234."""
    items, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0 and not (thousands and _groups(text, at)):
            items.append(text[start:at])
            start = at + 1
    return [*items, text[start:]]


def _groups(text: str, at: int) -> bool:
    """Do three digits follow the comma and one to three stand before it?"""
    behind, before = text[at + 1 : at + 5], text[max(0, at - 4) : at]
    three = re.match(r"\d{3}(?!\d)", behind)
    return bool(three and re.search(r"(?<!\d)\d{1,3}$", before))


def compare(said: str, gold: str, judge: Judge) -> Verdict | None:
    """Judge two unified texts of which at least one is a list.

    None: neither is, or elements are left that only mathematics can compare.
    """
    answer, truth = read(said), read(gold)
    if answer is None and truth is None:
        return None
    if answer is None or truth is None:
        return Verdict(UNDECIDED, "list_against_single")
    if len(answer.items) != len(truth.items):
        return _lengths_differ(answer, truth)
    in_order = _pairwise(answer, truth, judge)
    pairs = {answer.brackets, truth.brackets}
    if not pairs & {"()", "(]", "[)"} and (in_order is None or not in_order.right):
        in_order = _in_any_order(answer, truth, judge, in_order)
    if in_order is not None and in_order.outcome == WRONG:
        return in_order
    return _brackets(answer.brackets, truth.brackets) or in_order


def _lengths_differ(answer: Listing, truth: Listing) -> Verdict:
    """Wrong, unless an element is told twice or something is no value but a clause."""
    known = all(
        numbers.read(item) is not None or texts.is_maths(item)
        for item in (*answer.items, *truth.items)
    )
    if known and set(answer.items) != set(truth.items):
        return Verdict(WRONG, "list_length")
    return Verdict(UNDECIDED, "list_length")


def _brackets(answer: str, truth: str) -> Verdict | None:
    """What brackets alone decide: half-open intervals are understood; one pair may
    stand for another elsewhere, and for none, but not surely."""
    pair = {answer, truth}
    if len(pair) == 1 or pair == {"[]", "{}"}:
        return None
    if "" in pair:
        (other,) = pair - {""}
        return Verdict(UNDECIDED, "list_brackets") if other in ("(]", "[)") else None
    if pair & {"(]", "[)"} and "{}" not in pair:
        return Verdict(WRONG, "list_brackets")
    return Verdict(UNDECIDED, "list_brackets")


def _pairwise(answer: Listing, truth: Listing, judge: Judge) -> Verdict | None:
    verdicts = [judge(a, t) for a, t in zip(answer.items, truth.items, strict=True)]
    outcomes = [v.outcome if v else None for v in verdicts]
    if WRONG in outcomes:
        return Verdict(WRONG, "list")
    if UNDECIDED in outcomes:
        return Verdict(UNDECIDED, "list_element")
    return None if None in outcomes else Verdict(RIGHT, "list")


def _in_any_order(
    answer: Listing, truth: Listing, judge: Judge, in_order: Verdict | None
) -> Verdict | None:
    """Sets are right in any order; of other lists, the same elements in another
    order are left undecided."""
    table = [
        [v.outcome if (v := judge(a, t)) else None for a in answer.items]
        for t in truth.items
    ]
    if _matching(table, lambda outcome: outcome == RIGHT):
        if truth.unordered:
            return Verdict(RIGHT, "set")
        return Verdict(UNDECIDED, "list_order")
    if not _matching(table, lambda outcome: outcome != WRONG):
        return Verdict(WRONG, "list")
    if any(None in row for row in table) and (truth.unordered or in_order is None):
        return None
    return Verdict(UNDECIDED, "list_element")


def _matching(
    table: list[list[str | None]], fits: Callable[[str | None], bool]
) -> bool:
    """Can every row have a column of its own that fits?"""
    owner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, outcome in enumerate(table[row]):
            if fits(outcome) and column not in tried:
                tried.add(column)
                if column not in owner or place(owner[column], tried):
                    owner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(table)))
