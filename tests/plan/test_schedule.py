"""The HLO reader on programs whose FLOPs and collectives are known."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mpo_jax import sharding
from mpo_jax.plan import hlo, schedule


def read(function, *args) -> schedule.Totals:
    text = jax.jit(function).lower(*args).compile().as_text()
    return schedule.totals(hlo.parse(text))


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products_with_batch_dimensions():
    found = read(
        lambda a, b: jnp.einsum("bij,bjk->bik", a, b), floats(3, 5, 7), floats(3, 7, 11)
    )
    assert found.flops == 2 * 3 * 5 * 7 * 11
    assert found.unresolved == () and found.collectives == {}


@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_scan_is_multiplied_out(length):
    def step(x, w):
        return jnp.tanh(x @ w), None

    found = read(
        lambda x, w: jax.lax.scan(step, x, w)[0], floats(8, 16), floats(length, 16, 16)
    )
    assert found.flops == length * 2 * 8 * 16 * 16


def test_nested_loops_multiply():
    def inner(x, w):
        return jax.lax.fori_loop(0, 5, lambda _, y: jnp.tanh(y @ w), x), None

    found = read(
        lambda x, w: jax.lax.scan(inner, x, w)[0], floats(8, 16), floats(3, 16, 16)
    )
    assert found.flops == 3 * 5 * 2 * 8 * 16 * 16


def test_trip_count_from_the_condition_alone():
    """TPU programs do not state it; here the statement is cut out."""
    text = (
        jax.jit(lambda x, w: jax.lax.fori_loop(2, 19, lambda _, y: jnp.tanh(y @ w), x))
        .lower(floats(8, 16), floats(16, 16))
        .compile()
        .as_text()
    )
    assert "known_trip_count" in text
    found = schedule.totals(hlo.parse(text.replace("known_trip_count", "cut")))
    assert found.flops == 17 * 2 * 8 * 16 * 16
    assert found.unresolved == ()


def test_a_loop_that_depends_on_data_is_named():
    def run(x, n):
        return jax.lax.while_loop(
            lambda c: c[0] < n, lambda c: (c[0] + 1, jnp.tanh(c[1] @ c[1])), (0, x)
        )[1]

    found = read(run, floats(8, 8), jax.ShapeDtypeStruct((), jnp.int32))
    assert found.flops == 2 * 8**3
    assert len(found.unresolved) == 1


def test_the_costlier_branch_counts():
    def run(flag, x):
        return jax.lax.cond(flag, lambda y: jnp.tanh(y @ y) @ y, lambda y: y @ y, x)

    found = read(run, jax.ShapeDtypeStruct((), jnp.bool_), floats(8, 8))
    assert found.flops == 2 * 2 * 8**3


@pytest.mark.parametrize(
    ("stride", "padding", "base", "kernel_dilation"),
    [
        (1, [(0, 0), (0, 0)], 1, 1),
        (2, [(1, 1), (0, 1)], 1, 1),
        (1, [(2, 1), (1, 0)], 3, 1),
        (3, [(-1, 4), (0, 0)], 2, 2),
    ],
)
def test_convolution_counts_true_positions_only(stride, padding, base, kernel_dilation):
    def run(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            window_strides=(stride, 1),
            padding=padding,
            lhs_dilation=(base, 1),
            rhs_dilation=(kernel_dilation, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    x, w = floats(2, 9, 8, 3), floats(3, 2, 3, 5)
    lowered = jax.jit(run).lower(x, w)
    # The compiler's own figure is right where there are no loops.
    cost = lowered.compile().cost_analysis()
    found = schedule.totals(hlo.parse(lowered.compile().as_text()))
    assert cost is not None
    assert found.flops == cost["flops"]


@pytest.fixture
def mesh():
    return sharding.make_mesh(data=2, fsdp=4, devices=jax.devices()[:8])


def test_collectives_are_counted_in_loops(mesh):
    def step(x, w):
        return jnp.tanh(x @ jax.lax.all_gather(w, "fsdp", tiled=True)), None

    def run(x, w):
        return jax.lax.scan(step, x, w)[0]

    split = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(P(sharding.BATCH), P(None, "fsdp")),
        out_specs=P(sharding.BATCH),
    )
    text = jax.jit(split).lower(floats(8, 16), floats(6, 16, 16)).compile().as_text()
    found = schedule.totals(hlo.parse(text))
    assert found.flops == 6 * 2 * 1 * 16 * 16
    gathers = found.collectives["all-gather"]
    assert gathers.count == 6
    # Of every layer's weights, 3 of 4 parts come from others.
    assert gathers.bytes == 6 * 16 * 16 * 4 * 3 / 4
    assert gathers.across_slices == 0


def test_all_reduce_sends_two_shares(mesh):
    place = functools.partial(NamedSharding, mesh)
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=place(P("fsdp")))
    with jax.set_mesh(mesh):
        run = jax.jit(lambda x: jnp.sum(x, axis=0), out_shardings=place(P()))
        text = run.lower(x).compile().as_text()
    reduced = schedule.totals(hlo.parse(text)).collectives["all-reduce"]
    assert reduced.count == 1
    assert reduced.bytes == 16 * 4 * 2 * 3 / 4
    assert reduced.across_slices == 0


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[4], x", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [(0, 2), (1, 3)]),
        (
            "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x",
            [(0, 2), (1, 3)],
        ),
        ("replica_groups=mesh['a'=2], device_ids=(1,0) {'a'}, x", [(1, 0)]),
        ("source_target_pairs={{0,1},{1,0}}, x", [(0, 1), (1, 0)]),
        ("channel_id=3", []),
    ],
)
def test_replica_groups(text, groups):
    assert schedule.replica_groups(text) == groups


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("hello")


def test_elements_of_tuples_may_be_written_in_short():
    """Newer compilers write ``%x#2`` where older ones have a get-tuple-element."""
    text = (
        jax.jit(lambda x, w: jax.lax.fori_loop(2, 19, lambda _, y: jnp.tanh(y @ w), x))
        .lower(floats(8, 16), floats(16, 16))
        .compile()
        .as_text()
    )
    text = re.sub(r'"known_trip_count":\{"n":"\d+"\}', '"x":{}', text)
    element = re.compile(
        r"^ +%([\w.\-]+) = [^\n]*? get-tuple-element\([^%)]*%([\w.\-]+)\), "
        r"index=(\d+).*\n",
        re.M,
    )
    short = element.sub("", text)
    for name, whole, index in element.findall(text):
        short = re.sub(rf"%{re.escape(name)}\b(?![\w.\-])", f"%{whole}#{index}", short)
    assert short.count("#") > 3 > short.count("get-tuple-element(")
    found = schedule.totals(hlo.parse(short))
    assert found == schedule.totals(hlo.parse(text))
    assert found.flops == 17 * 2 * 8 * 16 * 16 and found.unresolved == ()
