"""What a loader gives out, and whether two of them gave the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpo_jax.packing import pipeline
from mpo_jax.types import PackedBatch

Batches = list[tuple[int, dict[str, np.ndarray]]]


def look_up(ids: np.ndarray) -> np.ndarray:
    """Reference log-probs that tell which record they are of."""
    return np.stack([-ids.astype(np.float64), -2.0 * ids], axis=1)


def collect(plan: Any, load_example: Any, **options: Any) -> Batches:
    """All batches of a plan, options as of :func:`pipeline.make_loader`."""
    options = {"ref_lookup": look_up, "threads": 1} | options
    with pipeline.make_loader(plan, load_example, **options) as loader:
        return [(n, copy(batch)) for n, batch in loader]


def copy(batch: PackedBatch) -> dict[str, np.ndarray]:
    """As plain arrays: those of worker processes live in shared memory."""
    return {k: np.array(v) for k, v in vars(batch).items()}


def assert_same(
    got: Sequence[tuple[int, dict[str, np.ndarray]]],
    want: Sequence[tuple[int, dict[str, np.ndarray]]],
) -> None:
    assert [n for n, _ in got] == [n for n, _ in want]
    for (n, a), (_, b) in zip(got, want, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=f"{n} {key}")
