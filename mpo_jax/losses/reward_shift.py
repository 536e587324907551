"""BCO's reward shift: a running mean of rewards, and five readings of it.

``docs/losses.md`` has a table of the modes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from mpo_jax import config, fields

INCLUDES_THIS_BATCH = frozenset({"cumulative", "ema", "batch"})
"""Modes in which a pair's loss depends on the batch's other pairs."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RewardShift:
    """State of BCO's reward shift; part of the train state and its checkpoints.

    Fields are ``Any`` because shardings and abstract values travel in it too.

    Attributes:
      mean: float32 scalar, running mean of rewards (nats times beta).
      count: float32 scalar, pairs seen so far; 0 before the first step. Exact up to
        2**24 pairs; above, increments are rounded by less than 1e-7 of the count.
    """

    mean: Any
    count: Any


def init() -> RewardShift:
    """Reward shift before the first step: mean 0 of 0 pairs."""
    return RewardShift(mean=jnp.zeros((), "float32"), count=jnp.zeros((), "float32"))


def delta_for(
    mode: str,
    shift: RewardShift,
    batch_mean: Float[Array, ""],
    batch_count: Num[Array, ""],
    *,
    decay: float,
) -> tuple[Float[Array, ""], RewardShift]:
    """Reward shift to use in this step, and the state after it.

    The paper says only "the moving average of previous rewards"; released systems
    read that in five ways, which are the modes:

    * ``cumulative``: mean of all rewards so far, this batch included, weighted by
      pairs. What the released code does at its batch of one pair per device.
    * ``previous``: the same mean before this batch; 0 at the first step.
    * ``ema``: ``decay * mean + (1 - decay) * batch_mean``, this batch included; the
      first step takes its batch mean.
    * ``batch``: mean of this batch. ``zero``: 0. Both leave the state as it is.

    No gradient flows through delta or the state. A batch without pairs leaves the
    state as it is; delta is then the mean so far (0 with ``batch``). A batch mean
    that is not finite is passed on: skipping such a step is the caller's decision.

    Args:
      mode: one of :data:`mpo_jax.config.DELTA_MODES`.
      shift: state before this step.
      batch_mean: float32, mean over pairs of (chosen + rejected reward) / 2.
      batch_count: real pairs in the global batch.
      decay: of ``ema``, in [0, 1).

    Returns:
      ``(delta, new_shift)``, float32.

    Raises:
      ValueError: unknown mode.
    """
    fields.choice("loss.delta", mode, config.DELTA_MODES)
    shift = jax.lax.stop_gradient(shift)
    count = jax.lax.stop_gradient(batch_count).astype(jnp.float32)
    has_pairs = count > 0
    mean = jax.lax.stop_gradient(batch_mean).astype(jnp.float32)
    mean = jnp.where(has_pairs, mean, 0.0)
    if mode == "zero":
        return jnp.zeros((), jnp.float32), shift
    if mode == "batch":
        return mean, shift
    total = shift.count + count
    share = count / jnp.where(total > 0, total, 1.0)
    if mode == "ema":
        share = jnp.where(shift.count > 0, 1.0 - decay, 1.0)
    share = jnp.where(has_pairs, share, 0.0)
    updated = RewardShift(mean=shift.mean + share * (mean - shift.mean), count=total)
    return (shift.mean if mode == "previous" else updated.mean), updated
