"""Chunked log-probs against the plain log-softmax, values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpo_jax import sharding
from mpo_jax.losses import logps


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize(
    ("chunk", "vocab_chunk"), [(0, 0), (1, 0), (3, 4), (4, 13), (11, 1), (50, 5)]
)
def test_equals_log_softmax(chunk, vocab_chunk, tensor):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 11, 6)).astype(np.float32)
    kernel = rng.normal(size=(6, 13)).astype(np.float32)
    labels = rng.integers(0, 13, (2, 11))
    weights = rng.normal(size=(2, 11)).astype(np.float32)

    def ours(h, k):
        found = logps.token_logps(
            h, k, labels, chunk=chunk, vocab_chunk=vocab_chunk, shards=tensor
        )
        return jnp.sum(weights * found)

    def plain(h, k):
        every = jax.nn.log_softmax(h @ k, axis=-1)
        return jnp.sum(
            weights * jnp.take_along_axis(every, labels[..., None], 2)[..., 0]
        )

    mesh = sharding.make_mesh(
        fsdp=2, tensor=tensor, devices=jax.devices()[: 2 * tensor]
    )
    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(hidden, kernel)
    expected = jax.value_and_grad(plain, argnums=(0, 1))(hidden, kernel)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab_chunk", [0, 8])
def test_bf16_is_widened_before_anything_is_summed(vocab_chunk):
    """Against float64 on the same bf16 inputs: logits, their sum, and gradients."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 12, 16)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(16, 512)), jnp.bfloat16)
    labels = rng.integers(0, 512, (2, 12))
    weights = rng.normal(size=(2, 12)).astype(np.float32)

    def ours(h, k):
        found = logps.token_logps(
            h, k, labels, chunk=5, vocab_chunk=vocab_chunk, shards=1
        )
        return jnp.sum(weights * found), found

    function = jax.jit(jax.grad(ours, argnums=(0, 1), has_aux=True))
    (hidden_grad, kernel_grad), found = function(hidden, kernel)
    wide_hidden, wide_kernel = (np.asarray(x, np.float64) for x in (hidden, kernel))
    logits = wide_hidden @ wide_kernel
    every = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(every, labels[..., None], 2)[..., 0]
    assert found.dtype == jnp.float32
    # Logits of bf16 would be off by some hundredths.
    np.testing.assert_allclose(found, picked, atol=1e-5)
    pull = weights[..., None] * (np.eye(512)[labels] - np.exp(every))
    for gradient, expected in (
        (hidden_grad, pull @ wide_kernel.T),
        (kernel_grad, np.einsum("brd,brv->dv", wide_hidden, pull)),
    ):
        assert gradient.dtype == jnp.bfloat16
        error = np.asarray(gradient, np.float64) - expected
        # Softmax and result are rounded once: 0.002; with sums in bf16 it is 0.006.
        assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) < 3e-3


@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_logits_far_from_zero_overflow_nothing(shift):
    """All logits of a position moved alike: exp() of any would be 0 or infinite."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(1, 4, 6)).astype(np.float32)
    hidden[..., 0] = 1.0
    kernel = rng.normal(size=(6, 13)).astype(np.float32)
    moved = kernel.copy()
    moved[0] += shift
    labels = rng.integers(0, 13, (1, 4))

    def ours(h, k):
        return logps.token_logps(h, k, labels, chunk=0, vocab_chunk=4, shards=1)

    # An ulp of 300 is 3e-5.
    expected = ours(hidden, kernel)
    np.testing.assert_allclose(ours(hidden, moved), expected, atol=2e-4)
    slope = jax.grad(lambda k: ours(hidden, k).sum())
    np.testing.assert_allclose(slope(moved), slope(kernel), atol=2e-4)


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_blocks_cover_the_vocabulary_once(shards):
    """Whatever the shards, the entries of every block are those that exist."""
    chunks = logps.Chunks.plan(13, 11, vocab_chunk=5, chunk=4, shards=shards)
    assert chunks.shards == shards and chunks.per_shard == -(-13 // shards)
    found: list[int] = []
    for number in range(chunks.num_blocks):
        ids, real = chunks.columns(jnp.int32(number))
        assert ids.shape == (shards, chunks.block)
        found += np.asarray(ids)[np.asarray(real)].tolist()
    assert sorted(found) == list(range(13))
    kernel = jnp.arange(2 * 13.0).reshape(2, 13)
    blocks = chunks.cut_kernel(kernel).reshape(2, shards, chunks.num_blocks, -1)
    whole = chunks.join_kernel(jnp.moveaxis(blocks, 2, 0))
    np.testing.assert_array_equal(whole, kernel)


def test_memory_does_not_grow_with_the_number_of_chunks():
    """Temporaries of forward and backward stay those of one chunk of logits."""
    kernel = jax.ShapeDtypeStruct((16, 5003), jnp.float32)

    def temporaries(length: int) -> int:
        hidden = jax.ShapeDtypeStruct((1, length, 16), jnp.float32)
        labels = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def fn(h, k, y):
            return jnp.sum(logps.token_logps(h, k, y, chunk=64, shards=1))

        grad = jax.jit(jax.grad(fn, argnums=(0, 1)))
        stats = grad.lower(hidden, kernel, labels).compile().memory_analysis()
        return stats.temp_size_in_bytes

    few, many = temporaries(128), temporaries(2048)
    logits = 2048 * 5003 * 4
    assert many < few * 1.3, (few, many)
    assert many < logits / 4


def test_memory_does_not_grow_with_the_vocabulary_beyond_a_block():
    """More entries cost copies of the kernel and its gradient, but no more logits."""
    length, width, block = 512, 16, 1024

    def temporaries(vocab: int) -> int:
        hidden = jax.ShapeDtypeStruct((1, length, width), jnp.float32)
        kernel = jax.ShapeDtypeStruct((width, vocab), jnp.float32)
        labels = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def fn(h, k, y):
            found = logps.token_logps(h, k, y, chunk=0, vocab_chunk=block, shards=1)
            return jnp.sum(found)

        grad = jax.jit(jax.grad(fn, argnums=(0, 1)))
        stats = grad.lower(hidden, kernel, labels).compile().memory_analysis()
        return stats.temp_size_in_bytes

    few, many = temporaries(5003), temporaries(40_009)
    logits = length * (40_009 - 5003) * 4
    kernels = width * (40_009 - 5003) * 4
    assert many - few < 4 * kernels < logits / 4, (few, many)


def test_pair_sums_take_each_segment_and_side():
    values = jnp.arange(1.0, 9.0)[None]  # 4 chosen, then 4 rejected positions
    segments = jnp.array([[1, 1, 2, 0, 2, 2, 1, 0]])
    mask = jnp.array([[1, 0, 1, 1, 1, 1, 1, 1]], bool)
    found = logps.pair_logps(values, mask, segments, chosen_tokens=4, num_pairs=3)
    assert found.chosen.tolist() == [[1.0, 3.0, 0.0]]
    assert found.rejected.tolist() == [[7.0, 5.0 + 6.0, 0.0]]
    assert found.chosen_tokens.tolist() == [[1.0, 1.0, 0.0]]
    assert found.rejected_tokens.tolist() == [[1.0, 2.0, 0.0]]
