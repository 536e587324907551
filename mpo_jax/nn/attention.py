"""Attention over packed role-major rows and over image tiles, by platform.

The mask of a packed row is a static part by role (``nn/roles.py``) and a dynamic one,
equal segment ids.

=============  ==========================================================
backend        what it is
=============  ==========================================================
``reference``  one einsum under the whole mask; the definition
``blocks``     XLA, some queries and heads at a time (``nn/blocks.py``)
``splash``     Pallas kernel for TPU (``nn/splash.py``); elsewhere interpreted
``cudnn``      cuDNN's flash kernel through ``jax.nn``, role by role; GPU, 16 bits
``auto``       splash on TPU, cudnn on GPU, blocks otherwise and in float32
=============  ==========================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import ad_checkpoint
from jaxtyping import Array, Bool, Float, Int

from mpo_jax import sharding
from mpo_jax.nn import blocks, layers, products, splash
from mpo_jax.nn import roles as roles_lib

BACKENDS = ("auto", "reference", "blocks", "splash", "cudnn")


def resolve(backend: str, dtype: Any) -> str:
    """The backend that ``auto`` means here, or `backend` itself.

    The platform is that of the mesh (which may be a topology without devices, compiled
    ahead of time), else the default device's. Kernels multiply in 16 bits, so float32
    compute, which promises float32 results, stays with XLA.

    Raises:
      ValueError: on an unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"model.attention={backend!r}: use one of {BACKENDS}")
    if backend != "auto":
        return backend
    if dtype == jnp.float32:
        return "blocks"
    return {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(
        sharding.platform(), "blocks"
    )


def full_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "#B T S"] | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention in one piece; scores and softmax in float32.

    Query head ``n`` reads key/value head ``n // G`` (``N = K * G``).
    """
    batch, num_queries, _, head_dim = query.shape
    num_keys, kv_heads = key.shape[1:3]
    precision = products.precision(query.dtype)
    # Heads first and one matmul per kv head: 3x faster than an einsum over the
    # incoming layout in XLA on a CPU, and the same program elsewhere.
    grouped = query.reshape(batch, num_queries, kv_heads, -1, head_dim)
    grouped = grouped.transpose(0, 2, 3, 1, 4)
    flat = grouped.reshape(batch, kv_heads, -1, head_dim)
    scores = jnp.einsum(
        "bkxh,bksh->bkxs",
        flat,
        key.transpose(0, 2, 1, 3),
        precision=precision,
        preferred_element_type=jnp.float32,
    ) * float(head_dim**-0.5)
    if mask is not None:
        shape = (batch, kv_heads, -1, num_queries, num_keys)
        bias = jnp.where(mask, 0.0, (-1e30)).astype(jnp.float32)
        scores = (scores.reshape(shape) + bias[:, None, None]).reshape(scores.shape)
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum(
        "bkxs,bksh->bkxh",
        weights.astype(value.dtype),
        value.transpose(0, 2, 1, 3),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    out = (out / total).astype(query.dtype).reshape(grouped.shape)
    out = ad_checkpoint.checkpoint_name(out, layers.ATTENTION)
    return out.transpose(0, 3, 1, 2, 4).reshape(query.shape)


def _cudnn_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"] | None = None,
) -> Float[Array, "B T N H"]:
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=None if mask is None else mask[:, None],
        implementation="cudnn",
    )


def _align_heads(
    query: jax.Array, key: jax.Array, value: jax.Array, shards: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Repeat key/value heads and pad all heads until `shards` divides them.

    Query head ``n`` must find its key/value head on its own shard. Where the number of
    key/value heads does not divide, they are repeated as little as possible; where the
    query heads do not divide either, zero heads are added (25 heads on 2 shards: 26).
    """
    heads, kv_heads = query.shape[2], key.shape[2]
    if shards == 1 or kv_heads % shards == 0:
        return query, key, value
    groups = heads // kv_heads
    repeat = groups
    if heads % shards == 0:
        repeat = next(
            r
            for r in range(1, groups + 1)
            if groups % r == 0 and kv_heads * r % shards == 0
        )
    key, value = (jnp.repeat(x, repeat, axis=2) for x in (key, value))
    missing = -key.shape[2] % shards
    if missing:
        widths = ((0, 0), (0, 0), (0, missing), (0, 0))
        query, key, value = (jnp.pad(x, widths) for x in (query, key, value))
    return query, key, value


def per_device(
    attend: Callable[..., jax.Array],
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None,
) -> Float[Array, "B T N H"]:
    """Run `attend` on every device's own rows and heads.

    The partitioner cannot look into a kernel, and would gather what is looped over.
    """
    heads = query.shape[2]
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(query, key, value, segment_ids)
    query, key, value = _align_heads(query, key, value, sharding.tensor_shards())
    spec = functools.partial(sharding.RULES.spec, mesh=mesh)
    names = ("act_batch", "act_seq", "act_heads", None)
    rows = None
    if segment_ids is not None:
        rows = spec(("act_batch", "act_seq"), segment_ids.shape)
    inside = jax.shard_map(
        attend,
        in_specs=(
            spec(names, query.shape),
            spec(names, key.shape),
            spec(names, value.shape),
            rows,
        ),
        out_specs=spec(names, query.shape),
        check_vma=False,
    )
    return inside(query, key, value, segment_ids)[:, :, :heads]


def tile_attention(
    query: Float[Array, "n T N H"],
    key: Float[Array, "n T N H"],
    value: Float[Array, "n T N H"],
    *,
    backend: str = "auto",
) -> Float[Array, "n T N H"]:
    """Bidirectional attention within each image tile."""
    backend = resolve(backend, query.dtype)
    if backend == "reference":
        return full_attention(query, key, value)
    if backend == "cudnn":
        return _cudnn_attention(query, key, value)
    return per_device(_inner(backend, roles=None), query, key, value, None)


def _inner(backend: str, *, roles: roles_lib.Roles | None) -> Callable[..., jax.Array]:
    if backend == "blocks":
        return functools.partial(blocks.block_attention, roles=roles)
    interpret = sharding.platform() != "tpu"
    return functools.partial(splash.splash_attention, roles=roles, interpret=interpret)


def packed_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    roles: roles_lib.Roles,
    backend: str = "auto",
) -> Float[Array, "B T N H"]:
    """Attention of packed rows; all backends give the same numbers.

    Raises:
      ValueError: on an unknown backend.
    """
    backend = resolve(backend, query.dtype)
    if backend == "reference":
        static = jnp.asarray(roles_lib.dense_mask(roles))
        same = segment_ids[:, :, None] == segment_ids[:, None, :]
        return full_attention(query, key, value, static[None] & same)
    if backend != "cudnn":
        inner = _inner(backend, roles=roles)
        return per_device(inner, query, key, value, segment_ids)
    outputs = []
    for piece in roles_lib.pieces(roles):

        def pick(x: jax.Array, keys: tuple[slice, ...] = piece.keys) -> jax.Array:
            return jnp.concatenate([x[:, part] for part in keys], axis=1)

        ours = piece.queries
        same = segment_ids[:, ours, None] == pick(segment_ids)[:, None, :]
        mask = jnp.asarray(piece.mask)[None] & same
        outputs.append(_cudnn_attention(query[:, ours], pick(key), pick(value), mask))
    return jnp.concatenate(outputs, axis=1)
