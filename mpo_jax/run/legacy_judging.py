"""Rollouts judged by the released rules, with the tools that other rooms have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpo_jax.evals import edit_distance, text_scores
from mpo_jax.prefs import legacy, pairs
from mpo_jax.prefs.rollouts import Group
from mpo_jax.verify import bounds, formats
from mpo_jax.verify.maths import Mathematics
from mpo_jax.verify.verdict import UNDECIDED, Verdict


class LegacyJudge:
    """Judges as the released pipeline: right, wrong, or of a wrong form.

    Whether an answer was cut off is not asked.
    """

    def __init__(self, maths: Mathematics):
        self._maths = maths
        self._known: dict[tuple[str, str], bool] = {}
        self._tools = legacy.Tools(
            text_scores.evalai,
            edit_distance.levenshtein,
            lambda prediction, truth: self._known[prediction, truth],
        )

    @property
    def pins(self) -> list[Any]:
        """What verdicts depend on, as JSON values."""
        return ["legacy"]

    def __call__(self, groups: Sequence[Group]) -> list[list[pairs.Judged]]:
        parsed = [
            [legacy.parse(one.response, one.form) for one in group.rollouts]
            for group in groups
        ]
        self._known = self._compared(groups, parsed)
        return [
            [
                pairs.Judged(rollout, one, self._verdict(group, one))
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

    def _verdict(self, group: Group, parsed: formats.Parsed) -> Verdict:
        if parsed.prediction is None:
            return Verdict(UNDECIDED, parsed.problem)
        question = group.question
        modes = legacy.modes_of(question.source)
        return legacy.check(
            parsed.prediction, question.truth.answer, modes, self._tools
        )
