"""AdamW as released, and its schedule."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mpo_jax import config
from mpo_jax.nn import params as params_lib


def schedule(cfg: config.OptimConfig, num_steps: int) -> optax.Schedule:
    """Linear warm-up over ``ceil(fraction * steps)`` steps, then half a cosine to 0.

    As transformers' ``cosine`` schedule: step 0 has rate 0 if there is a warm-up.
    """
    warmup = math.ceil(cfg.warmup_fraction * num_steps)
    return optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else cfg.learning_rate,
        peak_value=cfg.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(num_steps, warmup + 1),
    )


def decay_mask(params: params_lib.Params) -> params_lib.Params:
    """True for matrices and embeddings, False for norms, biases and LayerScale."""

    def decays(path: str) -> bool:
        name = path.rsplit("/", 1)[-1]
        return name not in ("bias", "scale", "ls1", "ls2", "class_embedding")

    flat = {path: decays(path) for path, _ in params_lib.flatten(params)}
    return params_lib.unflatten(flat)


def build(
    cfg: config.OptimConfig, num_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Clipping by global norm, then AdamW with decoupled decay."""
    rate = schedule(cfg, num_steps)
    transforms: list[optax.GradientTransformation] = []
    if cfg.clip_norm > 0:
        transforms.append(optax.clip_by_global_norm(cfg.clip_norm))
    transforms.append(
        optax.adamw(
            rate,
            b1=cfg.b1,
            b2=cfg.b2,
            eps=cfg.eps,
            weight_decay=cfg.weight_decay,
            mask=None if cfg.decay_all else decay_mask,
        )
    )
    return optax.chain(*transforms), rate


def norms(gradients: Any) -> dict[str, jax.Array]:
    """Global norm of the gradients, whole and per part, float32."""
    result = {"grad_norm": optax.global_norm(gradients)}
    for part, tree in gradients.items():
        result[f"grad_norm/{part}"] = optax.global_norm(tree)
    return {name: jnp.asarray(value, jnp.float32) for name, value in result.items()}
