"""What a training says of itself: metrics checked, averaged, shown, written."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from mpo_jax import sharding
from mpo_jax.train import hosts
from mpo_jax.utils import metrics as metrics_lib
from mpo_jax.utils import profiling, progress

HELD_OUT = "eval/"
"""What metrics of held-out pairs are called by, before their own name."""
BENCHMARKS = "benchmarks/"
"""What scores are called by, before ``NAME/MODE``."""

_COLUMNS = (
    "loss {task.fields[loss]} · {task.fields[rate]} pairs/s · "
    "{task.fields[tokens]} tokens/s · fill {task.fields[fill]}{task.fields[mfu]}"
)
_LINE = (
    _COLUMNS + " · {task.fields[step_s]} s a step, {task.fields[wait_s]} s of it for "
    "data · saved {task.fields[saved]}"
)


class Meter:
    """Book-keeping of a loop's metrics.

    The values of a step are fetched when the next one has been dispatched, so that the
    devices do not wait for the host.

    Args:
      clock: where the wall time of the run goes.
      every: steps per line; a line is the mean over the steps since the line before.
      show: takes the finished step and the fields of the progress bar.
      writer: None in all processes but the first.
      constants: values that stand in every line.
      ideal_s: seconds that batch n would take at the devices' peak; None leaves the
        MFU out.
      name_records: names the records of batch n, for error messages.
    """

    def __init__(
        self,
        *,
        clock: profiling.Clock,
        every: int,
        show: Callable[..., None],
        writer: metrics_lib.Writer | None = None,
        constants: Mapping[str, float] | None = None,
        ideal_s: Callable[[int], float] | None = None,
        name_records: Callable[[int], str] = str,
    ):
        self._clock, self._every = clock, every
        self._show, self._writer = show, writer
        self._constants = dict(constants or {})
        self._ideal_s, self._name_records = ideal_s, name_records
        self._rate = profiling.Rate()
        self._pending: list[tuple[int, Any]] = []
        self._window: list[Any] = []
        self._saved = "none"

    def saved(self, step: int) -> None:
        """Note that a checkpoint of this step is on its way."""
        self._saved = f"step {step}"

    def add(self, n: int, values: Any) -> None:
        """Note the metrics of batch n, (sum, weight) each; fetch those before it.

        Raises:
          FloatingPointError: if a metric that is fetched is NaN or infinite.
        """
        self._pending.append((n, values))
        self._clock.steps += 1
        self._fetch(keep=1)

    def catch_up(self) -> None:
        """Fetch all metrics that are noted; raises as :meth:`add`."""
        self._fetch(keep=0)

    def end_line(self, step: int) -> None:
        """Write a line for the steps up to `step` that stand in none yet."""
        self.catch_up()
        self._write_line(step)

    def pause(self) -> None:
        """Something else than training comes: the next step's time is not measured."""
        self._rate.pause()

    def _fetch(self, *, keep: int) -> None:
        while len(self._pending) > keep:
            n, values = self._pending.pop(0)
            fetched = jax.tree.map(float, sharding.to_host(values))
            means = metrics_lib.mean([fetched])
            self._check(n, means)
            self._count(n, fetched)
            self._window.append(fetched)
            step = n + 1
            waited = self._clock.spent["input_wait"] / max(self._clock.steps, 1)
            fields = _shown(means, self._rate)
            self._show(step, **fields, wait_s=f"{waited:.2f}", saved=self._saved)
            if step % self._every == 0:
                self._write_line(step)

    def _check(self, n: int, means: Mapping[str, float]) -> None:
        bad = metrics_lib.nonfinite(means)
        if bad:
            raise FloatingPointError(
                f"step {n + 1}: {', '.join(bad)} not finite. The batch holds "
                f"{self._name_records(n)}. The last checkpoint is before this step; "
                "try model.dtype=float32, a lower optim.learning_rate, or leave "
                "these records out."
            )

    def _count(self, n: int, fetched: Mapping[str, tuple[float, float]]) -> None:
        work = {"pairs": fetched["pairs"][0], "tokens": fetched["tokens"][0]}
        if self._ideal_s is not None:
            work["ideal_s"] = self._ideal_s(n)
        self._rate.step(**work)

    def _write_line(self, step: int) -> None:
        if not self._window:
            return
        line = metrics_lib.mean(self._window)
        line |= self._clock.values() | _rates(self._rate) | self._constants
        line |= hosts.compared(line) | hosts.memory()
        self._window.clear()
        self._rate.reset()
        if self._writer is not None:
            self._writer.write(step, line)


def write_held_out(
    writer: metrics_lib.Writer | None, step: int, values: Mapping[str, float]
) -> None:
    """Write metrics of held-out pairs of a step, if there is a writer."""
    if writer is not None:
        writer.write(step, {HELD_OUT + name: value for name, value in values.items()})


def write_benchmarks(
    writer: metrics_lib.Writer | None, step: int, scores: Mapping[str, float]
) -> None:
    """Write scores on benchmarks after a step, if there is a writer."""
    if writer is not None and scores:
        writer.write(step, {BENCHMARKS + name: value for name, value in scores.items()})


@contextlib.contextmanager
def training_bar(
    name: str, *, first: int, num_steps: int, line_s: float = progress.LINE_S
) -> Iterator[Callable[..., None]]:
    """Progress bar from step `first` on; gives what :class:`Meter` shows steps with.

    Args:
      line_s: seconds between lines in a log.
    """
    with progress.bar(extra=_COLUMNS, line=_LINE, every_s=line_s) as bar:
        task = bar.add_task(
            name,
            total=num_steps,
            completed=first,
            **dict.fromkeys(
                ("loss", "rate", "tokens", "fill", "step_s", "wait_s", "saved"), "–"
            ),
            mfu="",
        )
        update = functools.partial(bar.update, task)
        yield lambda step, **fields: update(completed=step, **fields)


def _shown(means: Mapping[str, float], rate: profiling.Rate) -> dict[str, str]:
    """Fields of the progress bar."""
    known = "ideal_s" in rate.work
    return {
        "loss": f"{means['loss']:.4f}",
        "rate": f"{rate.per_second('pairs'):.2f}",
        "tokens": f"{rate.per_second('tokens'):,.0f}",
        "fill": f"{means['fill/tokens']:.0%}",
        "step_s": f"{rate.seconds / rate.steps if rate.steps else 0.0:.2f}",
        "mfu": f" · MFU {rate.per_second('ideal_s'):.0%}" if known else "",
    }


def _rates(rate: profiling.Rate) -> dict[str, float]:
    """Throughput since the last line; MFU where FLOPs and peak are known."""
    found = {
        "time/step_s": rate.seconds / rate.steps if rate.steps else 0.0,
        "throughput/pairs_per_s": rate.per_second("pairs"),
        "throughput/tokens_per_s": rate.per_second("tokens"),
    }
    if "ideal_s" in rate.work:
        found["throughput/mfu"] = rate.per_second("ideal_s")
    return found
