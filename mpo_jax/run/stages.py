"""The stages before training: index, pack plan, batches.

Each finds its result on disk or makes it, so that ``scripts/train.py`` needs one
command, and ``prepare_data.py`` can run beforehand, elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from mpo_jax import config as config_lib
from mpo_jax import sharding
from mpo_jax.mmpr import index_build, shares, store
from mpo_jax.mmpr.index import Index, build_index, effective, load_index
from mpo_jax.models import flops
from mpo_jax.packing import pipeline, plan_cache
from mpo_jax.packing import plan as plan_lib
from mpo_jax.run import addresses, report, setup
from mpo_jax.train import step
from mpo_jax.utils import batch_rows, fetched, mirror, progress, runtime, watchdog


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What a run is trained on.

    Attributes:
      index: of ``data.meta``.
      plan: pack plan of all epochs.
      num_steps: updates of the run; it trains on the first batches of the plan.
      ledger_counts: records that are left out by reason, for the metrics.
    """

    index: Index
    plan: plan_lib.PlanSequence
    num_steps: int
    ledger_counts: dict[str, float]

    @property
    def record_ids(self) -> np.ndarray:
        """Records that the run trains on, int64, each once, ascending."""
        return planned_records(self.plan, self.num_steps)

    @property
    def first_pairs(self) -> np.ndarray:
        """Records of the first batch, int64, each once, ascending."""
        return np.unique(self.record_ids_of(0))

    def shape_of(self, n: int) -> int:
        """Number of the row shape of batch n."""
        return self.plan.batch(n)[0]

    def record_ids_of(self, n: int) -> np.ndarray:
        """Records of batch n (all processes), int64, row after row."""
        return np.concatenate(self.plan.batch(n)[1])

    def names_of(self, n: int) -> str:
        """Number and places of the records of batch n, for error messages."""
        ids = self.record_ids_of(n)
        shown = "; ".join(self.index.where(int(number)) for number in ids[:8])
        return f"{len(ids)} pairs: {shown}{'; …' if len(ids) > 8 else ''}"


def prepare_training_data(run: setup.Setup) -> TrainingData:
    """Index and plan of the training pairs: found or made, the ledger written."""
    index = prepare_index(run, run.cfg.data.meta)
    plan = make_plan(run, index)
    ledger_counts = report.write_ledger(run, index, plan)
    steps = num_steps(run.cfg, plan)
    report.print_data(run, index, plan, steps, ledger_counts)
    return TrainingData(index, plan, steps, ledger_counts)


def prepare_index(run: setup.Setup, meta: str) -> Index:
    """Index of a meta.json: found, or made by the first process with all cores.

    Raises:
      ValueError: there is no usable record, or a source leaves out too many.
    """
    watchdog.beat(f"the index of {meta}")
    if runtime.is_main():
        index = _build_with_bar(run, meta)
        mirror.publish(index.directory)
        _first_ones_name(index.directory.name)
    else:
        # Not built here too: looking at the images a moment later may see others.
        directory = run.cache_dir / _first_ones_name("")
        mirror.fetch(directory)
        index = load_index(
            directory, shards=store.shards_folder(meta), cache=_local_cache(run)
        )
    if not len(index):
        reasons = "; ".join(str(share) for share in shares.shares(index)[:8])
        raise ValueError(
            f"{meta}: no usable record: {reasons}. All are in {index.ledger_path}; "
            "start again once it is mended: files are looked at anew"
        )
    shares.check(index, meta, max_left_out=run.cfg.data.max_left_out)
    if meta != run.cfg.data.meta:  # of the training pairs print_data() tells more
        report.print_poor(shares.shares(index))
    return index


def _build_with_bar(run: setup.Setup, meta: str) -> Index:
    data = run.cfg.data
    with progress.bar(extra="{task.fields[kept]} kept") as bar:
        task = bar.add_task("index (bytes)", total=None, kept=0)

        def show(now: index_build.Progress) -> None:
            bar.update(task, total=now.bytes, completed=now.done_bytes, kept=now.kept)

        index = build_index(
            meta,
            run.cache_dir,
            tokenizer_path=run.tokenizer_path,
            policy=run.policy,
            reroot=data.reroot,
            max_text_bytes=data.max_text_bytes,
            workers=data.index_workers,
            progress=show,
            cache=_local_cache(run),
        )
        bar.update(task, visible=bar.tasks[0].total is not None)
    return index


def _local_cache(run: setup.Setup) -> fetched.LocalCache:
    """What is kept on this machine of data at addresses."""
    return fetched.LocalCache(run.cfg.data.local_cache, run.cfg.data.local_cache_gb)


def _first_ones_name(name: str) -> str:
    """Folder of the index in the first process, which all others wait for."""
    letters = np.zeros(64, np.uint8)
    letters[: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    return runtime.agreed(letters).tobytes().rstrip(b"\0").decode("ascii")


def lengths_of(run: setup.Setup, index: Index) -> plan_lib.Lengths:
    """Budgets that every record of an index needs, and the model's own bound."""
    return plan_lib.Lengths(
        prompt=index.prompt_tokens,
        chosen=index.chosen_tokens,
        rejected=index.rejected_tokens,
        tiles=index.tiles,
        max_sequence=run.model.cfg.language.max_position_embeddings,
    )


def make_plan(run: setup.Setup, index: Index) -> plan_lib.PlanSequence:
    """Pack plan of all epochs; a function of index, row shapes and seed alone."""
    cfg = run.cfg
    ids = [
        effective(index, seed=cfg.seed, epoch=epoch)
        for epoch in range(cfg.optim.epochs)
    ]
    lengths = lengths_of(run, index)
    rows = rows_per_batch(run, index, ids[0])
    _follow_devices(run, rows)
    for count, shape in zip(rows, run.shapes, strict=True):
        needed = sharding.data_shards(run.mesh) * step.micro_batches(cfg, shape)
        if count % needed:
            raise ValueError(
                f"{count} rows per batch do not divide over {needed} = devices of the "
                "data and fsdp axes × optim.accumulation; set rows.rows_per_batch to "
                "a multiple of it, or to 0, and rows follow from the devices"
            )
    plan = plan_cache.plan_epochs(
        run.cache_dir / "plans",
        lengths,
        ids,
        shapes=run.shapes,
        rows_per_batch=rows,
        seed=cfg.seed,
        write=runtime.is_main(),
    )
    if not plan.num_batches:
        raise ValueError(_why_empty(index, plan))
    shares.check(
        index,
        cfg.data.meta,
        max_left_out=cfg.data.max_left_out,
        too_long=plan.too_long,
    )
    return plan


def _follow_devices(run: setup.Setup, rows: list[int]) -> None:
    """Set micro-batches that divide these rows, and say what the devices changed."""
    shards, configured = sharding.data_shards(run.mesh), run.cfg.rows.row_multiple
    told = batch_rows.follow(run.cfg, rows, shards)
    if configured > 1 and batch_rows.multiple(configured, shards) != configured:
        if not run.cfg.rows.rows_per_batch:
            told.insert(0, f"rows are multiples of {shards}, not {configured}")
    if told:
        progress.console().print(
            f"The recipe's rows.row_multiple={configured} and micro-batches do not "
            f"divide over {shards} shards of a batch, so: {'; '.join(told)}."
        )


def _why_empty(index: Index, plan: plan_lib.PlanSequence) -> str:
    if plan.too_long:
        first = plan.too_long[0]
        return (
            f"no record fits the row shapes; the first is "
            f"{index.where(first.record_id)}: {first.detail}; raise the budgets in "
            "config.rows"
        )
    found = shares.poor(shares.shares(index))
    each = "; ".join(str(share) for share in found) or "every repeat_time is 0"
    return f"an epoch has no pair (repeat_time in meta.json): {each}"


def planned_records(plan: plan_lib.PlanSequence, num_steps: int) -> np.ndarray:
    """Records that the first `num_steps` batches train on, each once."""
    if num_steps >= plan.num_batches:
        return np.unique(np.concatenate([epoch.record_ids for epoch in plan.plans]))
    rows = [row for n in range(num_steps) for row in plan.batch(n)[1]]
    return np.unique(np.concatenate(rows))


def num_steps(cfg: config_lib.RunConfig, plan: plan_lib.PlanSequence) -> int:
    """Updates of the run: all batches of the plan, or ``optim.max_steps``."""
    return min(cfg.optim.max_steps or plan.num_batches, plan.num_batches)


def rows_per_batch(run: setup.Setup, index: Index, record_ids: np.ndarray) -> list[int]:
    """Rows of a global batch, per shape: as configured, or from the pairs per row."""
    rows = run.cfg.rows
    if rows.rows_per_batch:
        return [rows.rows_per_batch] * len(run.shapes)
    return plan_lib.choose_rows_per_batch(
        lengths_of(run, index),
        record_ids,
        run.shapes,
        pairs_per_batch=rows.pairs_per_batch,
        multiple=batch_rows.multiple(rows.row_multiple, sharding.data_shards(run.mesh)),
    )


def flops_of(run: setup.Setup, data: TrainingData) -> Callable[[int], float]:
    """Model FLOPs of a global batch by its number, from the lengths of its pairs.

    From the plan rather than from a batch: every process knows all rows.
    """
    trained = flops.of_run(run.cfg.model, run.model.cfg, run.model.shapes)

    def count(n: int) -> float:
        index, ids = data.index, data.record_ids_of(n)
        counts = flops.of_pairs(
            index.prompt_tokens[ids],
            index.chosen_tokens[ids],
            index.rejected_tokens[ids],
            tiles=index.tiles[ids],
        )
        return flops.training(run.model.cfg, counts, trained=trained).total

    return count


def loader(
    run: setup.Setup,
    index: Index,
    plan: Any,
    *,
    start: int = 0,
    logps: np.ndarray | None = None,
    workers: int | None = None,
) -> pipeline.Loader:
    """Batches of a plan, this process's rows.

    Args:
      workers: Grain worker processes; None takes ``data.workers``.
    """
    data = run.cfg.data
    return pipeline.make_loader(
        plan,
        pipeline.ExampleLoader(
            index,
            str(run.tokenizer_path),
            run.policy,
            patience_s=data.retry_seconds,
        ),
        rows=[sharding.rows_of_process(run.mesh, rows) for rows in plan.rows_per_batch],
        start_batch=start,
        workers=data.workers if workers is None else workers,
        threads=data.threads,
        prefetch=data.prefetch,
        ref_lookup=None if logps is None else functools.partial(np.take, logps, axis=0),
        img_context_id=run.img_context_id,
        tokens_per_tile=run.policy.tokens_per_tile,
        image_size=run.policy.image_size,
    )


def dry_run(cfg: config_lib.RunConfig, workdir: str | pathlib.Path) -> None:
    """Index and plan, printed; no weight is loaded, nothing is compiled."""
    run = setup.setup(cfg, workdir)
    with addresses.mirrored(run):
        data = prepare_training_data(run)
    report.print_model(run, data.plan.rows_per_batch)
