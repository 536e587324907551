"""``products.contract`` with the gradient that XLA on a CPU computes fastest.

XLA on a CPU writes the left operand of the kernel's gradient out transposed, which
takes time for wide layers: here that is the smaller of the two. The price is a gradient
by hand, through which forward mode does not go.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mpo_jax.nn import products


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def contract(x: jax.Array, kernel: jax.Array, num_in: int) -> jax.Array:
    """Product of the last `num_in` axes of `x` with the first of `kernel`."""
    return products.contract(x, kernel, num_in)


def _forward(
    x: jax.Array, kernel: jax.Array, num_in: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not `contract` itself: rematerialisation by "dots" must see a product.
    return products.contract(x, kernel, num_in), (x, kernel)


def _backward(
    num_in: int, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    lead = tuple(range(x.ndim - num_in))
    num_out = kernel.ndim - num_in
    out = tuple(range(cotangent.ndim - num_out, cotangent.ndim))
    x_grad = products.dot(cotangent, kernel, out, tuple(range(num_in, kernel.ndim)))
    if x.size <= cotangent.size:
        return x_grad, products.dot(x, cotangent, lead, lead)
    kernel_grad = products.dot(cotangent, x, lead, lead)
    out_last = tuple(range(num_in, kernel.ndim))
    return x_grad, jnp.moveaxis(kernel_grad, range(num_out), out_last)


contract.defvjp(_forward, _backward)
