"""Where a run stands, read from its work directory while it runs and afterwards."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mpo_jax import checkpoint
from mpo_jax.run import attempts
from mpo_jax.train import meter
from mpo_jax.utils import lease, mirror, remote
from mpo_jax.utils import metrics as metrics_lib

STEP_S, SUM = "time/step_s", "time/sum_"


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
      attempts: its starts, in order.
      lines: of metrics, of every kind.
      holder: of its lease, None where nobody has it; `sign_s` is the age of its last
        sign of life.
      training: the last line of training metrics, {} before the first.
      held_out: first and last metrics of held-out pairs, and their steps.
      benchmarks: the same of benchmarks.
      checkpoint: step of the newest checkpoint.
      trained_s: seconds of training in all steps that stand in the metrics.
      gone: the holder was a process of this host, which has it no more.
    """

    attempts: list[attempts.Attempt]
    lines: int
    holder: lease.Holder | None
    sign_s: float
    training: Mapping[str, float]
    held_out: Sequence[Mapping[str, float]]
    benchmarks: Sequence[Mapping[str, float]]
    checkpoint: int | None
    trained_s: float
    gone: bool = False

    @property
    def step(self) -> int:
        """Finished steps."""
        return int(self.training.get("step", 0))

    @property
    def num_steps(self) -> int | None:
        """Of the whole run, as the last start that knew it had it."""
        known = [one.num_steps for one in self.attempts if one.num_steps is not None]
        return known[-1] if known else None

    @property
    def left_s(self) -> float | None:
        """Seconds of training that are left; None before the first line."""
        if STEP_S not in self.training or self.num_steps is None:
            return None
        return (self.num_steps - self.step) * self.training[STEP_S]

    @property
    def spent_s(self) -> float:
        """Seconds of all starts, the last one up to now or to its last sign of life."""
        return sum(map(self._length, self.attempts))

    def _length(self, one: attempts.Attempt) -> float:
        if one.ended is not None:
            return one.ended - one.started
        if self.holder is None:
            return 0.0
        silent = 0.0 if self.running else self.sign_s
        return max(time.time() - silent - one.started, 0.0)

    @property
    def running(self) -> bool:
        """Whether its holder is there and shows life."""
        return self.holder is not None and not self.gone and self.sign_s < lease.STALE_S

    @property
    def _told_its_end(self) -> bool:
        """Whether the last start is the holder's, and noted how it ended."""
        if self.holder is None or not self.attempts or self.attempts[-1].ended is None:
            return False
        last = self.attempts[-1]
        return (last.host, last.pid) == (self.holder.host, self.holder.pid)

    @property
    def goodput(self) -> float | None:
        """Share of training in the time of all starts; steps done twice count once."""
        return self.trained_s / self.spent_s if self.spent_s else None

    @property
    def state(self) -> str:
        """In words."""
        if self.running:
            return f"running ({self.holder}; last sign {self.sign_s:.0f} s ago)"
        if self.gone and not self._told_its_end:
            return f"killed: {self.holder}, is there no more"
        if not self.attempts and self.holder is not None:
            return f"no sign of life; it was {self.holder}"
        if not self.attempts:
            return "not begun"
        last = self.attempts[-1]
        if last.ended is None:
            return f"no sign of life; it was process {last.pid} on {last.host}"
        return last.how


def read(workdir: str | pathlib.Path) -> Standing:
    """Where a run stands.

    Args:
      workdir: a directory, or an address.

    Raises:
      ValueError: it holds no run, or a file of it is broken.
    """
    if not remote.is_remote(workdir):
        return _with_holder(pathlib.Path(workdir), workdir)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        mirror.snapshot(
            str(workdir),
            folder,
            (attempts.FILE, lease.FILE),
            growing=attempts.METRICS,
        )
        return _with_holder(folder, workdir)


def _with_holder(folder: pathlib.Path, workdir: str | pathlib.Path) -> Standing:
    path = folder / lease.FILE
    holder = lease.read(folder)
    if holder is None:
        return read_ended(folder, workdir)
    sign_s = time.time() - path.stat().st_mtime
    found = _read(folder, workdir)
    gone = lease.is_gone(holder)
    return dataclasses.replace(found, holder=holder, sign_s=sign_s, gone=gone)


def read_ended(folder: pathlib.Path, workdir: str | pathlib.Path) -> Standing:
    """Where a run stands that does not go on, whoever holds its lease.

    Args:
      folder: of its metrics and attempts.
      workdir: the directory or the address that has its checkpoints.

    Raises:
      ValueError: as :func:`read`.
    """
    found = _read(folder, workdir)
    if not found.lines and not found.attempts:
        raise ValueError(
            f"{workdir} holds no training run: neither {attempts.METRICS} nor "
            f"{attempts.FILE}; name its --workdir"
        )
    return found


def _read(folder: pathlib.Path, workdir: str | pathlib.Path) -> Standing:
    lines = metrics_lib.read(folder / attempts.METRICS)
    starts = attempts.read(folder)
    training = [line for line in lines if "loss" in line]
    checkpoints = checkpoint.steps_in(remote.join(workdir, attempts.CHECKPOINTS))
    return Standing(
        attempts=starts,
        lines=len(lines),
        holder=None,
        sign_s=0.0,
        training=training[-1] if training else {},
        held_out=_ends(lines, meter.HELD_OUT),
        benchmarks=_ends(lines, meter.BENCHMARKS),
        checkpoint=max(checkpoints, default=None),
        trained_s=sum(_trained_s(training)),
    )


def _ends(lines: Sequence[Mapping[str, Any]], prefix: str) -> list[dict[str, float]]:
    """The first and the last line of a kind, names without prefix."""
    found = [
        {"step": line["step"]}
        | {
            name.removeprefix(prefix): value
            for name, value in line.items()
            if name.startswith(prefix)
        }
        for line in lines
        if any(name.startswith(prefix) for name in line)
    ]
    return [found[0], found[-1]] if len(found) > 1 else found


def _trained_s(training: Sequence[Mapping[str, float]]) -> Iterator[float]:
    before = 0
    for line in training:
        yield (line["step"] - before) * line.get(STEP_S, 0.0)
        before = int(line["step"])
