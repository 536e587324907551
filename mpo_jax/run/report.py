"""What a run says of its data and model before it trains: the ledger, and in words."""

from __future__ import annotations

from collections.abc import Sequence

from mpo_jax import ledger
from mpo_jax.mmpr import shares
from mpo_jax.mmpr.index import Index
from mpo_jax.models import adapted
from mpo_jax.nn import params as params_lib
from mpo_jax.packing import plan as plan_lib
from mpo_jax.run import setup
from mpo_jax.utils import progress, runtime


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


def print_data(
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
        f"(see {run.at('ledger.jsonl')}); {plan.num_pairs:,} pairs in "
        f"{plan.num_batches:,} batches, {steps:,} steps.",
        markup=False,
    )
    print_poor(shares.shares(index, plan.too_long))
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


def print_model(run: setup.Setup, rows_per_batch: Sequence[int]) -> None:
    """Print the size of the model, the mesh, and what is trained."""
    shapes, trained = run.model.shapes, adapted.trained(run.cfg.model)
    parts = ", ".join(
        f"{part} {ours:,} of {of:,}"
        for part, of, ours in adapted.describe(shapes, trained)
    )
    progress.console().print(
        f"Model of {params_lib.count(shapes):,} parameters on mesh "
        f"{dict(run.mesh.shape)}; rows per batch {rows_per_batch}. Trained: {parts}."
    )


def print_poor(found: list[shares.Share]) -> None:
    """Warn of sources of which little is used."""
    for share in shares.poor(found):
        progress.console().print(f"Warning: {share}.", markup=False)
