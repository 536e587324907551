"""The update as pure functions of (state, batch, key).

One ``build_train_step`` serves training, tests and ahead-of-time compilation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mpo_jax import config as config_lib
from mpo_jax import sharding, types
from mpo_jax.losses import logps as logps_lib
from mpo_jax.losses import mixture
from mpo_jax.models import adapted, internvl
from mpo_jax.models import network as network_lib
from mpo_jax.nn import params as params_lib
from mpo_jax.train import gradients as gradients_lib
from mpo_jax.train import optimizer as optimizer_lib
from mpo_jax.train.state import TrainState


def compute_of(cfg: config_lib.ModelConfig) -> network_lib.Compute:
    """Forward-pass options of a run."""
    return network_lib.Compute(
        dtype=jnp.dtype(cfg.dtype),
        remat=cfg.remat,
        attention=cfg.attention,
        vision_chunk=cfg.vision_chunk,
    )


def model_logps(
    model: internvl.InternVL,
    weights: params_lib.Params,
    batch: types.PackedBatch,
    *,
    shape: types.RowShape,
    compute: network_lib.Compute,
    chunk: int = 0,
    vocab_chunk: int = 0,
    drop_path: float = 0.0,
    key: jax.Array | None = None,
) -> types.PairLogps:
    """Summed log-probs of every pair of packed rows, ``[B, Q]``, float32 nats."""
    roles = (shape.prompt_tokens, shape.chosen_tokens, shape.rejected_tokens)
    network = model.bind(weights)
    hidden = network.response_hidden(
        batch, roles=roles, compute=compute, drop_path=drop_path, key=key
    )
    tokens = logps_lib.token_logps(
        hidden,
        network.lm_head(),
        batch.labels,
        shards=sharding.tensor_shards(),
        chunk=chunk,
        vocab_chunk=vocab_chunk,
    )
    return logps_lib.pair_logps(
        tokens,
        batch.label_mask,
        batch.segment_ids[:, shape.prompt_tokens :],
        chosen_tokens=shape.chosen_tokens,
        num_pairs=shape.pairs,
    )


def _run_logps(
    model: internvl.InternVL, cfg: config_lib.ModelConfig, shape: types.RowShape
) -> Callable[..., types.PairLogps]:
    """:func:`model_logps` as a run is configured: ``(weights, batch, **drop path)``."""
    return functools.partial(
        model_logps,
        model,
        shape=shape,
        compute=compute_of(cfg),
        chunk=cfg.logps_chunk,
        vocab_chunk=cfg.vocab_chunk,
    )


def _stacked(found: types.PairLogps) -> jax.Array:
    """Log-probs as a batch carries its reference's: ``[..., 2]``, chosen first."""
    return jnp.stack([found.chosen, found.rejected], axis=-1)


def micro_batches(cfg: config_lib.RunConfig, shape: types.RowShape) -> int:
    """Parts in which a step takes a batch of rows of this shape."""
    long, optim = cfg.rows.long, cfg.optim
    if optim.accumulation_long and long.used and shape == long.build():
        return optim.accumulation_long
    return optim.accumulation


def fill(batch: types.PackedBatch, *, tokens_per_tile: int) -> mixture.Metrics:
    """Tokens of the batch, and the shares of its budgets that are used."""
    tokens = jnp.sum(batch.segment_ids > 0, dtype=jnp.float32)
    metrics = {
        "tokens": (tokens, jnp.ones((), jnp.float32)),
        "fill/tokens": (tokens, jnp.float32(batch.segment_ids.size)),
    }
    tiles = batch.tiles.shape[0] * batch.tiles.shape[1]
    if tiles:
        used = jnp.sum(batch.image_slot >= 0, dtype=jnp.float32) / tokens_per_tile
        metrics["fill/tiles"] = (used, jnp.float32(tiles))
    return metrics


def build_logps_step(
    model: internvl.InternVL,
    cfg: config_lib.ModelConfig,
    shape: types.RowShape,
    mesh: Mesh,
) -> Callable[[params_lib.Params, types.PackedBatch], jax.Array]:
    """Deterministic log-probs ``[B, Q, 2]`` (chosen, rejected): the reference step."""
    logps = _run_logps(model, cfg, shape)

    def step(weights: params_lib.Params, batch: types.PackedBatch) -> jax.Array:
        return _stacked(logps(weights, batch))

    return jax.jit(
        step,
        out_shardings=sharding.batch_sharding(mesh),
        compiler_options=sharding.compiler_options(mesh),
    )


def build_eval_step(
    model: internvl.InternVL,
    cfg: config_lib.RunConfig,
    shape: types.RowShape,
    mesh: Mesh,
) -> Callable[..., mixture.Metrics]:
    """Metrics of held-out pairs, without drop path; the reward shift is only read."""
    logps = _run_logps(model, cfg.model, shape)
    loss_cfg = _frozen_shift(cfg.loss)

    def step(
        weights: params_lib.Params, shift: Any, batch: types.PackedBatch
    ) -> mixture.Metrics:
        policy = logps(weights, batch)
        _, (metrics, _) = mixture.mixed_loss(
            policy, batch.ref_logps, batch.pair_mask, shift, config=loss_cfg
        )
        return metrics

    return jax.jit(step, compiler_options=sharding.compiler_options(mesh))


def _frozen_shift(cfg: config_lib.LossConfig) -> config_lib.LossConfig:
    if cfg.delta in ("zero", "batch"):
        return cfg
    return dataclasses.replace(cfg, delta="previous")


def build_train_step(
    model: internvl.InternVL,
    cfg: config_lib.RunConfig,
    shape: types.RowShape,
    *,
    transform: optax.GradientTransformation,
    schedule: optax.Schedule,
    out_shardings: Any = None,
    compiler_options: dict[str, str] | None = None,
) -> Callable[..., tuple[TrainState, mixture.Metrics]]:
    """Build the jitted update for one row shape.

    Args:
      out_shardings: of the state.
      compiler_options: see ``sharding.compiler_options``.

    Returns:
      ``step(state, batch, key, reference) -> (state, metrics)``; `state` is donated.
      `reference` is None, or, when the reference is computed online, the parameters
      that it does not share with the policy (``adapted.kept_by_reference``): with
      adapters alone trained ``{}``, as the reference is the policy without them.
      `key` is the run's key; it is folded with the step number.

    Raises:
      ValueError: if moments are offloaded and `out_shardings` is None.
    """
    if cfg.optim.offload and out_shardings is None:
        raise ValueError("optim.offload needs out_shardings (train.state.shardings_of)")
    is_trained = adapted.trained(cfg.model)
    logps = functools.partial(
        _run_logps(model, cfg.model, shape), drop_path=cfg.model.drop_path
    )
    plain_logps = _run_logps(model.without_adapters, cfg.model, shape)
    batch_grads = functools.partial(
        gradients_lib.batch_grads,
        parts=micro_batches(cfg, shape),
        chosen_tokens=shape.chosen_tokens,
    )
    update = functools.partial(
        apply_update,
        transform=transform,
        reference=cfg.reference,
        is_trained=is_trained,
        offloaded=out_shardings.opt_state if cfg.optim.offload else None,
    )

    def step(
        state: TrainState,
        batch: types.PackedBatch,
        key: jax.Array,
        reference: params_lib.Params | None = None,
    ) -> tuple[TrainState, mixture.Metrics]:
        trained, frozen = adapted.partition(state.params, is_trained)
        step_key = jax.random.fold_in(key, state.step)
        kept = reference_weights(state, reference)
        objective = gradients_lib.Objective(
            policy=lambda w, rows: logps(adapted.union(w, frozen), rows, key=step_key),
            reference=functools.partial(reference_logps, plain_logps, kept),
            loss=cfg.loss,
        )
        found = batch_grads(objective, trained, batch, state.reward_shift)
        metrics = found.metrics | update_metrics(found.tree, schedule(state.step))
        metrics |= fill(batch, tokens_per_tile=model.cfg.tokens_per_tile)
        return update(state, found), metrics

    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=None if out_shardings is None else (out_shardings, None),
        compiler_options=compiler_options,
    )


def reference_weights(
    state: TrainState, online: params_lib.Params | None
) -> params_lib.Params | None:
    """Parameters of a reference that the step computes itself, without adapters.

    Args:
      online: what a frozen reference does not share with the policy, or None.

    Returns:
      None where neither the state nor `online` holds a reference: the batch carries
      its log-probs.
    """
    kept = online if state.reference is None else state.reference
    if kept is None:
        return None
    return adapted.union(adapted.without_adapters(state.params), kept)


def reference_logps(
    logps: Callable[[params_lib.Params, types.PackedBatch], types.PairLogps],
    weights: params_lib.Params | None,
    batch: types.PackedBatch,
) -> jax.Array | None:
    """The reference's log-probs, float32 ``[B, Q, 2]`` nats, without a gradient.

    Args:
      logps: of the model without adapters.
      weights: see :func:`reference_weights`; None takes what the batch carries.
    """
    if weights is None:
        return batch.ref_logps
    return _stacked(jax.lax.stop_gradient(logps(weights, batch)))


def apply_update(
    state: TrainState,
    found: gradients_lib.Gradients,
    *,
    transform: optax.GradientTransformation,
    reference: config_lib.ReferenceConfig,
    is_trained: adapted.Predicate = adapted.all_trained,
    offloaded: Any = None,
) -> TrainState:
    """The state after the optimiser's step; a moving reference follows the policy.

    Args:
      reference: how a moving reference moves.
      is_trained: of paths; all else keeps its value.
      offloaded: shardings of moments that lie on the host; they are brought to the
        devices for the update.
    """
    trained, frozen = adapted.partition(state.params, is_trained)
    moments = state.opt_state
    if offloaded is not None:
        on_device = jax.tree.map(lambda s: s.with_memory_kind("device"), offloaded)
        moments = jax.device_put(moments, on_device)
    updates, moments = transform.update(found.tree, moments, trained)
    updated: Any = optax.apply_updates(trained, updates)
    moving = state.reference
    if moving is not None:
        moving = move_reference(moving, updated, state.step + 1, reference)
    return TrainState(
        step=state.step + 1,
        params=adapted.union(updated, frozen),
        opt_state=moments,
        reward_shift=found.reward_shift,
        reference=moving,
    )


def move_reference(
    reference: params_lib.Params,
    policy: params_lib.Params,
    step: jax.Array | int,
    cfg: config_lib.ReferenceConfig,
) -> params_lib.Params:
    """TR-DPO: mix the policy into the reference every ``moving_every`` steps.

    At the other steps the arrays are passed on: nothing is read or written.
    """

    def mix(old: jax.Array, new: jax.Array) -> jax.Array:
        return (old + cfg.moving_alpha * (new - old)).astype(old.dtype)

    return jax.lax.cond(
        step % cfg.moving_every == 0,
        lambda: jax.tree.map(mix, reference, policy),
        lambda: reference,
    )


def update_metrics(
    gradients: params_lib.Params, rate: jax.typing.ArrayLike
) -> mixture.Metrics:
    """Norms of the gradients before clipping, and the learning rate of the step."""
    values = optimizer_lib.norms(gradients)
    values["learning_rate"] = jnp.asarray(rate, jnp.float32)
    one = jnp.ones((), jnp.float32)
    return {name: (value, one) for name, value in values.items()}
