"""Rollouts judged by the released rules, with the tools that other rooms have."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from mpo_jax.evals import edit_distance, text_scores
from mpo_jax.prefs import legacy, pairs
from mpo_jax.prefs.rollouts import Group, Rollout
from mpo_jax.verify import bounds, formats
from mpo_jax.verify.maths import Mathematics
from mpo_jax.verify.verdict import UNDECIDED, Verdict

_FIXED = ("en", "zh")


@contextlib.contextmanager
def open_judge(workers: int, *, fix: bool) -> Iterator[tuple[LegacyJudge, Any]]:
    """A judge by the released rules, and what its verdicts depend on.

    Args:
      workers: processes for mathematics.
      fix: as `LegacyJudge`.
    """
    with Mathematics(workers) as maths:
        judge = LegacyJudge(maths, fix=fix)
        yield judge, judge.pins


class LegacyJudge:
    """Judges as the released pipeline: right, wrong, or of a wrong form.

    Whether an answer was cut off is not asked.
    """

    def __init__(self, maths: Mathematics, *, fix: bool = False):
        """
        Args:
          fix: rewrite responses in the formats en and zh, see ``legacy.fixed``.
        """
        self._maths, self._fix = maths, fix
        self._known: dict[tuple[str, str], bool] = {}
        self._tools = legacy.Tools(
            text_scores.evalai,
            edit_distance.levenshtein,
            lambda prediction, truth: self._known[prediction, truth],
        )

    @property
    def pins(self) -> list[Any]:
        """What verdicts depend on, as JSON values."""
        return ["legacy", *(["answer_fix"] if self._fix else [])]

    def __call__(self, groups: Sequence[Group]) -> list[list[pairs.Judged]]:
        parsed = [
            [legacy.parse(one.response, one.form) for one in group.rollouts]
            for group in groups
        ]
        self._known = self._compared(groups, parsed)
        return [
            [
                self._judged(group, rollout, one)
                for rollout, one in zip(group.rollouts, row, strict=True)
            ]
            for group, row in zip(groups, parsed, strict=True)
        ]

    def _compared(
        self, groups: Sequence[Group], parsed: Sequence[Sequence[formats.Parsed]]
    ) -> dict[tuple[str, str], bool]:
        """What mathematics says of all pairs that are asked about, each once."""
        asked = {
            (one.prediction, group.question.truth.answer): None
            for group, row in zip(groups, parsed, strict=True)
            for one in row
            if one.prediction is not None
            and legacy.MATH_VERIFY in legacy.modes_of(group.question.source)
        }
        known = dict.fromkeys(asked, False)
        fit = [pair for pair in asked if bounds.guard(*pair) is None]
        for pair, verdict in zip(fit, self._maths.check_many(fit), strict=True):
            known[pair] = verdict.right
        return known

    def _judged(
        self, group: Group, rollout: Rollout, parsed: formats.Parsed
    ) -> pairs.Judged:
        verdict = self._verdict(group, parsed)
        if self._fix and rollout.form in _FIXED and parsed.prediction is not None:
            truth = group.question.truth.answer
            text = legacy.fixed(rollout.response, parsed.prediction, truth)
            if text is None:
                parsed = formats.Parsed(None, formats.NO_ANSWER)
                verdict = Verdict(UNDECIDED, formats.NO_ANSWER)
            else:
                rollout = dataclasses.replace(rollout, response=text)
        return pairs.Judged(rollout, parsed, verdict)

    def _verdict(self, group: Group, parsed: formats.Parsed) -> Verdict:
        if parsed.prediction is None:
            return Verdict(UNDECIDED, parsed.problem)
        question = group.question
        modes = legacy.modes_of(question.source)
        return legacy.check(
            parsed.prediction, question.truth.answer, modes, self._tools
        )
