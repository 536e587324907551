"""This process's rows of any batch of a plan, loaded and assembled; knows no Grain."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from mpo_jax import ledger
from mpo_jax.packing import assembly
from mpo_jax.packing.plan_table import AnyPlan
from mpo_jax.types import Example, PackedBatch
from mpo_jax.utils import orphans, statuses

CHANGED = (
    "start again: every start looks at the files anew (an image that was replaced by "
    "one of the same size and time must be touched first)"
)
"""What to do about files that have changed since they were indexed."""


class LoadError(ValueError):
    """A planned record could not be loaded; carries the cause as text.

    One string, so that it crosses process boundaries whatever the cause was.
    """


class StorageAway(LoadError, statuses.TryAgain):
    """A record cannot be loaded now; the same command goes on later."""


class BatchSource:
    """Random access to this process's rows of every global batch; picklable.

    ``source[n]`` is the local :class:`PackedBatch` of global batch ``n``. Examples
    of a batch are loaded by `threads` threads, which are started on first use and
    shared by all batches, so that the memory in flight is counted in batches.
    """

    def __init__(
        self,
        plan: AnyPlan,
        load_example: Callable[[int], Example],
        *,
        img_context_id: int,
        tokens_per_tile: int,
        image_size: int,
        rows: Sequence[np.ndarray] | None = None,
        threads: int = 0,
        ref_lookup: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        """Arguments as ``pipeline.make_loader``."""
        if rows is None:
            rows = [np.arange(count) for count in plan.rows_per_batch]
        for s, (mine, count) in enumerate(zip(rows, plan.rows_per_batch, strict=True)):
            if len(mine) == 0 or mine.min() < 0 or mine.max() >= count:
                raise ValueError(
                    f"rows {mine.tolist()} of row shape {s} are not in the {count} "
                    "rows of its batches"
                )
        self._plan = plan
        self._rows = tuple(rows)
        self._load_example = load_example
        self._ref_lookup = ref_lookup
        self._threads = threads
        self._sizes = {
            "img_context_id": img_context_id,
            "tokens_per_tile": tokens_per_tile,
            "image_size": image_size,
        }
        self._lock = threading.Lock()
        self._pool: futures.ThreadPoolExecutor | None = None
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_pool": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        orphans.end_with_parent()

    def __repr__(self) -> str:
        # Grain prints the source in its own messages; a plan is long.
        counts = [len(mine) for mine in self._rows]
        return f"BatchSource({len(self)} batches of {counts} rows)"

    def __len__(self) -> int:
        return self._plan.num_batches

    def __getitem__(self, index: int) -> PackedBatch:
        """Load and assemble this process's rows of batch `index`.

        Raises:
          IndexError: `index` is not in ``[0, len)``.
          LoadError: a record or its reference log-probs could not be loaded.
          ValueError: an example does not fit its row; see `assemble_batch`.
        """
        n = int(index)
        shape, whole = self._plan.batch(n)
        rows = [whole[row] for row in self._rows[shape]]
        ids = np.concatenate(rows)
        loaded = self._load_all(n, ids.tolist())
        splits = np.cumsum([len(row) for row in rows])
        starts = splits - [len(row) for row in rows]
        refs = None
        if self._ref_lookup is not None:
            refs = self._look_up(n, ids)
            refs = [refs[a:b] for a, b in zip(starts, splits, strict=True)]
        return assembly.assemble_batch(
            [loaded[a:b] for a, b in zip(starts, splits, strict=True)],
            self._plan.shapes[shape],
            record_ids=rows,
            ref_logps=refs,
            **self._sizes,
        )

    def close(self) -> None:
        """Stop the threads for good; batches in the making are given up."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _load_all(self, n: int, ids: list[int]) -> list[Example]:
        if self._threads < 2:
            return [self._load(n, i) for i in ids]
        with self._lock:
            if self._closed:
                raise RuntimeError("the batch source is closed")
            if self._pool is None:
                self._pool = futures.ThreadPoolExecutor(
                    self._threads, thread_name_prefix="mpo-load"
                )
            tasks = [self._pool.submit(self._load, n, i) for i in ids]
        try:
            return [task.result() for task in tasks]
        finally:
            for task in tasks:  # after an error the rest is of no use
                task.cancel()

    def _load(self, n: int, record: int) -> Example:
        # Whatever went wrong must reach the main process, and an exception that
        # cannot be unpickled there would hang the queue.
        try:
            return self._load_example(record)
        except ledger.BadRecord as bad:
            raise LoadError(
                f"batch {n}, record {record}: {bad}. The record was good when it was "
                f"indexed and the pack plan counts on it: {CHANGED}"
            ) from bad
        except statuses.TryAgain as error:
            raise StorageAway(f"batch {n}, record {record}: {error}") from error
        except (Exception, SystemExit, GeneratorExit) as error:
            raise LoadError(
                f"batch {n}, record {record}: {type(error).__name__}: {error}"
            ) from error

    def _look_up(self, n: int, ids: np.ndarray) -> np.ndarray:
        assert self._ref_lookup is not None
        try:
            refs = np.asarray(self._ref_lookup(ids))
        except Exception as error:
            raise LoadError(
                f"batch {n}, reference log-probs of records {ids.tolist()}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if refs.shape != (len(ids), 2):
            raise LoadError(
                f"batch {n}: ref_lookup gave shape {refs.shape} for {len(ids)} "
                f"records, expected {(len(ids), 2)}"
            )
        return refs
