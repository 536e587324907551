"""The TPU kernel, interpreted on a CPU, against the einsum reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpo_jax import sharding
from mpo_jax.nn import attention, products, splash, stack


def inputs(roles, *, heads, kv_heads, head_dim=16, rows=2):
    rng = np.random.default_rng(0)
    total = sum(roles)
    query = rng.normal(size=(rows, total, heads, head_dim)).astype(np.float32)
    key, value = (
        rng.normal(size=(rows, total, kv_heads, head_dim)).astype(np.float32)
        for _ in range(2)
    )
    segments = np.zeros((rows, total), np.int32)  # 0 is padding, also inside
    start = 0
    for length in roles:
        segments[0, start : start + length // 2] = 1
        segments[0, start + length // 2 : start + length - 3] = 2
        start += length
    segments[1:] = 1
    return query, key, value, segments


def value_and_gradients(fn, weights, *args):
    def scalar(*args):
        out = fn(*args)
        return jnp.sum(out * weights), out

    gradients, out = jax.jit(jax.grad(scalar, argnums=(0, 1, 2), has_aux=True))(*args)
    return out, gradients


def assert_same(found, expected):
    """Float32 on a CPU: other orders of summation only."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "mesh"),
    [
        (4, 2, {"fsdp": 2, "tensor": 1}),
        (4, 4, {"fsdp": 1, "tensor": 2}),
        (4, 2, {"fsdp": 2, "tensor": 4}),  # fewer key/value heads than shards
        (6, 2, {"fsdp": 1, "tensor": 4}),  # query heads that do not divide
        (5, 5, {"fsdp": 2, "tensor": 2}),  # as 25 heads of the 6B tower on 2 shards
    ],
)
def test_equals_the_reference_on_every_mesh(heads, kv_heads, mesh):
    roles = (96, 40, 30)  # 166 tokens: padded to 256, roles cross the kernel's blocks
    query, key, value, segments = inputs(roles, heads=heads, kv_heads=kv_heads)
    weights = np.random.default_rng(1).normal(size=query.shape).astype(np.float32)

    def run(backend):
        def fn(q, k, v):
            return attention.packed_attention(
                q, k, v, segments, roles=roles, backend=backend
            )

        return value_and_gradients(fn, weights, query, key, value)

    expected = run("reference")
    devices = jax.devices()[: mesh["fsdp"] * mesh["tensor"]]
    with jax.set_mesh(sharding.make_mesh(devices=devices, **mesh)):
        found = run("splash")
    assert_same(found, expected)


@pytest.mark.parametrize("length", [65, 128])
def test_tiles_see_each_other_but_not_the_padding(length):
    query, key, value, _ = inputs((length, 0, 0), heads=2, kv_heads=2)
    weights = np.random.default_rng(1).normal(size=query.shape).astype(np.float32)

    def run(backend):
        def fn(q, k, v):
            return attention.tile_attention(q, k, v, backend=backend)

        return value_and_gradients(fn, weights, query, key, value)

    assert_same(run("splash"), run("reference"))


def test_the_kernel_skips_blocks_without_a_visible_pair():
    mask = splash.RoleMask(768, (256, 256, 256))
    assert mask.shape == (768, 768)
    assert not mask[slice(512, 768), slice(256, 512)].any()
    assert mask[slice(512, 768), slice(0, 256)].all()
    assert splash.RoleMask(768, None)[slice(0, 256), slice(512, 768)].all()


@pytest.mark.parametrize(
    ("length", "total", "block"),
    [
        (6144, 6144, 512),
        (1025, 1152, 384),
        (6528, 6528, 384),
        (6400, 6528, 384),
        (100, 128, 128),
    ],
)
def test_lengths_are_padded_to_whole_large_blocks(length, total, block):
    assert splash.padded_length(length) == total
    assert splash.block_size(total) == block


def test_auto_follows_the_platform_of_the_mesh(monkeypatch):
    for platform, expected in (("tpu", "splash"), ("cuda", "cudnn"), ("cpu", "blocks")):
        monkeypatch.setattr(sharding, "platform", lambda platform=platform: platform)
        assert attention.resolve("auto", jnp.bfloat16) == expected
        assert attention.resolve("auto", jnp.float32) == "blocks"
        assert attention.resolve("reference", jnp.bfloat16) == "reference"


def test_remat_keeps_what_the_cudnn_kernel_returns(monkeypatch):
    """Forward kernels in the gradient's program; traced alone, without a GPU."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)
    roles = (128, 64, 64)
    x = jnp.ones((1, sum(roles), 128), jnp.bfloat16)
    kernels, segments = jnp.ones((2, 128, 128), x.dtype), jnp.ones(x.shape[:2], int)

    def layer(carry, kernel):
        heads = products.contract(carry, kernel, 1).reshape(*x.shape[:2], 2, 64)
        out = attention.packed_attention(
            heads, heads, heads, segments, roles=roles, backend="cudnn"
        )
        return carry + out.reshape(carry.shape), None

    def runs(policy):
        def loss(kernels):
            out, _ = jax.lax.scan(stack.remat(layer, policy=policy), x, kernels)
            return out.sum()

        text = str(jax.make_jaxpr(jax.grad(loss))(kernels))
        return text.count("dot_product_attention_fwd")

    found = {policy: runs(policy) for policy in ("none", "attention", "full")}
    assert found == {"none": 3, "attention": 3, "full": 6}  # one for each role


def test_cudnn_gets_the_mask_of_each_role(monkeypatch):
    """The kernel itself needs a GPU; what it is given is held against the reference."""
    roles = (12, 6, 4)
    query, key, value, segments = inputs(roles, heads=4, kv_heads=2)
    calls = []
    kernel = jax.nn.dot_product_attention

    def stand_in(*args, implementation, **kwargs):
        calls.append(implementation)
        return kernel(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    found = attention.packed_attention(
        query, key, value, segments, roles=roles, backend="cudnn"
    )
    expected = attention.packed_attention(
        query, key, value, segments, roles=roles, backend="reference"
    )
    assert calls == ["cudnn"] * 3
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
