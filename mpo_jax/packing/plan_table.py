"""What a pack plan is: a table of the rows and batches of an epoch, or of several."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json

import numpy as np

from mpo_jax.packing.lengths import BUDGETS, capacity
from mpo_jax.types import RowShape, TooLong

FORMAT = 2
"""Part of every fingerprint; raised when the same input gives another plan."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Rows and batches of one epoch. Made by ``plan.make_plan``.

    Row ``r`` holds ``record_ids[row_offsets[r]:row_offsets[r + 1]]``; batch ``n``
    holds the rows from ``batch_offsets[n]`` to ``batch_offsets[n + 1]`` and as many
    empty rows after them as ``rows_per_batch`` of its shape asks for.

    Attributes:
      shapes: the row shapes, in order of preference.
      rows_per_batch: rows of a global batch, one number per shape.
      record_ids: int32 ``[pairs]``.
      row_offsets: int64 ``[rows + 1]``.
      batch_offsets: int64 ``[batches + 1]``.
      batch_shapes: int16 ``[batches]``, index into ``shapes``.
      used: int64 ``[shapes, 5]``, budget use summed over the rows of each shape.
      too_long: records that fit nowhere, by record id.
    """

    shapes: tuple[RowShape, ...]
    rows_per_batch: tuple[int, ...]
    record_ids: np.ndarray
    row_offsets: np.ndarray
    batch_offsets: np.ndarray
    batch_shapes: np.ndarray
    used: np.ndarray
    too_long: tuple[TooLong, ...]

    @property
    def num_batches(self) -> int:
        return len(self.batch_shapes)

    @property
    def num_pairs(self) -> int:
        return len(self.record_ids)

    def pairs_per_batch(self) -> np.ndarray:
        """Pairs of every batch: int64 ``[batches]``."""
        return np.diff(self.row_offsets[self.batch_offsets])

    def batch(self, n: int) -> tuple[int, list[np.ndarray]]:
        """Shape index and the record ids of every row of batch `n`.

        Returns:
          The index into ``shapes``, and ``rows_per_batch[shape]`` int32 arrays of 0
          to ``pairs`` record ids; rows that pad the batch come last and are empty.

        Raises:
          IndexError: `n` is not in ``[0, num_batches)``.
        """
        if not 0 <= n < self.num_batches:
            raise IndexError(f"batch {n} of a plan of {self.num_batches} batches")
        shape = int(self.batch_shapes[n])
        start, stop = self.batch_offsets[n : n + 2]
        bounds = self.row_offsets[start : stop + 1]
        rows = [
            self.record_ids[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)
        ]
        empty = self.record_ids[:0]
        return shape, rows + [empty] * (self.rows_per_batch[shape] - len(rows))

    def available(self) -> np.ndarray:
        """Budgets of all rows, padding rows too: int64 ``[shapes, 5]``."""
        batches = np.bincount(self.batch_shapes, minlength=len(self.shapes))
        rows = batches * np.asarray(self.rows_per_batch, np.int64)
        return rows[:, None] * np.array([capacity(s) for s in self.shapes])

    def fill(self) -> dict[int, dict[str, float]]:
        """Used share of every budget, by shape index and budget name."""
        return _fill(self.used, self.available())

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that :meth:`batch` can return."""
        head = {
            "format": FORMAT,
            "shapes": [dataclasses.astuple(shape) for shape in self.shapes],
            "rows_per_batch": self.rows_per_batch,
        }
        digest = hashlib.sha256(json.dumps(head).encode())
        arrays = (
            (self.record_ids, "<i4"),
            (self.row_offsets, "<i8"),
            (self.batch_offsets, "<i8"),
            (self.batch_shapes, "<i2"),
        )
        for array, dtype in arrays:
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(array, dtype).data)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class PlanSequence:
    """Several epochs' plans behind the interface of one :class:`Plan`.

    All epochs are planned up front, because the number of batches decides the
    learning-rate schedule.
    """

    plans: tuple[Plan, ...]

    def __post_init__(self):
        if not self.plans:
            raise ValueError("a PlanSequence needs at least one plan")
        first = self.plans[0]
        for epoch, plan in enumerate(self.plans):
            same = plan.shapes == first.shapes
            if not same or plan.rows_per_batch != first.rows_per_batch:
                raise ValueError(
                    f"the plan of epoch {epoch} has other row shapes or rows per "
                    "batch than that of epoch 0; every epoch of a run must agree"
                )

    @property
    def shapes(self) -> tuple[RowShape, ...]:
        return self.plans[0].shapes

    @property
    def rows_per_batch(self) -> tuple[int, ...]:
        return self.plans[0].rows_per_batch

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """First batch of every epoch, then the end: int64 ``[epochs + 1]``."""
        return np.cumsum([0] + [plan.num_batches for plan in self.plans])

    @property
    def num_batches(self) -> int:
        return int(self.offsets[-1])

    @property
    def num_pairs(self) -> int:
        return sum(plan.num_pairs for plan in self.plans)

    def pairs_per_batch(self) -> np.ndarray:
        """As :meth:`Plan.pairs_per_batch`, over all epochs."""
        return np.concatenate([plan.pairs_per_batch() for plan in self.plans])

    @property
    def too_long(self) -> tuple[TooLong, ...]:
        """Records that fit nowhere, each once; ``copies`` counts all epochs."""
        by_record: dict[int, TooLong] = {}
        for plan in self.plans:
            for item in plan.too_long:
                seen = by_record.get(item.record_id)
                copies = item.copies + (seen.copies if seen else 0)
                by_record[item.record_id] = dataclasses.replace(item, copies=copies)
        return tuple(by_record[i] for i in sorted(by_record))

    def epoch_of(self, n: int) -> int:
        """Epoch (from 0) that batch `n` belongs to."""
        if not 0 <= n < self.num_batches:
            raise IndexError(f"batch {n} of a plan of {self.num_batches} batches")
        return int(np.searchsorted(self.offsets, n, side="right")) - 1

    def batch(self, n: int) -> tuple[int, list[np.ndarray]]:
        """As :meth:`Plan.batch`, `n` counted over all epochs."""
        epoch = self.epoch_of(n)
        return self.plans[epoch].batch(n - int(self.offsets[epoch]))

    def fill(self) -> dict[int, dict[str, float]]:
        """As :meth:`Plan.fill`, over all epochs."""
        used = sum(plan.used for plan in self.plans)
        available = sum(plan.available() for plan in self.plans)
        return _fill(np.asarray(used), np.asarray(available))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the fingerprints of the epochs, in order."""
        text = "\n".join(plan.fingerprint for plan in self.plans)
        return hashlib.sha256(text.encode()).hexdigest()


AnyPlan = Plan | PlanSequence


def _fill(used: np.ndarray, available: np.ndarray) -> dict[int, dict[str, float]]:
    return {
        s: {
            name: float(used[s, i] / available[s, i])
            for i, name in enumerate(BUDGETS)
            if available[s, i]
        }
        for s in range(len(used))
    }
