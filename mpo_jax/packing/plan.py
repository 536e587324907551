"""The pack plan: which preference pairs share a row, which rows share a batch.

A plan is computed offline, from lengths alone, before any text or image is read. It
is a function of (lengths, record ids, row shapes, rows per batch, seed, epoch,
window) and of nothing else: only integer arithmetic, stable sorts and the raw stream
of a NumPy bit generator (which NumPy promises not to change) enter, so every host of
a run computes the same plan. Layout and a worked example: ``docs/packing.md``.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from mpo_jax.packing import binpack, lending
from mpo_jax.types import RowShape, TooLong

BUDGETS = ("prompt_tokens", "chosen_tokens", "rejected_tokens", "tiles", "pairs")
"""The budgets of a row, in the column order of every ``[..., 5]`` array here."""

FORMAT = 2
"""Part of every fingerprint; raised when the same input gives another plan."""

_SAMPLE = 1 << 15  # pairs per shape from which the pairs per row are estimated


@dataclasses.dataclass(frozen=True, eq=False)
class Lengths:
    """What every record of the index costs; all int32 ``[records]``, non-negative.

    Attributes:
      prompt: prompt tokens, image tokens included.
      chosen, rejected: tokens of the response segments (``rejected`` 0 in SFT mode).
      tiles: image tiles.
      max_sequence: tokens of a prompt and one response that the model takes, the last
        label included; 0 is no bound. A longer pair fits no row shape.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    tiles: np.ndarray
    max_sequence: int = 0

    def __post_init__(self):
        for name, value in self.columns().items():
            if value.ndim != 1 or not np.issubdtype(value.dtype, np.integer):
                raise ValueError(
                    f"Lengths.{name} must be a 1-D integer array; got "
                    f"{value.dtype} {value.shape}"
                )
            if len(value) != len(self.prompt):
                raise ValueError(
                    f"Lengths.{name} has {len(value)} records, Lengths.prompt "
                    f"{len(self.prompt)}; all columns must come from one index"
                )
            if len(value) and value.min() < 0:
                where = int(value.argmin())
                raise ValueError(f"Lengths.{name}[{where}] = {value[where]} < 0")

    def __len__(self) -> int:
        return len(self.prompt)

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        fields = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in fields if name != "max_sequence"}

    def sequence(self, record_ids: np.ndarray) -> np.ndarray:
        """Tokens of the longer sequence of every pair: int64 ``[n]``.

        A response segment leaves out its last label, a sequence does not.
        """
        longer = np.maximum(self.chosen[record_ids], self.rejected[record_ids])
        return self.prompt[record_ids].astype(np.int64) + longer + 1

    def beyond_model(self, record_ids: np.ndarray) -> np.ndarray:
        """Pairs that are longer than ``max_sequence``: bool ``[n]``."""
        if not self.max_sequence:
            return np.zeros(len(record_ids), bool)
        return self.sequence(record_ids) > self.max_sequence

    def need(self, record_ids: np.ndarray) -> np.ndarray:
        """Budget use of records: int64 ``[n, 5]``, columns as in :data:`BUDGETS`."""
        columns = [self.prompt, self.chosen, self.rejected, self.tiles]
        need = np.ones((len(record_ids), len(BUDGETS)), np.int64)
        for i, column in enumerate(columns):
            need[:, i] = column[record_ids]
        return need


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Rows and batches of one epoch. Made by :func:`make_plan`.

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
        return rows[:, None] * np.array([_capacity(s) for s in self.shapes])

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
        merged: dict[int, TooLong] = {}
        for plan in self.plans:
            for item in plan.too_long:
                seen = merged.get(item.record_id)
                copies = item.copies + (seen.copies if seen else 0)
                merged[item.record_id] = dataclasses.replace(item, copies=copies)
        return tuple(merged[i] for i in sorted(merged))

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


def make_plan(
    lengths: Lengths,
    record_ids: np.ndarray,
    *,
    shapes: Sequence[RowShape],
    rows_per_batch: Sequence[int],
    seed: int,
    epoch: int,
    window: int = 4096,
) -> Plan:
    """Plan one epoch.

    The ids are shuffled; each goes to the first shape that holds it, but for those that
    fill up the batches of a rarer one (``lending``); the ids of a shape are packed
    window by window, best fit decreasing on five budgets at once; the rows of a shape
    are shuffled and spread evenly over the fewest batches that hold them; the batches
    of all shapes are shuffled together. No pair is lost: a pair is in exactly one row
    or in ``too_long``.

    Args:
      lengths: costs of all records of the index.
      record_ids: integer ``[n]``, records to plan; may repeat (repeat_time above 1).
      shapes: row shapes, the preferred first.
      rows_per_batch: rows of a global batch for every shape.
      seed, epoch: non-negative; another pair of them gives another order.
      window: pairs that are packed together; larger packs better and takes longer.

    Raises:
      ValueError: an argument is out of range; the text names it and its value.
    """
    shapes, rows_per_batch = tuple(shapes), tuple(int(r) for r in rows_per_batch)
    if not shapes or len(shapes) != len(rows_per_batch):
        raise ValueError(
            f"need one rows_per_batch per row shape and at least one shape; got "
            f"{len(shapes)} shapes and rows_per_batch={rows_per_batch}"
        )
    if min(rows_per_batch) < 1 or window < 1 or seed < 0 or epoch < 0:
        raise ValueError(
            f"rows_per_batch={rows_per_batch} and window={window} must be positive, "
            f"seed={seed} and epoch={epoch} not negative"
        )
    ids = _check_ids(record_ids, len(lengths))
    ids = ids[_shuffle(len(ids), seed, epoch, 0)]
    need = lengths.need(ids)
    capacities = np.array([_capacity(shape) for shape in shapes])
    shape_of = lending.even_out(
        _choose_shape(lengths, ids, capacities),
        need,
        capacities,
        rows_per_batch=rows_per_batch,
        window=window,
    )

    item_ids, item_rows, row_batches, batch_shapes = [], [], [], []
    used = np.zeros((len(shapes), len(BUDGETS)), np.int64)
    for s, capacity in enumerate(capacities):
        chosen = np.flatnonzero(shape_of == s)
        rows, num_rows = binpack.pack(need[chosen], capacity, window=window)
        # Rows are spread evenly, so that no batch is much smaller than the others.
        num_batches = -(-num_rows // rows_per_batch[s])
        place = np.empty(num_rows, np.int64)
        place[_shuffle(num_rows, seed, epoch, 1 + s)] = np.arange(num_rows)
        item_ids.append(ids[chosen])
        item_rows.append(rows + sum(len(b) for b in row_batches))
        row_batches.append(place * num_batches // max(num_rows, 1) + len(batch_shapes))
        batch_shapes += [s] * num_batches
        used[s] = need[chosen].sum(axis=0)

    order = _shuffle(len(batch_shapes), seed, epoch, 1 + len(shapes))
    batch_place = np.empty(len(order), np.int64)
    batch_place[order] = np.arange(len(order))
    batch_of_row = batch_place[np.concatenate(row_batches)]
    row_order = np.argsort(batch_of_row, kind="stable")
    row_place = np.empty(len(row_order), np.int64)
    row_place[row_order] = np.arange(len(row_order))
    row_of_item = row_place[np.concatenate(item_rows)]
    item_order = np.argsort(row_of_item, kind="stable")
    return Plan(
        shapes=shapes,
        rows_per_batch=rows_per_batch,
        record_ids=np.concatenate(item_ids)[item_order].astype(np.int32),
        row_offsets=_offsets(row_of_item, len(row_place)),
        batch_offsets=_offsets(batch_of_row, len(batch_place)),
        batch_shapes=np.array(batch_shapes, np.int16)[order],
        used=used,
        too_long=_describe_too_long(ids[shape_of < 0], lengths, capacities),
    )


def plan_epochs(
    lengths: Lengths,
    record_ids: Sequence[np.ndarray],
    *,
    shapes: Sequence[RowShape],
    rows_per_batch: Sequence[int],
    seed: int,
    window: int = 4096,
) -> PlanSequence:
    """Plan several epochs: ``record_ids[e]`` are the ids of epoch ``e``.

    Raises:
      ValueError: as :func:`make_plan`, or there is no epoch.
    """
    plans = [
        make_plan(
            lengths,
            ids,
            shapes=shapes,
            rows_per_batch=rows_per_batch,
            seed=seed,
            epoch=epoch,
            window=window,
        )
        for epoch, ids in enumerate(record_ids)
    ]
    return PlanSequence(tuple(plans))


def choose_rows_per_batch(
    lengths: Lengths,
    record_ids: np.ndarray,
    shapes: Sequence[RowShape],
    *,
    pairs_per_batch: int,
    multiple: int,
) -> list[int]:
    """Rows per global batch, so that a batch holds `pairs_per_batch` pairs on average.

    The pairs per row of every shape are counted on up to 32 768 packed pairs.

    Returns:
      For every shape the positive multiple of `multiple` whose expected number of
      pairs is nearest to `pairs_per_batch`; `multiple` for a shape that no pair uses.

    Raises:
      ValueError: `pairs_per_batch` or `multiple` is below 1.
    """
    if pairs_per_batch < 1 or multiple < 1:
        raise ValueError(
            f"pairs_per_batch={pairs_per_batch} and multiple={multiple} must be "
            "positive"
        )
    ids = _check_ids(record_ids, len(lengths))
    ids = ids[_shuffle(len(ids), 0, 0, 0)]
    need = lengths.need(ids)
    capacities = np.array([_capacity(shape) for shape in shapes])
    shape_of = _choose_shape(lengths, ids, capacities)
    result = []
    for s, capacity in enumerate(capacities):
        sample = need[shape_of == s][:_SAMPLE]
        _, num_rows = binpack.pack(sample, capacity, window=4096)
        rows = pairs_per_batch * num_rows / max(len(sample), 1)
        result.append(max(1, round(rows / multiple)) * multiple)
    return result


def _capacity(shape: RowShape) -> list[int]:
    return [getattr(shape, name) for name in BUDGETS]


def _check_ids(record_ids: np.ndarray, num_records: int) -> np.ndarray:
    ids = np.asarray(record_ids)
    if ids.ndim != 1 or (len(ids) and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(
            f"record_ids must be a 1-D integer array; got {ids.dtype} {ids.shape}"
        )
    if len(ids) and not 0 <= ids.min() <= ids.max() < min(num_records, 2**31):
        raise ValueError(
            f"record_ids range from {ids.min()} to {ids.max()}, the index holds "
            f"{num_records} records (and a plan at most 2**31)"
        )
    return ids.astype(np.int64)


def _shuffle(n: int, seed: int, epoch: int, purpose: int) -> np.ndarray:
    """A permutation of ``range(n)``.

    `Generator.permutation` may change between NumPy versions; the raw stream of a
    bit generator may not, so the ids are sorted by it.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch, purpose]))
    return np.argsort(bits.random_raw(n), kind="stable")


def _choose_shape(
    lengths: Lengths, ids: np.ndarray, capacities: np.ndarray
) -> np.ndarray:
    """First shape that holds each pair, -1 for none: int16 ``[n]``."""
    need = lengths.need(ids)
    shape_of = np.full(len(ids), -1, np.int16)
    for s in reversed(range(len(capacities))):
        shape_of[(need <= capacities[s]).all(axis=1)] = s
    shape_of[lengths.beyond_model(ids)] = -1
    return shape_of


def _offsets(group: np.ndarray, num_groups: int) -> np.ndarray:
    counts = np.bincount(group, minlength=num_groups)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _fill(used: np.ndarray, available: np.ndarray) -> dict[int, dict[str, float]]:
    return {
        s: {
            name: float(used[s, i] / available[s, i])
            for i, name in enumerate(BUDGETS)
            if available[s, i]
        }
        for s in range(len(used))
    }


def _describe_too_long(
    ids: np.ndarray, lengths: Lengths, capacities: np.ndarray
) -> tuple[TooLong, ...]:
    ids, copies = np.unique(ids, return_counts=True)
    need = lengths.need(ids)
    # The nearest shape is the one whose worst budget is exceeded by the least.
    ratio = need[:, None] / np.maximum(capacities[None], 0.5)
    nearest = ratio.max(axis=2).argmin(axis=1)
    sequence, beyond = lengths.sequence(ids), lengths.beyond_model(ids)
    result = []
    for i, (record, count) in enumerate(
        zip(ids.tolist(), copies.tolist(), strict=True)
    ):
        limits = capacities[nearest[i]]
        over = [
            f"{name} {need[i, b]} > {limits[b]}"
            for b, name in enumerate(BUDGETS)
            if need[i, b] > limits[b]
        ]
        if beyond[i]:
            over.append(
                f"sequence tokens {sequence[i]} > {lengths.max_sequence}, the model's "
                "max_position_embeddings"
            )
        result.append(TooLong(record, count, ", ".join(over)))
    return tuple(result)
