"""The Grain pipeline: pack plan -> stream of (batch number, local PackedBatch).

Global batch ``n`` is a function of the plan and ``n`` alone. Worker processes,
threads, the number of hosts and restarts change who makes a batch and when, never
what is in it: a process makes the rows of every batch that it is told (the mesh says
which, ``sharding.rows_of_process``), and a run resumes by starting at batch ``n``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from mpo_jax import ledger
from mpo_jax.inputs import tokenizer
from mpo_jax.mmpr import examples, likeness
from mpo_jax.mmpr.index import Index
from mpo_jax.packing.batch_source import CHANGED, BatchSource
from mpo_jax.packing.plan_table import AnyPlan
from mpo_jax.types import Example, PackedBatch
from mpo_jax.utils import transient


class ExampleLoader:
    """Record number -> :class:`Example`, tiles included; picklable.

    Records are re-read from their files. Each is compared with the hash that the
    index holds, so that files which changed after indexing stop the run instead of
    meeting another record's reference log-probs.
    """

    def __init__(
        self,
        index: Index,
        tokenizer_path: str,
        policy: examples.EncodePolicy,
        *,
        patience_s: float = 0.0,
    ):
        """Check that tokenizer and policy are those of the index.

        Args:
          patience_s: how long storage that is away is tried again.

        Raises:
          ValueError: they are others.
        """
        self._patience_s = patience_s
        self._index = index
        self._policy = policy
        self._tokenizer = tokenizer.load_tokenizer(tokenizer_path)
        fingerprints = {
            "tokenizer": self._tokenizer.fingerprint,
            "policy": policy.fingerprint(),
        }
        for name, value in fingerprints.items():
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
          TryAgain: storage is away.
        """
        return transient.patiently(
            functools.partial(self._load, number),
            self._index.where(number),
            seconds=self._patience_s,
        )

    def _load(self, number: int) -> Example:
        index = self._index
        where = index.where(number)
        try:
            record, read = index.fetch(number)
            if likeness.record_hash(record, read) != index.hash[number].tobytes():
                raise ValueError(
                    f"{where}: text or images have changed since the record was "
                    f"indexed; {CHANGED}"
                )
            return examples.build_example(
                record, self._tokenizer, policy=self._policy, read=read
            )
        except ledger.BadRecord as bad:
            raise ledger.BadRecord(bad.reason, f"{where}: {bad.detail}") from bad


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
