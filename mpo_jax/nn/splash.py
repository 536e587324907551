"""Splash attention (JAX's Pallas kernel for TPU) for packed rows and image tiles.

The kernel takes a static mask, whose empty blocks it never visits, and dynamic segment
ids. Everything around it is bookkeeping: lengths are padded to whole blocks, heads to
what the ``tensor`` axis divides, and ``shard_map`` gives every device its own rows and
heads, because the partitioner cannot look into a kernel.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel_lib,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as mask_lib,
)
from jaxtyping import Array, Float, Int

from mpo_jax import sharding

LANES = 128  # the kernel's blocks are multiples of the vector lane number
MAX_BLOCK = 512
SAVED_NAME = "attention"  # output and log-sum-exp, for remat="attention"


class RoleMask(mask_lib.Mask):
    """Causal, and queries at or after `blind_from` never see keys of ``[low, high)``.

    A function of the indices: a whole ``[T, T]`` array would take 44 MB at 6,656
    tokens. ``low == high`` is a plain causal mask; `causal` False sees everything.
    """

    def __init__(self, length: int, *, low: int, high: int, causal: bool = True):
        self._key = (length, low, high, causal)

    @property
    def shape(self) -> tuple[int, int]:
        return (self._key[0], self._key[0])

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        length, low, high, causal = self._key
        rows, columns = (np.arange(length)[part] for part in index)
        if not causal:
            return np.ones((len(rows), len(columns)), bool)
        query, key = rows[:, None], columns[None, :]
        hidden = (query >= high) & (key >= low) & (key < high)
        return (query >= key) & ~hidden

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RoleMask) and self._key == other._key

    def __hash__(self) -> int:
        return hash((type(self), self._key))


def block_size(length: int) -> int:
    """Largest block that divides `length` (a multiple of 128), at most 512."""
    return max(
        size
        for size in range(LANES, min(MAX_BLOCK, length) + 1, LANES)
        if length % size == 0
    )


def padded_length(length: int) -> int:
    """Length to pad to: whole blocks of at least 256 where that costs under 5 %.

    Blocks of 128 leave the matrix unit half idle; 1,025 ViT tokens become 1,152
    (three blocks of 384), 6,400 become 6,528 (17 of 384).
    """
    least = -(-length // LANES) * LANES
    for candidate in range(least, math.floor(least * 1.05) + 1, LANES):
        if block_size(candidate) >= 384:
            return candidate
    return least


@functools.lru_cache(maxsize=16)
def _kernel_mask(mask: RoleMask, heads: int) -> mask_lib.MultiHeadMask:
    return mask_lib.MultiHeadMask([mask] * heads)


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


def splash_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None,
    *,
    roles: tuple[int, int, int] | None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Attention with the static role mask and dynamic segment ids.

    Args:
      segment_ids: None sees every token (of tiles).
      roles: ``(T_p, T_c, T_r)`` of packed rows; None is bidirectional.
      interpret: run the kernel's program on any platform, slowly (tests).
    """
    length, num_heads = query.shape[1], query.shape[2]
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape.get("tensor", 1)
    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    query, key, value = _align_heads(query, key, value, shards)

    total = padded_length(length)
    extra = total - length
    if extra:
        if segment_ids is None:
            segment_ids = jnp.ones(query.shape[:2], jnp.int32)
        widths = ((0, 0), (0, extra), (0, 0), (0, 0))
        query, key, value = (jnp.pad(x, widths) for x in (query, key, value))
        segment_ids = jnp.pad(segment_ids, ((0, 0), (0, extra)), constant_values=-1)
    if roles is None:
        mask = RoleMask(total, low=0, high=0, causal=False)
    else:
        prompt, chosen, _ = roles
        mask = RoleMask(total, low=prompt, high=prompt + chosen)

    size = block_size(total)
    blocks = kernel_lib.BlockSizes(
        block_q=size,
        block_kv=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_q_dq=size,
        block_kv_dq=size,
    )

    def local(
        q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None
    ) -> jax.Array:
        kernel: Any = kernel_lib.make_splash_mha(
            _kernel_mask(mask, q.shape[1]),
            block_sizes=blocks,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=SAVED_NAME,
            interpret=interpret,
        )

        def row(
            q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array | None
        ) -> jax.Array:
            both = None if ids is None else kernel_lib.SegmentIds(q=ids, kv=ids)
            return kernel(q, k, v, segment_ids=both)

        return jax.vmap(row, in_axes=(0, 0, 0, None if segments is None else 0))(
            q, k, v, segments
        )

    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    if not mesh.empty:
        spec = functools.partial(sharding.RULES.spec, mesh=mesh)
        heads_spec = spec(("act_batch", "act_heads", None, None), query.shape)
        kv_spec = spec(("act_batch", "act_heads", None, None), key.shape)
        ids_spec = None
        if segment_ids is not None:
            ids_spec = spec(("act_batch", "act_seq"), segment_ids.shape)
        local = jax.shard_map(
            local,
            in_specs=(heads_spec, kv_spec, kv_spec, ids_spec),
            out_specs=heads_spec,
            check_vma=False,
        )
    out = local(query, key, value, segment_ids)
    return out.transpose(0, 2, 1, 3)[:, :length, :num_heads]
