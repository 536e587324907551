"""From the judged rollouts of one prompt to pairs: right against wrong.

Pure functions. What is drawn depends on the seed, the prompt's key and its rollouts
alone: neither on other questions nor on the order of the file.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from mpo_jax.prefs.rollouts import Group, Rollout
from mpo_jax.verify import formats
from mpo_jax.verify.verdict import RIGHT, UNDECIDED, WRONG, Verdict

T = TypeVar("T")

FORMAT, TRUNCATED = "format", "truncated"
ROLES = (RIGHT, WRONG, UNDECIDED, FORMAT, TRUNCATED)
"""What a rollout is good for: to be chosen; to be rejected as a wrong answer; nothing;
to be rejected since it has no final answer; or since it was cut off."""

NONE, APART, MIXED = NEGATIVES = ("none", "apart", "mixed")
"""What becomes of negatives that are no wrong answers: none is used; they make pairs of
their own; they are drawn together with the wrong ones."""

SAME, ENTAILED, LENGTH = SKIPPED = ("same_text", "entailed", "length_ratio")
"""Why two rollouts make no pair."""

_LONGEST_WORD = 1000
"""Characters of an answer of which it matters what stands around it."""
_DECIMAL = (".", ",")


@dataclasses.dataclass(frozen=True)
class Judged:
    """A rollout with its verdict.

    Attributes:
      parsed: its final answer, or why there is none.
      verdict: of that answer; undecided, by the problem, where there is none.
      cut: it counts as cut off.
    """

    rollout: Rollout
    parsed: formats.Parsed
    verdict: Verdict
    cut: bool = False

    @property
    def role(self) -> str:
        """One of ``ROLES``.

        What was cut off is never chosen; where it had stated a right answer, or one
        that nobody can judge, it is not rejected either.
        """
        if self.cut:
            fails = self.parsed.prediction is None or self.verdict.outcome == WRONG
            return TRUNCATED if fails else UNDECIDED
        if self.parsed.prediction is None:
            return FORMAT
        return self.verdict.outcome


Entails = Callable[[str, str], bool]
"""Does a negative's prediction (second) hold the positive's (first)?"""


@dataclasses.dataclass(frozen=True)
class Rules:
    """How pairs are made.

    Attributes:
      max_pairs: of a prompt and a reason.
      seed: of the draw.
      min_accuracy, max_accuracy: prompts with another share of right answers make no
        pairs.
      format_negatives, truncated_negatives: one of ``NEGATIVES``.
      max_length_ratio: longer response over the shorter one, in characters; 0 takes
        all.
      entails: predictions for which it holds make no pair.
      none_is_text: a negative without a final answer counts as one of the text
        ``None`` for `entails`, as in the released pipeline.
      max_pairs_of: sources with another limit than `max_pairs`.

    Raises:
      ValueError: a value is out of range; names it.
    """

    max_pairs: int = 15
    seed: int = 0
    min_accuracy: float = 0.0
    max_accuracy: float = 1.0
    format_negatives: str = APART
    truncated_negatives: str = APART
    max_length_ratio: float = 0.0
    entails: Entails = dataclasses.field(default_factory=lambda: entailed)
    none_is_text: bool = False
    max_pairs_of: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.max_pairs <= 10_000:
            raise ValueError(f"max_pairs={self.max_pairs}: must be from 1 to 10000")
        for source, most in self.max_pairs_of.items():
            if not 1 <= most <= 10_000:
                raise ValueError(
                    f"max_pairs_of[{source!r}]={most}: must be from 1 to 10000"
                )
        if not 0 <= self.min_accuracy <= self.max_accuracy <= 1:
            raise ValueError(
                f"min_accuracy={self.min_accuracy}, max_accuracy={self.max_accuracy}: "
                "must be shares from 0 to 1 in this order"
            )
        for name in ("format_negatives", "truncated_negatives"):
            if getattr(self, name) not in NEGATIVES:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: use one of {', '.join(NEGATIVES)}"
                )
        ratio = self.max_length_ratio
        if not (ratio == 0 or (ratio >= 1 and math.isfinite(ratio))):
            raise ValueError(
                f"max_length_ratio={ratio}: must be a number from 1, or 0 for any"
            )


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two answers to one prompt.

    Attributes:
      reason: why the second is rejected: the role of it, or :data:`WRONG` where all
        are drawn together.
    """

    chosen: Judged
    rejected: Judged
    reason: str


@dataclasses.dataclass(frozen=True)
class Made:
    """What a prompt gave.

    Attributes:
      pairs: by reason, then by the samples' numbers.
      accuracy: right answers among those that count; None where none does.
      filtered: its accuracy kept it out.
      skipped: how often two rollouts made no pair while pairs were looked for, by
        reason of ``SKIPPED``.
    """

    pairs: tuple[Pair, ...]
    accuracy: float | None
    filtered: bool
    skipped: collections.Counter[str]


def make(group: Group, judged: Sequence[Judged], rules: Rules) -> Made:
    """Pairs of one prompt.

    Args:
      judged: the group's rollouts, in its order.
    """
    share = accuracy(judged)
    skipped: collections.Counter[str] = collections.Counter()
    if share is None or not rules.min_accuracy <= share <= rules.max_accuracy:
        return Made((), share, share is not None, skipped)
    positives = distinct(one for one in judged if one.role == RIGHT)
    most = rules.max_pairs_of.get(group.question.source, rules.max_pairs)
    found: list[Pair] = []
    for reason, roles in _reasons(rules).items():
        negatives = distinct(one for one in judged if one.role in roles)
        draw = _draw(f"{rules.seed}:{reason}:{group.key}")
        found += _drawn(positives, negatives, reason, rules, draw, skipped, most)
    return Made(tuple(found), share, False, skipped)


def accuracy(judged: Sequence[Judged]) -> float | None:
    """Share of right answers; those that are undecided do not count."""
    count = collections.Counter(one.role for one in judged)
    total = len(judged) - count[UNDECIDED]
    return count[RIGHT] / total if total else None


def distinct(judged: Iterator[Judged]) -> list[Judged]:
    """The first of those that say the same, outer blanks apart."""
    found: dict[str, Judged] = {}
    for one in judged:
        text = one.rollout.response.strip()
        if text:  # training takes no empty response
            found.setdefault(text, one)
    return list(found.values())


def _reasons(rules: Rules) -> dict[str, set[str]]:
    """Roles of negatives that are drawn together, by the reason of their pairs."""
    found = {WRONG: {WRONG}}
    for role, place in (
        (FORMAT, rules.format_negatives),
        (TRUNCATED, rules.truncated_negatives),
    ):
        if place == MIXED:
            found[WRONG].add(role)
        elif place == APART:
            found[role] = {role}
    return found


def _draw(text: str) -> random.Random:
    """A generator that depends on a text, the same in every process."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return random.Random(int.from_bytes(digest, "big"))


def _drawn(
    positives: list[Judged],
    negatives: list[Judged],
    reason: str,
    rules: Rules,
    draw: random.Random,
    skipped: collections.Counter[str],
    most: int,
) -> list[Pair]:
    """At most so many pairs that use all positives and negatives evenly."""
    draw.shuffle(positives)
    draw.shuffle(negatives)
    found: list[Pair] = []
    for chosen, rejected in even(positives, negatives):
        why = problem(chosen, rejected, rules)
        if why:
            skipped[why] += 1
            continue
        found.append(Pair(chosen, rejected, reason))
        if len(found) == most:
            break
    return sorted(
        found,
        key=lambda pair: (pair.chosen.rollout.sample, pair.rejected.rollout.sample),
    )


def even(left: Sequence[T], right: Sequence[T]) -> Iterator[tuple[T, T]]:
    """Every pair of two lists once; any beginning uses each side evenly."""
    if not left or not right:
        return
    cycle = math.lcm(len(left), len(right))
    for k in range(len(left) * len(right)):
        yield left[k % len(left)], right[(k + k // cycle) % len(right)]


def problem(chosen: Judged, rejected: Judged, rules: Rules) -> str:
    """Why two rollouts make no pair, of ``SKIPPED``, or ""."""
    texts = chosen.rollout.response.strip(), rejected.rollout.response.strip()
    if texts[0] == texts[1]:
        return SAME
    said = rejected.parsed.prediction
    if said is None and rules.none_is_text:
        said = "None"
    if said is not None and rules.entails(str(chosen.parsed.prediction), said):
        return ENTAILED
    ratio = length_ratio(chosen, rejected)
    if rules.max_length_ratio and not (
        1 / rules.max_length_ratio <= ratio <= rules.max_length_ratio
    ):
        return LENGTH
    return ""


def length_ratio(chosen: Judged, rejected: Judged) -> float:
    """Characters of the chosen response over those of the rejected one."""
    return len(chosen.rollout.response) / len(rejected.rollout.response)


def entailed(positive: str, negative: str) -> bool:
    """Does a wrong answer hold the right one, as a word or a number of its own?

    Such as ``5`` in ``5 or 6``, where a rule may have erred; not ``5`` in ``15`` or in
    ``5.9``, nor ``no`` in ``north``, which are other answers.
    """
    wanted, text = positive.strip().lower(), negative.lower()
    if not wanted or len(wanted) > _LONGEST_WORD:
        return bool(wanted) and wanted in text
    start = text.find(wanted)
    while start >= 0:
        if _stands_alone(text, start, start + len(wanted)):
            return True
        start = text.find(wanted, start + 1)
    return False


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Does no word or number go on around these characters?"""
    before = text[start - 1] if start else ""
    after = text[end : end + 1]
    if any(c.isascii() and c.isalnum() for c in (before, after)):
        return False
    decimal = before in _DECIMAL and start > 1 and text[start - 2].isdigit()
    decimals = after in _DECIMAL and text[end + 1 : end + 2].isdigit()
    return not (decimal or decimals)


def entailed_anyhow(positive: str, negative: str) -> bool:
    """Does a wrong answer hold the right one anywhere? The released rule."""
    return positive.lower() in negative.lower()
