"""Attention over packed role-major rows and over image tiles, by platform.

The mask of a packed row is a static part, known at compile time and the same for every
row, and a dynamic part. Static: causal by row index, and chosen/rejected never see each
other. Dynamic: equal segment ids. In row order a response comes after every prompt, so
causality by index lets it see its own prompt.

=============  ==========================================================
backend        what it is
=============  ==========================================================
``reference``  one einsum under the whole mask; the definition
``blocks``     XLA, role by role, empty role blocks skipped
``splash``     Pallas kernel for TPU (``nn/splash.py``); elsewhere interpreted
``cudnn``      cuDNN's flash kernel through ``jax.nn``, role by role; GPU, 16 bits
``auto``       splash on TPU, cudnn on GPU, blocks otherwise and in float32
=============  ==========================================================
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import ad_checkpoint
from jaxtyping import Array, Bool, Float, Int

from mpo_jax import sharding
from mpo_jax.nn import layers, splash

BACKENDS = ("auto", "reference", "blocks", "splash", "cudnn")
SAVED_NAME = splash.SAVED_NAME
Roles = tuple[int, int, int]


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


def role_mask(roles: Roles) -> np.ndarray:
    """Static part of the mask, bool ``[T, T]`` (query, key).

    Worked example, roles (2, 2, 1)::

        p p c c r
        1 . . . .   p
        1 1 . . .   p
        1 1 1 . .   c
        1 1 1 1 .   c
        1 1 . . 1   r      rejected never sees chosen
    """
    prompt, chosen, rejected = roles
    total = prompt + chosen + rejected
    mask = np.tril(np.ones((total, total), bool))
    mask[prompt + chosen :, prompt : prompt + chosen] = False
    return mask


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
    precision = layers.precision(query.dtype)
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
    out = ad_checkpoint.checkpoint_name(out, SAVED_NAME)
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


def tile_attention(
    query: Float[Array, "n T N H"],
    key: Float[Array, "n T N H"],
    value: Float[Array, "n T N H"],
    *,
    backend: str = "auto",
) -> Float[Array, "n T N H"]:
    """Bidirectional attention within each image tile."""
    backend = resolve(backend, query.dtype)
    if backend == "splash":
        return splash.splash_attention(
            query, key, value, None, roles=None, interpret=_interpret()
        )
    if backend == "cudnn":
        return _cudnn_attention(query, key, value)
    return full_attention(query, key, value)


def _interpret() -> bool:
    return sharding.platform() != "tpu"


def packed_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    roles: Roles,
    backend: str = "auto",
) -> Float[Array, "B T N H"]:
    """Attention of packed rows; all backends give the same numbers.

    Raises:
      ValueError: on an unknown backend.
    """
    backend = resolve(backend, query.dtype)
    if backend == "reference":
        static = jnp.asarray(role_mask(roles))
        same = segment_ids[:, :, None] == segment_ids[:, None, :]
        return full_attention(query, key, value, static[None] & same)
    if backend == "splash":
        return splash.splash_attention(
            query, key, value, segment_ids, roles=roles, interpret=_interpret()
        )
    attend = _cudnn_attention if backend == "cudnn" else full_attention

    prompt, chosen, rejected = roles
    prompts = slice(0, prompt)
    outputs = []
    for start, length in (
        (0, prompt),
        (prompt, chosen),
        (prompt + chosen, rejected),
    ):
        if not length:
            continue
        own = slice(start, start + length)
        visible = [prompts, own] if start else [own]

        def pick(x: jax.Array, visible: list[slice] = visible) -> jax.Array:
            return jnp.concatenate([x[:, part] for part in visible], axis=1)

        static = np.tril(np.ones((length, length), bool))
        if start:
            static = np.concatenate([np.ones((length, prompt), bool), static], 1)
        same = segment_ids[:, own, None] == pick(segment_ids)[:, None, :]
        mask = jnp.asarray(static)[None] & same
        outputs.append(attend(query[:, own], pick(key), pick(value), mask))
    return jnp.concatenate(outputs, axis=1)
