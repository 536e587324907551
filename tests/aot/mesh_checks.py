"""Every slice that is sold, on its own torus: meshes, and the rows of each host.

A program of its own (``test_meshes.py`` runs it): once libtpu is loaded to describe a
topology, JAX's profiler no longer works in the process.
"""

from __future__ import annotations

import itertools

import numpy as np
from jax.experimental import topologies

from mpo_jax import sharding
from mpo_jax.utils import slices

CHIPS = 1024  # larger ones repeat the pattern and take minutes


def devices_of(item: slices.Slice, num_slices: int = 1) -> list:
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


def check_slice(item: slices.Slice) -> None:
    """All meshes with powers of two, tensor groups within hosts and across."""
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
    assert crossing or item.hosts == 1, item


def check_several_slices() -> None:
    """Slices lie along ``data``."""
    devices = devices_of(slices.lookup("v5e:4x4"), num_slices=2)
    for data, tensor in ((2, 1), (2, 2), (4, 4)):
        mesh = sharding.make_mesh(data=data, tensor=tensor, devices=devices)
        check_rows(mesh)
        by_row = [{d.slice_index for d in row.flat} for row in mesh.devices]
        assert all(len(found) == 1 for found in by_row) and by_row[0] != by_row[-1]
    _refused("mesh.data=1 must be a multiple of the 2 slices", devices=devices)


def check_parts_of_a_slice() -> None:
    """Devices that fill no box are refused readably."""
    devices = devices_of(slices.lookup("v5p:2x2x2"))
    for count, tensor in ((7, 1), (5, 1), (6, 3)):
        text = f"tensor={tensor} cannot be laid on these {count} devices"
        _refused(text, tensor=tensor, devices=devices[:count])


def _refused(text: str, **options) -> None:
    try:
        sharding.make_mesh(**options)
    except ValueError as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"no error: {text}")


def check_that_rows_lie_apart() -> None:
    """What the rule is for: on the recipes' slices rows are not in host order."""
    mesh = sharding.make_mesh(devices=devices_of(slices.lookup("v5e:4x8")))
    rows = [sharding.rows_of_process(mesh, 32, process) for process in range(8)]
    in_order = [list(range(4 * process, 4 * process + 4)) for process in range(8)]
    assert [mine.tolist() for mine in rows] != in_order


def main() -> None:
    sold = [item for item in slices.table() if item.chips <= CHIPS]
    for item in sold:
        check_slice(item)
    check_several_slices()
    check_parts_of_a_slice()
    check_that_rows_lie_apart()
    print(f"{len(sold)} slices agree")


if __name__ == "__main__":
    main()
