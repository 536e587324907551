"""Metrics on the host: exact means, JSON lines, TensorBoard.

A metric is a pair ``(sum, weight)``; means over steps, micro-batches and processes are
exact because sums and weights are added before the division.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging


def mean(metrics: Iterable[Mapping[str, tuple[Any, Any]]]) -> dict[str, float]:
    """Weighted mean of every metric over several steps.

    Metrics without weight (nothing was measured) are left out.
    """
    sums: dict[str, list[float]] = {}
    for step in metrics:
        for name, (total, weight) in step.items():
            entry = sums.setdefault(name, [0.0, 0.0])
            entry[0] += float(np.asarray(total))
            entry[1] += float(np.asarray(weight))
    return {name: total / w for name, (total, w) in sums.items() if w}


def nonfinite(values: Mapping[str, float]) -> list[str]:
    """Names of the metrics that are NaN or infinite."""
    return [name for name, value in values.items() if not math.isfinite(value)]


class Writer:
    """Writes one line per logged step to ``metrics.jsonl`` and to TensorBoard.

    Args:
      directory: the work directory.
      resume_step: lines after this step are dropped: the run repeats them.
        -1 drops all.
      tensorboard: also write event files under ``tensorboard/``.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        resume_step: int = -1,
        tensorboard: bool = True,
    ):
        self.path = pathlib.Path(directory) / "metrics.jsonl"
        kept = [line for line in read(self.path) if line["step"] <= resume_step]
        temporary = self.path.with_suffix(".tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        temporary.replace(self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self._board = None
        if tensorboard:
            import tensorboardX

            self._board = tensorboardX.SummaryWriter(
                str(pathlib.Path(directory) / "tensorboard"), purge_step=resume_step + 1
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of one step; flushed, so that a kill loses nothing."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Lines of a metrics file, ``{"step": int, name: value, ...}``, as they stand.

    A last line without a line end, cut off while it was written, is left out with a
    warning. There are none if the file does not exist.

    Raises:
      ValueError: a line that is no JSON object or has no integer ``step``; names file
        and line.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    lines = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except json.JSONDecodeError as error:
                if not text.endswith("\n"):  # only the last line can have none
                    logging.warning("%s: line %d is cut off, left out", path, number)
                    break
                raise ValueError(
                    f"{path}:{number}: not JSON ({error.msg}); mend or delete the line"
                ) from error
            step = line.get("step") if isinstance(line, dict) else None
            if not isinstance(step, int) or isinstance(step, bool):
                raise ValueError(
                    f"{path}:{number}: expected an object with an integer 'step', got "
                    f"{text.strip()[:80]!r}; mend or delete the line"
                )
            lines.append(line)
    return lines
