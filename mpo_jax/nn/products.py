"""Products of activations with weights, and the precision of every product."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def precision(dtype: Any) -> jax.lax.Precision | None:
    """Precision of products: float32 compute means float32 on every platform."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def dot(
    a: jax.Array, b: jax.Array, a_axes: tuple[int, ...], b_axes: tuple[int, ...]
) -> jax.Array:
    """Sum over `a_axes` of `a` with `b_axes` of `b`; what is left of `a` comes first.

    In the dtype of the operands, which is the same.
    """
    axes = ((a_axes, b_axes), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision(a.dtype))


def contract(x: jax.Array, kernel: jax.Array, num_in: int) -> jax.Array:
    """Product of the last `num_in` axes of `x` with the first of `kernel`."""
    return dot(x, kernel, tuple(range(x.ndim - num_in, x.ndim)), tuple(range(num_in)))
