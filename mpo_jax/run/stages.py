"""The stages before training: index, ledger, pack plan, batches.

Each finds its result on disk or makes it, so that ``scripts/train.py`` needs one
command, and ``prepare_data.py`` can run beforehand, elsewhere.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from mpo_jax import config as config_lib
from mpo_jax import sharding
from mpo_jax.data import index_build, ledger, packing, pipeline, plan_cache
from mpo_jax.data.index import Index, build_index, effective
from mpo_jax.models import adapted, flops
from mpo_jax.nn import params as params_lib
from mpo_jax.run import setup
from mpo_jax.train import step
from mpo_jax.utils import progress, runtime


def prepare_index(run: setup.Setup, meta: str) -> Index:
    """Index of a meta.json: found, or made by the first process with all cores."""
    data = run.cfg.data

    def build(report: Callable[[index_build.Progress], None] | None) -> Index:
        return build_index(
            meta,
            run.cache_dir,
            tokenizer_path=run.tokenizer_path,
            policy=run.policy,
            reroot=data.reroot,
            max_text_bytes=data.max_text_bytes,
            workers=data.index_workers,
            progress=report,
        )

    if runtime.is_main():
        with progress.bar(extra="{task.fields[kept]} kept") as bar:
            task = bar.add_task("index (bytes)", total=None, kept=0)

            def report(now: index_build.Progress) -> None:
                bar.update(
                    task, total=now.bytes, completed=now.done_bytes, kept=now.kept
                )

            index = build(report)
            bar.update(task, visible=bar.tasks[0].total is not None)
        runtime.barrier(f"index {meta}")
    else:
        runtime.barrier(f"index {meta}")
        index = build(None)  # finished by the first process: only loads
    if not len(index):
        raise ValueError(
            f"{meta}: no usable record; see the reasons in {index.ledger_path}"
        )
    return index


def lengths_of(run: setup.Setup, index: Index) -> packing.Lengths:
    """Budgets that every record of an index needs, and the model's own bound."""
    return packing.Lengths(
        prompt=index.prompt_tokens,
        chosen=index.chosen_tokens,
        rejected=index.rejected_tokens,
        tiles=index.tiles,
        max_sequence=run.model.cfg.language.max_position_embeddings,
    )


def make_plan(run: setup.Setup, index: Index) -> packing.PlanSequence:
    """Pack plan of all epochs; a function of index, row shapes and seed alone."""
    cfg = run.cfg
    ids = [
        effective(index, seed=cfg.seed, epoch=epoch)
        for epoch in range(cfg.optim.epochs)
    ]
    lengths = lengths_of(run, index)
    rows = rows_per_batch(run, index, ids[0])
    for count, shape in zip(rows, run.shapes, strict=True):
        needed = sharding.data_shards(run.mesh) * step.micro_batches(cfg, shape)
        if count % needed:
            raise ValueError(
                f"{count} rows per batch do not divide over {needed} = devices of the "
                "data and fsdp axes × optim.accumulation; set rows.row_multiple or "
                "rows.rows_per_batch to a multiple of it"
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
        raise ValueError(
            f"no record fits the row shapes; the first: {plan.too_long[0]}; raise the "
            "budgets in config.rows"
        )
    return plan


def planned_records(plan: packing.PlanSequence, num_steps: int) -> np.ndarray:
    """Records that the first `num_steps` batches train on, each once."""
    if num_steps >= plan.num_batches:
        return np.unique(np.concatenate([epoch.record_ids for epoch in plan.plans]))
    rows = [row for n in range(num_steps) for row in plan.batch(n)[1]]
    return np.unique(np.concatenate(rows))


def num_steps(cfg: config_lib.RunConfig, plan: packing.PlanSequence) -> int:
    """Updates of the run: all batches of the plan, or ``optim.max_steps``."""
    return min(cfg.optim.max_steps or plan.num_batches, plan.num_batches)


def dry_run(cfg: config_lib.RunConfig, workdir: str | pathlib.Path) -> None:
    """Index and plan, printed; no weight is loaded, nothing is compiled."""
    run = setup.setup(cfg, workdir)
    index = prepare_index(run, cfg.data.meta)
    plan = make_plan(run, index)
    ledger_counts = write_ledger(run, index, plan)
    describe(run, index, plan, num_steps(cfg, plan), ledger_counts)
    shapes = run.model.declared.shapes
    size, ours = params_lib.count(shapes), adapted.trained(cfg.model)
    parts = ", ".join(
        f"{part} {trained:,} of {of:,}"
        for part, of, trained in adapted.describe(shapes, ours)
    )
    progress.console().print(
        f"Model of {size:,} parameters on mesh {dict(run.mesh.shape)}; rows per batch "
        f"{plan.rows_per_batch}. Trained: {parts}."
    )


def write_ledger(
    run: setup.Setup, index: Index, plan: packing.PlanSequence
) -> dict[str, float]:
    """Write ``<workdir>/ledger.jsonl``; counts by reason for the metrics."""
    entries = index.ledger()
    for item in plan.too_long:
        # From the index: reading some ten thousand lines would take long.
        source = index.sources[index.source[item.record_id]]
        line = int(index.line[item.record_id])
        entries.append(
            ledger.Entry(source.name, source.annotation, line, "too_long", item.detail)
        )
    if runtime.is_main():
        ledger.write(run.workdir / "ledger.jsonl", entries)
    counts: dict[str, float] = {"ledger/left_out": float(len(entries))}
    for (_, reason), number in ledger.count(entries).items():
        name = f"ledger/{reason}"
        counts[name] = counts.get(name, 0.0) + number
    return counts


def rows_per_batch(run: setup.Setup, index: Index, record_ids: np.ndarray) -> list[int]:
    """Rows of a global batch, per shape: as configured, or from the pairs per row."""
    rows = run.cfg.rows
    if rows.rows_per_batch:
        return [rows.rows_per_batch] * len(run.shapes)
    return packing.choose_rows_per_batch(
        lengths_of(run, index),
        record_ids,
        run.shapes,
        pairs_per_batch=rows.pairs_per_batch,
        multiple=rows.row_multiple,
    )


def flops_of(
    run: setup.Setup, index: Index, plan: packing.PlanSequence
) -> Callable[[int], float]:
    """Model FLOPs of a global batch by its number, from the lengths of its pairs.

    From the plan rather than from a batch: every process knows all rows.
    """
    trained = flops.of_run(run.cfg.model, run.model.cfg, run.model.declared.shapes)

    def count(n: int) -> float:
        ids = np.concatenate(plan.batch(n)[1])
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
        pipeline.ExampleLoader(index, str(run.tokenizer_path), run.policy),
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


def describe(
    run: setup.Setup,
    index: Index,
    plan: packing.PlanSequence,
    steps: int,
    ledger_counts: dict[str, float],
) -> None:
    """Print what was found and how well it packs."""
    console = progress.console()
    console.print(
        f"{len(index):,} pairs indexed, "
        f"{ledger_counts['ledger/left_out']:.0f} left out "
        f"(see {run.workdir / 'ledger.jsonl'}); {plan.num_pairs:,} pairs in "
        f"{plan.num_batches:,} batches, {steps:,} steps."
    )
    for number, fill in plan.fill().items():
        shares = ", ".join(f"{name} {share:.0%}" for name, share in fill.items())
        console.print(f"Fill of row shape {number}: {shares}.")
    pairs = plan.pairs_per_batch()
    console.print(
        f"Pairs per batch: {pairs.min()} to {pairs.max()}, on average "
        f"{pairs.mean():.0f}."
    )
