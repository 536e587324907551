"""The pack plan: which preference pairs share a row, which rows share a batch.

A plan is computed offline, from lengths alone, before any text or image is read. It
is a function of (lengths, record ids, row shapes, rows per batch, seed, epoch,
window) and of nothing else: only integer arithmetic, stable sorts and the raw stream
of a NumPy bit generator (which NumPy promises not to change) enter, so every host of
a run computes the same plan. Layout and a worked example: ``docs/packing.md``.

This module makes plans; what goes in and comes out is in ``lengths`` and
``plan_table``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mpo_jax.packing import balance, binpack
from mpo_jax.packing.lengths import BUDGETS, Lengths, capacity
from mpo_jax.packing.plan_table import Plan, PlanSequence
from mpo_jax.types import RowShape, TooLong


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
    fill up the batches of a rarer one (``balance``); the ids of a shape are packed
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
    _check_arguments(shapes, rows_per_batch, window=window, seed=seed, epoch=epoch)
    ids = _check_ids(record_ids, len(lengths))
    ids = ids[_shuffle(len(ids), seed, epoch, 0)]
    need = lengths.need(ids)
    capacities = np.array([capacity(shape) for shape in shapes])
    shape_of = balance.even_out(
        _choose_shape(lengths, ids, capacities),
        need,
        capacities,
        rows_per_batch=rows_per_batch,
        window=window,
    )
    packed = [
        _pack_shape(
            need[shape_of == s],
            capacities[s],
            rows_per_batch=rows_per_batch[s],
            window=window,
            stream=(seed, epoch, 1 + s),
        )
        for s in range(len(shapes))
    ]
    stream = (seed, epoch, 1 + len(shapes))
    batch_shapes, batch_of_row, row_of_item = _interleave(packed, stream)
    ids_by_shape = np.concatenate([ids[shape_of == s] for s in range(len(shapes))])
    item_order = np.argsort(row_of_item, kind="stable")
    return Plan(
        shapes=shapes,
        rows_per_batch=rows_per_batch,
        record_ids=ids_by_shape[item_order].astype(np.int32),
        row_offsets=_offsets(row_of_item, len(batch_of_row)),
        batch_offsets=_offsets(batch_of_row, len(batch_shapes)),
        batch_shapes=batch_shapes.astype(np.int16),
        used=np.array([p.used for p in packed]),
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
    capacities = np.array([capacity(shape) for shape in shapes])
    shape_of = _choose_shape(lengths, ids, capacities)
    result = []
    for s, limits in enumerate(capacities):
        sample = need[shape_of == s][: balance.SAMPLE]
        _, num_rows = binpack.pack(sample, limits, window=4096)
        rows = pairs_per_batch * num_rows / max(len(sample), 1)
        result.append(max(1, round(rows / multiple)) * multiple)
    return result


def _check_arguments(
    shapes: tuple[RowShape, ...],
    rows_per_batch: tuple[int, ...],
    *,
    window: int,
    seed: int,
    epoch: int,
) -> None:
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


@dataclasses.dataclass(frozen=True)
class _Packed:
    """Rows and batches of one shape, both numbered from 0.

    Attributes:
      row_of_item: int64 ``[n]``.
      batch_of_row: int64 ``[rows]``.
      num_batches: as few as hold the rows.
      used: int64 ``[5]``, budget use of all items.
    """

    row_of_item: np.ndarray
    batch_of_row: np.ndarray
    num_batches: int
    used: np.ndarray


def _pack_shape(
    need: np.ndarray,
    limits: np.ndarray,
    *,
    rows_per_batch: int,
    window: int,
    stream: tuple[int, int, int],
) -> _Packed:
    """Pack items into rows and spread those over batches.

    Args:
      need: int64 ``[n, 5]``, budgets that each item needs.
      limits: int64 ``[5]``, budgets of a row.
      stream: names the random numbers that order the rows, see :func:`_shuffle`.
    """
    row_of_item, num_rows = binpack.pack(need, limits, window=window)
    num_batches = -(-num_rows // rows_per_batch)
    # Rows are spread evenly, so that no batch is much smaller than the others.
    place = _places(_shuffle(num_rows, *stream))
    batch_of_row = place * num_batches // max(num_rows, 1)
    return _Packed(row_of_item, batch_of_row, num_batches, need.sum(axis=0))


def _interleave(
    packed: Sequence[_Packed], stream: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shuffle the batches of all shapes together, and number their rows on.

    Returns:
      The shape of every batch, the batch of every row and the row of every item, items
      in the order of the shapes; all int64.
    """
    shape_of_batch = np.repeat(np.arange(len(packed)), [p.num_batches for p in packed])
    order = _shuffle(len(shape_of_batch), *stream)
    batch_of_row = _numbered_on([(p.batch_of_row, p.num_batches) for p in packed])
    row_of_item = _numbered_on([(p.row_of_item, len(p.batch_of_row)) for p in packed])
    batch_of_row = _places(order)[batch_of_row]
    row_order = np.argsort(batch_of_row, kind="stable")
    return shape_of_batch[order], batch_of_row, _places(row_order)[row_of_item]


def _shuffle(n: int, seed: int, epoch: int, purpose: int) -> np.ndarray:
    """A permutation of ``range(n)``.

    `Generator.permutation` may change between NumPy versions; the raw stream of a
    bit generator may not, so the ids are sorted by it.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch, purpose]))
    return np.argsort(bits.random_raw(n), kind="stable")


def _places(order: np.ndarray) -> np.ndarray:
    """Place of every number in a permutation of them."""
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places


def _numbered_on(groups: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    """Join (numbers below a count, the count): each group goes on from the last."""
    starts = np.cumsum([0] + [count for _, count in groups])
    return np.concatenate([n + s for (n, _), s in zip(groups, starts, strict=False)])


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
