"""``report.md`` of a training: how it went, whatever ended it."""

from __future__ import annotations

import datetime
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from mpo_jax.evals import markdown
from mpo_jax.evals.tables import NONE, Table
from mpo_jax.run import attempts, standing
from mpo_jax.utils import atomic

FILE, PLOTS = "report.md", "plots"
_LEDGER = "ledger/"
_SHOWN = (
    *("loss", "loss/sigmoid", "loss/bco_pair", "loss/sft", "rewards/accuracies"),
    *("rewards/margins", "logps/chosen", "logps/rejected"),
)


def write(folder: pathlib.Path, workdir: str | pathlib.Path, *, draw: bool) -> None:
    """Write the report of a run that ends, and its plots if `draw`.

    Args:
      folder: where its files are on this host, and the report goes.
      workdir: its work directory, or address.
    """
    drawn: list[pathlib.Path] = []
    found = standing.read_ended(folder, workdir)
    if draw and found.lines:
        from mpo_jax.utils import plots  # a third of a second, at every start

        drawn = plots.plot_metrics(folder / attempts.METRICS, folder / PLOTS)
    text = render(found, name=str(workdir).rsplit("/", 1)[-1], drawn=drawn)
    atomic.write_whole(folder / FILE, lambda path: _write(path, text))


def _write(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def render(
    found: standing.Standing, *, name: str, drawn: Sequence[pathlib.Path] = ()
) -> str:
    """The report for people.

    Args:
      name: of the run.
      drawn: plots, in a folder beside the report.
    """
    parts = [f"# {name}", markdown.table(overview(found))]
    if len(found.attempts) > 1:
        parts += ["## Starts", markdown.table(starts(found))]
    for title, lines in (
        ("Held-out pairs", found.held_out),
        ("Benchmarks, %", found.benchmarks),
    ):
        if lines:
            parts += [f"## {title}", markdown.table(ends(lines))]
    if found.training:
        parts += ["## Where the time went", markdown.table(times(found.training))]
    parts += [f"![{path.stem}]({PLOTS}/{path.name})" for path in drawn]
    return "\n\n".join(parts) + "\n"


def overview(found: standing.Standing) -> Table:
    """Where a run stands, a row per thing."""
    return Table(("", "now"), list(_overview(found)), texts=1)


def _overview(found: standing.Standing) -> Iterator[tuple[str, str]]:
    line = found.training
    yield "state", found.state
    if found.num_steps is not None:
        yield "step", f"{found.step:,} of {found.num_steps:,}"
    else:
        yield "step", f"{found.step:,}" if found.lines else "none yet"
    if "loss" in line:
        yield "loss", f"{line['loss']:.4f}"
    if standing.STEP_S in line:
        waits = line.get("time/input_wait_s", 0.0)
        yield (
            "step time",
            f"{line[standing.STEP_S]:.2f} s, {waits:.2f} s of it for data",
        )
        yield "pairs a second", f"{line['throughput/pairs_per_s']:.2f}"
    if found.left_s:
        yield "left", span(found.left_s)
    saved = NONE if found.checkpoint is None else f"step {found.checkpoint:,}"
    yield "newest checkpoint", saved
    yield "starts", f"{len(found.attempts)}, {span(found.spent_s)} in all"
    if found.goodput is not None:
        yield "goodput over all starts", f"{found.goodput:.0%}"
    left_out = [
        f"{name.removeprefix(_LEDGER)} {line[name]:,.0f}"
        for name in sorted(line)
        if name.startswith(_LEDGER)
    ]
    if left_out:
        yield "records left out", ", ".join(left_out)


def starts(found: standing.Standing) -> Table:
    """A row per start."""
    rows = []
    for number, one in enumerate(found.attempts, 1):
        began = datetime.datetime.fromtimestamp(one.started).astimezone()
        lasted = NONE if one.ended is None else span(one.ended - one.started)
        rows.append(
            (
                str(number),
                began.isoformat(" ", "seconds"),
                f"{one.host}, process {one.pid}",
                one.how or NONE,
                NONE if one.first_step is None else str(one.first_step),
                lasted,
            )
        )
    head = ("start", "began", "where", "ended", "after step", "lasted")
    return Table(head, rows, texts=3)


def ends(lines: Sequence[Mapping[str, float]]) -> Table:
    """First and last metrics of a kind, a row per metric."""
    first, last = lines[0], lines[-1]
    names = [name for name in last if name in _SHOWN or "/" in name]
    known = [name for name in names if name in _SHOWN] or names
    rows = [
        (name, *(f"{line[name]:.4f}" if name in line else NONE for line in lines))
        for name in sorted(known, key=_place)
    ]
    head = [f"step {line['step']:,.0f}" for line in (first, last)][: len(lines)]
    return Table(("metric", *head), rows)


def _place(name: str) -> tuple[int, str]:
    return (_SHOWN.index(name) if name in _SHOWN else len(_SHOWN), name)


def times(line: Mapping[str, float]) -> Table:
    """What the last start spent its time on."""
    total = line.get("time_s", 0.0)
    rows = [
        (
            name.removeprefix(standing.SUM).removesuffix("_s"),
            span(value),
            f"{value / total:.1%}" if total else NONE,
        )
        for name, value in line.items()
        if name.startswith(standing.SUM)
    ]
    return Table(("of the last start", "time", "share"), rows)


def span(seconds: float) -> str:
    """A time span for people, such as ``1:02:03``."""
    return str(datetime.timedelta(seconds=round(seconds)))
