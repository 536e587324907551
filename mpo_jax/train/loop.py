"""The training loop: step, log, evaluate, save, resume, stop cleanly."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mpo_jax import checkpoint as checkpoint_lib
from mpo_jax import config as config_lib
from mpo_jax import sharding, types
from mpo_jax.train import state as state_lib
from mpo_jax.train.state import TrainState
from mpo_jax.utils import metrics as metrics_lib
from mpo_jax.utils import progress, runtime

PREEMPTED = 42
"""Exit status after a preemption save; launchers restart on it."""


@dataclasses.dataclass
class Job:
    """What the loop needs; assembled by ``mpo_jax.run.train``.

    Attributes:
      steps: jitted updates, one per row shape.
      batches: ``(n, local batch)`` from the first batch that is not trained yet.
      shape_of: row shape of batch n.
      num_steps: updates of the whole run.
      meta: JSON-able, stored with every checkpoint (config, plan, reference key).
      reference: frozen reference parameters for the online mode, else None.
      evaluate: metrics of held-out pairs, or None.
      constants: values logged with every line (ledger counts).
      describe: names the records of a batch, for error messages.
    """

    cfg: config_lib.RunConfig
    state: TrainState
    key: jax.Array
    mesh: Any
    steps: Sequence[Callable[..., tuple[TrainState, Any]]]
    batches: Iterator[tuple[int, types.PackedBatch]]
    shape_of: Callable[[int], int]
    num_steps: int
    writer: metrics_lib.Writer | None
    checkpoints: checkpoint_lib.Checkpoints | None
    meta: Mapping[str, Any]
    reference: Any = None
    evaluate: Callable[[TrainState], dict[str, float]] | None = None
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict)
    describe: Callable[[int], str] = str


def trees(state: TrainState) -> dict[str, Any]:
    """The state as the trees that a checkpoint stores by name."""
    result = {
        "params": state.params,
        "opt_state": state.opt_state,
        "loop": {"step": state.step, "reward_shift": state.reward_shift},
    }
    if state.reference is not None:
        result["reference"] = state.reference
    return result


def from_trees(stored: Mapping[str, Any]) -> TrainState:
    """Inverse of :func:`trees`."""
    return state_lib.TrainState(
        step=stored["loop"]["step"],
        params=stored["params"],
        opt_state=stored["opt_state"],
        reward_shift=stored["loop"]["reward_shift"],
        reference=stored.get("reference"),
    )


class _Preemption:
    """Notes SIGTERM; every process agrees on the step at which to stop."""

    def __init__(self) -> None:
        self.flag = False
        self._previous: Any = None

    def __enter__(self) -> _Preemption:
        if jax.process_count() == 1:

            def note(*_: Any) -> None:
                self.flag = True

            try:
                self._previous = signal.signal(signal.SIGTERM, note)
            except ValueError:  # not the main thread: the embedding program decides
                self._previous = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self.flag
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def _saves_finished(checkpoints: checkpoint_lib.Checkpoints | None) -> Iterator[None]:
    """Wait for the save under way, also where an error ends the run: it would be lost.

    At interpreter exit Orbax can no longer complete what it writes in the background.
    """
    try:
        yield
    finally:
        if checkpoints is not None:
            checkpoints.wait()


def run(job: Job) -> TrainState:
    """Train to the end (or to a preemption) and return the last state.

    Metrics are written every ``log.every_steps`` steps and with every checkpoint, each
    line the mean since the line before: a resumed run loses none.

    Raises:
      FloatingPointError: if a metric is NaN or infinite; nothing is saved after it.
      SystemExit: with status 42 after the save that follows a SIGTERM.
    """
    cfg, state = job.cfg, job.state
    first = int(np.asarray(sharding.to_host(state.step)))
    pending: list[tuple[int, Any, float]] = []
    window: list[Any] = []
    clock = _Clock()

    def flush(bar: Any, task: Any, *, keep: int) -> None:
        while len(pending) > keep:
            number, values, waited = pending.pop(0)
            host = jax.tree.map(float, sharding.to_host(values))
            means = metrics_lib.mean([host])
            bad = metrics_lib.nonfinite(means)
            if bad:
                raise FloatingPointError(
                    f"step {number + 1}: {', '.join(bad)} not finite. The batch holds "
                    f"{job.describe(number)}. The last checkpoint is before this step; "
                    "try model.dtype=float32, a lower optim.learning_rate, or leave "
                    "these records out."
                )
            clock.step(host, waited)
            window.append(host)
            step = number + 1
            bar.update(
                task,
                completed=step,
                loss=f"{means['loss']:.4f}",
                rate=f"{clock.pairs_per_s:.2f}",
                tokens=f"{clock.tokens_per_s:,.0f}",
                fill=f"{means['fill/tokens']:.0%}",
            )
            if step % cfg.log.every_steps == 0:
                log(step)

    def log(step: int) -> None:
        if not window:
            return
        line = metrics_lib.mean(window)
        line |= clock.values() | dict(job.constants)
        window.clear()
        if job.writer is not None:
            job.writer.write(step, line)

    def save(step: int) -> None:
        if job.checkpoints is not None:
            meta = {**job.meta, "position": {"next_batch": step}}
            job.checkpoints.save(step, trees(state), meta=meta)

    extra = (
        "loss {task.fields[loss]} · {task.fields[rate]} pairs/s · "
        "{task.fields[tokens]} tokens/s · fill {task.fields[fill]}"
    )
    with (
        _saves_finished(job.checkpoints),
        jax.set_mesh(job.mesh),
        progress.bar(extra=extra) as bar,
        _Preemption() as preemption,
    ):
        task = bar.add_task(
            cfg.name,
            total=job.num_steps,
            completed=first,
            loss="–",
            rate="–",
            tokens="–",
            fill="–",
        )
        saved = first
        for number in range(first, job.num_steps):
            start = time.perf_counter()
            index, local = next(job.batches)
            if index != number:
                raise RuntimeError(f"the loader gave batch {index} for step {number}")
            batch = sharding.to_global(local, job.mesh)
            waited = time.perf_counter() - start
            update = job.steps[job.shape_of(number)]
            state, values = update(state, batch, job.key, job.reference)
            pending.append((number, values, waited))
            flush(bar, task, keep=1)
            step = number + 1
            stop = preemption.reached(step)
            if stop or step % cfg.checkpoint.every_steps == 0 or step == job.num_steps:
                flush(bar, task, keep=0)
                log(step)
                save(step)
                saved = step
                clock.pause()
            if stop and step < job.num_steps:
                break
            every = cfg.log.eval_every
            if job.evaluate and every and step % every == 0 and step < job.num_steps:
                flush(bar, task, keep=0)
                _write_eval(job, state, step)
                clock.pause()
        flush(bar, task, keep=0)
    if saved < job.num_steps:
        if runtime.is_main():
            progress.console().print(
                f"Stopped by SIGTERM; step {saved} is saved. Start the same command "
                "again to go on."
            )
        raise SystemExit(PREEMPTED)
    return state


def _write_eval(job: Job, state: TrainState, step: int) -> None:
    assert job.evaluate is not None
    values = job.evaluate(state)
    if job.writer is not None:
        job.writer.write(step, {f"eval/{name}": v for name, v in values.items()})


class _Clock:
    """Throughput and where the time goes; compile and save times left out."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.pairs_per_s = self.tokens_per_s = self.step_s = self.wait_s = 0.0
        self._skip = True

    def step(self, host: Mapping[str, tuple[float, float]], waited: float) -> None:
        now = time.perf_counter()
        self.step_s, self.last = now - self.last, now
        self.wait_s = waited
        if self._skip:  # the first step after a pause compiles or catches up
            self._skip = False
            return
        self.pairs_per_s = host["pairs"][0] / self.step_s
        self.tokens_per_s = host["tokens"][0] / self.step_s

    def pause(self) -> None:
        self.last = time.perf_counter()
        self._skip = True

    def values(self) -> dict[str, float]:
        return {
            "time_s": self.last - self.start,
            "time/step_s": self.step_s,
            "time/input_wait_s": self.wait_s,
            "throughput/pairs_per_s": self.pairs_per_s,
            "throughput/tokens_per_s": self.tokens_per_s,
        }
