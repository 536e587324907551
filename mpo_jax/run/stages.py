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
from mpo_jax import ledger, sharding
from mpo_jax.mmpr import index_build, shares, store
from mpo_jax.mmpr.index import Index, build_index, effective, load_index
from mpo_jax.models import adapted, flops
from mpo_jax.nn import params as params_lib
from mpo_jax.packing import pipeline, plan_cache
from mpo_jax.packing import plan as plan_lib
from mpo_jax.run import setup
from mpo_jax.train import step
from mpo_jax.utils import progress, runtime


def prepare_index(run: setup.Setup, meta: str) -> Index:
    """Index of a meta.json: found, or made by the first process with all cores.

    Raises:
      ValueError: there is no usable record, or a source leaves out too many.
    """
    data = run.cfg.data

    def build(report: Callable[[index_build.Progress], None]) -> Index:
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
        _first_ones_name(index.directory.name)
    else:
        # Not built here too: looking at the images a moment later may see others.
        directory = run.cache_dir / _first_ones_name("")
        index = load_index(directory, shards=store.shards_folder(meta))
    if not len(index):
        reasons = "; ".join(str(share) for share in shares.shares(index)[:8])
        raise ValueError(
            f"{meta}: no usable record: {reasons}. All are in {index.ledger_path}; "
            "start again once it is mended: files are looked at anew"
        )
    shares.check(index, meta, max_left_out=data.max_left_out)
    if meta != data.meta:  # of the training pairs describe() tells more
        _print_poor(shares.shares(index))
    return index


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
        raise ValueError(_why_empty(index, plan))
    shares.check(
        index,
        cfg.data.meta,
        max_left_out=cfg.data.max_left_out,
        too_long=plan.too_long,
    )
    return plan


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


def dry_run(cfg: config_lib.RunConfig, workdir: str | pathlib.Path) -> None:
    """Index and plan, printed; no weight is loaded, nothing is compiled."""
    run = setup.setup(cfg, workdir)
    index = prepare_index(run, cfg.data.meta)
    plan = make_plan(run, index)
    ledger_counts = write_ledger(run, index, plan)
    describe(run, index, plan, num_steps(cfg, plan), ledger_counts)
    shapes = run.model.shapes
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
    run: setup.Setup, index: Index, plan: plan_lib.PlanSequence
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
    return plan_lib.choose_rows_per_batch(
        lengths_of(run, index),
        record_ids,
        run.shapes,
        pairs_per_batch=rows.pairs_per_batch,
        multiple=rows.row_multiple,
    )


def flops_of(
    run: setup.Setup, index: Index, plan: plan_lib.PlanSequence
) -> Callable[[int], float]:
    """Model FLOPs of a global batch by its number, from the lengths of its pairs.

    From the plan rather than from a batch: every process knows all rows.
    """
    trained = flops.of_run(run.cfg.model, run.model.cfg, run.model.shapes)

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
    plan: plan_lib.PlanSequence,
    steps: int,
    ledger_counts: dict[str, float],
) -> None:
    """Print what was found and how well it packs."""
    console = progress.console()
    too_long = len(plan.too_long)  # indexed, but of no use
    note = f", {too_long:,} of them too long for a row" if too_long else ""
    console.print(
        f"{len(index) - too_long:,} pairs indexed, "
        f"{ledger_counts['ledger/left_out']:,.0f} left out{note} "
        f"(see {run.workdir / 'ledger.jsonl'}); {plan.num_pairs:,} pairs in "
        f"{plan.num_batches:,} batches, {steps:,} steps.",
        markup=False,
    )
    _print_poor(shares.shares(index, plan.too_long))
    for number, fill in plan.fill().items():
        if not fill:
            console.print(f"Row shape {number} is used by no pair.")
            continue
        used = ", ".join(f"{name} {share:.0%}" for name, share in fill.items())
        console.print(f"Fill of row shape {number}: {used}.")
    pairs = plan.pairs_per_batch()
    console.print(
        f"Pairs per batch: {pairs.min()} to {pairs.max()}, on average "
        f"{pairs.mean():.0f}."
    )


def _print_poor(found: list[shares.Share]) -> None:
    for share in shares.poor(found):
        progress.console().print(f"Warning: {share}.", markup=False)
