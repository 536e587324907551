"""Progress bars and tables for people; silent on all processes but the first."""

from __future__ import annotations

import datetime
import sys
import time
from typing import Any

import rich.console
import rich.progress
import rich.table

from mpo_jax.utils import runtime, watchdog


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


LINE_S = 30.0
"""Seconds between lines in a log, where there is no terminal to draw a bar in."""


class _Bar(rich.progress.Progress):
    """A bar on a terminal; in a log, a line now and then."""

    def __init__(self, *columns: Any, line: str, every_s: float):
        super().__init__(*columns, console=console(), transient=False)
        self._line, self._every_s = line, every_s
        self._said = time.monotonic()

    def advance(self, task_id: Any, advance: float = 1) -> None:
        self.update(task_id, advance=advance)

    def update(self, task_id: Any, **fields: Any) -> None:  # type: ignore[override]
        before = self._tasks[task_id].completed
        super().update(task_id, **fields)
        if self._tasks[task_id].completed != before:
            watchdog.beat()
        now = time.monotonic()
        if self.console.is_terminal or now - self._said < self._every_s:
            return
        self._said = now
        self.console.print(self._words(self._tasks[task_id]), soft_wrap=True)

    def _words(self, task: rich.progress.Task) -> str:
        """One line on a task."""
        total = "" if task.total is None else f"/{task.total:,.0f}"
        parts = [f"{task.description} {task.completed:,.0f}{total}"]
        if self._line:
            parts.append(self._line.format(task=task))
        if task.time_remaining is not None:
            left = datetime.timedelta(seconds=round(task.time_remaining))
            parts.append(f"{left} left")
        return " · ".join(parts)


def bar(
    *, extra: str = "", line: str = "", every_s: float = LINE_S
) -> rich.progress.Progress:
    """A progress bar with rate and time left; in a log, a line every so often.

    Args:
      extra: format of additional task fields, e.g. ``{task.fields[loss]}``.
      line: the same for lines in a log; empty is `extra`.
      every_s: seconds between such lines.
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
    return _Bar(*columns, line=line or extra, every_s=every_s)
