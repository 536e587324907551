"""Gradients of the loss of a whole global batch, at once or by micro-batches.

With accumulation the loss and its gradient are still those of the whole global batch.
Where the loss couples pairs across micro-batches (a reward shift that includes the
current batch, AOT), the log-probs of all micro-batches are computed first, the loss is
differentiated with respect to them, and each micro-batch is then pulled back with its
cotangents: exact, at the price of one more forward pass. Otherwise one pass suffices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mpo_jax import config as config_lib
from mpo_jax import sharding, types
from mpo_jax.losses import mixture
from mpo_jax.losses.reward_shift import RewardShift
from mpo_jax.nn import params as params_lib


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is differentiated: where log-probs come from, and the loss of them.

    Attributes:
      policy: ``(trained parameters, batch)`` -> the policy's log-probs ``[B, Q]``.
      reference: batch -> the reference's, float32 ``[B, Q, 2]`` (chosen, rejected),
        nats, without a gradient; None where no term needs them.
      loss: terms, weights and options.
    """

    policy: Callable[[params_lib.Params, types.PackedBatch], types.PairLogps]
    reference: Callable[[types.PackedBatch], jax.Array | None]
    loss: config_lib.LossConfig


class Gradients(NamedTuple):
    """What one global batch gives.

    Attributes:
      tree: gradients of the trained parameters; float32 where they are accumulated,
        else in the parameters' dtypes.
      metrics: of the loss, (sum, weight).
      reward_shift: after this batch.
    """

    tree: params_lib.Params
    metrics: mixture.Metrics
    reward_shift: RewardShift


def batch_grads(
    objective: Objective,
    weights: params_lib.Params,
    batch: types.PackedBatch,
    shift: RewardShift,
    *,
    parts: int,
    chosen_tokens: int,
) -> Gradients:
    """Gradients of a global batch that is taken in so many micro-batches.

    Args:
      weights: the trained parameters.
      shift: reward shift before this batch.
      parts: micro-batches; divides the rows.
      chosen_tokens: chosen part of a row, in tokens.
    """
    if parts == 1:
        return whole_batch_grads(objective, weights, batch, shift)
    micro_batches = split_rows(batch, parts)
    if mixture.needs_two_passes(objective.loss):
        return two_pass_grads(objective, weights, micro_batches, shift)
    return one_pass_grads(
        objective, weights, micro_batches, shift, chosen_tokens=chosen_tokens
    )


def split_rows(batch: Any, parts: int) -> Any:
    """Cut ``[B, ...]`` into micro-batches ``[A, B / A, ...]`` without moving rows.

    Micro-batch ``a`` takes rows ``a, a + A, …``, so that each device keeps its own.
    """

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return x
        return jax.lax.with_sharding_constraint(x, P(None, sharding.BATCH))

    return jax.tree.map(cut, batch)


def whole_batch_grads(
    objective: Objective,
    weights: params_lib.Params,
    batch: types.PackedBatch,
    shift: RewardShift,
) -> Gradients:
    """Gradients of a batch ``[B, ...]`` at once."""
    reference = objective.reference(batch)

    def loss(weights: params_lib.Params) -> tuple[jax.Array, Any]:
        return mixture.mixed_loss(
            objective.policy(weights, batch),
            reference,
            batch.pair_mask,
            shift,
            config=objective.loss,
        )

    gradients, (metrics, shift) = jax.grad(loss, has_aux=True)(weights)
    return Gradients(gradients, metrics, shift)


def one_pass_grads(
    objective: Objective,
    weights: params_lib.Params,
    micro_batches: types.PackedBatch,
    shift: RewardShift,
    *,
    chosen_tokens: int,
) -> Gradients:
    """Gradients of micro-batches ``[A, B / A, ...]`` whose pairs are independent.

    Raises:
      ValueError: if the loss couples the pairs of a batch.
    """
    totals = mixture.Totals(
        pairs=jnp.sum(micro_batches.pair_mask),
        chosen_tokens=jnp.sum(micro_batches.label_mask[..., :chosen_tokens]),
    )

    def accumulate(total: Any, micro: types.PackedBatch) -> tuple[Any, Any]:
        reference = objective.reference(micro)

        def loss(weights: params_lib.Params) -> tuple[jax.Array, Any]:
            policy = objective.policy(weights, micro)
            share, _ = mixture.mixed_loss(
                policy,
                reference,
                micro.pair_mask,
                shift,
                config=objective.loss,
                totals=totals,
            )
            return share, policy

        gradients, policy = jax.grad(loss, has_aux=True)(weights)
        return _add(total, gradients), (policy, reference)

    gradients, (policy, reference) = jax.lax.scan(
        accumulate, _zeros(weights), micro_batches
    )
    _, (metrics, shift) = mixture.mixed_loss(
        policy, reference, micro_batches.pair_mask, shift, config=objective.loss
    )
    return Gradients(gradients, metrics, shift)


def two_pass_grads(
    objective: Objective,
    weights: params_lib.Params,
    micro_batches: types.PackedBatch,
    shift: RewardShift,
) -> Gradients:
    """Gradients of micro-batches ``[A, B / A, ...]`` under any loss."""

    def look(_: None, micro: types.PackedBatch) -> tuple[None, Any]:
        reference = objective.reference(micro)
        return None, (objective.policy(weights, micro), reference)

    _, (policy, reference) = jax.lax.scan(look, None, micro_batches)

    def loss(chosen: jax.Array, rejected: jax.Array) -> tuple[jax.Array, Any]:
        return mixture.mixed_loss(
            dataclasses.replace(policy, chosen=chosen, rejected=rejected),
            reference,
            micro_batches.pair_mask,
            shift,
            config=objective.loss,
        )

    cotangents, (metrics, shift) = jax.grad(loss, argnums=(0, 1), has_aux=True)(
        policy.chosen, policy.rejected
    )

    def pull_back(total: Any, inputs: Any) -> tuple[Any, None]:
        micro, (chosen, rejected) = inputs

        def surrogate(weights: params_lib.Params) -> jax.Array:
            found = objective.policy(weights, micro)
            return jnp.sum(found.chosen * chosen) + jnp.sum(found.rejected * rejected)

        return _add(total, jax.grad(surrogate)(weights)), None

    gradients, _ = jax.lax.scan(pull_back, _zeros(weights), (micro_batches, cotangents))
    return Gradients(gradients, metrics, shift)


def _zeros(weights: params_lib.Params) -> params_lib.Params:
    """Where gradients are summed: in float32, whatever the parameters' dtypes."""
    return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), weights)


def _add(total: Any, part: Any) -> Any:
    return jax.tree.map(lambda t, p: t + p.astype(t.dtype), total, part)
