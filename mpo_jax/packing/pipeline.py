"""The Grain pipeline: pack plan -> stream of (batch number, local PackedBatch).

Global batch ``n`` is a function of the plan and ``n`` alone. Worker processes,
threads, the number of hosts and restarts change who makes a batch and when, never
what is in it: a process makes the rows of every batch that it is told (the mesh says
which, ``sharding.rows_of_process``), and a run resumes by starting at batch ``n``.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from multiprocessing import connection
from typing import Any

import grain
import numpy as np
from absl import flags

from mpo_jax import ledger
from mpo_jax.inputs import tokenizer
from mpo_jax.mmpr import examples, shards
from mpo_jax.mmpr.index import Index
from mpo_jax.packing import assembly
from mpo_jax.packing import plan as plan_lib
from mpo_jax.types import Example, PackedBatch

CHANGED = (
    "start again: every start looks at the files anew (an image that was replaced by "
    "one of the same size and time must be touched first)"
)
"""What to do about files that have changed since they were indexed."""

AnyPlan = plan_lib.Plan | plan_lib.PlanSequence


class LoadError(ValueError):
    """A planned record could not be loaded; carries the cause as text.

    One string, so that it crosses process boundaries whatever the cause was.
    """


class ExampleLoader:
    """Record number -> :class:`Example`, tiles included; picklable.

    Records are re-read from their files. Each is compared with the hash that the
    index holds, so that files which changed after indexing stop the run instead of
    meeting another record's reference log-probs.
    """

    def __init__(
        self, index: Index, tokenizer_path: str, policy: examples.EncodePolicy
    ):
        """Raises ValueError where tokenizer or policy are not those of the index."""
        self._index = index
        self._policy = policy
        self._tokenizer = tokenizer.load_tokenizer(tokenizer_path)
        given = {
            "tokenizer": self._tokenizer.fingerprint,
            "policy": policy.fingerprint(),
        }
        for name, value in given.items():
            if index.key[name] != value:
                raise ValueError(
                    f"the {name} is not the one that {index!r} was made with: "
                    f"{value} against {index.key[name]}; run prepare_data with the "
                    "new one"
                )

    @property
    def img_context_id(self) -> int:
        """Token that stands for one image feature."""
        return self._tokenizer.img_context_id

    def __call__(self, number: int) -> Example:
        """Load record `number`.

        Raises:
          BadRecord: the record has become bad; the detail names file and line.
          ValueError: its text or images have changed since it was indexed.
        """
        index = self._index
        where = index.where(number)
        try:
            record, read = index.fetch(number)
            if shards.record_hash(record, read) != index.hash[number].tobytes():
                raise ValueError(
                    f"{where}: text or images have changed since the record was "
                    f"indexed; {CHANGED}"
                )
            return examples.build_example(
                record, self._tokenizer, policy=self._policy, read=read
            )
        except ledger.BadRecord as bad:
            raise ledger.BadRecord(bad.reason, f"{where}: {bad.detail}") from bad


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
        """Arguments as :func:`make_loader`."""
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
        _end_with_parent()

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
        except Exception as error:
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


def _end_with_parent() -> None:
    """In a worker process: end when the process that started it is gone.

    One that is killed (by the kernel, where memory is short) cannot stop its workers,
    which would hold their memory and wait for ever. The resource tracker then frees
    what they shared.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="mpo-parent", daemon=True).start()


def make_dataset(
    source: BatchSource, *, start_batch: int = 0, workers: int = 0, prefetch: int = 2
) -> grain.IterDataset:
    """The Grain dataset under a :class:`Loader`; its elements are `PackedBatch`.

    Batches are made before the workers split the work, and the iteration starts by
    slicing, so the stream depends neither on `workers` nor on `prefetch`.

    Raises:
      ValueError: `start_batch` is out of range, or a number is negative.
      RuntimeError: `workers` without parsed absl flags, which Grain's workers read.
    """
    if not 0 <= start_batch <= len(source):
        raise ValueError(
            f"start_batch={start_batch} of a plan of {len(source)} batches; the "
            "state belongs to another plan"
        )
    if workers < 0 or prefetch < 0:
        raise ValueError(f"{workers=} and {prefetch=} must not be negative")
    if workers and not flags.FLAGS.is_parsed():
        raise RuntimeError(
            "worker processes read absl flags, which are not parsed: start through "
            "absl.app.run, call absl.flags.FLAGS.mark_as_parsed(), or set "
            "data.workers=0"
        )
    dataset = grain.MapDataset.source(source).slice(slice(start_batch, None))
    # In a worker the queue to the main process is the buffer. Without workers two
    # batches are in the making at once: one decodes while the other is assembled.
    buffered = 0 if workers else prefetch
    options = grain.ReadOptions(
        num_threads=min(2, buffered), prefetch_buffer_size=buffered
    )
    result = dataset.to_iter_dataset(options)
    if workers:
        result = result.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=max(1, prefetch)
            )
        )
    return result


class Loader(Iterator[tuple[int, PackedBatch]]):
    """Iterator of (global batch number, local batch). Made by :func:`make_loader`.

    Close it (or use it in ``with``): worker processes and shared memory outlive a
    forgotten iterator.
    """

    def __init__(
        self,
        source: BatchSource,
        *,
        start_batch: int,
        workers: int,
        prefetch: int,
    ):
        self._source = source
        self._next_batch = start_batch
        self._iterator = iter(
            make_dataset(
                source, start_batch=start_batch, workers=workers, prefetch=prefetch
            )
        )
        self._closed = False

    def __len__(self) -> int:
        """Batches that are still to come."""
        return len(self._source) - self._next_batch

    def __next__(self) -> tuple[int, PackedBatch]:
        if self._closed:
            raise ValueError("the loader is closed")
        batch = next(self._iterator)
        n = self._next_batch
        self._next_batch += 1
        return n, batch

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop workers and threads; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._iterator.close()
            self._source.close()


def resume_batch(state: Mapping[str, Any], plan: AnyPlan) -> int:
    """`start_batch` that continues a run from what its checkpoint holds.

    Args:
      state: ``next_batch``, the number of the first batch that was not trained on, and
        ``plan``, the fingerprint of the plan it counts in; further entries are ignored.
      plan: of the run that continues.

    Raises:
      ValueError: the state was made with another plan, or is malformed.
    """
    missing = {"next_batch", "plan"} - set(state)
    if missing:
        raise ValueError(f"the loader state {dict(state)} lacks {sorted(missing)}")
    if state["plan"] != plan.fingerprint:
        raise ValueError(
            f"the run was made with pack plan {state['plan'][:12]}, this one is "
            f"{plan.fingerprint[:12]}: data, row shapes, rows per batch, seed or the "
            "number of epochs differ. Restore them, or start a new run"
        )
    return int(state["next_batch"])


def make_loader(
    plan: AnyPlan,
    load_example: Callable[[int], Example],
    *,
    img_context_id: int,
    tokens_per_tile: int,
    image_size: int,
    rows: Sequence[np.ndarray] | None = None,
    start_batch: int = 0,
    workers: int = 0,
    threads: int = 4,
    prefetch: int = 2,
    ref_lookup: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Loader:
    """Stream this process's rows of the batches of a plan.

    Args:
      plan: which records, in which rows and batches, of which shapes.
      load_example: record number -> example with tiles; picklable where `workers`
        are used, and callable from several threads at once.
      img_context_id, tokens_per_tile, image_size: see ``assembly.assemble_batch``.
      rows: rows of a global batch that this process makes, per row shape, in the
        order in which they are placed (``sharding.rows_of_process``); None is all.
      start_batch: first batch; see :func:`resume_batch`.
      workers: Grain worker processes; 0 works in threads of this process.
      threads: threads per worker that load examples; below 2 loads in sequence.
      prefetch: assembled batches kept ready (per worker); 0 makes them on demand.
      ref_lookup: int32 ``[q]`` record numbers -> ``[q, 2]`` reference log-probs in
        nats (chosen, rejected); picklable where `workers` are used.

    Raises:
      ValueError: the plan is empty, or a number is out of range.
    """
    if not plan.num_batches:
        raise ValueError(
            "the pack plan holds no batch; "
            f"{len(plan.too_long)} records fit no row shape (see plan.too_long)"
        )
    source = BatchSource(
        plan,
        load_example,
        img_context_id=img_context_id,
        tokens_per_tile=tokens_per_tile,
        image_size=image_size,
        rows=rows,
        threads=threads,
        ref_lookup=ref_lookup,
    )
    return Loader(
        source,
        start_batch=start_batch,
        workers=workers,
        prefetch=prefetch,
    )
