"""What a training step carries from step to step, abstract before it is real."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mpo_jax import config, sharding
from mpo_jax.losses import reward_shift
from mpo_jax.models import adapted, internvl
from mpo_jax.nn import params as params_lib
from mpo_jax.types import pytree

HOST = "pinned_host"


@pytree
class TrainState:
    """All arrays of a run; every leaf is saved in a checkpoint.

    Attributes:
      step: int32 scalar, number of finished updates.
      params: nested dict, ``{vision, projector, language}``.
      opt_state: optimiser state of what is trained only.
      reward_shift: BCO's running mean of rewards.
      reference: what TR-DPO's moving reference does not share with the policy: its own
        copy of all that is trained; else None.
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
    moving: bool,
    trained: adapted.Predicate = adapted.all_trained,
) -> TrainState:
    """State at step 0. Pure: works on arrays and under ``eval_shape``."""
    ours, _ = adapted.partition(params, trained)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=transform.init(ours),
        reward_shift=reward_shift.init(),
        reference=jax.tree.map(jnp.copy, ours) if moving else None,
    )


def abstract(
    model: internvl.InternVL,
    *,
    transform: optax.GradientTransformation,
    moving: bool,
    mesh: Mesh,
    trained: adapted.Predicate = adapted.all_trained,
    param_dtype: Any = jnp.float32,
    frozen_dtype: Any = None,
    offload: bool = False,
) -> TrainState:
    """Shapes and shardings of the state; nothing is allocated.

    Optimiser moments are sharded like their parameters (``eval_shape`` alone would
    lose that).

    Args:
      trained: of paths (``models.adapted``).
      param_dtype, frozen_dtype: of trained and of frozen parameters; None is the same.
      offload: keep the moments in pinned host memory.
    """
    frozen_dtype = param_dtype if frozen_dtype is None else frozen_dtype
    shapes = params_lib.unflatten(
        {
            path: jax.ShapeDtypeStruct(
                leaf.shape, param_dtype if trained(path) else frozen_dtype
            )
            for path, leaf in params_lib.flatten(model.shapes)
        }
    )
    state = jax.eval_shape(
        lambda tree: create(tree, transform=transform, trained=trained, moving=moving),
        shapes,
    )
    param_shardings = sharding.shardings(shapes, model.axes, mesh)
    trained_shardings, _ = adapted.partition(param_shardings, trained)
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
        reference=trained_shardings if moving else None,
    )
    return jax.tree.map(
        lambda leaf, placed: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=placed
        ),
        state,
        placements,
    )


def abstract_run(
    cfg: config.RunConfig,
    model: internvl.InternVL,
    *,
    transform: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """:func:`abstract` of the state that a run's config asks for."""
    return abstract(
        model,
        transform=transform,
        trained=adapted.trained(cfg.model),
        moving=cfg.reference.mode == "moving",
        mesh=mesh,
        **dtypes(cfg.model),
        offload=cfg.optim.offload,
    )


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
    return TrainState(
        step=stored["loop"]["step"],
        params=stored["params"],
        opt_state=stored["opt_state"],
        reward_shift=stored["loop"]["reward_shift"],
        reference=stored.get("reference"),
    )


def dtypes(cfg: config.ModelConfig) -> dict[str, Any]:
    """``param_dtype`` and ``frozen_dtype`` of :func:`abstract` for a run."""
    frozen = cfg.param_dtype if cfg.frozen_dtype == "same" else cfg.frozen_dtype
    return {
        "param_dtype": jnp.dtype(cfg.param_dtype),
        "frozen_dtype": jnp.dtype(frozen),
    }


def shardings_of(state: Any) -> Any:
    """Shardings of an abstract (or real) tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)
