"""Progress bars and tables for people; silent on all processes but the first."""

from __future__ import annotations

import sys

import rich.console
import rich.progress
import rich.table

from mpo_jax.utils import runtime


def console() -> rich.console.Console:
    """Where people read; quiet on all processes but the first.

    Text is printed as it is: brackets in a path are not markup. Logs get wide lines:
    they are not wrapped to a terminal that is not there.
    """
    made = rich.console.Console(stderr=True, quiet=not runtime.is_main(), markup=False)
    if not made.is_terminal:
        made.width = 160
    return made


def stdout_console() -> rich.console.Console:
    """A console on stdout; wide enough for tables where it is no terminal."""
    return rich.console.Console(width=None if sys.stdout.isatty() else 140)


def bar(*, extra: str = "") -> rich.progress.Progress:
    """A progress bar with rate and time left.

    Args:
      extra: format of additional task fields, e.g. ``{task.fields[loss]}``.
    """
    columns: list[str | rich.progress.ProgressColumn] = [
        rich.progress.TextColumn("{task.description}", style="bold", markup=False),
        rich.progress.BarColumn(bar_width=12),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    ]
    if extra:
        columns.append(rich.progress.TextColumn(extra, markup=False))
    return rich.progress.Progress(*columns, console=console(), transient=False)
