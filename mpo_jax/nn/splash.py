"""Splash attention (JAX's Pallas kernel for TPU) for packed rows and image tiles.

The kernel takes a static mask, whose empty blocks it never visits, and dynamic segment
ids. Everything around it is bookkeeping: lengths are padded to whole blocks.
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

from mpo_jax.nn import layers
from mpo_jax.nn import roles as roles_lib

LANES = 128  # the kernel's blocks are multiples of the vector lane number
MAX_BLOCK = 512


class RoleMask(mask_lib.Mask):
    """``roles.visible`` as the kernel takes it, of rows padded to `length`.

    A function of the indices: a whole ``[T, T]`` array would take 44 MB at 6,656
    tokens. Without roles everything sees everything.
    """

    def __init__(self, length: int, roles: roles_lib.Roles | None):
        self._key = (length, roles)

    @property
    def shape(self) -> tuple[int, int]:
        return (self._key[0], self._key[0])

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        length, roles = self._key
        rows, columns = (np.arange(length)[part] for part in index)
        if roles is None:
            return np.ones((len(rows), len(columns)), bool)
        return roles_lib.visible(rows[:, None], columns[None, :], roles)

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


def splash_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None,
    *,
    roles: roles_lib.Roles | None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Attention with the static role mask and dynamic segment ids.

    Args:
      segment_ids: None sees every token (of tiles).
      roles: ``(T_p, T_c, T_r)`` of packed rows; None is bidirectional.
      interpret: run the kernel's program on any platform, slowly (tests).

    Call it on one device's rows and heads (``attention.per_device``).
    """
    length = query.shape[1]
    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    total = padded_length(length)
    extra = total - length
    if extra:
        if segment_ids is None:
            segment_ids = jnp.ones(query.shape[:2], jnp.int32)
        widths = ((0, 0), (0, extra), (0, 0), (0, 0))
        query, key, value = (jnp.pad(x, widths) for x in (query, key, value))
        segment_ids = jnp.pad(segment_ids, ((0, 0), (0, extra)), constant_values=-1)
    mask = RoleMask(total, roles)
    size = block_size(total)
    blocks = kernel_lib.BlockSizes(
        block_q=size,
        block_kv=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_q_dq=size,
        block_kv_dq=size,
    )

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None
    ) -> jax.Array:
        kernel: Any = kernel_lib.make_splash_mha(
            _kernel_mask(mask, q.shape[2]),
            block_sizes=blocks,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=layers.ATTENTION,
            interpret=interpret,
        )

        def row(
            q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array | None
        ) -> jax.Array:
            both = None if ids is None else kernel_lib.SegmentIds(q=ids, kv=ids)
            return kernel(q, k, v, segment_ids=both)

        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        each = (0, 0, 0, None if segments is None else 0)
        return jax.vmap(row, in_axes=each)(q, k, v, segments).transpose(0, 2, 1, 3)

    return attend(query, key, value, segment_ids)[:, :length]
