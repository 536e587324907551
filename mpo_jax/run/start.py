"""Where a run begins: at its first weights, or at its newest checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from mpo_jax import checkpoint as checkpoint_lib
from mpo_jax import config as config_lib
from mpo_jax import config_paths, fields
from mpo_jax.models import adapted
from mpo_jax.nn import params as params_lib
from mpo_jax.packing import pipeline
from mpo_jax.packing import plan as plan_lib
from mpo_jax.run import parameters, program, setup, stages
from mpo_jax.train import reference, state
from mpo_jax.utils import progress, watchdog

# Fields that decide which arrays a checkpoint holds, or what they mean, or against
# which reference a run is trained.
_FIXED = ("model.lora.", "model.freeze_", "model.train_", "reference.path")


@dataclasses.dataclass(frozen=True)
class Start:
    """Where training begins.

    Attributes:
      state: on the mesh.
      step: finished updates; 0 is a fresh run.
      fingerprint: of the reference's weights, "" where none is used.
    """

    state: state.TrainState
    step: int
    fingerprint: str


def initial_or_resumed(
    run: setup.Setup,
    data: stages.TrainingData,
    optimiser: program.Optimiser,
    checkpoints: checkpoint_lib.Checkpoints,
) -> Start:
    """The state after the newest good checkpoint; if there is none, the first weights'.

    Raises:
      ValueError: if the checkpoint is of another plan, of other parameters or another
        reference, or trained beyond this run's end; if all are damaged, or there is no
        such step as ``checkpoint.resume_step``. Says what to do.
    """

    def check(step: int, stored: Mapping[str, Any]) -> None:
        _check_plan(run, stored, data.plan)
        _check_config(run, stored["config"])
        _check_length(run, step, data.num_steps)

    watchdog.beat("weights and optimiser state")
    found = checkpoints.resume(state.trees(optimiser.abstract), check=check)
    if found is None:
        return _initial(run, optimiser)
    progress.console().print(
        f"Resuming {run.place} after step {found.step}; {found.verdict}."
    )
    weights = found.meta["reference_weights"]
    return Start(state.from_trees(found.trees), found.step, weights)


def checkpoint_meta(
    run: setup.Setup, plan: plan_lib.PlanSequence, origin: Start
) -> dict[str, Any]:
    """What checkpoints say of the run, for the checks of a resume; JSON-able."""
    return {
        "config": dataclasses.asdict(run.cfg),
        "plan": plan.fingerprint,
        "reference_weights": origin.fingerprint,
        "model": str(run.cfg.model.path),
    }


def _initial(run: setup.Setup, optimiser: program.Optimiser) -> Start:
    params = parameters.initial_params(run)

    def create(params: params_lib.Params) -> state.TrainState:
        return state.create(
            params,
            transform=optimiser.transform,
            trained=adapted.trained(run.cfg.model),
            moving=run.cfg.reference.mode == "moving",
        )

    placed = state.shardings_of(optimiser.abstract)
    with jax.set_mesh(run.mesh):
        created = jax.jit(create, out_shardings=placed)(params)
    return Start(created, 0, _reference_fingerprint(run, params))


def _reference_fingerprint(run: setup.Setup, params: params_lib.Params) -> str:
    """Fingerprint of the reference of a run that begins with `params`."""
    if not run.uses_reference:
        return ""
    if run.cfg.reference.path:
        params = parameters.reference_params(run, run.cfg.reference.path)
    return reference.fingerprint(adapted.without_adapters(params))


def _check_plan(
    run: setup.Setup, stored: Mapping[str, Any], plan: plan_lib.PlanSequence
) -> None:
    try:
        pipeline.resume_batch({**stored["position"], "plan": stored["plan"]}, plan)
    except ValueError as error:
        raise ValueError(f"{run.place}: {error}") from error


def _check_config(run: setup.Setup, stored: Mapping[str, Any]) -> None:
    """Refuse what the checkpoint's arrays do not allow; tell of all other changes."""
    # A checkpoint that is older than a field was written with its default.
    before = fields.flat(dataclasses.asdict(config_lib.RunConfig()))
    before |= fields.flat(stored)
    before = {name: config_paths.absolute(name, before[name]) for name in before}
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
            f"{run.place}: the checkpoint's parameters, optimiser or reference are "
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


def _check_length(run: setup.Setup, latest: int, num_steps: int) -> None:
    if latest > num_steps:
        raise ValueError(
            f"{run.place} is trained up to step {latest}, beyond the {num_steps} "
            f"of optim.max_steps={run.cfg.optim.max_steps}: raise it to {latest} or "
            "more, or name another --workdir to train fewer"
        )
