"""Every slice that is sold, on its own torus: meshes, and the rows of each host."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mpo_jax import sharding
from mpo_jax.utils import slices

CHIPS = 1024  # larger ones repeat the pattern and take minutes
SOLD = [item for item in slices.table() if item.chips <= CHIPS]


@pytest.fixture(scope="module", autouse=True)
def no_lock():
    """Another process may hold libtpu; a description needs no device."""
    patch = pytest.MonkeyPatch()
    patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    yield
    patch.undo()


def devices_of(item: slices.Slice, num_slices: int = 1) -> list:
    from jax.experimental import topologies

    options = dict(item.aot_options)
    if num_slices > 1:
        options["num_slices"] = num_slices
    described = topologies.get_topology_desc(item.aot_name, platform="tpu", **options)
    return list(described.devices)


def check_rows(mesh) -> None:
    """Compare the rule with JAX's own sharding, device by device."""
    shards = sharding.data_shards(mesh)
    num_rows = 3 * shards
    placed = sharding.batch_sharding(mesh).devices_indices_map((num_rows,))
    needed: dict[int, set[int]] = {}
    for device, (rows,) in placed.items():
        needed.setdefault(device.process_index, set()).update(
            range(*rows.indices(num_rows))
        )
    seen: set[int] = set()
    for process, rows in needed.items():
        mine = sharding.rows_of_process(mesh, num_rows, process)
        assert mine.tolist() == sorted(rows), (mesh.shape, process)
        seen |= rows
    assert seen == set(range(num_rows))


@pytest.mark.parametrize("item", SOLD, ids=lambda item: item.aot_name)
def test_a_host_loads_the_rows_of_its_devices(item):
    """Over all meshes with powers of two, tensor groups within hosts and across."""
    devices = devices_of(item)
    crossing = 0
    for data, tensor in itertools.product((1, 2, 4), (1, 2, 4, 8, 16)):
        if len(devices) % (data * tensor):
            continue
        mesh = sharding.make_mesh(data=data, tensor=tensor, devices=devices)
        assert sorted(d.id for d in mesh.devices.flat) == sorted(d.id for d in devices)
        check_rows(mesh)
        groups = np.vectorize(lambda d: d.process_index)(mesh.devices)
        crossing += int((groups != groups[..., :1]).any())
    assert crossing or item.hosts == 1


def test_slices_lie_along_data():
    devices = devices_of(slices.lookup("v5e:4x4"), num_slices=2)
    for data, tensor in ((2, 1), (2, 2), (4, 4)):
        mesh = sharding.make_mesh(data=data, tensor=tensor, devices=devices)
        check_rows(mesh)
        by_row = [{d.slice_index for d in row.flat} for row in mesh.devices]
        assert all(len(found) == 1 for found in by_row) and by_row[0] != by_row[-1]
    with pytest.raises(ValueError, match="mesh.data=1 must be a multiple of the 2"):
        sharding.make_mesh(devices=devices)


@pytest.mark.parametrize(("count", "tensor"), [(7, 1), (5, 1), (6, 3)])
def test_devices_that_fill_no_box_are_refused_readably(count, tensor):
    devices = devices_of(slices.lookup("v5p:2x2x2"))[:count]
    with pytest.raises(ValueError, match=f"tensor={tensor} cannot be.*{count} devices"):
        sharding.make_mesh(tensor=tensor, devices=devices)


def test_rows_on_real_slices_are_not_in_the_order_of_hosts():
    """What the rule is for: on the recipes' slices a host's rows lie apart."""
    mesh = sharding.make_mesh(devices=devices_of(slices.lookup("v5e:4x8")))
    rows = [sharding.rows_of_process(mesh, 32, process) for process in range(8)]
    in_order = [
        mine.tolist() == list(range(4 * process, 4 * process + 4))
        for process, mine in enumerate(rows)
    ]
    assert not all(in_order)
