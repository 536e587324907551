"""Pairs of the first row shape that fill up the batches of a rarer one.

Each batch is one update, and a mean over its pairs. Were the few pairs that need a long
row left among themselves, their batch would hold some dozens where others hold some
hundreds, and each would weigh several times as much. Its other rows would be empty and
cost as much, so pairs that fit any shape move there until all batches are alike.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from mpo_jax.packing import binpack

SAMPLE = 1 << 15
"""Items from which the number of rows is estimated; fewer are counted."""


def rows_of(need: np.ndarray, capacity: np.ndarray, *, window: int) -> int:
    """Rows that items take; from the first :data:`SAMPLE` of them.

    Args:
      need: int64 ``[n, k]``, budgets that each item needs.
      capacity: int64 ``[k]``, of a row.
    """
    sample = need[:SAMPLE]
    _, rows = binpack.pack(sample, capacity, window=window)
    return -(-rows * len(need) // max(len(sample), 1))


def even_out(
    shape_of: np.ndarray,
    need: np.ndarray,
    capacities: np.ndarray,
    *,
    rows_per_batch: Sequence[int],
    window: int,
) -> np.ndarray:
    """Shape of every item, some of the first shape's moved to others.

    As many move as make the pairs per batch equal, as far as they fit the other shape
    and its batches have room: no shape gets more batches than it had.

    Args:
      shape_of: int ``[n]``, the first shape that holds each item, -1 for none.
      need: int64 ``[n, k]``.
      capacities: int64 ``[shapes, k]``.
      rows_per_batch: per shape.
    """
    shape_of = shape_of.copy()
    for shape in range(1, len(capacities)):
        first, needing = (np.flatnonzero(shape_of == s) for s in (0, shape))
        movable = first[(need[first] <= capacities[shape]).all(axis=1)]
        if not len(needing) or not len(movable):
            continue
        rows = rows_of(need[needing], capacities[shape], window=window)
        batches = -(-rows // rows_per_batch[shape])
        rows = rows_of(need[first], capacities[0], window=window)
        # Batches of the first shape that remain, none fuller than they could be before.
        total, full = len(first) + len(needing), len(first) * rows_per_batch[0]
        left = max(-(-total * rows // full) - batches, 0)
        wanted = (len(first) * batches - len(needing) * left) // (left + batches)
        wanted = _fitting(
            need,
            needing,
            movable[: max(wanted, 0)],
            capacities[shape],
            rows=batches * rows_per_batch[shape],
            window=window,
        )
        shape_of[movable[:wanted]] = shape
    return shape_of


def _fitting(
    need: np.ndarray,
    there: np.ndarray,
    more: np.ndarray,
    capacity: np.ndarray,
    *,
    rows: int,
    window: int,
) -> int:
    """How many items of `more`, from the first on, fit into `rows` beside `there`."""

    def rows_with(number: int) -> int:
        joined = np.sort(np.concatenate([there, more[:number]]))  # as they are packed
        return rows_of(need[joined], capacity, window=window)

    if rows_with(len(more)) <= rows:
        return len(more)
    return bisect.bisect_right(range(1, len(more)), rows, key=rows_with)
