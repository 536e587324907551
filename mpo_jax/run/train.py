"""Training from a config: all missing stages, the loop, the export. Resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging

from mpo_jax import checkpoint as checkpoint_lib
from mpo_jax import config as config_lib
from mpo_jax.run import (
    addresses,
    attempts,
    eval_training,
    evaluation,
    export,
    gate,
    program,
    references,
    run_report,
    setup,
    stages,
    start,
    start_check,
)
from mpo_jax.train import loop
from mpo_jax.utils import metrics as metrics_lib
from mpo_jax.utils import (
    mirror,
    on_demand,
    profiling,
    runtime,
    statuses,
    wandb_board,
    watchdog,
)


def train(
    cfg: config_lib.RunConfig, workdir: str | pathlib.Path, *, devices: Any = None
) -> dict[str, Any]:
    """Run all stages that are missing, train, export. Resumes where it stopped.

    Returns:
      ``{"before": held-out metrics or None, "after": …, "params": …}``.
    """
    began, started = time.perf_counter(), time.time()
    with contextlib.ExitStack() as stack:
        compiles = stack.enter_context(contextlib.closing(profiling.Compiles()))
        run = setup.setup(cfg, workdir, devices=devices)
        stack.enter_context(start_check.alone(run.cfg, run.place))
        stack.enter_context(addresses.mirrored(run))
        stack.enter_context(_noted(run, started=started))
        stuck_minutes = run.cfg.hosts.stuck_minutes
        stack.enter_context(watchdog.armed(run.workdir, minutes=stuck_minutes))
        number = jax.process_index()
        wish = stack.enter_context(on_demand.signals(run.workdir, number=number))
        runtime.compilation_cache(_compile_cache(run))
        runtime.log_devices()
        data = stages.prepare_training_data(run)
        start_check.compare_data(run.cfg, data)
        optimiser = program.make_optimiser(run, data.num_steps)
        checkpoints = checkpoint_lib.Checkpoints(
            run.at(attempts.CHECKPOINTS), run.cfg.checkpoint
        )
        stack.callback(checkpoints.close)
        origin = start.initial_or_resumed(run, data, optimiser, checkpoints)
        _know(run, first_step=origin.step, num_steps=data.num_steps)
        reference = references.prepare(run, data, origin)
        held_out = evaluation.held_out(
            run,
            fingerprint=origin.fingerprint,
            params=lambda: references.reference_params(run, origin),
        )
        benchmarks = eval_training.Benchmarks(run) if run.cfg.eval.every else None
        feed = _feed(run, data, reference, stack, first=origin.step)
        updates = program.build_updates(run, optimiser)
        _pass_gate(run, data, origin, reference, held_out)
        output = _output(run, data, origin, checkpoints, stack)
        before = evaluation.before_training(run, held_out, origin, output.writer)
        if not origin.step:
            eval_training.scored_once(run, benchmarks, output.writer, origin.state, 0)
        elif origin.step < data.num_steps:
            _make_up(run, origin, held_out, benchmarks, output.writer)
        key = jax.random.key(run.cfg.seed)
        job = loop.Job(
            cfg=run.cfg,
            mesh=run.mesh,
            state=origin.state,
            num_steps=data.num_steps,
            update=loop.Update(updates, key, reference.online),
            feed=feed,
            output=output,
            clock=profiling.Clock(began, compiles),
            evaluate=held_out,
            benchmarks=benchmarks,
            wish=wish,
        )
        final = loop.run(job)
        after = evaluation.after_training(
            run, held_out, origin, output.writer, final=final, num_steps=data.num_steps
        )
        eval_training.scored_once(run, benchmarks, output.writer, final, data.num_steps)
        if run.cfg.checkpoint.export_hf:
            export.export(run, final.params)
    return {"before": before, "after": after, "params": final.params}


@contextlib.contextmanager
def _noted(run: setup.Setup, *, started: float) -> Iterator[None]:
    """Note the start, its end and how it went, whatever ends it."""
    if not runtime.is_main():
        yield
        return
    attempts.begin(run.workdir, started=started)
    how, draw = "finished", run.cfg.log.plots
    try:
        yield
    except statuses.Stopped:
        how = "stopped, and saved"
        raise
    except BaseException as error:
        how = f"{type(error).__name__}: {error}"[:500]
        if isinstance(error, KeyboardInterrupt):
            draw = False  # whoever asks twice does not wait for plots
        raise
    finally:
        try:
            attempts.end(run.workdir, how)
            run_report.write(run.workdir, run.place, draw=draw)
        except (OSError, ValueError) as error:  # what ended the run matters more
            logging.warning("the report of %s is not written: %s", run.place, error)


def _know(run: setup.Setup, *, first_step: int, num_steps: int) -> None:
    """Note what this start begins with."""
    if runtime.is_main():
        attempts.know(run.workdir, first_step=first_step, num_steps=num_steps)


def _compile_cache(run: setup.Setup) -> str | pathlib.Path | None:
    name = run.cfg.compile_cache
    if name == "none":
        return None
    return name if name else run.at(addresses.PROGRAMS)


def _feed(
    run: setup.Setup,
    data: stages.TrainingData,
    reference: references.Reference,
    stack: contextlib.ExitStack,
    *,
    first: int,
) -> loop.Feed:
    """Batches from number `first` on, cached log-probs with them."""
    cached = reference.cached
    batches = stages.loader(
        run,
        data.index,
        data.plan,
        start=first,
        logps=None if cached is None else cached.logps,
    )
    stack.callback(batches.close)
    return loop.Feed(
        batches=batches,
        shape_of=data.shape_of,
        flops=stages.flops_of(run, data),
        name_records=data.names_of,
    )


def _pass_gate(
    run: setup.Setup,
    data: stages.TrainingData,
    origin: start.Start,
    reference: references.Reference,
    held_out: evaluation.HeldOut | None,
) -> None:
    """Check cached log-probs: those of the first batch, and as many held-out pairs'."""
    if not run.uses_reference:
        return
    caches = [reference.cached]
    if held_out is not None:
        caches.append(held_out.cached(len(data.first_pairs)))
    gate.pass_or_stop(
        [cached for cached in caches if cached is not None],
        policy=origin.state.params,
        reference=lambda: references.reference_params(run, origin),
        step=origin.step,
    )


def _make_up(
    run: setup.Setup,
    origin: start.Start,
    held_out: evaluation.HeldOut | None,
    benchmarks: eval_training.Benchmarks | None,
    writer: metrics_lib.Writer | None,
) -> None:
    """Score what is due after the checkpoint's step and was lost with its process."""
    step, cfg = origin.step, run.cfg
    if held_out is not None and loop.is_due(cfg.log.eval_every, step):
        evaluation.scored_once(run, held_out, origin.state, writer, step)
    if benchmarks is not None and loop.is_due(cfg.eval.every, step):
        eval_training.scored_once(run, benchmarks, writer, origin.state, step)


def _board(run: setup.Setup) -> wandb_board.Board | None:
    if not run.cfg.log.wandb:
        return None
    config = dataclasses.asdict(run.cfg)
    return wandb_board.Board(run.cfg.log.wandb, run.place, run.workdir, config)


def _output(
    run: setup.Setup,
    data: stages.TrainingData,
    origin: start.Start,
    checkpoints: checkpoint_lib.Checkpoints,
    stack: contextlib.ExitStack,
) -> loop.Output:
    """Where the loop writes: metrics in the first process, checkpoints in all."""
    writer = None
    if runtime.is_main():
        text = run.cfg.to_json()
        (run.workdir / "run_config.json").write_text(text, encoding="utf-8")
        writer = metrics_lib.Writer(
            run.workdir,
            # What a start without a checkpoint has written is said anew.
            resume_step=origin.step or -1,
            tensorboard=run.cfg.log.tensorboard,
            board=_board(run),
        )
        mirror.grow(writer.path)
        stack.callback(writer.close)
    return loop.Output(
        writer=writer,
        checkpoints=checkpoints,
        meta=start.checkpoint_meta(run, data.plan, origin),
        constants=data.ledger_counts,
        folder=run.workdir,
    )
