"""Attention in plain XLA that holds few scores at a time; what a CPU runs.

Scores of a row would be the largest array of a step by far, and on a CPU reading and
writing them takes longer than the products. So queries are taken some hundred at a time
against the keys that they may see at all, for as many heads as fit the cache, and the
gradient computes the scores again from the saved log-sum-exp.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import ad_checkpoint
from jaxtyping import Array, Bool, Float, Int

from mpo_jax.nn import layers, products
from mpo_jax.nn import roles as roles_lib

QUERIES = 256  # per piece of a packed row
SCORES = 4 * 2**20  # held at a time: 16 MiB, about the last-level cache of a core
_NEVER = -1e30


def _product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(
        spec,
        a,
        b,
        precision=products.precision(a.dtype),
        preferred_element_type=jnp.float32,
    )


def _scores(query: jax.Array, key: jax.Array, mask: jax.Array | None) -> jax.Array:
    scores = _product("kxh,ksh->kxs", query, key) * float(query.shape[-1] ** -0.5)
    if mask is None:
        return scores
    shape = (scores.shape[0], -1, *mask.shape)
    bias = jnp.where(mask, 0.0, _NEVER).astype(jnp.float32)
    return (scores.reshape(shape) + bias[None, None]).reshape(scores.shape)


@jax.custom_vjp
def attend(
    query: Float[Array, "K X H"],
    key: Float[Array, "K S H"],
    value: Float[Array, "K S H"],
    mask: Bool[Array, "T S"] | None,
) -> Float[Array, "K X H"]:
    """Softmax attention of some heads; ``X = G * T`` stacks the queries of a group."""
    return _forward(query, key, value, mask)[0]


def _forward(query: Any, key: Any, value: Any, mask: Any) -> tuple[jax.Array, Any]:
    scores = _scores(query, key, mask)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = _product("kxs,ksh->kxh", weights.astype(value.dtype), value) / total
    out = ad_checkpoint.checkpoint_name(out.astype(query.dtype), layers.ATTENTION)
    normaliser = ad_checkpoint.checkpoint_name(
        highest + jnp.log(total), layers.ATTENTION
    )
    return out, (query, key, value, mask, out, normaliser)


def _backward(saved: Any, cotangent: jax.Array) -> tuple[Any, Any, Any, None]:
    query, key, value, mask, out, normaliser = saved
    dtype, scale = query.dtype, float(query.shape[-1] ** -0.5)
    weights = jnp.exp(_scores(query, key, mask) - normaliser)
    wide = cotangent.astype(jnp.float32) * out.astype(jnp.float32)
    inner = jnp.sum(wide, axis=-1, keepdims=True)
    grad = weights * (_product("kxh,ksh->kxs", cotangent, value) - inner) * scale
    grad, weights = grad.astype(dtype), weights.astype(dtype)
    return (
        _product("kxs,ksh->kxh", grad, key).astype(dtype),
        _product("kxs,kxh->ksh", grad, query).astype(dtype),
        _product("kxs,kxh->ksh", weights, cotangent).astype(dtype),
        None,
    )


attend.defvjp(_forward, _backward)


def block_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None,
    *,
    roles: roles_lib.Roles | None,
) -> Float[Array, "B T N H"]:
    """Attention with the static role mask and dynamic segment ids.

    Args:
      segment_ids: None sees every token (of tiles).
      roles: ``(T_p, T_c, T_r)`` of packed rows; None is bidirectional.
    """
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    groups = heads // kv_heads
    queries = length if roles is None else min(length, QUERIES)
    fitting = max(1, SCORES // (groups * queries * length))
    kv_at_once = math.gcd(kv_heads, fitting) if fitting < kv_heads else kv_heads

    def by_heads(x: jax.Array, groups: int) -> jax.Array:
        """``[B, T, K * G, H]`` to ``[B * K / k, k, G, T, H]``, ``k`` heads at once."""
        x = x.transpose(0, 2, 1, 3)
        return x.reshape(-1, kv_at_once, groups, length, head_dim)

    def heads_of_row(inputs: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, ids = inputs
        k, v = k[:, 0], v[:, 0]
        if roles is None:
            out = attend(q.reshape(kv_at_once, -1, head_dim), k, v, None)
            return out.reshape(q.shape)
        return _row(q, k, v, ids, roles=roles)

    ids = jnp.zeros((batch, length), jnp.int32) if segment_ids is None else segment_ids
    ids = jnp.repeat(ids, kv_heads // kv_at_once, axis=0)
    inputs = (by_heads(query, groups), by_heads(key, 1), by_heads(value, 1), ids)
    out = jax.lax.map(heads_of_row, inputs)
    out = out.reshape(batch, heads, length, head_dim)
    return out.transpose(0, 2, 1, 3)


def _row(
    query: Float[Array, "K G T H"],
    key: Float[Array, "K T H"],
    value: Float[Array, "K T H"],
    segment_ids: Int[Array, " T"],
    *,
    roles: roles_lib.Roles,
) -> Float[Array, "K G T H"]:
    """Some heads of one row, piece by piece; blocks that nothing sees are skipped."""
    outputs = []
    for piece in roles_lib.pieces(roles, max_queries=QUERIES):

        def pick(x: jax.Array, axis: int, keys: Any = piece.keys) -> jax.Array:
            parts = [jax.lax.slice_in_dim(x, s.start, s.stop, axis=axis) for s in keys]
            return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)

        same = segment_ids[piece.queries, None] == pick(segment_ids, 0)[None, :]
        ours = query[:, :, piece.queries]
        out = attend(
            ours.reshape(ours.shape[0], -1, ours.shape[-1]),
            pick(key, 1),
            pick(value, 1),
            jnp.asarray(piece.mask) & same,
        )
        outputs.append(out.reshape(ours.shape))
    return jnp.concatenate(outputs, axis=2)
