"""Bin packing with several budgets: best fit decreasing, windowed, deterministic."""

from __future__ import annotations

import numpy as np

_CARRY = 256  # open bins kept for the next window; more cost time and gain nothing


def pack(
    need: np.ndarray, capacity: np.ndarray, *, window: int
) -> tuple[np.ndarray, int]:
    """Put items into as few equal bins as best fit decreasing finds.

    The items of a window, largest first, go to the open bin that they fill best. At
    the end of a window the emptiest bins stay open for the next. What a bin has left
    in all budgets is one int64 with a guard bit above every field: ``left - need``
    clears a guard bit exactly where a budget is exceeded, so that one subtraction
    tests all budgets of all open bins.

    Args:
      need: int64 ``[n, k]``, non-negative; every item fits into an empty bin.
      capacity: int64 ``[k]``, budgets of a bin.
      window: items that are packed together.

    Returns:
      The bin of every item, int64 ``[n]``, and the number of bins.

    Raises:
      ValueError: an item does not fit into an empty bin.
    """
    misfits = np.flatnonzero((need > capacity).any(axis=1))
    if len(misfits):
        item = need[misfits[0]]
        raise ValueError(f"item {misfits[0]} needs {item}, a bin holds {capacity}")
    bin_of = np.empty(len(need), np.int64)
    if not len(need):
        return bin_of, 0
    weights = _weights(need, capacity)
    score, full_score = need @ weights, int(capacity @ weights)
    fields, room, guards = _guarded(need, capacity)

    bins = 0
    left = left_score = number = np.empty(0, np.int64)  # the carried bins
    for start in range(0, len(need), window):
        stop = min(start + window, len(need))
        order = start + np.argsort(-score[start:stop], kind="stable")
        n = len(left)
        space = np.empty(stop - start, np.int64)
        left = np.concatenate([left, space])
        left_score = np.concatenate([left_score, space])
        number = np.concatenate([number, space])
        diff, rank = np.empty_like(left), np.empty_like(left)
        misfit = np.empty(len(left), bool)
        # Slices of the open bins, renewed only when a bin is added: this loop runs
        # once per item, and making five slices would be half of its time.
        views = left[:n], left_score[:n], diff[:n], rank[:n], misfit[:n]
        slots = []
        items = zip(fields[order].tolist(), score[order].tolist(), strict=True)
        for item, item_score in items:
            slot = n
            if n:
                v_left, v_score, v_diff, v_rank, v_misfit = views
                np.subtract(v_left, item, v_diff)
                np.bitwise_and(v_diff, guards, v_diff)
                np.not_equal(v_diff, guards, v_misfit)
                np.copyto(v_rank, v_score)
                np.putmask(v_rank, v_misfit, full_score + 1)
                best = int(v_rank.argmin())
                slot = n if v_misfit[best] else best
            if slot == n:
                left[n], left_score[n], number[n] = room, full_score, bins
                bins, n = bins + 1, n + 1
                views = left[:n], left_score[:n], diff[:n], rank[:n], misfit[:n]
            left[slot] -= item
            left_score[slot] -= item_score
            slots.append(slot)
        bin_of[order] = number[slots]
        keep = np.argsort(-left_score[:n], kind="stable")[:_CARRY]
        left, left_score, number = left[keep], left_score[keep], number[keep]
    return bin_of, bins


def _weights(need: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """Integer weight of a unit of each budget: int64 ``[k]``.

    A budget weighs by how much of it the items ask for per bin, so that the budget
    that runs out first decides and budgets that never run out hardly matter.
    """
    share = np.divide(
        need.sum(axis=0), capacity, out=np.zeros(len(capacity)), where=capacity > 0
    )
    unit = share / max(share.max(), 1e-9) * 2.0**32
    return np.rint(unit / np.maximum(capacity, 1)).astype(np.int64)


def _guarded(need: np.ndarray, capacity: np.ndarray) -> tuple[np.ndarray, int, int]:
    """All budgets in one integer, a guard bit above each field.

    Budgets too large for 63 bits together are counted in units of 2, 4, ...: needs
    rounded up and capacities down, which never exceeds a budget.

    Returns:
      The needs (int64 ``[n]``), an empty bin's room with all guard bits set, and the
      guard bits alone.
    """
    capacity, need = capacity.copy(), need.copy()
    while sum(int(c).bit_length() + 1 for c in capacity) > 63:
        widest = capacity.argmax()
        capacity[widest] >>= 1
        # An item as large as the bin stays so; it then has the bin to itself.
        need[:, widest] = np.minimum((need[:, widest] + 1) >> 1, capacity[widest])
    widths = [int(c).bit_length() + 1 for c in capacity]
    offsets = np.concatenate([[0], np.cumsum(widths[:-1])]).astype(np.int64)
    guards = sum(1 << (int(o) + w - 1) for o, w in zip(offsets, widths, strict=True))
    room = int((capacity << offsets).sum()) | guards
    return (need << offsets).sum(axis=1), room, guards
