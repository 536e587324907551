"""Where a training stands: running or finished, from its work directory.

  python scripts/status.py runs/8b
  python scripts/status.py runs/8b --watch=30
  python scripts/status.py gs://my-bucket/runs/8b

State (who runs it, and its last sign of life; a process of this host that was killed
is seen at once, one of another host after a minute), step, loss, step time, time left,
newest checkpoint, all starts with their ends, goodput over all of them, held-out
metrics and benchmarks. It reads metrics.jsonl, attempts.jsonl and lease.json; it opens
no device and may run anywhere that sees the directory, or the bucket, as often as you
like.
"""

from __future__ import annotations

import os
import time

import rich.console
import rich.table
from absl import app, flags

from mpo_jax.evals import tables
from mpo_jax.run import run_report, standing
from mpo_jax.utils import cli, progress

_WATCH = flags.DEFINE_float(
    "watch", 0.0, "Look again every so many seconds, until the run ends", 0.0
)


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError("name one work directory")
    workdir = os.path.expanduser(argv[1])
    console = progress.stdout_console()
    while True:
        found = standing.read(workdir)
        show(found, console, title=workdir)
        if not _WATCH.value or found.holder is None or found.gone:
            return
        time.sleep(_WATCH.value)


def show(
    found: standing.Standing, console: rich.console.Console, *, title: str
) -> None:
    """Print all tables."""
    _print(run_report.overview(found), console, title)
    if len(found.attempts) > 1:
        _print(run_report.starts(found), console, "Starts")
    for name, lines in (
        ("Held-out pairs", found.held_out),
        ("Benchmarks, %", found.benchmarks),
    ):
        if lines:
            _print(run_report.ends(lines), console, name)


def _print(found: tables.Table, console: rich.console.Console, title: str) -> None:
    table = rich.table.Table(title=title, title_justify="left")
    for number, column in enumerate(found.head):
        table.add_column(column, justify="right" if number > found.texts else "left")
    for row in found.rows:
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    cli.run(main, words=True)
