"""The table of rules, meshes, and how a released 8B model spreads over devices."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from mpo_jax import config, sharding
from mpo_jax.models import config as model_config
from mpo_jax.models import internvl
from mpo_jax.nn import params as params_lib
from mpo_jax.train import optimizer, state

RULES = sharding.RULES
NAMES = [field.name for field in dataclasses.fields(RULES)]


class Sizes:
    """What ``Rules.spec`` reads of a mesh."""

    def __init__(self, data: int, fsdp: int, tensor: int):
        self.shape = {"data": data, "fsdp": fsdp, "tensor": tensor}


@pytest.mark.parametrize(
    ("sizes", "axes", "shape", "expected"),
    [
        ((2, 2, 2), ("embed", "mlp"), (8, 8), P("fsdp", "tensor")),
        ((2, 2, 2), ("mlp", "embed"), (8, 8), P("tensor", "fsdp")),
        ((2, 2, 2), ("layers", "embed", "kv_heads", "head_dim"), (3, 8, 2, 4),
         P(None, "fsdp", "tensor", None)),
        # Odd vocabularies and head numbers: replicated along that dimension only.
        ((1, 4, 2), ("vocab", "embed"), (92553, 8), P(None, "fsdp")),
        ((1, 2, 8), ("embed", "kv_heads"), (8, 2), P("fsdp", None)),
        ((1, 1, 4), ("heads",), (14,), P(None)),
        # A mesh axis is used once: the second dimension of that name stays whole.
        ((1, 2, 2), ("heads", "mlp"), (4, 4), P("tensor", None)),
        # But one that did not divide the first is free for the second.
        ((1, 2, 2), ("heads", "mlp"), (3, 4), P(None, "tensor")),
        # Axes of size 1 are not named.
        ((1, 8, 1), ("embed", "mlp"), (8, 8), P("fsdp", None)),
        # Rows go over both data axes, or over those that divide them.
        ((2, 4, 1), ("act_batch", None), (8, 5), P(("data", "fsdp"), None)),
        ((2, 4, 1), ("act_batch", None), (2, 5), P("data", None)),
        ((3, 4, 1), ("act_batch", None), (4, 5), P("fsdp", None)),
        ((2, 4, 1), ("act_batch", None), (1, 5), P(None, None)),
        ((2, 2, 2), (), (), P()),
        ((2, 2, 2), ("norm", None), (8, 8), P(None, None)),
        ((2, 2, 2), ("embed",), (0,), P("fsdp")),
    ],
)  # fmt: skip
def test_spec(sizes, axes, shape, expected):
    assert RULES.spec(axes, shape, Sizes(*sizes)) == expected


@given(
    st.lists(
        st.tuples(st.sampled_from([*NAMES, None]), st.integers(1, 48)), max_size=5
    ),
    st.tuples(*[st.sampled_from([1, 2, 3, 4, 8])] * 3),
)
def test_a_spec_divides_its_dimensions_and_uses_an_axis_once(dims, sizes):
    mesh = Sizes(*sizes)
    spec = RULES.spec([name for name, _ in dims], [size for _, size in dims], mesh)
    assert len(spec) == len(dims)
    used = []
    for (name, size), entry in zip(dims, spec, strict=True):
        chosen = (entry,) if isinstance(entry, str) else entry or ()
        used += chosen
        assert set(chosen) <= set(() if name is None else getattr(RULES, name))
        assert size % math.prod(mesh.shape[axis] for axis in chosen) == 0
        assert all(mesh.shape[axis] > 1 for axis in chosen)
    assert len(used) == len(set(used))


def test_wrong_axes_are_named():
    with pytest.raises(ValueError, match="unknown logical axis 'embedd'; known.*embed"):
        RULES.spec(("embedd",), (8,), Sizes(1, 8, 1))
    with pytest.raises(ValueError, match="unknown logical axis 'spec'"):
        RULES.spec(("spec",), (8,), Sizes(1, 8, 1))
    with pytest.raises(ValueError, match=r"\('embed',\) do not match shape \(8, 8\)"):
        RULES.spec(("embed",), (8, 8), Sizes(1, 8, 1))


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ({}, (1, 8, 1)),
        ({"data": -1, "fsdp": 2}, (4, 2, 1)),
        ({"fsdp": 1, "tensor": -1}, (1, 1, 8)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 2, "fsdp": -1, "tensor": 4}, (2, 1, 4)),
    ],
    ids=str,
)
def test_mesh_sizes(asked, made):
    mesh = sharding.make_mesh(**asked)
    assert tuple(mesh.shape.values()) == made and mesh.axis_names == sharding.AXES
    assert sharding.data_shards(mesh) == made[0] * made[1]
    assert mesh.devices.size == 8


def test_mesh_of_some_devices():
    assert sharding.make_mesh(devices=jax.devices()[:3]).shape["fsdp"] == 3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"data": 3}, "data=3 × fsdp=-1 × tensor=1 does not fit the 8 devices"),
        ({"fsdp": 4}, "fsdp=4.*8 devices; change config.mesh"),
        ({"data": 16, "fsdp": 1}, "data=16.*does not fit the 8 devices"),
        ({"data": -1, "fsdp": -1}, "at most one is -1"),
        ({"data": 0}, "data=0.*each is positive"),
        ({"tensor": -2}, "tensor=-2.*each is positive"),
    ],
    ids=str,
)
def test_mesh_that_does_not_fit(asked, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(**asked)


def test_rows_of_a_batch_are_spread_and_come_back():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    batch = {"a": np.arange(24).reshape(8, 3), "b": np.arange(8.0), "none": None}
    placed = sharding.to_global(batch, mesh)
    for name in ("a", "b"):
        assert placed[name].sharding == sharding.batch_sharding(mesh)
        assert {s.data.shape[0] for s in placed[name].addressable_shards} == {2}
    back = sharding.to_host(placed)
    assert back["none"] is None
    np.testing.assert_array_equal(back["a"], batch["a"])
    assert isinstance(back["b"], np.ndarray)


def test_constrain_follows_the_mesh_that_is_set():
    x = jnp.zeros((4, 6, 8))
    axes = ("act_batch", "act_seq", "act_mlp")
    assert sharding.constrain(x, *axes) is x
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        placed = jax.jit(lambda y: sharding.constrain(y, *axes))(x)
    assert placed.sharding.spec == P("fsdp", None, "tensor")


@pytest.fixture(scope="module")
def model_8b(shared) -> internvl.InternVL:
    """InternVL2-8B; abstract, nothing is allocated."""
    (path,) = (shared / "data" / "configs").glob("InternVL2-8B.config*.json")
    return internvl.InternVL(model_config.load(path))


def _bytes_per_device(tree) -> tuple[int, int, int]:
    """Bytes of a tree, bytes that one device holds, bytes that every device holds."""
    whole = held = replicated = 0
    for leaf in jax.tree.leaves(tree):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        local = leaf.sharding.shard_shape(leaf.shape)
        whole += size
        held += math.prod(local) * leaf.dtype.itemsize
        replicated += size if leaf.sharding.is_fully_replicated else 0
    return whole, held, replicated


@pytest.mark.parametrize(
    ("sizes", "spread", "excess"),
    [
        # The odd vocabulary (92,553) is not split over `tensor`: embedding and head,
        # 9 % of the weights, are held `tensor` times.
        ((2, 2, 2), 4, 1.10),
        ((1, 8, 1), 8, 1.01),
        ((1, 4, 2), 8, 1.10),
    ],
    ids=str,
)
def test_an_8b_run_is_spread_over_the_devices(model_8b, sizes, spread, excess):
    mesh = sharding.make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    transform, _ = optimizer.build(config.OptimConfig(), 100)
    abstract = state.abstract(model_8b, transform=transform, moving=False, mesh=mesh)
    whole, held, replicated = _bytes_per_device(abstract)
    count = params_lib.count(model_8b.shapes)
    assert whole == pytest.approx(12 * count, rel=1e-6)  # weights and two moments
    assert replicated / whole < 0.01
    # A device holds its share and little more; `data` replicates by design.
    assert whole / spread <= held < excess * whole / spread
    # Moments lie where their weights lie.
    for moment in (optax.tree.get(abstract.opt_state, name) for name in ("mu", "nu")):
        for (path, weight), (_, leaf) in zip(
            params_lib.flatten(abstract.params), params_lib.flatten(moment), strict=True
        ):
            assert leaf.sharding == weight.sharding, path


def test_every_large_matrix_of_the_8b_model_is_split(model_8b):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    shapes, axes = model_8b.shapes, model_8b.axes
    placed = sharding.shardings(shapes, axes, mesh)
    for (path, leaf), (_, where) in zip(
        params_lib.flatten(shapes), params_lib.flatten(placed), strict=True
    ):
        if leaf.size > 2e6:  # more than 8 MB
            assert not where.is_fully_replicated, path


def test_rows_of_this_process_are_all_rows():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    assert sharding.rows_of_process(mesh, 12).tolist() == list(range(12))
    with pytest.raises(ValueError, match="6 rows per batch do not divide over the 4"):
        sharding.rows_of_process(mesh, 6)
    with pytest.raises(ValueError, match="process 1 has none of the 8 devices"):
        sharding.rows_of_process(mesh, 12, process=1)
    with pytest.raises(ValueError, match="6 rows do not divide over the 4 row shards"):
        sharding.to_global(np.zeros((6, 2)), mesh)


@given(
    st.permutations(range(8)),
    st.sampled_from([(1, 8, 1), (2, 2, 2), (1, 2, 4), (4, 1, 2), (1, 1, 8)]),
    st.integers(1, 3),
)
def test_rows_go_to_the_shards_of_their_devices(order, sizes, each):
    """Any order of devices: the loaded rows, placed, are the global batch."""
    devices = [jax.devices()[i] for i in order]
    mesh = sharding.make_mesh(
        data=sizes[0], fsdp=sizes[1], tensor=sizes[2], devices=devices
    )
    batch = np.arange(each * sharding.data_shards(mesh) * 2, dtype=np.int32)
    batch = batch.reshape(-1, 2)
    placed = sharding.to_global(batch, mesh)
    np.testing.assert_array_equal(placed, batch)
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, batch[shard.index])
