"""The training loop: step, log, evaluate, save, resume, stop cleanly."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
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
from mpo_jax.utils import background, profiling, progress, runtime
from mpo_jax.utils import metrics as metrics_lib

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
      flops: model FLOPs of batch n (all processes), for the MFU; None leaves it out.
      started: ``time.perf_counter()`` when the program began its work.
      compiles: counts since then; None counts from now on.
      profile_dir: where the traces of ``log.profile_steps`` go.
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
    flops: Callable[[int], float] | None = None
    started: float | None = None
    compiles: profiling.Compiles | None = None
    profile_dir: pathlib.Path = pathlib.Path("profile")


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
    pending: list[tuple[int, Any]] = []
    window: list[Any] = []
    compiles = job.compiles or profiling.Compiles()
    now = time.perf_counter()
    clock = profiling.Clock(now if job.started is None else job.started, compiles)
    rate = profiling.Rate()
    peak = profiling.peak_flops(job.mesh.devices.flat[0])
    peak = None if peak is None else peak * job.mesh.devices.size
    trace = profiling.Trace(
        job.profile_dir, start=cfg.log.profile_start, steps=cfg.log.profile_steps
    )

    def flush(bar: Any, task: Any, *, keep: int) -> None:
        while len(pending) > keep:
            number, values = pending.pop(0)
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
            work = {"pairs": host["pairs"][0], "tokens": host["tokens"][0]}
            if job.flops is not None and peak is not None:
                work["peak_s"] = job.flops(number) / peak
            rate.step(**work)
            window.append(host)
            step = number + 1
            bar.update(
                task,
                completed=step,
                loss=f"{means['loss']:.4f}",
                rate=f"{rate.per_second('pairs'):.2f}",
                tokens=f"{rate.per_second('tokens'):,.0f}",
                fill=f"{means['fill/tokens']:.0%}",
                mfu=_mfu_text(rate),
            )
            if step % cfg.log.every_steps == 0:
                log(step)

    def log(step: int) -> None:
        if not window:
            return
        line = metrics_lib.mean(window)
        line |= clock.values() | _rates(rate) | dict(job.constants)
        window.clear()
        rate.reset()
        if job.writer is not None:
            job.writer.write(step, line)

    def save(step: int) -> None:
        if job.checkpoints is not None:
            meta = {**job.meta, "position": {"next_batch": step}}
            with clock.span("checkpoint"):
                job.checkpoints.save(step, trees(state), meta=meta)

    def place(
        item: tuple[int, types.PackedBatch],
    ) -> tuple[int, types.PackedBatch]:
        index, local = item
        return index, sharding.to_global(local, job.mesh)

    extra = (
        "loss {task.fields[loss]} · {task.fields[rate]} pairs/s · "
        "{task.fields[tokens]} tokens/s · fill {task.fields[fill]}{task.fields[mfu]}"
    )
    with (
        _saves_finished(job.checkpoints),
        contextlib.closing(compiles),
        contextlib.closing(trace),
        background.Ahead(
            # No more than what is trained: the thread must not load beyond the end.
            itertools.islice(job.batches, max(job.num_steps - first, 0)),
            place,
            depth=cfg.data.prefetch_to_device,
        ) as batches,
        jax.set_mesh(job.mesh),
        progress.bar(extra=extra) as bar,
        _Preemption() as preemption,
    ):
        task = bar.add_task(
            cfg.name,
            total=job.num_steps,
            completed=first,
            **dict.fromkeys(("loss", "rate", "tokens", "fill"), "–"),
            mfu="",
        )
        saved = first
        for number in range(first, job.num_steps):
            step = number + 1
            with clock.span("input_wait"):
                index, batch = next(batches)
            clock.host_to_device_s = batches.busy_s
            if index != number:
                raise RuntimeError(f"the loader gave batch {index} for step {number}")
            update = job.steps[job.shape_of(number)]
            trace.before(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, values = update(state, batch, job.key, job.reference)
            trace.after(step, values)
            pending.append((number, values))
            clock.steps += 1
            flush(bar, task, keep=1)
            stop = preemption.reached(step)
            if stop or step % cfg.checkpoint.every_steps == 0 or step == job.num_steps:
                flush(bar, task, keep=0)
                log(step)
                save(step)
                saved = step
                rate.pause()
            if stop and step < job.num_steps:
                break
            every = cfg.log.eval_every
            if job.evaluate and every and step % every == 0 and step < job.num_steps:
                flush(bar, task, keep=0)
                with clock.span("eval"):
                    _write_eval(job, state, step)
                rate.pause()
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


def _rates(rate: profiling.Rate) -> dict[str, float]:
    """Throughput since the last line; MFU where FLOPs and peak are known."""
    found = {
        "time/step_s": rate.seconds / rate.steps if rate.steps else 0.0,
        "throughput/pairs_per_s": rate.per_second("pairs"),
        "throughput/tokens_per_s": rate.per_second("tokens"),
    }
    if "peak_s" in rate.work:
        found["throughput/mfu"] = rate.per_second("peak_s")
    return found


def _mfu_text(rate: profiling.Rate) -> str:
    return f" · MFU {rate.per_second('peak_s'):.0%}" if "peak_s" in rate.work else ""
