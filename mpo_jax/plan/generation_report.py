"""Plans of generation as tables for people, in words where something does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import rich.table

from mpo_jax.plan import generation, programs, report
from mpo_jax.plan.generation import Outcome
from mpo_jax.utils import plan_plot

NOTE = (
    "Bound of decoding: every slot at work on answers of full length, half of it in "
    "the mean; weights and filled cache once through HBM a step, products at the bf16 "
    "peak, collectives over all links at once. No program is faster. Prompt: products "
    "of reading a prompt over those of its answers, which come on top."
)


def label(outcome: Outcome) -> str:
    """Config, slice and answers to a prompt in one line."""
    case = outcome.case
    times = f"{case.slices} × " if case.slices > 1 else ""
    return f"{outcome.name} · {times}{case.topology} · n={case.samples}"


def memory(outcomes: Sequence[Outcome]) -> rich.table.Table:
    """GiB per device (a chip; of tpu7x a core)."""
    made = report.table(
        "Memory per device, GiB (one device is one chip; of tpu7x half a chip)",
        *("program", "weights", "keys and values", "features", "temporaries", "code"),
        *("needed", "granted", "result", "libtpu"),
    )
    for outcome in outcomes:
        planned = outcome.planned
        held = (planned.weights, planned.cache, planned.features)
        for name, compiled in planned.programs.items():
            parts = compiled.memory
            made.add_row(
                f"{label(outcome)} · {name}",
                *(report.gib(x) for x in held),
                *(report.gib(x) for x in (parts.temporaries, parts.code)),
                *(report.gib(x) for x in (parts.needed, parts.granted)),
                report.verdict(compiled.status),
                outcome.compiler.version("libtpu"),
            )
        if not planned.programs:
            granted = report.gib(planned.granted)
            cells = (*(report.gib(x) for x in held), "–", "–", "–", granted)
            ends = (report.verdict(planned.status), outcome.compiler.version("libtpu"))
            made.add_row(label(outcome), *cells, *ends)
    return made


def traffic(outcomes: Sequence[Outcome]) -> rich.table.Table:
    """Collectives of one device in one decode step."""
    made = report.table(
        "Collectives of one device in one decode step",
        *("program", "kind", "executions", "MiB sent"),
    )
    for outcome in outcomes:
        decode = outcome.planned.programs.get("decode")
        for kind, sent in (decode.collectives if decode else {}).items():
            cells = (f"{sent['count']:,.0f}", f"{sent['bytes'] / 2**20:,.2f}")
            made.add_row(label(outcome), kind, *cells)
    return made


_COLUMNS = (
    *("mesh", "prompts × answers", "prompt / answer tokens", "weights GiB", "KV GiB"),
    *("needed of granted", "by HBM", "by products", "by links", "tokens/s ≤", "binds"),
    *("ms a step", "prompt"),
)


def _cells(outcome: Outcome) -> Iterator[str]:
    """One row of :data:`_COLUMNS`; GiB of a device, rates of all chips."""
    case, planned, found = outcome.case, outcome.planned, outcome.bound
    times = generation.hosts(case)
    yield f"{planned.data} × {planned.tensor}" + (f" × {times}" if times > 1 else "")
    yield f"{planned.groups} × {planned.slots}"
    yield f"{case.prompt_tokens:,} / {case.answer_tokens:,}"
    yield from (report.gib(planned.weights), report.gib(planned.cache))
    needed = max((x.memory.needed for x in planned.programs.values()), default=0)
    fits = f"{report.gib(needed)} of {report.gib(planned.granted)}"
    yield fits if outcome.fits else f"{planned.status}: {fits}"
    if found is None:
        yield from ["–"] * 7
        return
    rates = (found.hbm, found.products, found.links, found.tokens)
    yield from (_rate(x) for x in rates)
    yield from (found.binds, f"{1e3 * found.step:.3g}", f"{outcome.prefill:.1%}")


def _rate(tokens: float) -> str:
    """Three digits; no more are meant."""
    if tokens == float("inf"):
        return "–"
    return f"{float(f'{tokens:.3g}'):,.0f}"


def speed(outcomes: Sequence[Outcome]) -> rich.table.Table:
    """Slots, and the bound on tokens a second."""
    made = report.table(
        "Decoding: slots of a host, and lower bound of its steps over all chips",
        *("program", *_COLUMNS),
    )
    for outcome in outcomes:
        made.add_row(label(outcome), *_cells(outcome))
    return made


def words(outcome: Outcome) -> str:
    """What does not fit, why, and what to change; empty where all is well."""
    if outcome.fits:
        return ""
    lines = [f"{label(outcome)}: {outcome.planned.message}"]
    if outcome.planned.status == programs.TOO_LARGE:
        lines.append("Any of:")
    return "\n".join(lines + [f"  - {remedy}" for remedy in outcome.advice])


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The results as a table for a document."""
    lines = [
        f"| program | {' | '.join(_COLUMNS)} | {report.WHO} |",
        "| --- " + "| ---: " * (len(_COLUMNS) + 1) + "|",
    ]
    for outcome in outcomes:
        cells = [label(outcome), *_cells(outcome), report.who(outcome.compiler)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def bars(outcomes: Sequence[Outcome]) -> list[plan_plot.Bar]:
    """Memory of every program."""
    found = []
    for outcome in outcomes:
        planned, gib = outcome.planned, programs.GIB
        for name, compiled in planned.programs.items():
            parts = {
                "weights": planned.weights,
                "keys and values": planned.cache,
                "features": planned.features,
                "temporaries": compiled.memory.temporaries,
                "code": compiled.memory.code,
            }
            rest = compiled.memory.needed - sum(parts.values())
            parts["not told apart"] = max(rest, 0)
            found.append(
                plan_plot.Bar(
                    label=f"{label(outcome)} · {name}",
                    parts={part: size / gib for part, size in parts.items()},
                    granted=planned.granted / gib,
                    rate=0.0,
                )
            )
    return found
