"""What benchmarks of short answers about pictures share: rows, prompts, grades."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mpo_jax import ledger
from mpo_jax.evals import (
    choices,
    corrected,
    extract,
    prompts,
    rows,
    source_tsv,
    sources,
)
from mpo_jax.evals import vlmevalkit as vlmevalkit_lib
from mpo_jax.evals.benchmark import COT, Ask, Grade, Grader, Item, Tools

HALF = 0.5
"""Points from which an answer counts as right, where a rule gives parts of a point."""

PAPER_COT = (
    "InternVL has no chain-of-thought script for this benchmark: it is asked and read "
    "as its scripts for others do"
)
WHOLE = (
    "as released, a chain of thought is graded whole: VLMEvalKit takes the answer out "
    "of it for choices and yes/no alone"
)
STATED = (
    "the corrected rule grades what a response last states as its answer, where the "
    "released ones take the first 'Answer:' or all of it"
)
MAX_ANSWERS = 100
Rule = Callable[[str, Sequence[str]], float]
"""Points of a text against all true answers."""

Find = Callable[[str, str], str]
"""The prediction in a response, given the mode."""


def read(
    folder: sources.Folder, source: sources.Source
) -> Iterator[tuple[str, rows.Row]]:
    """As ``rows.read``; where a file has one object with all rows in ``data``, those.

    Raises:
      MissingSource: there is no file.
      ValueError: a file cannot be read.
    """
    for where, row in rows.read(folder, source):
        inside = row.get("data")
        if not isinstance(inside, list):
            yield where, row
            continue
        for number, one in enumerate(inside, 1):
            if not isinstance(one, dict):
                raise ValueError(f"{where}, item {number} of data: is no object")
            yield f"{where}, item {number} of data", one


def answers(row: rows.Row, where: str, *names: str) -> tuple[str, ...]:
    """True answers: a text, a number, or a list of them.

    VLMEvalKit's tables, known by their ``index``, write a list as a Python literal.

    Raises:
      ValueError: the row has none of the fields, or something else in it.
    """
    name = next((name for name in names if rows.given(row.get(name))), names[0])
    value: Any = row.get(name)
    if source_tsv.KEY in row:
        value = alternatives(value)
    values = value if isinstance(value, list) else [value]
    good = all(
        isinstance(one, str | int | float) and not isinstance(one, bool)
        for one in values
    )
    if not good or not 0 < len(values) <= MAX_ANSWERS:
        raise ValueError(
            f"{where}: {name}={ledger.short(value)} is no answer, nor a list of 1 to "
            f"{MAX_ANSWERS} of them"
        )
    return tuple(str(one) for one in values)


def alternatives(value: Any) -> Any:
    """The list that a text is a Python literal of; anything else as it is."""
    if not isinstance(value, str) or value[:1] != "[":
        return value
    found = rows.literal(value)
    return found if isinstance(found, list) else value


def fields(row: rows.Row) -> dict[str, str]:
    """A table's ``index``, which items are not always called by; exports need it."""
    index = rows.optional(row, source_tsv.KEY)
    return {source_tsv.KEY: index} if index else {}


def group(row: rows.Row, images: Sequence[sources.Image], *names: str) -> str:
    """What questions on the same picture have in common; "" where nothing says it."""
    named = rows.optional(row, *names)
    if not named and images and isinstance(images[0], str):
        return images[0]
    return named


def paper_asks(*, max_tiles: int, tokens: int) -> Callable[[Item, str], Ask]:
    """InternVL's scripts: a space before the suffix.

    Args:
      tokens: of the longest direct answer.
    """

    def ask(item: Item, mode: str) -> Ask:
        if mode == COT:
            return Ask(prompts.cot(item.question), prompts.COT_TOKENS, max_tiles)
        return Ask(f"{item.question} {choices.ASK_SHORT}", tokens, max_tiles)

    return ask


def vlmevalkit_asks(*, max_tiles: int) -> Callable[[Item, str], Ask]:
    """VLMEvalKit: a line feed before the suffix, the same length for every answer."""

    def ask(item: Item, mode: str) -> Ask:
        text = f"{item.question}\n{choices.ASK_SHORT}"
        if mode == COT:
            text = vlmevalkit_lib.mpo(item.question)
        return vlmevalkit_lib.ask(text, tiles=max_tiles)

    return ask


def quick(response: str, mode: str) -> str:
    """All of a direct answer; of reasoning what follows the first ``Answer:``."""
    return (extract.quick(response) if mode == COT else response).strip()


def whole(response: str, mode: str) -> str:
    """All of it."""
    del mode
    return response.strip()


def grades(rule: Rule, name: str, find: Find) -> Grader:
    """A grader from a rule, its name, and what finds the prediction."""

    def grade(item: Item, response: str, mode: str, tools: Tools) -> Grade:
        del tools
        found = find(response, mode)
        if not found:
            return corrected.unparsed()
        return in_parts(found, rule(found, corrected.answers(item)), name)

    return grade


def in_parts(prediction: str, points: float, rule: str) -> Grade:
    """A grade of a rule that gives parts of a point; right from :data:`HALF`."""
    right = Grade.of(prediction, points >= HALF, rule)
    return Grade(prediction, right.verdict, points)


def any_of(rule: Callable[[str, str], float | bool]) -> Rule:
    """The most points that any of the true answers gives."""
    return lambda found, truths: max(float(rule(found, truth)) for truth in truths)
