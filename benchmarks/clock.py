"""Time per step, and how much of the machine other processes took meanwhile."""

from __future__ import annotations

import os
import pathlib
import resource
import statistics
import time
from typing import Any

_STAT = pathlib.Path("/proc/stat")


def peak_mib() -> float:
    """Peak resident memory of this process, MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _busy() -> float | None:
    """Seconds that all cores together were busy since boot; None if not Linux."""
    if not _STAT.is_file():
        return None
    user, nice, system, _, _, irq, soft, *_ = (
        int(field) for field in _STAT.read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


class Clock:
    """Stopwatch of steps.

    Attributes:
      wall: seconds of each step.
      processor: seconds of all threads of this process, each step. Where others share
        the cores these say more than the wall clock, though threads that wait in a
        loop count too.
      others: cores that other processes kept busy on average, each step, or None.
    """

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.others: list[float | None] = []

    def start(self) -> None:
        self._begin = time.perf_counter(), time.process_time(), _busy()

    def stop(self) -> None:
        wall = time.perf_counter() - self._begin[0]
        processor = time.process_time() - self._begin[1]
        before, after = self._begin[2], _busy()
        self.wall.append(wall)
        self.processor.append(processor)
        self.others.append(
            None
            if before is None or after is None
            else max(0.0, after - before - processor) / wall
        )

    def result(self) -> dict[str, Any]:
        return {
            "seconds": self.wall,
            "processor_seconds": self.processor,
            "cores_of_others": self.others,
        }


def warm(values: list[Any]) -> Any:
    """Median without the first step, which compiles or allocates; None if unknown."""
    known = [value for value in values[1:] if value is not None]
    return statistics.median(known) if known else None
