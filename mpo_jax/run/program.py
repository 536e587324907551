"""What a run computes: its optimiser, the shapes of its state, its jitted updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mpo_jax import config as config_lib
from mpo_jax import sharding
from mpo_jax.run import setup
from mpo_jax.train import optimizer, state, step
from mpo_jax.utils import progress


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """How a run's parameters are updated.

    Attributes:
      transform: from gradients to updates, an Optax transformation.
      schedule: learning rate of a step, counted from 0, an Optax schedule.
      abstract: shapes, dtypes and shardings of the run's state.
    """

    transform: Any
    schedule: Any
    abstract: state.TrainState


def make_optimiser(run: setup.Setup, num_steps: int) -> Optimiser:
    """Optimiser of a run of so many steps; says so where it would change nothing."""
    transform, schedule = optimizer.build(run.cfg.optim, num_steps)
    idle = idle_note(run.cfg.optim, schedule, num_steps)
    if idle:
        progress.console().print(f"note: {idle}")
    abstract = state.abstract_run(
        run.cfg, run.model, transform=transform, mesh=run.mesh
    )
    return Optimiser(transform, schedule, abstract)


def idle_note(cfg: config_lib.OptimConfig, schedule: Any, num_steps: int) -> str:
    """What to say where no step changes a weight; warm-up begins at 0."""
    if any(np.any(schedule(n)) for n in range(min(num_steps, 2))):
        return ""
    return (
        f"the learning rate of all {num_steps} steps is 0 (optim.learning_rate="
        f"{cfg.learning_rate}, optim.warmup_fraction="
        f"{cfg.warmup_fraction}): the weights stay as they are"
    )


def build_updates(run: setup.Setup, optimiser: Optimiser) -> list[Callable[..., Any]]:
    """The jitted update of every row shape; each compiles when it is first used."""
    out_shardings = state.shardings_of(optimiser.abstract)
    return [
        step.build_train_step(
            run.model,
            run.cfg,
            shape,
            transform=optimiser.transform,
            schedule=optimiser.schedule,
            out_shardings=out_shardings,
            compiler_options=sharding.compiler_options(run.mesh),
        )
        for shape in run.shapes
    ]
