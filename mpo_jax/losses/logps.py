"""Token log-probs without the logits, and their sums per response."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mpo_jax import sharding, types
from mpo_jax.nn import products

_NEVER = -1e30  # logit of a padding column: exp() is 0, and no NaN as from -inf


@dataclasses.dataclass(frozen=True)
class Chunks:
    """How the vocabulary and the tokens are cut.

    The vocabulary is seen as ``[shards, per_shard]``, one part per shard of the
    ``tensor`` axis, and padded to whole blocks within each part: odd sizes (92,553,
    151,655) shard like even ones, and cutting a block never moves data between shards.

    Attributes:
      vocab: true size.
      shards: parts of the vocabulary.
      per_shard: entries per part, the last part padded.
      block: entries per part and block.
      num_blocks: blocks.
      tokens: positions per chunk.
    """

    vocab: int
    shards: int
    per_shard: int
    block: int
    num_blocks: int
    tokens: int

    @classmethod
    def plan(
        cls, vocab: int, length: int, *, vocab_chunk: int, chunk: int, shards: int
    ) -> Chunks:
        """Cut `vocab` entries and `length` positions; a chunk of 0 takes all."""
        per_shard = -(-vocab // shards)
        wanted = -(-min(vocab_chunk or vocab, vocab) // shards)
        num_blocks = -(-per_shard // wanted)
        # Equal blocks, of whole vector registers, pad least.
        block = -(-per_shard // num_blocks)
        if num_blocks > 1 and block > 128:
            block = -(-block // 128) * 128
        return cls(
            vocab=vocab,
            shards=shards,
            per_shard=per_shard,
            block=block,
            num_blocks=-(-per_shard // block),
            tokens=min(chunk or length, length),
        )

    def cut_kernel(self, kernel: jax.Array) -> jax.Array:
        """``[D, V]`` to ``[D, shards, num_blocks * block]``."""
        kernel = _pad(kernel, 1, self.shards * self.per_shard)
        kernel = kernel.reshape(-1, self.shards, self.per_shard)
        kernel = _pad(kernel, 2, self.num_blocks * self.block)
        return sharding.constrain(kernel, "embed", "vocab", None)

    def join_kernel(self, blocks: jax.Array) -> jax.Array:
        """``[num_blocks, D, shards, block]`` back to ``[D, V]``."""
        whole = jnp.moveaxis(blocks, 0, 2)
        whole = whole.reshape(*whole.shape[:2], -1)[:, :, : self.per_shard]
        return whole.reshape(whole.shape[0], -1)[:, : self.vocab]

    def columns(self, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Ids of block `number`'s entries, ``[shards, block]``, and which exist."""
        inside = number * self.block + jnp.arange(self.block)
        shard = jnp.arange(self.shards)[:, None]
        ids = shard * self.per_shard + inside[None]
        return ids, (inside[None] < self.per_shard) & (ids < self.vocab)


def _pad(x: jax.Array, axis: int, length: int) -> jax.Array:
    missing = length - x.shape[axis]
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])


def token_logps(
    hidden: Float[Array, "B R D"],
    kernel: Float[Array, "D V"],
    labels: Int[Array, "B R"],
    *,
    chunk: int,
    vocab_chunk: int = 0,
    shards: int,
) -> Float[Array, "B R"]:
    """Log-probability of every label, in nats, float32.

    Logits exist for `chunk` positions of each row and `vocab_chunk` entries at a time,
    forward and backward, so that peak memory grows neither with ``R`` nor with ``V``.
    The gradient recomputes them; a block of the kernel is gathered when it is used, and
    its gradient leaves with it. The kernel's gradient is summed in float32 over tokens
    and has the compute dtype, as that of every other layer.

    Args:
      hidden: normed hidden states in the compute dtype.
      kernel: output projection; cast to the compute dtype, accumulated in float32.
      labels: token ids; positions without a label may hold any valid id.
      chunk: positions per chunk; 0 takes all at once.
      vocab_chunk: entries of the vocabulary per block; 0 takes all at once.
      shards: devices that the vocabulary lies on (``tensor`` axis of the mesh). Another
        number gives the same result, and moves the kernel between devices.
    """
    chunks = Chunks.plan(
        kernel.shape[1],
        hidden.shape[1],
        vocab_chunk=vocab_chunk,
        chunk=chunk,
        shards=shards,
    )
    return _token_logps(hidden, kernel.astype(hidden.dtype), labels, chunks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _token_logps(
    hidden: jax.Array, kernel: jax.Array, labels: jax.Array, chunks: Chunks
) -> jax.Array:
    return _forward(hidden, kernel, labels, chunks)[0]


def _forward(
    hidden: jax.Array, kernel: jax.Array, labels: jax.Array, chunks: Chunks
) -> tuple[jax.Array, Any]:
    cut = chunks.cut_kernel(kernel)
    hidden_chunks, label_chunks = _by_tokens((hidden, labels), chunks)
    zeros = jnp.zeros(label_chunks.shape, jnp.float32)

    def block(carry: Any, number: jax.Array) -> tuple[Any, None]:
        weights = _block(cut, number, chunks)

        def part(inputs: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
            rows, wanted, (top, total, picked) = inputs
            logits, is_label = _logits(rows, weights, wanted, number, chunks)
            highest = jnp.maximum(top, jnp.max(logits, axis=(2, 3)))
            total = total * jnp.exp(top - highest) + jnp.sum(
                jnp.exp(logits - highest[:, :, None, None]), axis=(2, 3)
            )
            picked = picked + jnp.sum(jnp.where(is_label, logits, 0.0), axis=(2, 3))
            return highest, total, picked

        return _each(part, (hidden_chunks, label_chunks, carry)), None

    start = (zeros + _NEVER, zeros, zeros)
    (top, total, picked), _ = _scan(block, start, chunks)
    normaliser = top + jnp.log(total)
    logps = _join_tokens(picked - normaliser, hidden.shape[1])
    return logps, (hidden, kernel, labels, normaliser)


def _backward(
    chunks: Chunks, saved: Any, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    hidden, kernel, labels, normaliser = saved
    cut = chunks.cut_kernel(kernel)
    token_chunks = _by_tokens((hidden, labels, cotangent), chunks)
    precision = products.precision(hidden.dtype)

    def block(carry: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights = _block(cut, number, chunks)

        def part(inputs: Any) -> tuple[jax.Array, jax.Array]:
            (rows, wanted, factor), shift, hidden_grad = inputs
            logits, is_label = _logits(rows, weights, wanted, number, chunks)
            softmax = jnp.exp(logits - shift[:, :, None, None])
            grad = factor[:, :, None, None] * (is_label - softmax)
            grad = grad.astype(hidden.dtype)
            added = jnp.einsum(
                "brsv,dsv->brd",
                grad,
                weights,
                precision=precision,
                preferred_element_type=jnp.float32,
            )
            kernel_grad = jnp.einsum(
                "brd,brsv->dsv",
                rows,
                grad,
                precision=precision,
                preferred_element_type=jnp.float32,
            )
            return hidden_grad + added, kernel_grad

        inputs = (token_chunks, normaliser, carry)
        if normaliser.shape[0] == 1:
            first = jax.tree.map(lambda x: x[0], inputs)
            hidden_grad, kernel_grad = part(first)
            hidden_grad = hidden_grad[None]
        else:

            def add(total: jax.Array, inputs: Any) -> tuple[jax.Array, jax.Array]:
                hidden_grad, kernel_grad = part(inputs)
                return total + kernel_grad, hidden_grad

            zeros = jnp.zeros(weights.shape, jnp.float32)
            kernel_grad, hidden_grad = jax.lax.scan(add, zeros, inputs)
        kernel_grad = kernel_grad.astype(kernel.dtype)
        return hidden_grad, sharding.constrain(kernel_grad, "embed", "vocab", None)

    start = jnp.zeros(token_chunks[0].shape, jnp.float32)
    hidden_grad, blocks = _scan(block, start, chunks)
    hidden_grad = _join_tokens(hidden_grad, hidden.shape[1]).astype(hidden.dtype)
    return hidden_grad, chunks.join_kernel(blocks), None


_token_logps.defvjp(_forward, _backward)


def _block(cut: jax.Array, number: jax.Array, chunks: Chunks) -> jax.Array:
    """Block of the kernel, ``[D, shards, block]``, gathered along ``D``."""
    start = number * chunks.block
    block = jax.lax.dynamic_slice_in_dim(cut, start, chunks.block, axis=2)
    # Sharded first: else the partitioner gathers the whole kernel and slices that.
    block = sharding.constrain(block, "embed", "vocab", None)
    return sharding.constrain(block, None, "act_vocab", None)


def _logits(
    rows: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    number: jax.Array,
    chunks: Chunks,
) -> tuple[jax.Array, jax.Array]:
    """Float32 logits ``[B, c, shards, block]`` and where each label's stands."""
    logits = jnp.einsum(
        "brd,dsv->brsv",
        rows,
        weights,
        precision=products.precision(rows.dtype),
        preferred_element_type=jnp.float32,
    )
    logits = sharding.constrain(logits, "act_batch", "act_seq", "act_vocab", None)
    ids, real = chunks.columns(number)
    logits = jnp.where(real[None, None], logits, _NEVER)
    is_label = (labels[:, :, None, None] == ids[None, None]) & real[None, None]
    return logits, is_label


def _scan(body: Any, start: Any, chunks: Chunks) -> tuple[Any, Any]:
    """Scan over vocabulary blocks; a single one needs no loop."""
    if chunks.num_blocks == 1:
        carry, out = body(start, jnp.zeros((), jnp.int32))
        return carry, None if out is None else out[None]
    return jax.lax.scan(body, start, jnp.arange(chunks.num_blocks))


def _each(part: Any, inputs: Any) -> Any:
    """Map over token chunks (axis 0); a single one needs no loop."""
    if jax.tree.leaves(inputs)[0].shape[0] == 1:
        out = part(jax.tree.map(lambda x: x[0], inputs))
        return jax.tree.map(lambda x: x[None], out)
    return jax.lax.map(part, inputs)


def _by_tokens(arrays: Any, chunks: Chunks) -> Any:
    """``[B, R, ...]`` to ``[R / c, B, c, ...]``, zeros at the end."""

    def cut(x: jax.Array) -> jax.Array:
        number = -(-x.shape[1] // chunks.tokens)
        x = _pad(x, 1, number * chunks.tokens)
        x = x.reshape(x.shape[0], number, chunks.tokens, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    return jax.tree.map(cut, arrays)


def _join_tokens(x: jax.Array, length: int) -> jax.Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


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
