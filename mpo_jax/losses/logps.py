"""Token log-probs without the logits, and their sums per response."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mpo_jax import sharding, types


def token_logps(
    hidden: Float[Array, "B R D"],
    kernel: Float[Array, "D V"],
    labels: Int[Array, "B R"],
    *,
    chunk: int,
) -> Float[Array, "B R"]:
    """Log-probability of every label, in nats, float32.

    Logits exist for `chunk` positions of each row at a time, forward and backward:
    the scan body is rematerialised, so peak memory does not depend on ``R``.

    Args:
      hidden: normed hidden states in the compute dtype.
      kernel: output projection; cast to the compute dtype, accumulated in float32.
      labels: token ids; positions without a label may hold any valid id.
      chunk: positions per chunk; 0 takes all at once.
    """
    length = hidden.shape[1]
    chunk = min(chunk or length, length)
    num_chunks = -(-length // chunk)
    pad = num_chunks * chunk - length
    weights = kernel.astype(hidden.dtype)
    exact = hidden.dtype == jnp.float32

    def split(x: jax.Array) -> jax.Array:
        widths = [(0, pad if axis == 1 else 0) for axis in range(x.ndim)]
        x = jnp.pad(x, widths) if pad else x
        x = x.reshape(x.shape[0], num_chunks, chunk, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    def body(_: None, inputs: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        some, targets = inputs
        logits = jnp.einsum(
            "brd,dv->brv",
            some,
            weights,
            precision=jax.lax.Precision.HIGHEST if exact else None,
            preferred_element_type=jnp.float32,
        )
        logits = sharding.constrain(logits, "act_batch", "act_seq", "act_vocab")
        picked = jnp.take_along_axis(logits, targets[:, :, None], axis=2)[:, :, 0]
        return None, picked - jax.nn.logsumexp(logits, axis=-1)

    scanned = (split(hidden), split(labels))
    if num_chunks == 1:
        return body(None, jax.tree.map(lambda x: x[0], scanned))[1]
    body = jax.checkpoint(body, prevent_cse=False)
    _, logps = jax.lax.scan(body, None, scanned)
    return jnp.moveaxis(logps, 0, 1).reshape(hidden.shape[0], -1)[:, :length]


def pair_logps(
    logps: Float[Array, "B R"],
    label_mask: Bool[Array, "B R"],
    segment_ids: Int[Array, "B R"],
    *,
    chosen_tokens: int,
    num_pairs: int,
) -> types.PairLogps:
    """Sum token log-probs per pair and side.

    Args:
      segment_ids: 1 + pair number of each response position, 0 is padding.
      chosen_tokens: ``T_c``; the first positions belong to chosen responses.
      num_pairs: ``Q``.
    """
    numbers = jnp.arange(1, num_pairs + 1)[None, None, :]
    member = (segment_ids[:, :, None] == numbers) & label_mask[:, :, None]

    def sums(values: jax.Array, region: slice) -> jax.Array:
        inside = jnp.where(member[:, region], values[:, region, None], 0.0)
        return jnp.sum(inside, axis=1)

    chosen, rejected = slice(0, chosen_tokens), slice(chosen_tokens, None)
    ones = jnp.ones_like(logps)
    return types.PairLogps(
        chosen=sums(logps, chosen),
        rejected=sums(logps, rejected),
        chosen_tokens=sums(ones, chosen),
        rejected_tokens=sums(ones, rejected),
    )
