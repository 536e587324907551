"""How sure a score is, and whether two runs differ.

Intervals come from a bootstrap by groups: as many groups as there are are drawn with
replacement, each with all its items, and a metric is a function of how often an item
was drawn. They are percentile intervals: these hold for any metric (F1, all of a group
right), keep to its range and need nothing but the resamples. The corrected kinds (BCa)
need a jackknife besides, and from a hundred items on differ by less than what stands
behind the comma. Where all items were graded alike an interval has no width: that says
nothing, and reports leave it out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from mpo_jax.evals.benchmark import Weighted

LEVEL = 0.95
RESAMPLES = 2_000

_CHUNK = 1 << 21
"""Weights that are held at a time."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """Where a score lies with a probability of 95 %; NaN where nobody can say."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class McNemar:
    """Which of two runs was right where they differ.

    Attributes:
      both, neither: items that both runs, or none, have right.
      first, second: items that only this run has right.
      p_value: exact, two-sided: how likely a split at least as uneven is if both runs
        are equally good and the items independent.
    """

    both: int
    neither: int
    first: int
    second: int
    p_value: float


def group_numbers(groups: Sequence[str]) -> np.ndarray:
    """Numbers of groups from 0, int64 ``[N]``; each "" is a group of its own."""
    numbers: dict[tuple[str, int], int] = {}
    keys = [(name, 0) if name else ("", i) for i, name in enumerate(groups)]
    found = [numbers.setdefault(key, len(numbers)) for key in keys]
    return np.array(found, np.int64)


def interval(
    weighted: Weighted, groups: np.ndarray, *, seed: int, resamples: int = RESAMPLES
) -> Interval:
    """Bootstrap interval of a metric.

    Resamples for which the metric is not defined (no true positive, say) are left out;
    where that is half of them, or where there are fewer than two groups, there is no
    interval.

    Args:
      weighted: the metric as a function of weights ``[N]``.
      groups: group of each item, int64 ``[N]`` (:func:`group_numbers`).
      seed: of the draws; two metrics of the same items and seed see the same draws.
      resamples: number of draws.
    """
    if not len(groups) or groups.max() < 1:
        return Interval(math.nan, math.nan)
    drawn = weights(groups, seed=seed, resamples=resamples)
    values = np.array([weighted(row) for row in drawn])
    values = values[np.isfinite(values)]
    if 2 * len(values) <= resamples:
        return Interval(math.nan, math.nan)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return Interval(float(low), float(high))


def weights(groups: np.ndarray, *, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each item was drawn, float64 ``[N]``, for every resample.

    Args:
      groups: as :func:`interval`; not empty.
    """
    rng = np.random.default_rng(seed)
    count = int(groups.max()) + 1
    rows = max(1, _CHUNK // len(groups))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(0, count, (size, count))
        drawn += count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count)
        yield from times.reshape(size, count)[:, groups].astype(np.float64)


def difference(first: Weighted, second: Weighted) -> Weighted:
    """What the second metric has more than the first, on the same items."""
    return lambda drawn: second(drawn) - first(drawn)


def average(parts: Sequence[Weighted]) -> Weighted:
    """Mean of several metrics; NaN where one is."""
    return lambda drawn: math.fsum(part(drawn) for part in parts) / len(parts)


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Exact test of two runs on the same items.

    Args:
      first, second: whether each item is right, bool ``[N]``.
    """
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(~first & second))
    differing = only_first + only_second
    p_value = 1.0
    if differing:
        from scipy import stats  # half a second, at the start of every program

        p_value = float(stats.binomtest(only_first, differing, 0.5).pvalue)
    return McNemar(
        both=int(np.sum(first & second)),
        neither=int(np.sum(~first & ~second)),
        first=only_first,
        second=only_second,
        p_value=p_value,
    )
