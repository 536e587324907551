"""Training from a config: all missing stages, the loop, the export. Resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpo_jax import checkpoint as checkpoint_lib
from mpo_jax import config as config_lib
from mpo_jax import fields, sharding, types
from mpo_jax.convert import hf, layouts
from mpo_jax.data import packing, pipeline
from mpo_jax.data.index import Index
from mpo_jax.models import adapted
from mpo_jax.nn import params as params_lib
from mpo_jax.run import evaluation, gate, scoring, setup, stages
from mpo_jax.train import loop, optimizer, reference, state, step
from mpo_jax.utils import metrics as metrics_lib
from mpo_jax.utils import plots, profiling, progress, runtime

# Fields that decide which arrays a checkpoint holds, or what they mean, or against
# which reference a run is trained.
_FIXED = ("model.lora.", "model.freeze_", "model.train_", "reference.path")


def train(
    cfg: config_lib.RunConfig, workdir: str | pathlib.Path, *, devices: Any = None
) -> dict[str, Any]:
    """Run all stages that are missing, train, export. Resumes where it stopped.

    Returns:
      ``{"before": held-out metrics or None, "after": …, "params": …}``.
    """
    with contextlib.ExitStack() as stack:
        return _train(cfg, workdir, devices, stack)


def _train(
    cfg: config_lib.RunConfig,
    workdir: str | pathlib.Path,
    devices: Any,
    stack: contextlib.ExitStack,
) -> dict[str, Any]:
    started = time.perf_counter()
    compiles = stack.enter_context(contextlib.closing(profiling.Compiles()))
    run = setup.setup(cfg, workdir, devices=devices)
    cfg = run.cfg  # with its paths made absolute
    console = progress.console()
    runtime.compilation_cache(_compile_cache(run))
    runtime.log_devices()
    index = stages.prepare_index(run, cfg.data.meta)
    plan = stages.make_plan(run, index)
    ledger_counts = stages.write_ledger(run, index, plan)
    num_steps = stages.num_steps(cfg, plan)
    stages.describe(run, index, plan, num_steps, ledger_counts)

    transform, schedule = optimizer.build(cfg.optim, num_steps)
    idle = _idle(cfg, schedule, num_steps)
    if idle:
        console.print(f"note: {idle}")
    trained = adapted.trained(cfg.model)
    moving = cfg.reference.mode == "moving"
    abstract = state.abstract(
        run.model,
        transform=transform,
        trained=trained,
        moving=moving,
        mesh=run.mesh,
        **state.dtypes(cfg.model),
        offload=cfg.optim.offload,
    )
    checkpoints = checkpoint_lib.Checkpoints(
        run.workdir / "checkpoints", cfg.checkpoint
    )
    stack.callback(checkpoints.close)
    latest = checkpoints.latest()
    uses_reference = cfg.mode == types.MPO and cfg.reference.mode != "none"
    if latest is None:
        params = setup.initial_params(run)
        with jax.set_mesh(run.mesh):
            current = jax.jit(
                lambda tree: state.create(
                    tree, transform=transform, trained=trained, moving=moving
                ),
                out_shardings=state.shardings_of(abstract),
            )(params)
        weights = ""
        if uses_reference:
            start = adapted.plain(params)
            if cfg.reference.path:
                start = setup.reference_params(run, cfg.reference.path)
            weights = reference.fingerprint(start)
            del start
        del params
    else:
        stored = checkpoints.meta(latest)
        _check_resume(run, stored, plan)
        _check_length(run, latest, num_steps)
        current = state.from_trees(checkpoints.restore(latest, state.trees(abstract)))
        weights = stored["reference_weights"]
        console.print(f"Resuming {run.workdir} after step {latest}.")

    shared = not cfg.reference.path
    only_adapters = not adapted.kept_by_reference(abstract.params, trained)

    def reference_params() -> params_lib.Params:
        """The reference's weights: the starting point, whatever was trained since."""
        if shared and (latest is None or only_adapters):
            return adapted.plain(current.params)
        found = setup.reference_params(run, cfg.reference.path)
        if reference.fingerprint(found) != weights:
            raise ValueError(
                f"{cfg.reference.path or cfg.model.path} no longer holds the weights "
                "that this run took as its reference"
            )
        return found

    logps, online = None, None
    cached: list[gate.Cached] = []
    first_pairs = np.unique(np.concatenate(plan.batch(0)[1]))
    if uses_reference and cfg.reference.mode == "cache":
        wanted = stages.planned_records(plan, num_steps)
        scorer = scoring.scorer(run, index, wanted)
        logps = scoring.prepare_reference(
            scorer,
            wanted,
            weights=weights,
            params=reference_params,
            directory=cfg.reference.cache,
        )
        place = scoring.reference_directory(run, index, weights, cfg.reference.cache)
        cached.append(gate.Cached("data.meta", place, scorer, first_pairs, logps))
    elif uses_reference and cfg.reference.mode == "online":
        found = reference_params()
        if shared:
            found = adapted.kept_by_reference(found, trained)
        online = jax.tree.map(jnp.copy, found)
        del found

    evaluate = None
    if cfg.data.eval_meta:
        evaluate = evaluation.HeldOut(run, weights=weights, params=reference_params)
        if evaluate.logps is not None:
            cached.append(
                gate.Cached(
                    "data.eval_meta",
                    scoring.reference_directory(run, evaluate.index, weights),
                    evaluate.scorer,
                    evaluate.record_ids[: len(first_pairs)],
                    evaluate.logps,
                )
            )
        if moving:
            console.print(
                "Held-out pairs are scored against the starting point, so that their "
                "metrics compare over the run; training's are against the reference "
                "as it moves (reference.mode='moving')."
            )
    first = latest or 0
    batches = stages.loader(run, index, plan, start=first, logps=logps)
    out_shardings = state.shardings_of(abstract)
    steps = [
        step.build_train_step(
            run.model,
            cfg,
            shape,
            transform=transform,
            schedule=schedule,
            out_shardings=out_shardings,
            compiler_options=sharding.compiler_options(run.mesh),
        )
        for shape in run.shapes
    ]
    if uses_reference:
        gate.pass_or_stop(
            cached, policy=current.params, reference=reference_params, step=first
        )

    writer = None
    if runtime.is_main():
        (run.workdir / "run_config.json").write_text(cfg.to_json(), encoding="utf-8")
        writer = metrics_lib.Writer(
            run.workdir, resume_step=first, tensorboard=cfg.log.tensorboard
        )
    before = _held_out_before(run, writer, evaluate, current, first=first)
    job = loop.Job(
        cfg=cfg,
        mesh=run.mesh,
        state=current,
        num_steps=num_steps,
        program=loop.Program(steps, jax.random.key(cfg.seed), online),
        feed=loop.Feed(
            batches=batches,
            shape_of=lambda n: plan.batch(n)[0],
            flops=stages.flops_of(run, index, plan),
            name_records=lambda n: _name_records(index, plan.batch(n)[1]),
        ),
        output=loop.Output(
            writer=writer,
            checkpoints=checkpoints,
            meta={
                "config": dataclasses.asdict(cfg),
                "plan": plan.fingerprint,
                "reference_weights": weights,
                "model": str(cfg.model.path),
            },
            constants=ledger_counts,
            profile_dir=run.workdir / "profile",
        ),
        clock=profiling.Clock(started, compiles),
        evaluate=evaluate,
    )
    try:
        final = loop.run(job)
        # A finished run that is started again has its last line already.
        after = None
        if evaluate is not None and first == num_steps:
            after = _held_out_at(run, num_steps)
        # All processes score together, whatever each of them has read.
        if evaluate is not None and not runtime.agreed(np.array(after is not None)):
            after = evaluate(final)
            if writer is not None:
                writer.write(num_steps, _eval_names(after))
    finally:
        batches.close()
        if writer is not None:
            writer.close()
    if runtime.is_main() and cfg.log.plots:
        plots.plot_metrics(run.workdir / "metrics.jsonl", run.workdir / "plots")
    checkpoints.close()
    if cfg.checkpoint.export_hf:
        export(run, final.params)
    return {"before": before, "after": after, "params": final.params}


def _compile_cache(run: setup.Setup) -> str | pathlib.Path | None:
    name = run.cfg.compile_cache
    if name == "none":
        return None
    return name if name else run.workdir / "compile_cache"


def _eval_names(values: dict[str, float]) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in values.items()}


def _held_out_before(
    run: setup.Setup,
    writer: metrics_lib.Writer | None,
    evaluate: Any,
    current: state.TrainState,
    *,
    first: int,
) -> dict[str, float] | None:
    """Held-out metrics of step 0: computed, or on resume read back."""
    if evaluate is None:
        return None
    if first == 0:
        values = evaluate(current)
        if writer is not None:
            writer.write(0, _eval_names(values))
        return values
    return _held_out_at(run, 0)


def _held_out_at(run: setup.Setup, step: int) -> dict[str, float] | None:
    """Held-out metrics that an earlier start wrote for a step; None without any."""
    for line in metrics_lib.read(run.workdir / "metrics.jsonl"):
        found = {
            name.removeprefix("eval/"): value
            for name, value in line.items()
            if name.startswith("eval/")
        }
        if line["step"] == step and found:
            return found
    return None


def export(run: setup.Setup, params: params_lib.Params) -> pathlib.Path:
    """Write ``<workdir>/hf``: weights in bf16, other files as the run has them."""
    target, files = run.workdir / "hf", run.source.files
    notes = hf.save(
        target,
        params,
        run.model,
        source_dir=files,
        settings=run.settings,
        overwrite=True,
    )
    console = progress.console()
    console.print(f"Exported {target} ({layouts.of_files(files)} layout).")
    for note in notes:
        console.print(f"note: {note}")
    runtime.barrier("export")
    return target


def _check_resume(
    run: setup.Setup, stored: dict[str, Any], plan: packing.PlanSequence
) -> None:
    try:
        pipeline.resume_batch({**stored["position"], "plan": stored["plan"]}, plan)
    except ValueError as error:
        raise ValueError(f"{run.workdir}: {error}") from error
    # A checkpoint that is older than a field was written with its default.
    before = fields.flat(dataclasses.asdict(config_lib.RunConfig()))
    before |= fields.flat(stored["config"])
    before = {name: config_lib.absolute(name, value) for name, value in before.items()}
    now = fields.flat(dataclasses.asdict(run.cfg))
    fixed = [
        f"{name}={now[name]!r}, the checkpoint has {before[name]!r}"
        for name in now
        if name.startswith(_FIXED) and before[name] != now[name]
    ]
    modes = [values["reference.mode"] for values in (now, before)]
    if modes[0] != modes[1] and "moving" in modes:  # a checkpoint holds a moving one
        fixed.append(f"reference.mode={modes[0]!r}, the checkpoint has {modes[1]!r}")
    if fixed:
        raise ValueError(
            f"{run.workdir}: the checkpoint's parameters, optimiser or reference are "
            "others:\n  "
            + "\n  ".join(fixed)
            + "\nUse the config of the run that wrote it, or another --workdir."
        )
    for name, value in now.items():
        if before.get(name) != value:
            progress.console().print(
                f"Changed since the checkpoint: {name} {before.get(name)!r} "
                f"-> {value!r}"
            )


def _idle(cfg: config_lib.RunConfig, schedule: Any, num_steps: int) -> str:
    """What to say where no step changes a weight; warm-up begins at 0."""
    if any(np.any(schedule(n)) for n in range(min(num_steps, 2))):
        return ""
    return (
        f"the learning rate of all {num_steps} steps is 0 (optim.learning_rate="
        f"{cfg.optim.learning_rate}, optim.warmup_fraction="
        f"{cfg.optim.warmup_fraction}): the weights stay as they are"
    )


def _check_length(run: setup.Setup, latest: int, num_steps: int) -> None:
    if latest > num_steps:
        raise ValueError(
            f"{run.workdir} is trained up to step {latest}, beyond the {num_steps} "
            f"of optim.max_steps={run.cfg.optim.max_steps}: raise it to {latest} or "
            "more, or name another --workdir to train fewer"
        )


def _name_records(index: Index, rows: list[np.ndarray]) -> str:
    ids = np.concatenate(rows)
    shown = "; ".join(index.where(int(number)) for number in ids[:8])
    return f"{len(ids)} pairs: {shown}{'; …' if len(ids) > 8 else ''}"
