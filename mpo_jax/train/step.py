"""The update as pure functions of (state, batch, key).

One ``build_train_step`` serves training, tests and ahead-of-time compilation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mpo_jax import config as config_lib
from mpo_jax import sharding, types
from mpo_jax.losses import logps as logps_lib
from mpo_jax.losses import mixture, reward_shift
from mpo_jax.models import adapted, internvl, network
from mpo_jax.nn import params as params_lib
from mpo_jax.train import optimizer as optimizer_lib
from mpo_jax.train.state import TrainState

Metrics = dict[str, tuple[jax.Array, jax.Array]]


def compute_of(cfg: config_lib.ModelConfig) -> network.Compute:
    """Forward-pass options of a run."""
    return network.Compute(
        dtype=jnp.dtype(cfg.dtype),
        remat=cfg.remat,
        attention=cfg.attention,
        vision_chunk=cfg.vision_chunk,
    )


def policy_logps(
    model: internvl.InternVL,
    weights: params_lib.Params,
    batch: types.PackedBatch,
    *,
    shape: types.RowShape,
    compute: network.Compute,
    chunk: int = 0,
    vocab_chunk: int = 0,
    drop_path: float = 0.0,
    key: jax.Array | None = None,
) -> types.PairLogps:
    """Summed log-probs of every pair of packed rows, ``[B, Q]``, float32 nats."""
    roles = (shape.prompt_tokens, shape.chosen_tokens, shape.rejected_tokens)
    bound = model.bind(weights)
    hidden = bound.response_hidden(
        batch, roles=roles, compute=compute, drop_path=drop_path, key=key
    )
    tokens = logps_lib.token_logps(
        hidden,
        bound.lm_head(),
        batch.labels,
        chunk=chunk,
        vocab_chunk=vocab_chunk,
        shards=sharding.tensor_shards(),
    )
    return logps_lib.pair_logps(
        tokens,
        batch.label_mask,
        batch.segment_ids[:, shape.prompt_tokens :],
        chosen_tokens=shape.chosen_tokens,
        num_pairs=shape.pairs,
    )


def _apply(params: params_lib.Params, updates: Any) -> params_lib.Params:
    updated: Any = optax.apply_updates(params, updates)
    return updated


def move_reference(
    reference: params_lib.Params,
    policy: params_lib.Params,
    step: jax.Array | int,
    cfg: config_lib.ReferenceConfig,
) -> params_lib.Params:
    """TR-DPO: mix the policy into the reference every ``moving_every`` steps."""
    alpha = jnp.where(step % cfg.moving_every == 0, cfg.moving_alpha, 0.0)
    return jax.tree.map(
        lambda old, new: (old + alpha * (new - old)).astype(old.dtype),
        reference,
        policy,
    )


def micro_batches(cfg: config_lib.RunConfig, shape: types.RowShape) -> int:
    """Parts in which a step takes a batch of rows of this shape."""
    long, optim = cfg.rows.long, cfg.optim
    if optim.accumulation_long and long.used and shape == long.build():
        return optim.accumulation_long
    return optim.accumulation


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


def fill(batch: types.PackedBatch, *, tokens_per_tile: int) -> Metrics:
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
    compute = compute_of(cfg)

    def step(weights: params_lib.Params, batch: types.PackedBatch) -> jax.Array:
        result = policy_logps(
            model,
            weights,
            batch,
            shape=shape,
            compute=compute,
            chunk=cfg.logps_chunk,
            vocab_chunk=cfg.vocab_chunk,
        )
        return jnp.stack([result.chosen, result.rejected], axis=-1)

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
) -> Callable[..., Metrics]:
    """Metrics of held-out pairs, without drop path; the reward shift is only read."""
    compute = compute_of(cfg.model)
    loss_cfg = _frozen_shift(cfg.loss)

    def step(
        weights: params_lib.Params, shift: Any, batch: types.PackedBatch
    ) -> Metrics:
        policy = policy_logps(
            model,
            weights,
            batch,
            shape=shape,
            compute=compute,
            chunk=cfg.model.logps_chunk,
            vocab_chunk=cfg.model.vocab_chunk,
        )
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
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Build the jitted update for one row shape.

    With accumulation the loss and its gradient are still those of the whole global
    batch. Where the loss couples pairs across micro-batches (a reward shift that
    includes the current batch, AOT), the log-probs of all micro-batches are computed
    first, the loss is differentiated with respect to them, and each micro-batch is then
    pulled back with its cotangents: exact, at the price of one more forward pass.
    Otherwise one pass suffices.

    Args:
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
    compute = compute_of(cfg.model)
    is_trained = adapted.trained(cfg.model)
    num_micro = micro_batches(cfg, shape)
    moving = cfg.reference.mode == "moving"

    def logps(
        weights: params_lib.Params,
        batch: types.PackedBatch,
        *,
        of: internvl.InternVL = model,
        drop_path: float = 0.0,
        key: jax.Array | None = None,
    ) -> types.PairLogps:
        return policy_logps(
            of,
            weights,
            batch,
            shape=shape,
            compute=compute,
            chunk=cfg.model.logps_chunk,
            vocab_chunk=cfg.model.vocab_chunk,
            drop_path=drop_path,
            key=key,
        )

    def with_reference(
        batch: types.PackedBatch, reference: params_lib.Params | None
    ) -> types.PackedBatch:
        if reference is None:
            return batch
        found = jax.lax.stop_gradient(
            logps(reference, batch, of=model.without_adapters)
        )
        pair = jnp.stack([found.chosen, found.rejected], axis=-1)
        return dataclasses.replace(batch, ref_logps=pair)

    def step(
        state: TrainState,
        batch: types.PackedBatch,
        key: jax.Array,
        reference: params_lib.Params | None = None,
    ) -> tuple[TrainState, Metrics]:
        trained, frozen = adapted.partition(state.params, is_trained)
        reference = state.reference if moving else reference
        if reference is not None:
            reference = adapted.union(adapted.without_adapters(state.params), reference)
        step_key = jax.random.fold_in(key, state.step)

        def forward(
            weights: params_lib.Params, micro: types.PackedBatch
        ) -> types.PairLogps:
            return logps(
                adapted.union(weights, frozen),
                micro,
                drop_path=cfg.model.drop_path,
                key=step_key,
            )

        if num_micro == 1:
            batch = with_reference(batch, reference)

            def loss_fn(weights: params_lib.Params) -> tuple[jax.Array, Any]:
                return mixture.mixed_loss(
                    forward(weights, batch),
                    batch.ref_logps,
                    batch.pair_mask,
                    state.reward_shift,
                    config=cfg.loss,
                )

            (_, (metrics, shift)), gradients = jax.value_and_grad(
                loss_fn, has_aux=True
            )(trained)
        else:
            gradients, metrics, shift = _accumulate(
                trained,
                split_rows(batch, num_micro),
                state.reward_shift,
                forward=forward,
                with_reference=lambda micro: with_reference(micro, reference),
                chosen_tokens=shape.chosen_tokens,
                cfg=cfg.loss,
            )

        moments = state.opt_state
        if cfg.optim.offload:
            moments = jax.device_put(moments, _on_device(out_shardings.opt_state))
        updates, opt_state = transform.update(gradients, moments, trained)
        trained = _apply(trained, updates)
        new_reference = state.reference
        if moving:
            new_reference = move_reference(
                state.reference, trained, state.step + 1, cfg.reference
            )
        one = jnp.ones((), jnp.float32)
        for name, value in optimizer_lib.norms(gradients).items():
            metrics[name] = (value, one)
        rate = jnp.asarray(schedule(state.step), jnp.float32)
        metrics["learning_rate"] = (rate, one)
        metrics |= fill(batch, tokens_per_tile=model.cfg.tokens_per_tile)
        return (
            TrainState(
                step=state.step + 1,
                params=adapted.union(trained, frozen),
                opt_state=opt_state,
                reward_shift=shift,
                reference=new_reference,
            ),
            metrics,
        )

    shardings = None if out_shardings is None else (out_shardings, None)
    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=shardings,
        compiler_options=compiler_options,
    )


def _on_device(placements: Any) -> Any:
    return jax.tree.map(lambda s: s.with_memory_kind("device"), placements)


def _accumulate(
    trained: params_lib.Params,
    micros: types.PackedBatch,
    shift: reward_shift.RewardShift,
    *,
    forward: Callable[[params_lib.Params, types.PackedBatch], types.PairLogps],
    with_reference: Callable[[types.PackedBatch], types.PackedBatch],
    chosen_tokens: int,
    cfg: config_lib.LossConfig,
) -> tuple[params_lib.Params, Metrics, reward_shift.RewardShift]:
    """Gradient, metrics and new reward shift of the whole batch, a part at a time."""
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trained)

    def add(total: Any, part: Any) -> Any:
        return jax.tree.map(lambda t, p: t + p.astype(t.dtype), total, part)

    def whole(policy: types.PairLogps, refs: Any) -> tuple[jax.Array, Any]:
        return mixture.mixed_loss(policy, refs, micros.pair_mask, shift, config=cfg)

    if mixture.needs_two_passes(cfg):

        def look(_: None, micro: types.PackedBatch) -> tuple[None, Any]:
            micro = with_reference(micro)
            return None, (forward(trained, micro), micro.ref_logps)

        _, (policy, refs) = jax.lax.scan(look, None, micros)

        def coupled(chosen: jax.Array, rejected: jax.Array) -> tuple[jax.Array, Any]:
            return whole(
                dataclasses.replace(policy, chosen=chosen, rejected=rejected), refs
            )

        cotangents, (metrics, new_shift) = jax.grad(
            coupled, argnums=(0, 1), has_aux=True
        )(policy.chosen, policy.rejected)

        def pull(total: Any, inputs: Any) -> tuple[Any, None]:
            micro, (chosen, rejected) = inputs

            def surrogate(weights: params_lib.Params) -> jax.Array:
                found = forward(weights, micro)
                return jnp.sum(found.chosen * chosen) + jnp.sum(
                    found.rejected * rejected
                )

            return add(total, jax.grad(surrogate)(trained)), None

        gradients, _ = jax.lax.scan(pull, zeros, (micros, cotangents))
        return gradients, metrics, new_shift

    totals = mixture.Totals(
        pairs=jnp.sum(micros.pair_mask),
        chosen_tokens=jnp.sum(micros.label_mask[..., :chosen_tokens]),
    )

    def one(total: Any, micro: types.PackedBatch) -> tuple[Any, Any]:
        micro = with_reference(micro)

        def loss_fn(weights: params_lib.Params) -> tuple[jax.Array, Any]:
            policy = forward(weights, micro)
            loss, _ = mixture.mixed_loss(
                policy,
                micro.ref_logps,
                micro.pair_mask,
                shift,
                config=cfg,
                totals=totals,
            )
            return loss, policy

        gradients, policy = jax.grad(loss_fn, has_aux=True)(trained)
        return add(total, gradients), (policy, micro.ref_logps)

    gradients, (policy, refs) = jax.lax.scan(one, zeros, micros)
    _, (metrics, new_shift) = whole(policy, refs)
    return gradients, metrics, new_shift
