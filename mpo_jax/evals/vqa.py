"""What benchmarks of short answers about pictures share: fields, prompts, grades."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mpo_jax import ledger
from mpo_jax.evals import benchmark, wording
from mpo_jax.evals.benchmark import Ask, Grade, Grader, Item, Tools

HALF = 0.5
"""Points from which an answer counts as right, where a rule gives parts of a point."""

NO_COT = (
    "InternVL has no chain-of-thought script for this benchmark: it is asked as its "
    "scripts for others do (same instruction, 4096 tokens, text after the first "
    "'Answer:')"
)
WHOLE = (
    "as released, a chain of thought is graded whole, as VLMEvalKit takes the answer "
    "out of it for choices and yes/no alone; the corrected rule grades the text after "
    "the first 'Answer:'"
)
MAX_ANSWERS = 100
Rule = Callable[[str, Sequence[str]], float]
"""Points of a text against all true answers."""


def field(row: Mapping[str, Any], *names: str) -> Any:
    """The first of some fields that a row has.

    Raises:
      ValueError: it has none of them; names them and what it has.
    """
    for name in names:
        if row.get(name) not in (None, ""):
            return row[name]
    raise ValueError(
        f"a row has no {' or '.join(names)}, but {ledger.short(sorted(row), 200)}; is "
        "the file this benchmark's?"
    )


def text(row: Mapping[str, Any], *names: str) -> str:
    """:func:`field` that must be a text or a number.

    Raises:
      ValueError: it is neither, or missing.
    """
    value = field(row, *names)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(
            f"{' or '.join(names)}={ledger.short(value)}: must be a text or a number"
        )
    return str(value)


def answers_of(value: Any) -> tuple[str, ...]:
    """True answers from a text, a number, a list of them or such a list as text.

    Raises:
      ValueError: it is none of those.
    """
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            found = ast.literal_eval(value)  # VLMEvalKit's way
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = value  # a text in brackets
        value = found
    values = value if isinstance(value, list) else [value]
    good = 0 < len(values) <= MAX_ANSWERS and all(
        isinstance(item, str | int | float) for item in values
    )
    if not good:
        raise ValueError(f"answer={ledger.short(value)}: must be a text or a list")
    return tuple(str(item) for item in values)


def unpacked(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows; where a file has one object with all of them in ``data``, those."""
    for row in rows:
        if isinstance(row.get("data"), list):
            yield from row["data"]
        else:
            yield row


def asks(
    joint: str, *, max_tiles: int, direct_tokens: int, suffix: str = wording.SHORT
) -> Callable[[Item, str], Ask]:
    """The question and a suffix; to reason, the question in the usual instruction.

    Args:
      joint: between question and suffix.
      direct_tokens: longest direct answer.
    """

    def ask(item: Item, mode: str) -> Ask:
        if mode == benchmark.COT:
            text = wording.cot(item.question)
            return Ask(text, wording.COT_TOKENS, max_tiles)
        return Ask(f"{item.question}{joint}{suffix}", direct_tokens, max_tiles)

    return ask


def paper_asks(*, max_tiles: int, tokens: int) -> Callable[[Item, str], Ask]:
    """InternVL's scripts: a space before the suffix."""
    return asks(" ", max_tiles=max_tiles, direct_tokens=tokens)


def vlmevalkit_asks(*, max_tiles: int) -> Callable[[Item, str], Ask]:
    """VLMEvalKit: a line feed before the suffix, 4096 tokens for every answer."""
    return asks("\n", max_tiles=max_tiles, direct_tokens=wording.COT_TOKENS)


def truths(item: Item) -> tuple[str, ...]:
    """All true answers of an item.

    Raises:
      ValueError: it has none, so that only a judge could grade it.
    """
    if item.answer is None:
        raise ValueError(f"item {item.id!r} has no answer to grade by")
    return (item.answer,) if isinstance(item.answer, str) else item.answer


def grades(rule: Rule, name: str, *, whole: bool = False) -> Grader:
    """A grader from a rule.

    Args:
      rule: points of a prediction.
      name: of the rule.
      whole: take a chain of thought whole, else what :func:`wording.quick_answer`
        finds in it.
    """

    def grade(item: Item, response: str, mode: str, tools: Tools) -> Grade:
        del tools
        found = response.strip()
        if mode == benchmark.COT and not whole:
            found = wording.quick_answer(found)
        return graded(found, rule(found, truths(item)) if found else 0.0, name)

    return grade


def graded(prediction: str, points: float, rule: str) -> Grade:
    """A grade in parts of a point; without a prediction wrong."""
    if not prediction:
        return Grade.of("", False, "no_answer")
    right = Grade.of(prediction, points >= HALF, rule)
    return Grade(prediction, right.verdict, points)


def any_of(rule: Callable[[str, str], float | bool]) -> Rule:
    """The most points that any of the true answers gives."""
    return lambda found, wanted: max(float(rule(found, truth)) for truth in wanted)
