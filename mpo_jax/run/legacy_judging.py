"""Rollouts judged, and pairs limited, by the released rules.

With the tools that other rooms have.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from mpo_jax.evals import edit_distance, text_scores
from mpo_jax.prefs import legacy, pairs, rollout_counts
from mpo_jax.prefs.rollouts import Group, Rollout
from mpo_jax.run import pairing
from mpo_jax.utils import progress
from mpo_jax.verify import bounds, formats
from mpo_jax.verify.maths import RELEASED, Mathematics, version
from mpo_jax.verify.verdict import UNDECIDED, Verdict

_FIXED = ("en", "zh")

Asked = tuple[str, str]
"""A prediction and the truth."""


@contextlib.contextmanager
def open_judge(workers: int, *, fix: bool) -> Iterator[tuple[LegacyJudge, Any]]:
    """A judge by the released rules, and what its verdicts depend on.

    Args:
      workers: processes for mathematics.
      fix: as `LegacyJudge`.
    """
    with (  # processes start with the first question, those for LaTeX may never
        Mathematics(workers) as maths,
        Mathematics(workers, judge=RELEASED) as latex,
    ):
        judge = LegacyJudge(maths, latex, fix=fix)
        yield judge, judge.pins


def limited(job: pairing.Job) -> pairing.Job:
    """A job with the released limit of pairs in sources that have many rollouts.

    Reads the inputs once; a build reads them again.

    Raises:
      OSError: an input cannot be read.
      ValueError: an input cannot be read twice.
    """
    if job.rules.max_pairs <= legacy.FEW_PAIRS:
        return job
    counts: collections.Counter[str] = collections.Counter()
    with progress.bar() as bar:
        for path in bar.track(job.inputs, description="Counting rollouts"):
            counts += rollout_counts.by_source(path)
    few = {
        source: legacy.FEW_PAIRS
        for source in sorted(counts)
        if counts[source] > legacy.MANY_ROLLOUTS
    }
    rules = dataclasses.replace(job.rules, max_pairs_of=few)
    return dataclasses.replace(job, rules=rules)


class LegacyJudge:
    """Judges as the released pipeline: right, wrong, or of a wrong form.

    Whether an answer was cut off is not asked.
    """

    def __init__(self, maths: Mathematics, latex: Mathematics, *, fix: bool = False):
        """
        Args:
          maths: judges by the project's rules.
          latex: judges by the released ones.
          fix: rewrite responses in the formats en and zh, see ``legacy.fixed``.
        """
        self._maths, self._latex, self._fix = maths, latex, fix
        self._known: dict[str, dict[Asked, bool]] = {}
        self._tools = legacy.Tools(
            text_scores.evalai,
            edit_distance.levenshtein,
            lambda *asked: self._known[legacy.MATH_VERIFY][asked],
            lambda *asked: self._known[legacy.LATEX][asked],
        )

    @property
    def pins(self) -> list[Any]:
        """What verdicts depend on, as JSON values."""
        return ["legacy", version(), *(["answer_fix"] if self._fix else [])]

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
    ) -> dict[str, dict[Asked, bool]]:
        """What processes say of all that their rule is asked about, each once."""
        asked: dict[str, dict[Asked, bool]] = {legacy.MATH_VERIFY: {}, legacy.LATEX: {}}
        for group, row in zip(groups, parsed, strict=True):
            modes = legacy.modes_of(group.question.source)
            for one in row:
                if one.prediction is None:
                    continue
                pair = one.prediction, group.question.truth.answer
                if legacy.MATH_VERIFY in modes:
                    asked[legacy.MATH_VERIFY][pair] = False
                if legacy.LATEX in modes and legacy.is_latex(*pair):
                    asked[legacy.LATEX][pair] = False
        fit = [pair for pair in asked[legacy.MATH_VERIFY] if not bounds.guard(*pair)]
        for rule, pairs_of, by in (
            (legacy.MATH_VERIFY, fit, self._maths),
            (legacy.LATEX, list(asked[legacy.LATEX]), self._latex),
        ):
            verdicts = by.check_many(pairs_of)
            for pair, verdict in zip(pairs_of, verdicts, strict=True):
                asked[rule][pair] = verdict.right
        return asked

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
