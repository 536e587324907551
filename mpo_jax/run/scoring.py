"""Log-probs of records under fixed weights, and the reference's on disk.

Forward passes over a plan of their own. The reference stage and the step-0 gate share a
:class:`Scorer`, and so its programs; training and held-out pairs have one each.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mpo_jax import sharding, types
from mpo_jax.mmpr.index import Index
from mpo_jax.models import internvl
from mpo_jax.nn import params as params_lib
from mpo_jax.packing import plan as plan_lib
from mpo_jax.run import addresses, setup, stages
from mpo_jax.train import comparison, reference, step
from mpo_jax.utils import background, mirror, progress, runtime, watchdog


class Scorer:
    """Forward passes of one model over records of one index.

    Args:
      model: ``run.model``, or ``run.model.without_adapters`` for a reference.
      rows: rows of a forward batch, per row shape; see :func:`forward_rows`.
    """

    def __init__(
        self,
        run: setup.Setup,
        index: Index,
        *,
        model: internvl.InternVL,
        rows: Sequence[int],
    ):
        self.run, self.index, self.model = run, index, model
        self.rows = list(rows)
        self._steps = [
            step.build_logps_step(model, run.cfg.model, shape, run.mesh)
            for shape in run.shapes
        ]

    def for_model(self, model: internvl.InternVL) -> Scorer:
        """The same for another model; itself for its own."""
        if model is self.model:
            return self
        return Scorer(self.run, self.index, model=model, rows=self.rows)

    def plan(self, record_ids: np.ndarray) -> plan_lib.Plan:
        """Pack plan of these records."""
        return plan_lib.make_plan(
            stages.lengths_of(self.run, self.index),
            record_ids,
            shapes=self.run.shapes,
            rows_per_batch=self.rows,
            seed=self.run.cfg.seed,
            epoch=0,
        )

    def logps_step(
        self, params: params_lib.Params, plan: plan_lib.Plan
    ) -> Callable[[types.PackedBatch, int], jax.Array]:
        """``(batch, number in the plan)`` -> log-probs ``[B, Q, 2]``, float32 nats."""
        return lambda batch, n: self._steps[plan.batch(n)[0]](params, batch)

    @contextlib.contextmanager
    def batches(
        self,
        plan: plan_lib.Plan,
        *,
        logps: np.ndarray | None = None,
        workers: int | None = None,
    ) -> Iterator[Iterator[tuple[int, types.PackedBatch]]]:
        """Global batches of a plan, put on devices ahead of their use."""
        source = stages.loader(self.run, self.index, plan, logps=logps, workers=workers)
        mesh = self.run.mesh
        try:
            with (
                jax.set_mesh(mesh),
                background.Ahead(
                    source,
                    lambda item: (item[0], sharding.to_global(item[1], mesh)),
                    depth=self.run.cfg.data.prefetch_to_device,
                ) as placed,
            ):
                yield placed
        finally:
            source.close()

    def compare(
        self, params: params_lib.Params, record_ids: np.ndarray, logps: np.ndarray
    ) -> comparison.Comparison:
        """Recompute the log-probs of records and set them beside the cached ones.

        Args:
          logps: float32 ``[N, 2]``, of the whole index; goes the way of training's.
        """
        plan = self.plan(record_ids)
        score = self.logps_step(params, plan)
        ids, cached, found = [], [], []
        with self.batches(plan, logps=logps, workers=0) as batches:
            for n, batch in batches:
                numbers, old, new = sharding.to_host(
                    (batch.record_ids, batch.ref_logps, score(batch, n))
                )
                real = numbers >= 0
                ids.append(numbers[real])
                cached.append(old[real])
                found.append(new[real])
        records = np.concatenate(ids)
        tokens = (
            self.index.chosen_tokens[records],
            self.index.rejected_tokens[records],
        )
        return comparison.Comparison(
            record_ids=records,
            cached=np.concatenate(cached),
            found=np.concatenate(found),
            tokens=np.stack(tokens, axis=-1),
        )


def forward_rows(run: setup.Setup, index: Index, record_ids: np.ndarray) -> list[int]:
    """Rows of a batch that is only run forward: a micro-batch of training."""
    shards = sharding.data_shards(run.mesh)
    rows = stages.rows_per_batch(run, index, record_ids)
    return [
        max(count // step.micro_batches(run.cfg, shape) // shards, 1) * shards
        for count, shape in zip(rows, run.shapes, strict=True)
    ]


def reference_scorer(run: setup.Setup, index: Index, record_ids: np.ndarray) -> Scorer:
    """A scorer of the reference's model, its batches sized for these records."""
    rows = forward_rows(run, index, record_ids)
    return Scorer(run, index, model=run.model.without_adapters, rows=rows)


def reference_key(run: setup.Setup, index: Index, fingerprint: str) -> dict[str, Any]:
    """Key of the reference cache for this run."""
    with jax.set_mesh(run.mesh):  # `auto` attention is resolved for its platform
        return reference.cache_key(
            tokenizer=index.key["tokenizer"],
            policy=index.key["policy"],
            content=index.content_hash,
            weights=fingerprint,
            architecture=run.model.cfg,
            model=run.cfg.model,
        )


def reference_directory(
    run: setup.Setup, index: Index, fingerprint: str, directory: str = ""
) -> pathlib.Path:
    """Where the reference log-probs of an index lie: beside it, or as named."""
    key = reference.key_digest(reference_key(run, index, fingerprint))
    if directory:
        return addresses.local(directory)
    return run.cache_dir / "reference" / key[:16]


def prepare_reference(
    scorer: Scorer,
    record_ids: np.ndarray,
    *,
    fingerprint: str,
    params: Callable[[], params_lib.Params],
    directory: str = "",
) -> np.ndarray:
    """Reference log-probs ``[N, 2]``: from the cache; what is missing is computed.

    Args:
      scorer: of the reference's model.
      record_ids: records that are needed.
      fingerprint: of the reference's weights.
      params: gives the reference's parameters, asked only if something is missing.
      directory: of a cache made beforehand, refused if its key differs; "" is the one
        that the key names beside the index.
    """
    run, index = scorer.run, scorer.index
    key = reference_key(run, index, fingerprint)
    place = reference_directory(run, index, fingerprint, directory)
    cache = reference.Cache(place, key, size=len(index))
    known_as = reference.key_digest(key)[:16]
    mirror.barrier(f"reference {known_as}", place)
    wanted = np.unique(record_ids)
    # Another run may be writing to the same cache: what is missing is what the first
    # process misses, for all compute it together; what it saw, all see from now on.
    unknown = np.asarray(np.isnan(cache.load()[wanted]).any(axis=1))
    missing = wanted[runtime.agreed(unknown)]
    if not len(missing):
        return cache.load()

    watchdog.beat("reference log-probs")
    plan = scorer.plan(missing)
    logps_step = scorer.logps_step(params(), plan)
    with scorer.batches(plan) as batches, progress.bar() as bar:
        task = bar.add_task("reference log-probs", total=len(missing))
        reference.compute(
            cache,
            batches,
            step=logps_step,
            on_batch=lambda pairs: bar.advance(task, pairs),
        )
    mirror.barrier(f"reference done {known_as}", place)
    return cache.load()
