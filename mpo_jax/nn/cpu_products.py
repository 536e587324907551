"""``products.contract`` as XLA on a CPU computes it fastest, and its gradient.

A few rows and a large kernel, as in a step of decoding, are multiplied with the rows
laid out as columns, where no gradient is asked for: XLA of jaxlib 0.10 gives such a
product to Eigen and the ordinary one to YNNPACK, which takes longer. On one core, with
float32 kernels of 896 x 896 to 4864 x 896, columns took 4 to 20 % less time for 8 rows,
13 to 18 % for 32 and 23 to 31 % for 64. The kernel stays as it is.

XLA on a CPU writes the left operand of the kernel's gradient out transposed, which
takes time for wide layers: here that is the smaller of the two. The price is a gradient
by hand, through which forward mode does not go.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from mpo_jax.nn import products

FEW_ROWS = 128
"""From 256 rows on, the two orders take as long, or the ordinary one less."""
LARGE_KERNEL = 2**19
"""Elements. A model 256 wide, whose kernels stay in a core's cache, gained nothing."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def contract(x: jax.Array, kernel: jax.Array, num_in: int) -> jax.Array:
    """Product of the last `num_in` axes of `x` with the first of `kernel`."""
    lead, out = x.shape[: x.ndim - num_in], kernel.shape[num_in:]
    rows, inputs = math.prod(lead), math.prod(kernel.shape[:num_in])
    if not 1 < rows <= FEW_ROWS or kernel.size < LARGE_KERNEL:
        return products.contract(x, kernel, num_in)
    # Barriers: XLA would draw the transposition into the product, which is then the
    # ordinary one again, and what comes before into the transposition.
    barrier = jax.lax.optimization_barrier
    columns = barrier(barrier(x.reshape(rows, inputs)).T)
    found = products.dot(columns, kernel.reshape(inputs, -1), (0,), (0,))
    return found.reshape(*lead, *out)


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
