"""What benchmarks graded by a judge share: points from its text, rules beside it.

The messages to judges are in our own words. They give the judge what the official ones
give it, and ask for the same scale in the same form.
"""

from __future__ import annotations

import re

from mpo_jax.evals import corrected, text_scores, vqa
from mpo_jax.evals.benchmark import Grade, Grader, Item, Tools
from mpo_jax.verify import verdict
from mpo_jax.verify.verdict import Verdict

OWN_WORDS = (
    "the message to the judge is in our own words, with the inputs, scale and form of "
    "the official one; its scores are not those of the official message"
)
UNUSABLE = "judge said nothing usable"
JUDGE = "judge"
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def unusable(response: str) -> Grade:
    """Of a judgement that holds no rating: undecided, no points."""
    return Grade(response, Verdict(verdict.UNDECIDED, UNUSABLE), 0.0)


def points_in(text: str, low: float, high: float) -> float | None:
    """The one number that a text consists of, if it lies within bounds."""
    found = _NUMBER.fullmatch(text.strip().rstrip("."))
    value = float(found[0]) if found else None
    return value if value is not None and low <= value <= high else None


def likeness(response: str, truth: str) -> float:
    """Words in common with a reference, see ``text_scores.token_f1``."""
    return text_scores.token_f1(response, truth)


def beside(find: vqa.Find) -> Grader:
    """The rule that stands beside a judge: words in common with the reference."""

    def grade(item: Item, response: str, mode: str, tools: Tools) -> Grade:
        del tools
        found = find(response, mode)
        if not found:
            return corrected.unparsed()
        points = max(likeness(found, truth) for truth in corrected.answers(item))
        return vqa.in_parts(found, points, "words in common with the reference")

    return grade


BESIDE = (
    "without a judge: 100 times the F1 of words in common with the reference, a rule "
    "of ours that says little about being right"
)
