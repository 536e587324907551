"""Layers against torch."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import ad_checkpoint

from mpo_jax import sharding
from mpo_jax.nn import cpu_products, layers, params, products, stack

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_norm_equals_torch(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 16)).astype(np.float32) * 5
    norm = layers.Norm(16, kind=kind, eps=1e-6, rngs=nnx.Rngs(0))
    scale = rng.normal(size=16).astype(np.float32)
    norm.scale[...] = jnp.asarray(scale)
    if kind == "layer_norm":
        bias = rng.normal(size=16).astype(np.float32)
        norm.bias[...] = jnp.asarray(bias)
        args = [torch.from_numpy(v) for v in (scale, bias)]
        expected = torch.nn.functional.layer_norm(
            torch.from_numpy(x), (16,), *args, eps=1e-6
        )
    else:
        expected = torch.nn.functional.rms_norm(
            torch.from_numpy(x), (16,), torch.from_numpy(scale), eps=1e-6
        )
    np.testing.assert_allclose(norm(x), expected.numpy(), rtol=1e-5, atol=1e-5)


def test_norm_and_softmax_stay_float32_under_bf16():
    norm = layers.Norm(64, kind="layer_norm", eps=1e-6, rngs=nnx.Rngs(0))
    x = 1000 + np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    low = jnp.asarray(x, jnp.bfloat16)
    wide = np.asarray(low, np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    # bf16 holds 8 bits: the output's rounding is 2^-9 relative, nothing more.
    found = np.asarray(norm(low), np.float64)
    np.testing.assert_allclose(found, expected, rtol=2**-8, atol=2**-8)


def test_rms_norm_casts_before_the_weight_multiplies():
    """In bf16 as the released code does; the other order differs in a third of all."""
    rng = np.random.default_rng(0)
    norm = layers.Norm(256, kind="rms_norm", eps=1e-6, rngs=nnx.Rngs(0))
    norm.scale[...] = jnp.asarray(rng.normal(size=256), jnp.float32)
    x = jnp.asarray(5 * rng.normal(size=(8, 256)), jnp.bfloat16)
    theirs, weight = (
        torch.from_numpy(np.array(v, np.float32)) for v in (x, norm.scale[...])
    )
    inverse = torch.rsqrt(theirs.pow(2).mean(-1, keepdim=True) + 1e-6)
    expected = weight.bfloat16() * (theirs * inverse).bfloat16()
    found = norm(x)
    assert found.dtype == jnp.bfloat16
    # A float32 sum in another order may round one entry in some thousand elsewhere.
    same = np.asarray(found, np.float32) == expected.float().numpy()
    assert same.mean() > 0.99


ERF = np.vectorize(math.erf)


@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_activations_round_once_under_bf16(name):
    """Values and gradients are float64's, rounded to the 8 bits of bf16 at the end."""
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(3 * rng.normal(size=4096), jnp.bfloat16) for _ in range(2)]
    x, up = (np.asarray(v, np.float64) for v in inputs)
    if name == "gelu":
        inputs = inputs[:1]
        normal = 0.5 * (1 + ERF(x / 2**0.5))
        density = np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5
        expected, slopes = x * normal, [normal + x * density]
    else:
        gate = 1 / (1 + np.exp(-x))
        expected = x * gate * up
        slopes = [gate * (1 + x * (1 - gate)) * up, x * gate]
    found, pull = jax.vjp(getattr(layers, name), *inputs)
    assert found.dtype == jnp.bfloat16
    half = 1.01 * 2**-8  # half a step at most, relative
    np.testing.assert_allclose(np.asarray(found, "float64"), expected, half, 1e-6)
    for gradient, slope in zip(pull(jnp.ones_like(found)), slopes, strict=True):
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(gradient, "float64"), slope, half, 1e-6)
    # The wide values in between are not kept for it.
    assert {leaf.dtype for leaf in jax.tree.leaves(pull)} == {jnp.dtype("bfloat16")}
    assert len(jax.tree.leaves(pull)) == len(inputs)


def test_linear_contracts_real_head_axes():
    linear = layers.Linear(
        (2, 3),
        (4, 5),
        in_axes=("heads", "head_dim"),
        out_axes=("embed", None),
        use_bias=True,
        stddev=1.0,
        rngs=nnx.Rngs(0),
    )
    linear.bias[...] = jnp.arange(20.0).reshape(4, 5)
    x = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
    expected = np.einsum("bnh,nhde->bde", x, linear.kernel[...]) + np.arange(
        20.0
    ).reshape(4, 5)
    np.testing.assert_allclose(linear(x), expected, rtol=1e-5, atol=1e-5)


LINEAR = {"in_axes": (None, None), "out_axes": (None,), "stddev": 1.0}


def linear(width: int) -> layers.Linear:
    rngs = nnx.Rngs(0)
    return layers.Linear((2, 3), (width,), use_bias=True, rngs=rngs, **LINEAR)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [2, 20], ids=["narrows", "widens"])
def test_a_cpu_computes_the_ordinary_gradient(width, dtype, monkeypatch):
    graph, weights = nnx.split(linear(width))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(5, 7, 2, 3)), dtype)
    cotangent = jnp.asarray(rng.normal(size=(5, 7, width)), dtype)

    def pulled(platform: str):
        monkeypatch.setattr(sharding, "platform", lambda: platform)
        out, pull = jax.vjp(lambda w, x: nnx.merge(graph, w)(x), weights, x)
        return jax.tree.leaves((out, pull(cotangent)))

    found, expected = pulled("cpu"), pulled("tpu")
    assert len(found) == 4  # output, bias, kernel, input
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        scale = np.abs(np.asarray(b, np.float32)).max()
        tolerance = 1e-6 if a.dtype == np.float32 and dtype == "float32" else 2**-8
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), atol=tolerance * scale
        )


@pytest.mark.parametrize("width", [2, 20], ids=["narrows", "widens"])
def test_a_cpu_transposes_the_smaller_operand(width):
    """The last product of the gradient is the kernel's; XLA transposes its left."""
    x, kernel = jnp.ones((5, 7, 6)), jnp.ones((6, width))
    _, pull = jax.vjp(lambda x, k: cpu_products.contract(x, k, 1), x, kernel)
    equations = jax.make_jaxpr(pull)(jnp.ones((5, 7, width))).eqns
    products = [e for e in equations if e.primitive.name == "dot_general"]
    assert products[-1].invars[0].aval.shape == (5, 7, min(6, width))


LARGE = cpu_products.LARGE_KERNEL


@pytest.mark.parametrize(
    ("rows", "kernel", "order"),
    [
        ((4, 8), (256, LARGE // 256), 0),
        ((128, 1), (4, 64, LARGE // 256), 0),
        ((2, 3), (256, 8, LARGE // 2048), 0),
        ((129,), (256, LARGE // 256), 1),
        ((1, 1), (256, LARGE // 256), 1),
        ((4, 8), (256, LARGE // 256 - 1), 1),
    ],
)
def test_few_rows_meet_a_large_kernel_as_columns_on_a_cpu(rows, kernel, order):
    num_in = len(kernel) - 1 if kernel[0] == 4 else 1
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*rows, *kernel[:num_in])).astype(np.float32)
    w = rng.normal(size=kernel).astype(np.float32)

    def twice(x, w):
        # What comes before must not be drawn into the product, nor the order lost.
        return cpu_products.contract(2 * x, w, num_in)

    compiled = jax.jit(twice).lower(x, w).compile()
    expected = np.tensordot(2 * x.astype(np.float64), w, num_in)
    np.testing.assert_allclose(compiled(x, w), expected, rtol=1e-4, atol=1e-3)
    lines = [line for line in str(compiled.as_text()).splitlines() if " dot(" in line]
    if rows != (1, 1):  # XLA's own way with one row
        assert len(lines) == 1 and f"lhs_contracting_dims={{{order}}}" in lines[0]
    barriers = str(jax.make_jaxpr(twice)(x, w)).count("= optimization_barrier")
    assert barriers == (0 if order else 2)


@pytest.mark.parametrize(
    ("kernel", "places", "moved"),
    [
        ((256, 4, LARGE // 1024), (None, "tensor"), set()),
        ((4, 64, LARGE // 256), ("tensor",), {"all-reduce"}),
    ],
)
def test_rows_as_columns_on_a_mesh_move_no_kernel(kernel, places, moved):
    mesh = sharding.make_mesh(data=2, fsdp=1, tensor=4)
    num_in = 2 if kernel[0] == 4 else 1
    x = jnp.ones((4, 8, *kernel[:num_in]))
    spec = jax.sharding.PartitionSpec
    wide = spec("data", None, *places[:num_in])

    def at(x: jax.Array, where: jax.sharding.PartitionSpec) -> jax.Array:
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, where))

    contract = jax.jit(cpu_products.contract, static_argnums=2)
    args = at(x, wide), at(jnp.ones(kernel), spec(*places))
    text = contract.lower(*args, num_in).compile().as_text() or ""
    known = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
    assert {name for name in known if f" {name}(" in text} == moved
    assert "lhs_contracting_dims={0}" in text
    np.testing.assert_allclose(contract(*args, num_in), 256.0)


def test_rows_are_not_columns_where_a_gradient_is_asked_for():
    x, w = jnp.ones((4, 8, 256)), jnp.ones((256, LARGE // 256))

    def value(x, w):
        return cpu_products.contract(x, w, 1)

    def gradient(x, w):
        return jax.vjp(value, x, w)[0]

    assert "= optimization_barrier" in str(jax.make_jaxpr(value)(x, w))
    assert "= optimization_barrier" not in str(jax.make_jaxpr(gradient)(x, w))


def test_forward_mode_goes_through_a_linear_map_elsewhere(monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    rng = np.random.default_rng(0)
    x, tangent = (
        jnp.asarray(rng.normal(size=(5, 2, 3)), jnp.float32) for _ in range(2)
    )
    layer = linear(4)
    out, moved = jax.jvp(layer, (x,), (tangent,))
    np.testing.assert_array_equal(out, layer(x))
    expected = np.einsum("bnh,nhd->bd", tangent, layer.kernel[...])
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "by_hand"), [("cpu", True), ("tpu", False), ("cuda", False)]
)
def test_the_gradient_by_hand_is_a_cpus_alone(platform, by_hand, monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    text = str(jax.make_jaxpr(linear(4))(jnp.ones((5, 2, 3))))
    assert ("custom_vjp" in text) is by_hand


def test_rotary_is_the_half_split_rotation():
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 8)).astype(np.float32)
    positions = np.array([[0, 3, 1000]])
    inverse = 1e4 ** -(np.arange(4) / 4)
    tables = layers.rotary_tables(
        jnp.asarray(positions), jnp.asarray(inverse, jnp.float32)[None, None]
    )
    found = layers.rotary(jnp.asarray(x), tables)
    angle = positions[0][:, None] * inverse
    rotated = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)[None, :, None]
    expected = np.concatenate([rotated.real, rotated.imag], -1)
    # Angles up to 1000 carry float32's 6e-5 absolute rounding.
    np.testing.assert_allclose(found, expected, atol=2e-4)

    low = jnp.asarray(x, jnp.bfloat16)
    wide = np.asarray(low, np.float64)
    rotated = (wide[..., :4] + 1j * wide[..., 4:]) * np.exp(1j * angle)[None, :, None]
    expected = np.concatenate([rotated.real, rotated.imag], -1)
    found = layers.rotary(low, tables)
    assert found.dtype == jnp.bfloat16
    # Rounded at the end alone; products in bf16 would be off by as much of their terms.
    np.testing.assert_allclose(
        np.asarray(found, np.float64), expected, rtol=1.01 * 2**-8, atol=2e-4
    )


@pytest.mark.parametrize("policy", stack.REMAT)
def test_stack_equals_a_loop(policy):
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.weight = params.param(
                rngs, (4, 4), axes=(None, None), init=jax.nn.initializers.normal(1.0)
            )

        def __call__(self, x, offset, extra):
            return jnp.tanh(x @ self.weight[...]) + offset + extra, x.sum()

    stacked = stack.Stack(Block, num_layers=3, rngs=nnx.Rngs(0))
    weights = np.asarray(stacked.blocks.weight[...])
    x = np.ones((2, 4), np.float32)
    extra = np.arange(3, dtype=np.float32)
    for stop in (None, 2):
        expected, sums = x, []
        for i in range(stop or 3):
            sums.append(expected.sum())
            expected = np.tanh(expected @ weights[i]) + 0.5 + extra[i]
        found, left = stacked(
            jnp.asarray(x), 0.5, per_layer=jnp.asarray(extra), policy=policy, stop=stop
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(left, sums, rtol=1e-5)


@pytest.mark.parametrize("of", [products, cpu_products])
def test_policies_keep_what_they_name(of):
    """Products that are computed again on the way back, of a layer of four."""

    def layer(carry, kernel):
        first = jnp.sin(of.contract(carry, kernel, 1))
        scores = jnp.einsum("bqd,bkd->bqk", first, first)
        scores = ad_checkpoint.checkpoint_name(scores, layers.ATTENTION)
        mixed = jnp.einsum("bqk,bkd->bqd", jnp.tanh(scores), first)
        return of.contract(mixed, kernel, 1), None

    x, kernels = jnp.ones((2, 4, 8)), jnp.ones((3, 8, 8))

    def products(policy: str) -> int:
        def loss(kernels):
            out, _ = jax.lax.scan(stack.remat(layer, policy=policy), x, kernels)
            return out.sum()

        return str(jax.make_jaxpr(jax.grad(loss))(kernels)).count("dot_general")

    found = {policy: products(policy) for policy in stack.REMAT[:4]}
    # Forward four, backward two for each. What the last product gives is not needed.
    # Again: scores and the mixture; the first map and the mixture; all three.
    assert found == {"none": 12, "dots": 14, "attention": 14, "full": 15}


def test_unknown_remat_is_named():
    with pytest.raises(ValueError, match="everything"):
        stack.remat(lambda x: x, policy="everything")
