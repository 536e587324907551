"""One answer against the truth, by all rules in their order, and none twice.

The ladder decides what has plain rules, mathematics what it leaves, and a last judge,
where there is one, what is still undecided.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mpo_jax.verify import bounds, cache, ladder, maths
from mpo_jax.verify.policy import DEFAULT, Policy
from mpo_jax.verify.verdict import UNDECIDED, Truth, Verdict

VERSION = "3"
"""Of all rules; raised with whatever changes a verdict."""

MODEL = "model"
"""Rule of verdicts of a last judge."""

SECOND_LOOK = frozenset(
    {"relation", "list_against_single", "list_element", "plus_minus"}
)
"""Rules by which the ladder leaves undecided what mathematics may be able to compare:
equations and inequalities, intervals, matrices, the two values of a plus-minus. Where
it is not, the ladder's rule stays."""

Asked = tuple[str, str, Truth]
"""Question, prediction, truth."""

Last = Callable[[Sequence[Asked]], Sequence[Verdict | None]]
"""A judge of what is undecided, such as a model behind an endpoint; None leaves it."""


class Verifier:
    """Judges answers; use it in ``with`` or close it. Any thread may ask."""

    def __init__(
        self,
        policy: Policy = DEFAULT,
        *,
        workers: int = 2,
        seconds: float = 0.5,
        memory: int = 96 << 20,
        cache_path: str | os.PathLike[str] | None = None,
        last: Last | None = None,
    ):
        """
        Args:
          policy: what is not the same for everybody (percent, units, …).
          workers, seconds, memory: see :class:`maths.Mathematics`.
          cache_path: a file that keeps verdicts, see :class:`cache.Cache`.
          last: asked for what the rules leave undecided. Its verdicts are not kept.
        """
        self.policy = policy
        self._maths = maths.Mathematics(workers, seconds=seconds, memory=memory)
        self._cache = cache.Cache(cache_path)
        self._last = last
        self._pins = (VERSION, maths.version(), dataclasses.asdict(self.policy))

    @property
    def pins(self) -> tuple[Any, ...]:
        """What verdicts depend on beside the answers; JSON values."""
        return self._pins

    def check(self, prediction: str, truth: Truth, question: str = "") -> Verdict:
        """Judge one answer.

        Args:
          prediction: the final answer alone; see ``verify.formats``.
          question: for the last judge.
        """
        return self.check_many([(prediction, truth)], [question])[0]

    def check_many(
        self,
        pairs: Iterable[tuple[str, Truth]],
        questions: Iterable[str] | None = None,
    ) -> list[Verdict]:
        """Judge answers, equal ones once.

        Args:
          pairs: predictions and truths.
          questions: one for each, for the last judge; None where they are not known.

        Returns:
          Verdicts in the order of `pairs`.
        """
        pairs = list(pairs)
        keys = [self._key(prediction, truth) for prediction, truth in pairs]
        unique = dict(zip(keys, pairs, strict=True))
        found = self._cache.get_many(unique)
        missing = {key: pair for key, pair in unique.items() if key not in found}
        new = self._judge(missing)
        self._cache.put_many(new)
        verdicts = [(found | new)[key] for key in keys]
        if self._last is None:
            return verdicts
        asked = [""] * len(pairs) if questions is None else list(questions)
        return self._asked_last(self._last, pairs, asked, verdicts)

    def close(self) -> None:
        """End the workers, close the cache."""
        self._maths.close()
        self._cache.close()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _key(self, prediction: str, truth: Truth) -> bytes:
        return cache.key_of(prediction, dataclasses.astuple(truth), self._pins)

    def _judge(self, pairs: dict[bytes, tuple[str, Truth]]) -> dict[bytes, Verdict]:
        """By the rules, each pair anew."""
        found: dict[bytes, Verdict] = {}
        left: dict[bytes, tuple[str, str]] = {}
        for key, (prediction, truth) in pairs.items():
            verdict = ladder.decide(prediction, truth, self.policy)
            if verdict is not None:
                found[key] = verdict
            if verdict is None or verdict.rule in SECOND_LOOK:
                texts = ladder.for_mathematics(prediction, truth)
                why = bounds.guard(*texts)
                if why is None:
                    left[key] = texts
                elif verdict is None:
                    found[key] = Verdict(UNDECIDED, why)
        verdicts = self._maths.check_many(left.values())
        for key, verdict in zip(left, verdicts, strict=True):
            if key not in found or verdict.outcome != UNDECIDED:
                found[key] = verdict
        return found

    def _asked_last(
        self,
        last: Last,
        pairs: Sequence[tuple[str, Truth]],
        questions: Sequence[str],
        verdicts: list[Verdict],
    ) -> list[Verdict]:
        """Verdicts, with those of the last judge where they were undecided."""
        places: dict[Asked, list[int]] = {}
        for i, (pair, question) in enumerate(zip(pairs, questions, strict=True)):
            if verdicts[i].outcome == UNDECIDED:
                places.setdefault((question, *pair), []).append(i)
        for asked, verdict in zip(places, last(list(places)), strict=True):
            if verdict is not None:
                for i in places[asked]:
                    verdicts[i] = Verdict(verdict.outcome, MODEL)
        return verdicts
