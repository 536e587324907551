"""Plans on disk: packing millions of pairs takes a minute, reading the result does not.

A plan is a function of what its key covers, so a stored one is the one that would be
made. What cannot be read back whole is made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from mpo_jax.packing import plan as plan_lib
from mpo_jax.packing.lengths import Lengths
from mpo_jax.packing.plan_table import FORMAT, Plan, PlanSequence
from mpo_jax.types import RowShape, TooLong
from mpo_jax.utils import atomic

_ARRAYS = ("record_ids", "row_offsets", "batch_offsets", "batch_shapes", "used")


def plan_epochs(
    directory: pathlib.Path,
    lengths: Lengths,
    record_ids: Sequence[np.ndarray],
    *,
    shapes: Sequence[RowShape],
    rows_per_batch: Sequence[int],
    seed: int,
    write: bool = True,
) -> PlanSequence:
    """As :func:`plan_lib.plan_epochs`, kept in `directory`.

    Args:
      write: store the plan if it was not there; one process is enough.
    """
    key = _key(
        lengths, record_ids, shapes=shapes, rows_per_batch=rows_per_batch, seed=seed
    )
    path = directory / f"{key[:32]}.npz"
    stored = _load(path, tuple(shapes), tuple(rows_per_batch), epochs=len(record_ids))
    if stored is not None:
        return stored
    plan = plan_lib.plan_epochs(
        lengths, record_ids, shapes=shapes, rows_per_batch=rows_per_batch, seed=seed
    )
    if write:
        directory.mkdir(parents=True, exist_ok=True)
        atomic.clean(directory)
        atomic.write_whole(path, lambda temporary: _save(temporary, plan))
    return plan


def _key(
    lengths: Lengths,
    record_ids: Sequence[np.ndarray],
    *,
    shapes: Sequence[RowShape],
    rows_per_batch: Sequence[int],
    seed: int,
) -> str:
    head = {
        "format": FORMAT,
        "shapes": [dataclasses.astuple(shape) for shape in shapes],
        "rows_per_batch": [int(rows) for rows in rows_per_batch],
        "seed": seed,
        "max_sequence": lengths.max_sequence,
    }
    digest = hashlib.sha256(json.dumps(head).encode())
    for array, dtype in (
        *((column, "<i4") for column in lengths.columns().values()),
        *((ids, "<i8") for ids in record_ids),
    ):
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array, dtype).data)
    return digest.hexdigest()


def _save(path: pathlib.Path, plan: PlanSequence) -> None:
    arrays: dict[str, np.ndarray] = {}
    for epoch, part in enumerate(plan.plans):
        for name in _ARRAYS:
            arrays[f"{epoch}/{name}"] = getattr(part, name)
        too_long = [dataclasses.astuple(item) for item in part.too_long]
        text = json.dumps(too_long).encode()
        arrays[f"{epoch}/too_long"] = np.frombuffer(text, np.uint8)
    arrays["fingerprint"] = np.frombuffer(plan.fingerprint.encode(), np.uint8)
    with open(path, "wb") as file:  # a name without .npz stays as it is
        np.savez(file, allow_pickle=False, **arrays)


def _load(
    path: pathlib.Path,
    shapes: tuple[RowShape, ...],
    rows_per_batch: tuple[int, ...],
    *,
    epochs: int,
) -> PlanSequence | None:
    if not path.is_file():
        return None
    plans = []
    try:
        with np.load(path, allow_pickle=False) as stored:
            for epoch in range(epochs):
                text = stored[f"{epoch}/too_long"].tobytes()
                plans.append(
                    Plan(
                        shapes=shapes,
                        rows_per_batch=tuple(int(rows) for rows in rows_per_batch),
                        too_long=tuple(TooLong(*item) for item in json.loads(text)),
                        **{name: stored[f"{epoch}/{name}"] for name in _ARRAYS},
                    )
                )
            fingerprint = stored["fingerprint"].tobytes().decode()
        plan = PlanSequence(tuple(plans))
        if plan.fingerprint != fingerprint:
            raise ValueError("its content does not match its fingerprint")
    except Exception as error:  # a torn file can fail in many ways, all harmless
        logging.warning("%s is made again: %s", path, error)
        return None
    return plan
