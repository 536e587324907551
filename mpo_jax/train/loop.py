"""The training loop: step, log, save, evaluate, stop cleanly."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from mpo_jax import checkpoint as checkpoint_lib
from mpo_jax import config as config_lib
from mpo_jax import sharding, types
from mpo_jax.train import meter as meter_lib
from mpo_jax.train import preemption
from mpo_jax.train import state as state_lib
from mpo_jax.train.state import TrainState
from mpo_jax.utils import (
    background,
    mirror,
    on_demand,
    profiling,
    progress,
    statuses,
    watchdog,
)
from mpo_jax.utils import metrics as metrics_lib

ON_DEMAND_STEPS = 5
"""Steps that are traced on ``kill -USR1``."""

Batches = background.Ahead[tuple[int, types.PackedBatch], tuple[int, types.PackedBatch]]


@dataclasses.dataclass(frozen=True)
class Update:
    """What a step computes.

    Attributes:
      updates: jitted, one per row shape (``train.step.build_train_step``).
      key: of the run.
      reference: what a frozen reference does not share with the policy, for the online
        mode; else None.
    """

    updates: Sequence[Callable[..., tuple[TrainState, Any]]]
    key: jax.Array
    reference: Any = None

    def __call__(
        self, state: TrainState, batch: types.PackedBatch, shape: int
    ) -> tuple[TrainState, Any]:
        """State and metrics after a batch of row shape number `shape`."""
        return self.updates[shape](state, batch, self.key, self.reference)


@dataclasses.dataclass(frozen=True)
class Feed:
    """What is trained on.

    Attributes:
      batches: ``(n, local batch)`` from the first batch that is not trained yet.
      shape_of: row shape of batch n.
      flops: model FLOPs of batch n (all processes), for the MFU; None leaves it out.
      name_records: names the records of batch n, for error messages.
    """

    batches: Iterator[tuple[int, types.PackedBatch]]
    shape_of: Callable[[int], int]
    flops: Callable[[int], float] | None = None
    name_records: Callable[[int], str] = str


@dataclasses.dataclass(frozen=True)
class Output:
    """What is written.

    Attributes:
      writer: of metrics; None in all processes but the first.
      checkpoints: None saves nothing.
      meta: JSON-able, stored with every checkpoint (config, plan, reference key).
      constants: values that stand in every line of metrics (ledger counts).
      folder: where traces go: ``profile``.
      now: clock of ``checkpoint.every_minutes``.
    """

    writer: metrics_lib.Writer | None = None
    checkpoints: checkpoint_lib.Checkpoints | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict)
    folder: pathlib.Path = pathlib.Path(".")
    now: Callable[[], float] = time.monotonic


@dataclasses.dataclass(frozen=True)
class Job:
    """What the loop needs; assembled by ``mpo_jax.run.train``.

    Attributes:
      state: where training starts; its arrays are given away.
      num_steps: updates of the whole run.
      clock: counts since the program began its work.
      evaluate: metrics of held-out pairs, or None.
      benchmarks: scores on benchmarks after so many steps, or None.
      wish: for a trace of the next steps (``kill -USR1``).
    """

    cfg: config_lib.RunConfig
    mesh: Any
    state: TrainState
    num_steps: int
    update: Update
    feed: Feed
    output: Output
    clock: profiling.Clock
    evaluate: Callable[[TrainState], dict[str, float]] | None = None
    benchmarks: Callable[[TrainState, int], dict[str, float]] | None = None
    wish: on_demand.Wish = dataclasses.field(default_factory=on_demand.Wish)


def run(job: Job) -> TrainState:
    """Train to the end (or to a preemption) and return the last state.

    Metrics are written every ``log.every_steps`` steps and with every checkpoint, each
    line the mean since the line before: a resumed run loses none.

    Raises:
      FloatingPointError: if a metric is NaN or infinite; nothing is saved after it.
      checkpoint.SaveFailed: a step after a save has failed, or when
        ``checkpoint.retry_seconds`` have not made up for it.
      SystemExit: with status 42 after the save that follows a SIGTERM, 130 after
        that of a Ctrl-C.
    """
    cfg, state = job.cfg, job.state
    step = first = int(np.asarray(sharding.to_host(state.step)))
    trace = profiling.Trace(
        job.output.folder / "profile",
        start=cfg.log.profile_start,
        steps=cfg.log.profile_steps,
    )
    saving = checkpoint_lib.Schedule(cfg.checkpoint, now=job.output.now)
    with (
        _saves_finished(job.output.checkpoints),
        contextlib.closing(trace),
        _placed_batches(job, first) as batches,
        jax.set_mesh(job.mesh),
        _meter(job, first) as meter,
        preemption.Preemption() as preempted,
    ):
        for n in range(first, job.num_steps):
            step = n + 1
            if job.wish.taken():
                trace.ask(step, ON_DEMAND_STEPS)
            watchdog.beat(f"batch {n} of its own loader")
            batch = _next_batch(batches, n, job.clock)
            watchdog.beat(f"the devices, in step {step}")
            trace.before(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, values = job.update(state, batch, job.feed.shape_of(n))
            trace.after(step, values)
            meter.add(n, values)
            stored = job.output.checkpoints
            owed = stored is not None and stored.check()
            last = preempted.reached(step) or step == job.num_steps
            if last or saving.due(step) or owed:
                meter.end_line(step)
                watchdog.beat(f"the save of step {step}")
                _save(job, state, step, last=last)
                meter.saved(step)
                meter.pause()
            if last:
                break
            if _is_due(job, step):
                meter.catch_up()
                with job.clock.span("eval"):
                    _evaluate(job, state, step)
                meter.pause()
    if step < job.num_steps:
        _exit_stopped(step, preempted.status)
    return state


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


def _placed_batches(job: Job, first: int) -> Batches:
    """Global batches from `first` on, put on the devices ahead of their use."""

    def place(
        item: tuple[int, types.PackedBatch],
    ) -> tuple[int, types.PackedBatch]:
        n, local = item
        return n, sharding.to_global(local, job.mesh)

    # No more than what is trained: the thread must not load beyond the end.
    wanted = itertools.islice(job.feed.batches, max(job.num_steps - first, 0))
    return background.Ahead(wanted, place, depth=job.cfg.data.prefetch_to_device)


@contextlib.contextmanager
def _meter(job: Job, first: int) -> Iterator[meter_lib.Meter]:
    with meter_lib.training_bar(
        job.cfg.name,
        first=first,
        num_steps=job.num_steps,
        line_s=job.cfg.log.line_seconds,
    ) as show:
        yield meter_lib.Meter(
            clock=job.clock,
            every=job.cfg.log.every_steps,
            show=show,
            writer=job.output.writer,
            constants=job.output.constants,
            ideal_s=_ideal_s(job),
            name_records=job.feed.name_records,
        )


def _ideal_s(job: Job) -> Callable[[int], float] | None:
    """Seconds that batch n takes at the peak of the mesh; None where it is unknown."""
    flops, devices = job.feed.flops, job.mesh.devices
    peak = profiling.peak_flops(devices.flat[0])
    if flops is None or peak is None:
        return None
    return lambda n: flops(n) / (peak * devices.size)


def _next_batch(batches: Batches, n: int, clock: profiling.Clock) -> types.PackedBatch:
    with clock.span("input_wait"):
        number, batch = next(batches)
    clock.host_to_device_s = batches.busy_s
    if number != n:
        raise RuntimeError(f"the loader gave batch {number} for step {n}")
    return batch


def _save(job: Job, state: TrainState, step: int, *, last: bool) -> None:
    """Start saving, with the place from which a resumed run goes on."""
    if job.output.checkpoints is not None:
        # A run that goes on from here does not write these lines again.
        mirror.offer(job.output.folder / "metrics.jsonl")
        meta = {**job.output.meta, "position": {"next_batch": step}}
        with job.clock.span("checkpoint"):
            job.output.checkpoints.save(
                step, state_lib.trees(state), meta=meta, last=last
            )


def _is_due(job: Job, step: int) -> bool:
    """Is anything evaluated after so many steps?"""
    held_out = job.evaluate is not None and is_due(job.cfg.log.eval_every, step)
    return held_out or (job.benchmarks is not None and is_due(job.cfg.eval.every, step))


def _evaluate(job: Job, state: TrainState, step: int) -> None:
    """Held-out pairs and benchmarks, those that are due."""
    writer = job.output.writer
    if job.evaluate is not None and is_due(job.cfg.log.eval_every, step):
        meter_lib.write_held_out(writer, step, job.evaluate(state))
    if job.benchmarks is not None and is_due(job.cfg.eval.every, step):
        meter_lib.write_benchmarks(writer, step, job.benchmarks(state, step))


def is_due(every: int, step: int) -> bool:
    """Whether what is done every so many steps, if ever, is done after this one."""
    return every > 0 and step % every == 0


def _exit_stopped(step: int, status: int) -> NoReturn:
    by = "SIGTERM" if status == statuses.STOPPED else "Ctrl-C"
    progress.console().print(
        f"Stopped by {by}; step {step} is saved. Start the same command again to go on."
    )
    raise statuses.Stopped(status)
