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

from mpo_jax.utils import wandb_board


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
      board: where they go besides; closed with the writer.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        resume_step: int = -1,
        tensorboard: bool = True,
        board: wandb_board.Board | None = None,
    ):
        self._other_board = board
        self.path = pathlib.Path(directory) / "metrics.jsonl"
        kept = [line for line in read(self.path) if line["step"] <= resume_step]
        temporary = self.path.with_suffix(".tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        temporary.replace(self.path)
        self._waiting: list[str] = []
        self._size = self.path.stat().st_size
        self._board = None
        if tensorboard:
            from mpo_jax.utils import tensorboard as tensorboard_lib

            self._board = tensorboard_lib.Board(
                pathlib.Path(directory) / "tensorboard", first_step=resume_step + 1
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of one step at once, so that a kill loses nothing.

        Metrics end no run: where storage is away, lines wait for the next one.
        """
        self._waiting.append(json.dumps({"step": step, **values}) + "\n")
        self._write_waiting()
        if self._other_board is not None:
            self._other_board.write(step, values)
        if self._board is not None:
            self._board.write(step, values)

    def _write_waiting(self) -> None:
        text = "".join(self._waiting).encode()
        try:
            with open(self.path, "r+b") as file:
                file.truncate(self._size)  # what a failed try has left
                file.seek(self._size)
                file.write(text)
        except OSError as error:
            logging.warning(
                "%s cannot be written (%s): %d lines wait for the next one",
                self.path,
                error,
                len(self._waiting),
            )
        else:
            self._size += len(text)
            self._waiting.clear()

    def close(self) -> None:
        """Write what waits; what cannot be written is printed, and lost here."""
        if self._waiting:
            self._write_waiting()
        for line in self._waiting:
            logging.error("not in %s: %s", self.path, line.rstrip())
        if self._board is not None:
            self._board.close()
        if self._other_board is not None:
            self._other_board.close()


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
