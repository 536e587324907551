"""Grading without the errors of released rules: what was said last, then ``verify``.

An answer that is not understood is wrong, never an option and never a random one; what
``verify`` cannot decide is undecided and has no points.
"""

from __future__ import annotations

from mpo_jax.evals import extract
from mpo_jax.evals.benchmark import Grade, Grader, Item, Tools
from mpo_jax.verify import verdict
from mpo_jax.verify.verdict import Truth, Verdict

UNPARSED = "unparsed"


def unparsed() -> Grade:
    """Of a response in which no answer was found: wrong."""
    return Grade("", Verdict(verdict.WRONG, UNPARSED), 0.0)


def grader(kind: str = "") -> Grader:
    """Grades the answer that a response states by ``verify``.

    Args:
      kind: of the truth; options where an item has them, else found from it.
    """

    def grade(item: Item, response: str, mode: str, tools: Tools) -> Grade:
        said = extract.final_answer(response, mode)
        return against(item, said, tools, kind) if said else unparsed()

    return grade


def against(item: Item, prediction: str, tools: Tools, kind: str = "") -> Grade:
    """A prediction against the true answers of an item, any of which will do."""
    kind = kind or (verdict.OPTION if item.options else "")
    found = [
        tools.check(prediction, Truth(answer, item.options, kind))
        for answer in answers(item)
    ]
    for outcome in (verdict.RIGHT, verdict.UNDECIDED):
        for one in found:
            if one.outcome == outcome:
                return Grade.judged(prediction, one)
    return Grade.judged(prediction, found[0])


def answers(item: Item) -> tuple[str, ...]:
    """The true answers of an item, one or more."""
    if item.answer is None:
        raise ValueError(f"item {item.id}: has no true answer to grade by")
    return (item.answer,) if isinstance(item.answer, str) else item.answer
