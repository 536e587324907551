"""Plans as tables for people, in words where something does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import rich.table

from mpo_jax.models import flops as flops_lib
from mpo_jax.plan import compilers, costs, estimate, programs
from mpo_jax.plan.planner import Held, Outcome
from mpo_jax.utils import plan_plot, slices


def gib(size: float) -> str:
    """Bytes in GiB; a dash where there is nothing."""
    return f"{size / programs.GIB:.2f}" if size else "–"


def table(title: str, *columns: str) -> rich.table.Table:
    """An empty table; the first column names what a row is of."""
    made = rich.table.Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 else "right")
    return made


def verdict(status: str) -> str:
    """Status of a program, coloured."""
    return f"[{'green' if status == programs.FITS else 'red'}]{status}[/]"


WHO = "libtpu (Python)"
"""Head of the column of :func:`who`."""


def who(compiler: compilers.Compiler) -> str:
    """Which compiler a row of a table is of."""
    return f"{compiler.version('libtpu')} ({compiler.python})"


def label(outcome: Outcome) -> str:
    """Config, slice, shape and step in one line."""
    case = outcome.case
    times = f"{case.slices} × " if case.slices > 1 else ""
    return f"{outcome.name} · {times}{case.topology} · {case.shape} {case.step}"


def memory(outcomes: Sequence[Outcome]) -> rich.table.Table:
    """GiB per device (a chip; of tpu7x a core)."""
    made = table(
        "Memory per device, GiB (one device is one chip; of tpu7x half a chip)",
        *("program", "rows/chip", "parameters", "optimiser", "batch", "temporaries"),
        *("code", "needed", "granted", "result", "libtpu"),
    )
    for outcome in outcomes:
        parts, compiled = outcome.compiled.memory, outcome.compiled
        made.add_row(
            label(outcome),
            f"{outcome.rows_per_chip:g}",
            *(gib(x) for x in (parts.params, parts.optimiser, parts.batch)),
            *(gib(x) for x in (parts.temporaries, parts.code)),
            *(gib(x) for x in (parts.needed, parts.granted)),
            verdict(compiled.status),
            outcome.compiler.version("libtpu"),
        )
    return made


def traffic(outcomes: Sequence[Outcome]) -> rich.table.Table:
    """Collectives of one device and step."""
    made = table(
        "Collectives of one device in one step",
        *("program", "kind", "executions", "GiB sent", "of it between slices"),
    )
    for outcome in outcomes:
        for kind, traffic in outcome.compiled.collectives.items():
            made.add_row(
                label(outcome),
                kind,
                f"{traffic['count']:,.0f}",
                gib(traffic["bytes"]),
                gib(traffic["across_slices"]),
            )
    return made


def speed(outcomes: Sequence[Outcome]) -> rich.table.Table:
    """FLOPs, times and MFU; times are estimates."""
    made = table(
        f"Speed: lower bound, and estimate ({estimate.NOT_MEASURED}; ±25 % or worse)",
        *("program", "pairs", "useful PFLOP", "full rows", "scheduled"),
        *("bound s", "of it", "estimate s", "pairs/s", "MFU", "MFU ≤"),
    )
    for outcome in outcomes:
        found = outcome.estimate
        if found is None:
            continue
        causes = {
            "products": found.products,
            "HBM": found.memory,
            "links": found.links,
        }
        made.add_row(
            label(outcome),
            f"{found.pairs:.0f}",
            *(f"{x / 1e15:.3g}" for x in (found.useful, found.budget, found.scheduled)),
            f"{found.bound:.3g}",
            max(causes, key=lambda cause: causes[cause]),
            f"{found.seconds:.2g}" if found.seconds else "–",
            f"{found.pairs_per_second:.2g}" if found.seconds else "–",
            f"{found.mfu:.0%}" if found.seconds else "–",
            f"{found.mfu_bound:.0%}",
        )
    return made


SPEED_NOTE = (
    "useful: model FLOPs of true tokens, forward and backward once; full rows: the "
    "same with padding; scheduled: what the program executes, recomputation included. "
    "MFU = useful / (seconds × chips × bf16 peak); MFU ≤ is that at the lower bound."
)


def trained(held: Mapping[str, Held]) -> rich.table.Table:
    """What each config trains, and what its state takes over all devices."""
    made = table(
        "Trained, and state over all devices in GiB",
        *("config", "parameters", "trained", "vision", "projector", "language"),
        *("weights", "moments", "reference"),
    )
    for name, state in held.items():
        ours = [part[2] for part in state.parts]
        made.add_row(
            name,
            f"{sum(part[1] for part in state.parts):,}",
            f"{sum(ours):,}",
            *(f"{number:,}" for number in ours),
            *(gib(x) for x in (state.params, state.optimiser, state.reference)),
        )
    return made


def layout(
    name: str, packed: flops_lib.Comparison, usual: flops_lib.Comparison
) -> rich.table.Table:
    """A mean pair here and as two sequences, policy and reference together."""
    made = table(
        f"One pair of {name}: encoded once, against two full sequences",
        *("per pair and epoch", "here", "duplicated", "ratio"),
    )
    rows = (
        ("decoder tokens", packed.tokens, usual.tokens, ",.0f"),
        ("vision tower tiles", packed.tiles, usual.tiles, ",.1f"),
        ("head positions", packed.head_positions, usual.head_positions, ",.0f"),
        ("TFLOP, update", packed.policy / 1e12, usual.policy / 1e12, ",.1f"),
        ("TFLOP, reference", packed.reference / 1e12, usual.reference / 1e12, ",.1f"),
        ("TFLOP", packed.flops / 1e12, usual.flops / 1e12, ",.1f"),
    )
    for what, here, there, form in rows:
        ratio = f"{there / here:.2f}×" if here else "–"
        made.add_row(what, format(here, form), format(there, form), ratio)
    return made


def words(outcome: Outcome) -> str:
    """What does not fit, why, and what to change; empty where all is well."""
    compiled = outcome.compiled
    lines = []
    if compiled.unresolved:
        lines.append(
            f"{label(outcome)}: trip count of {len(compiled.unresolved)} loops "
            "unknown; their work is counted once, so times are too low"
        )
    if compiled.status == programs.TOO_LARGE:
        lines.append(
            f"{label(outcome)} needs {gib(compiled.memory.needed)} GiB of "
            f"{gib(compiled.memory.granted)} GiB per device. Any of:"
        )
    elif compiled.status == programs.FAILED:
        lines.append(f"{label(outcome)}: {compiled.message}")
    return "\n".join(lines + [f"  - {remedy}" for remedy in outcome.advice])


def what_costs(outcome: Outcome) -> str:
    """What costs time beside the products of true tokens; empty where nothing does."""
    lines = [f"  - {cause}" for cause in costs.costs(outcome.case, outcome.estimate)]
    if not lines:
        return ""
    return "\n".join([f"{label(outcome)}, what costs time:", *lines])


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The results as a table for a document."""
    lines = [
        "| program | rows/chip × micro-batches | remat | GiB needed of granted "
        f"| bound s | estimate s, {estimate.NOT_MEASURED} | pairs/s | MFU | MFU ≤ "
        f"| compile s | {WHO} |",
        "| --- " + "| ---: " * 10 + "|",
    ]
    for outcome in outcomes:
        found, parts = outcome.estimate, outcome.compiled.memory
        times = ["–"] * 5
        if found is not None:
            times[0], times[4] = f"{found.bound:.3g}", f"{found.mfu_bound:.0%}"
        if found is not None and found.seconds:
            times[1] = f"{found.seconds:.2g}"
            times[2] = f"{found.pairs_per_second:.2g}"
            times[3] = f"{found.mfu:.0%}"
        fits = f"{gib(parts.needed)} of {gib(parts.granted)}"
        if not outcome.fits:
            fits = f"**{outcome.compiled.status}**: {fits}"
        rows = f"{outcome.rows_per_chip:g}"
        if outcome.case.micro_batches > 1:
            rows += f" × {outcome.case.micro_batches}"
        remat = outcome.case.cfg.model.remat
        cells = [label(outcome), rows, remat, fits, *times]
        cells += [f"{outcome.compiled.seconds:.0f}", who(outcome.compiler)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def bars(outcomes: Sequence[Outcome]) -> list[plan_plot.Bar]:
    """Memory of every program by what takes it, and the estimated rate of a chip."""
    found = []
    for outcome in outcomes:
        memory = outcome.compiled.memory
        parts = {
            "parameters": memory.params,
            "optimiser": memory.optimiser,
            "batch": memory.batch,
            "temporaries": memory.temporaries,
            "code": memory.code,
        }
        # A program that was refused has no parts but a sum.
        parts["not told apart"] = max(memory.needed - sum(parts.values()), 0)
        chips = slices.lookup(outcome.case.topology).chips * outcome.case.slices
        rate = outcome.estimate.pairs_per_second if outcome.estimate else 0.0
        found.append(
            plan_plot.Bar(
                label=label(outcome),
                parts={name: size / programs.GIB for name, size in parts.items()},
                granted=memory.granted / programs.GIB,
                rate=rate / chips,
            )
        )
    return found
