"""The starts of a run: when, where, from which step, and how each ended.

``attempts.jsonl`` in the work directory has a line per start, one of what it found and
one per end. A start that was killed leaves no end; the next one writes it, with the
time of its last sign of life.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import socket
import time
from typing import Any

FILE = "attempts.jsonl"
METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"
KILLED = "killed"


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One start.

    Attributes:
      started, ended: seconds since 1970; `ended` is None while it runs, and where it
        was killed and nobody has noticed yet.
      host, pid: where.
      first_step: finished steps when it began; `num_steps` of the whole run. None
        where it had not yet read data and weights.
      how: it ended, in words.
    """

    started: float
    host: str
    pid: int
    first_step: int | None = None
    num_steps: int | None = None
    ended: float | None = None
    how: str = ""


def begin(workdir: pathlib.Path, *, started: float) -> None:
    """Note a start, and the end of a killed one before it.

    Call it before anything is written to the metrics.

    Args:
      started: seconds since 1970.
    """
    before = read(workdir)
    if before and before[-1].ended is None:
        _append(workdir, {"ended": _last_sign(workdir, before[-1]), "how": KILLED})
    _append(
        workdir, {"started": started, "host": socket.gethostname(), "pid": os.getpid()}
    )


def know(workdir: pathlib.Path, *, first_step: int, num_steps: int) -> None:
    """Note what the start under way begins with."""
    _append(workdir, {"first_step": first_step, "num_steps": num_steps})


def end(workdir: pathlib.Path, how: str) -> None:
    """Note how the start under way has ended."""
    _append(workdir, {"ended": time.time(), "how": how})


def read(workdir: pathlib.Path) -> list[Attempt]:
    """All starts, in order.

    Raises:
      ValueError: a line is none of ours; names file and line.
    """
    path, found = workdir / FILE, list[Attempt]()
    if not path.exists():
        return found
    whole, _, _ = path.read_bytes().rpartition(b"\n")  # a kill may cut the last line
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = json.loads(text)
            if "started" in line:
                found.append(Attempt(**line))
            else:
                found[-1] = dataclasses.replace(found[-1], **line)
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"{path}:{number}: not a start or an end of a run ({error}); delete "
                "the line"
            ) from error
    return found


def _last_sign(workdir: pathlib.Path, attempt: Attempt) -> float:
    """When a killed start was last seen: when it wrote metrics or a checkpoint."""
    written = (workdir / METRICS, workdir / CHECKPOINTS)
    return max(
        [attempt.started, *(path.stat().st_mtime for path in written if path.exists())]
    )


def _append(workdir: pathlib.Path, line: dict[str, Any]) -> None:
    path = workdir / FILE
    path.touch()
    with open(path, "r+b") as file:
        whole, end, _ = file.read().rpartition(b"\n")
        file.seek(len(whole) + len(end))
        file.truncate()  # what a killed process has cut off
        file.write(json.dumps(line).encode() + b"\n")
