"""What a training step carries from step to step, abstract before it is real."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mpo_jax import sharding
from mpo_jax.losses import mixture
from mpo_jax.models import internvl
from mpo_jax.nn import params as params_lib
from mpo_jax.train import optimizer as optimizer_lib
from mpo_jax.types import pytree

HOST = "pinned_host"


@pytree
class TrainState:
    """All arrays of a run; every leaf is saved in a checkpoint.

    Attributes:
      step: int32 scalar, number of finished updates.
      params: nested dict, ``{vision, projector, language}``.
      opt_state: optimiser state of the trained parts only.
      reward_shift: BCO's running mean of rewards.
      reference: TR-DPO's moving reference parameters, else None.
    """

    step: Any
    params: Any
    opt_state: Any
    reward_shift: Any
    reference: Any = None


def create(
    params: params_lib.Params,
    *,
    transform: optax.GradientTransformation,
    parts: tuple[str, ...],
    moving: bool,
) -> TrainState:
    """State at step 0. Pure: works on arrays and under ``eval_shape``."""
    trained, _ = optimizer_lib.partition(params, parts)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=transform.init(trained),
        reward_shift=mixture.init_reward_shift(),
        reference=jax.tree.map(jnp.copy, params) if moving else None,
    )


def abstract(
    model: internvl.InternVL,
    *,
    transform: optax.GradientTransformation,
    parts: tuple[str, ...],
    moving: bool,
    mesh: Mesh,
    param_dtype: Any = jnp.float32,
    offload: bool = False,
) -> TrainState:
    """Shapes and shardings of the state; nothing is allocated.

    Optimiser moments are sharded like their parameters (``eval_shape`` alone would
    lose that).

    Args:
      offload: keep the moments in pinned host memory.
    """
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, param_dtype),
        model.declared.shapes,
    )
    state = jax.eval_shape(
        lambda tree: create(tree, transform=transform, parts=parts, moving=moving),
        shapes,
    )
    param_shardings = sharding.shardings(shapes, model.declared.axes, mesh)
    trained_shardings, _ = optimizer_lib.partition(param_shardings, parts)
    whole = sharding.replicated(mesh)
    opt_shardings = optax.tree.map_params(
        transform,
        lambda _, placed: placed.with_memory_kind(HOST) if offload else placed,
        state.opt_state,
        trained_shardings,
        transform_non_params=lambda _: whole,
    )
    placements = TrainState(
        step=whole,
        params=param_shardings,
        opt_state=opt_shardings,
        reward_shift=jax.tree.map(lambda _: whole, state.reward_shift),
        reference=param_shardings if moving else None,
    )
    return jax.tree.map(
        lambda leaf, placed: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=placed
        ),
        state,
        placements,
    )


def shardings_of(state: Any) -> Any:
    """Shardings of an abstract (or real) tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)
