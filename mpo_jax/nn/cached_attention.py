"""Attention of new tokens to what is cached: a prompt that many share, and their own.

Answers to one prompt stand side by side in a group, and its keys and values are read
once for all of them: one product over all queries of the group. What an answer has said
so far is its own. Both are read some positions at a time, as many as are filled, and
joined under one float32 softmax that begins with the new token itself.

A position beyond a length has weight 0 exactly, and blocks come in the order of
positions; so an answer's numbers do not depend on how long its neighbours are.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from mpo_jax import sharding
from mpo_jax.nn import products

_NEVER = -1e30
Running = tuple[jax.Array, jax.Array, jax.Array]
"""Highest score and sum of weights ``[..., q]``; weighted sum of values."""


def attend(
    query: Float[Array, "G n N H"],
    key: Float[Array, "G n K H"],
    value: Float[Array, "G n K H"],
    *,
    prompts: tuple[Shaped[Array, "L G K P H"], Shaped[Array, "L G K P H"]],
    answers: tuple[Shaped[Array, "L G K n R H"], Shaped[Array, "L G K n R H"]],
    prompt_lengths: Int[Array, " G"],
    answer_lengths: Int[Array, "G n"],
    layer: Int[Array, ""],
    blocks: tuple[int, int],
) -> Float[Array, "G n N H"]:
    """One token of every answer attends to its prompt, its answer and itself.

    Args:
      query, key, value: of the new tokens, heads as in ``attention``.
      prompts, answers: cached keys and values of all layers, or their bits.
      prompt_lengths, answer_lengths: how many positions are filled.
      layer: which layer is read.
      blocks: positions read at a time, of prompts and answers; divide ``P`` and ``R``.
    """
    groups, slots, heads, width = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(groups, slots, kv_heads, -1, width).transpose(0, 2, 1, 3, 4)
    grouped = sharding.constrain(grouped, "act_batch", "act_kv", None, None, None)
    state = _itself(grouped, key, value)
    state = _over_blocks(
        state,
        prompts,
        layer,
        length=jnp.max(prompt_lengths),
        block=blocks[0],
        dtype=key.dtype,
        step=functools.partial(_prompt_block, grouped, prompt_lengths),
    )
    state = _over_blocks(
        state,
        answers,
        layer,
        length=jnp.max(answer_lengths),
        block=blocks[1],
        dtype=key.dtype,
        step=functools.partial(_answer_block, grouped, answer_lengths),
    )
    _, total, out = state
    out = (out / total[..., None]).astype(query.dtype)
    return out.transpose(0, 2, 1, 3, 4).reshape(query.shape)


def same_bits(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` as another dtype of the same width reads it."""
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)


def _scores(spec: str, query: jax.Array, key: jax.Array) -> jax.Array:
    product = jnp.einsum(
        spec,
        query,
        key,
        precision=products.precision(query.dtype),
        preferred_element_type=jnp.float32,
    )
    return product * float(query.shape[-1] ** -0.5)


def _itself(
    query: Float[Array, "G K n q H"],
    key: Float[Array, "G n K H"],
    value: Float[Array, "G n K H"],
) -> Running:
    """The state after the new token alone, whose weight is 1."""
    highest = _scores("gknqh,gnkh->gknq", query, key)
    value = value.astype(jnp.float32).transpose(0, 2, 1, 3)[:, :, :, None]
    return highest, jnp.ones_like(highest), jnp.broadcast_to(value, query.shape)


def _over_blocks(
    state: Running,
    cache: tuple[jax.Array, jax.Array],
    layer: jax.Array,
    *,
    length: jax.Array,
    block: int,
    dtype: Any,
    step: Any,
) -> Running:
    """Take the first `length` positions of a cache into the state, block by block."""

    def body(number: jax.Array, state: Running) -> Running:
        start = number * block

        def read(whole: jax.Array) -> jax.Array:
            # One slice of both axes: a layer by itself would be copied whole.
            sizes = (1, *whole.shape[1:-2], block, whole.shape[-1])
            at = (layer, *(0,) * (whole.ndim - 3), start, 0)
            found = jax.lax.dynamic_slice(whole, at, sizes)[0]
            return same_bits(found, dtype)

        positions = start + jnp.arange(block)
        return step(read(cache[0]), read(cache[1]), positions, state)

    return jax.lax.fori_loop(0, -(-length // block), body, state)


def _prompt_block(
    query: Float[Array, "G K n q H"],
    lengths: Int[Array, " G"],
    key: Float[Array, "G K S H"],
    value: Float[Array, "G K S H"],
    positions: Int[Array, " S"],
    state: Running,
) -> Running:
    """One product over all queries of a group."""
    groups, kv_heads, _, _, width = query.shape
    flat = query.reshape(groups, kv_heads, -1, width)
    scores = _scores("gkxh,gksh->gkxs", flat, key).reshape(*query.shape[:-1], -1)
    seen = positions[None, :] < lengths[:, None]

    def weigh(weights: jax.Array) -> jax.Array:
        flat = weights.reshape(groups, kv_heads, -1, weights.shape[-1])
        return _weighted("gkxs,gksh->gkxh", flat, value).reshape(query.shape)

    return _join(state, scores, seen[:, None, None, None], weigh)


def _answer_block(
    query: Float[Array, "G K n q H"],
    lengths: Int[Array, "G n"],
    key: Float[Array, "G K n S H"],
    value: Float[Array, "G K n S H"],
    positions: Int[Array, " S"],
    state: Running,
) -> Running:
    """Every answer's own."""
    scores = _scores("gknqh,gknsh->gknqs", query, key)
    seen = positions[None, None, :] < lengths[:, :, None]
    weigh = functools.partial(_weighted, "gknqs,gknsh->gknqh", value=value)
    return _join(state, scores, seen[:, None, :, None], weigh)


def _weighted(spec: str, weights: jax.Array, value: jax.Array) -> jax.Array:
    return jnp.einsum(
        spec,
        weights.astype(value.dtype),
        value,
        precision=products.precision(value.dtype),
        preferred_element_type=jnp.float32,
    )


def _join(
    state: Running,
    scores: Float[Array, "G K n q S"],
    seen: Bool[Array, ...],
    weigh: Any,
) -> Running:
    """The state after some more positions."""
    highest, total, out = state
    scores = jnp.where(seen, scores, _NEVER)
    new = jnp.maximum(highest, jnp.max(scores, axis=-1))
    weights = jnp.exp(scores - new[..., None])
    shrink = jnp.exp(highest - new)
    total = total * shrink + jnp.sum(weights, axis=-1)
    return new, total, out * shrink[..., None] + weigh(weights)
