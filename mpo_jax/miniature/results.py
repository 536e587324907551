"""What a miniature found: a row per seed and model, means over seeds, intervals."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from mpo_jax.demo import benchmark
from mpo_jax.evals import report_run
from mpo_jax.miniature import methods, pool, seed
from mpo_jax.miniature.config import MiniatureConfig
from mpo_jax.run import steps

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Row:
    """What one seed says of one model; shares in percent, log-probs in nats.

    Attributes:
      seed, name: of the run; ``start`` or a method.
      cot, direct: greedy accuracy on held-out questions.
      unparsable: share of CoT answers without a final answer.
      cot_tokens: mean length of a CoT answer.
      sampled: CoT accuracy at temperature 1; None where none was drawn.
      chosen, rejected: log-prob of a response of the last batch; None where the loss
        does not look at it.
      chosen_gain, rejected_gain: the same less that of the first batch.
      preference_accuracy: of the implicit rewards on the last batch.
    """

    seed: int
    name: str
    cot: float
    direct: float
    unparsable: float
    cot_tokens: float
    sampled: float | None = None
    chosen: float | None = None
    rejected: float | None = None
    chosen_gain: float | None = None
    rejected_gain: float | None = None
    preference_accuracy: float | None = None

    @property
    def gap(self) -> float:
        """CoT less direct."""
        return self.cot - self.direct


@dataclasses.dataclass(frozen=True)
class Mean:
    """Mean over seeds with its 95 % interval (Student's t); None with one seed."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.1f}"
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


def mean(values: Iterable[float]) -> Mean:
    """Mean of one value per seed.

    Seeds are independent: each has its own drawings, model, samples, order and
    held-out questions, so that the spread of seeds holds all of these.
    """
    found = np.array(list(values), np.float64)
    average = float(found.mean())
    if len(found) < 2:
        return Mean(average, None, None)
    error = float(found.std(ddof=1)) / math.sqrt(len(found))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(found) - 1)) * error
    return Mean(average, average - reach, average + reach)


def read(cfg: MiniatureConfig, workdir: pathlib.Path) -> list[Row]:
    """The rows of a finished run: seed by seed, the start first."""
    return [
        _row(pool.folder_of(workdir, number), number, name)
        for number in cfg.seeds
        for name in (methods.START, *cfg.models())
    ]


def of(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows of one model, in the order of seeds."""
    return [row for row in rows if row.name == name]


def summary(rows: Sequence[Row], name: str, what: str) -> Mean | None:
    """Mean of an attribute of a model; None where it has none."""
    values = [getattr(row, what) for row in of(rows, name)]
    return None if any(value is None for value in values) else mean(values)


def difference(
    rows: Sequence[Row],
    first: tuple[str, Callable[[Row], float | None]],
    second: tuple[str, Callable[[Row], float | None]],
) -> Mean | None:
    """What the first has more than the second, seed by seed; None where one has none.

    Args:
      first, second: name of a model, and what is taken of its row.
    """
    found = []
    for one, other in zip(of(rows, first[0]), of(rows, second[0]), strict=True):
        values = first[1](one), second[1](other)
        if values[0] is None or values[1] is None:
            return None
        found.append(values[0] - values[1])
    return mean(found) if found else None


def _row(folder: pathlib.Path, number: int, name: str) -> Row:
    cot, direct = (
        _score(folder / name / seed.EVALUATION, mode) for mode in ("cot", "direct")
    )
    samples = folder / name / seed.SAMPLES
    sampled = _score(samples, "cot")["score"] if samples.is_dir() else None
    row = Row(
        number,
        name,
        cot=cot["score"],
        direct=direct["score"],
        unparsable=100 * (cot["shares"]["unparsed"] + cot["shares"]["empty"]),
        cot_tokens=cot["mean_tokens"],
        sampled=sampled,
    )
    return row if name == methods.START else _trained(row, folder / name / seed.TRAIN)


def _score(folder: pathlib.Path, mode: str) -> dict[str, Any]:
    found = json.loads((folder / report_run.JSON).read_text(encoding="utf-8"))
    return found["scores"][benchmark.NAME][mode]


def _trained(row: Row, folder: pathlib.Path) -> Row:
    """With what the training's first and last batches say."""
    made = json.loads((folder / steps.MARKER).read_text(encoding="utf-8"))["made"]
    first, last = made["first"], made["last"]

    def gain(metric: str) -> float | None:
        return last[metric] - first[metric] if metric in last else None

    return dataclasses.replace(
        row,
        chosen=last.get("logps/chosen"),
        rejected=last.get("logps/rejected"),
        chosen_gain=gain("logps/chosen"),
        rejected_gain=gain("logps/rejected"),
        preference_accuracy=last.get("rewards/accuracies"),
    )
