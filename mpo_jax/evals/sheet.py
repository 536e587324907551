"""What is scored: the items of one benchmark and mode with their graded answers.

A sheet has rounds. One answer per item is one round; the mean over n samples is the
metric averaged over n rounds, since a metric (F1, all of a group right) of averaged
points would be another one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from mpo_jax.evals import benchmark, statistics
from mpo_jax.evals.benchmark import Grade, Item, Metric, Weighted
from mpo_jax.evals.lines import Line

Grading = Callable[[Line], Grade | None]
"""Which grade of a line counts; lines without it take no part."""


def released(line: Line) -> Grade:
    """By the protocol's rule as released."""
    return line.grade


def corrected(line: Line) -> Grade:
    """By the corrected rule; where there is none for a line, the released one."""
    return line.corrected or line.grade


def judged(line: Line) -> Grade | None:
    """By the judge, who may have been asked about some lines alone."""
    return line.judge.grade if line.judge else None


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Items and their answers.

    Attributes:
      items: those with an answer, in order.
      rounds: of each, lines by position in `items`; an item may be absent from some.
    """

    items: tuple[Item, ...]
    rounds: tuple[Mapping[int, Line], ...]

    @classmethod
    def of(cls, rounds: Sequence[Sequence[Line]], known: Mapping[str, Item]) -> Sheet:
        """Make a sheet.

        Args:
          rounds: lines of one benchmark and mode, of each item at most one in a round.
          known: items by id, whole; those that are absent are taken from their lines.
        """
        items: dict[str, Item] = {}
        for lines in rounds:
            for line in lines:
                if line.id not in items:
                    items[line.id] = known.get(line.id) or line.item
        place = {id: number for number, id in enumerate(items)}
        numbered = tuple({place[line.id]: line for line in lines} for lines in rounds)
        return cls(tuple(items.values()), numbered)

    def only(self, ids: Iterable[str]) -> Sheet:
        """The sheet of some items, in the order of `ids`; all of them are in it."""
        place = {item.id: number for number, item in enumerate(self.items)}
        chosen = [place[id] for id in ids]
        rounds = tuple(
            {new: of[old] for new, old in enumerate(chosen) if old in of}
            for of in self.rounds
        )
        return Sheet(tuple(self.items[old] for old in chosen), rounds)

    def lines(self) -> Iterator[Line]:
        """All answers."""
        for of in self.rounds:
            yield from of.values()

    def groups(self) -> np.ndarray:
        """Group numbers of the items, int64 ``[N]``."""
        return statistics.group_numbers([item.group for item in self.items])

    def weighted(self, metric: Metric, grading: Grading = released) -> Weighted:
        """A metric as a function of weights of the items, averaged over rounds."""
        parts = [self._round(metric, grading, of) for of in self.rounds]
        return parts[0] if len(parts) == 1 else statistics.average(parts)

    def right(self, grading: Grading = released) -> np.ndarray:
        """Whether each item is right, bool ``[N]``; of a sheet with one round."""
        (only,) = self.rounds
        grades = [grading(only[number]) for number in range(len(self.items))]
        return np.array([grade is not None and grade.verdict.right for grade in grades])

    def _round(
        self, metric: Metric, grading: Grading, of: Mapping[int, Line]
    ) -> Weighted:
        graded = [(number, grading(line)) for number, line in of.items()]
        found = [(number, grade) for number, grade in graded if grade is not None]
        if not found:
            return lambda drawn: math.nan
        where = np.array([number for number, _ in found], np.int64)
        of_weights = benchmark.weighted(
            metric,
            [self.items[number] for number in where],
            [grade for _, grade in found],
        )
        if np.array_equal(where, np.arange(len(self.items))):
            return of_weights  # all, in order: nothing to pick
        return lambda drawn: of_weights(drawn[where])
