"""Linear maps, norms and embeddings.

Parameters are float32 (or what the run keeps them in); a layer casts them to the
compute dtype of its input. Norms compute in float32.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mpo_jax import sharding
from mpo_jax.nn import cpu_products, params, products
from mpo_jax.nn import lora as lora_lib

Axes = tuple[str | None, ...]
ATTENTION = "attention"
"""Name of what an attention layer keeps for its gradient under remat="attention".

cuDNN's kernel cannot carry it (``stack.remat``)."""


def _contract(x: jax.Array, kernel: jax.Array, num_in: int) -> Any:
    """``products.contract`` as the platform that is compiled for computes it best."""
    ours = cpu_products if sharding.platform() == "cpu" else products
    return ours.contract(x, kernel, num_in)


class Linear(nnx.Module):
    """Contraction of the last ``len(in_shape)`` axes with a kernel, plus a bias.

    The kernel keeps heads as real axes: ``[*in_shape, *out_shape]``. With an adapter
    its product is added (``nn/lora.py``).
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        *,
        in_axes: Axes,
        out_axes: Axes,
        use_bias: bool,
        stddev: float,
        lora: lora_lib.Lora | None = None,
        rngs: nnx.Rngs,
    ):
        self.num_in = len(in_shape)
        self.lora = lora
        self.kernel = params.param(
            rngs,
            (*in_shape, *out_shape),
            axes=(*in_axes, *out_axes),
            init=jax.nn.initializers.normal(stddev),
        )
        if use_bias:
            self.bias = params.param(
                rngs, out_shape, axes=out_axes, init=jax.nn.initializers.zeros
            )
        self.use_bias = use_bias
        if lora is None:
            return
        if not lora.shares_a:
            self.lora_a = params.param(
                rngs,
                (*in_shape, lora.rank),
                axes=(*in_axes, "lora"),
                init=lora_lib.init_a,
            )
        self.lora_b = params.param(
            rngs,
            (lora.rank, *out_shape),
            axes=("lora", *out_axes),
            init=jax.nn.initializers.zeros,
        )

    def low(self, x: Float[Array, ...]) -> Array:
        """``scale · x A`` of the adapter, ``[..., r]``."""
        assert self.lora is not None
        low = _contract(x, self.lora_a[...].astype(x.dtype), self.num_in)
        low = sharding.constrain(low, "act_batch", "act_seq", None)
        return low * self.lora.scale

    def __call__(self, x: Float[Array, ...], low: Array | None = None) -> Array:
        """Apply to ``x``; `low` is another map's where this one shares its ``A``."""
        out = _contract(x, self.kernel[...].astype(x.dtype), self.num_in)
        if self.lora is not None:
            low = self.low(x) if low is None else low
            out = out + _contract(low, self.lora_b[...].astype(x.dtype), 1)
        if self.use_bias:
            bias = self.bias[...].astype(x.dtype)
            out = out + jnp.expand_dims(bias, tuple(range(out.ndim - bias.ndim)))
        return out


def apply_parallel(x: Array, first: Linear, *others: Linear) -> tuple[Array, ...]:
    """Outputs of several maps of `x`; `others` may share the first's ``A``."""
    sharing = [other.lora is not None and other.lora.shares_a for other in others]
    low = first.low(x) if any(sharing) else None
    outs = (
        other(x, low if shares else None)
        for other, shares in zip(others, sharing, strict=True)
    )
    return first(x, low), *outs


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: Float[Array, ...]) -> Float[Array, ...]:
    """Exact GELU, computed in float32; only ``x`` is kept for the gradient."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


@functools.partial(jax.checkpoint, prevent_cse=False)
def swiglu(gate: Float[Array, ...], up: Float[Array, ...]) -> Float[Array, ...]:
    """``silu(gate) · up``, computed in float32; only the two are kept."""
    wide = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    return wide.astype(gate.dtype)


class Norm(nnx.Module):
    """Layer or RMS norm over the last axis, in float32.

    RMS norm casts to the input dtype before the weight multiplies, as the reference
    does; layer norm casts last.
    """

    def __init__(
        self,
        width: int,
        *,
        kind: str,
        eps: float,
        axes: Axes = ("norm",),
        rngs: nnx.Rngs,
    ):
        if kind not in ("layer_norm", "rms_norm"):
            raise ValueError(f"norm kind {kind!r}: use layer_norm or rms_norm")
        self.kind = kind
        self.eps = eps
        self.scale = params.param(
            rngs, (width,), axes=axes, init=jax.nn.initializers.ones
        )
        if kind == "layer_norm":
            self.bias = params.param(
                rngs, (width,), axes=axes, init=jax.nn.initializers.zeros
            )

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(jnp.float32)
        lead = tuple(range(x.ndim - 1))
        scale = jnp.expand_dims(self.scale[...], lead)
        if self.kind == "rms_norm":
            mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
            normed = (wide * jax.lax.rsqrt(mean_square + self.eps)).astype(x.dtype)
            return normed * scale.astype(x.dtype)
        mean = jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True)
        normed = (wide - mean) * jax.lax.rsqrt(variance + self.eps)
        bias = jnp.expand_dims(self.bias[...], lead)
        return (normed * scale + bias).astype(x.dtype)


class Embedding(nnx.Module):
    """Token embedding table ``[V, D]``."""

    def __init__(self, vocab: int, width: int, *, stddev: float, rngs: nnx.Rngs):
        self.table = params.param(
            rngs,
            (vocab, width),
            axes=("vocab", "embed"),
            init=jax.nn.initializers.normal(stddev),
        )

    def __call__(
        self, tokens: Int[Array, "B T"], *, dtype: Any
    ) -> Float[Array, "B T D"]:
        # Looked up where the width is sharded and cast after it: the gradient is then a
        # local float32 scatter into this device's columns, not a bf16 one into a whole
        # table that is summed over devices.
        tokens = sharding.constrain(tokens, "act_data", "act_seq")
        x = self.table[...][tokens].astype(dtype)
        return sharding.constrain(x, "act_data", "act_seq", "embed")


def rotary_tables(
    positions: Int[Array, "B T"],
    frequencies: Float[Array, "#B #T F"],
    *,
    scale: float = 1.0,
) -> tuple[Float[Array, "B T F"], Float[Array, "B T F"]]:
    """Cosine and sine of rotary angles, float32.

    Args:
      frequencies: radians per position of every channel pair.
      scale: factor on both.
    """
    angles = positions.astype(jnp.float32)[:, :, None] * frequencies
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def segment_lengths(
    positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"]
) -> Int[Array, "B T"]:
    """Tokens of a segment as far as they stand in the row: its highest position + 1.

    The two answers of a pair share a segment, and so the longer one's length.
    """

    def row(positions: jax.Array, segments: jax.Array) -> jax.Array:
        # A segment has at least one token, so there are at most T (and padding).
        highest = jax.ops.segment_max(positions, segments, len(positions) + 1)
        return highest[segments] + 1

    return jax.vmap(row)(positions, segment_ids)


def rotary(
    x: Float[Array, "B T N H"],
    tables: tuple[Float[Array, "B T F"], Float[Array, "B T F"]],
) -> Float[Array, "B T N H"]:
    """Rotary embedding, half-split (NeoX) order, in float32."""
    cos, sin = (table[:, :, None, :] for table in tables)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return rotated.astype(x.dtype)
