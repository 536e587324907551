"""Mesh, the one table of sharding rules, and activation constraints.

Modules name the axes of their parameters and activations with logical names;
:class:`Rules` maps those names to mesh axes. Nothing else in the project writes a
``PartitionSpec``, except for the batch (:func:`batch_sharding`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axes. Fields without a mesh axis are replicated.

    Parameters and activations have names of their own, because a weight is sharded
    along its width (gathered just before use) while an activation never is.
    """

    # Parameters.
    layers: tuple[str, ...] = ()
    embed: tuple[str, ...] = ("fsdp",)
    heads: tuple[str, ...] = ("tensor",)
    kv_heads: tuple[str, ...] = ("tensor",)
    head_dim: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ("tensor",)
    vocab: tuple[str, ...] = ("tensor",)
    norm: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    # Activations.
    act_batch: tuple[str, ...] = BATCH
    act_data: tuple[str, ...] = ("data",)
    act_seq: tuple[str, ...] = ()
    act_embed: tuple[str, ...] = ()
    act_heads: tuple[str, ...] = ("tensor",)
    act_kv: tuple[str, ...] = ("tensor",)
    act_slots: tuple[str, ...] = ("tensor",)
    act_mlp: tuple[str, ...] = ("tensor",)
    act_vocab: tuple[str, ...] = ("tensor",)

    def spec(
        self,
        axes: Sequence[str | None],
        shape: Sequence[int],
        mesh: Any,
    ) -> P:
        """Partition spec of an array with these logical axes.

        A mesh axis that does not divide its dimension is left out (the dimension is
        replicated along it), because odd vocabularies and head numbers are the rule
        in this family; it is then free for a later dimension.

        Raises:
          ValueError: if the number of axes and dimensions differ, or a name is unknown.
        """
        if len(axes) != len(shape):
            raise ValueError(f"axes {tuple(axes)} do not match shape {tuple(shape)}")
        used: set[str] = set()
        entries: list[Any] = []
        for name, size in zip(axes, shape, strict=True):
            wanted = () if name is None else self._mesh_axes(name)
            chosen: list[str] = []
            factor = 1
            for axis in wanted:
                extent = mesh.shape.get(axis, 1)
                if axis in used or extent == 1 or size % (factor * extent):
                    continue
                chosen.append(axis)
                factor *= extent
            used.update(chosen)
            if not chosen:
                entries.append(None)
            else:
                entries.append(chosen[0] if len(chosen) == 1 else tuple(chosen))
        return P(*entries)

    def _mesh_axes(self, name: str) -> tuple[str, ...]:
        if name not in _FIELDS:
            raise ValueError(f"unknown logical axis {name!r}; known: {sorted(_FIELDS)}")
        return getattr(self, name)


_FIELDS = frozenset(field.name for field in dataclasses.fields(Rules))
RULES = Rules()


def make_mesh(
    *,
    data: int = 1,
    fsdp: int = -1,
    tensor: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Build the mesh ``(data, fsdp, tensor)``; one size may be -1 (the rest).

    On several slices the ``data`` axis lies across them (over DCN).

    Raises:
      ValueError: if the sizes do not multiply to the number of devices, or the
        hardware has no such mesh.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size < -1 or size == 0 for size in sizes):
        raise ValueError(
            f"mesh sizes data={data}, fsdp={fsdp}, tensor={tensor}: each is positive, "
            "and at most one is -1"
        )
    fixed = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if int(np.prod(sizes)) != len(devices):
        raise ValueError(
            f"mesh data={data} × fsdp={fsdp} × tensor={tensor} does not fit the "
            f"{len(devices)} devices; change config.mesh"
        )
    num_slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    if num_slices > 1 and sizes[0] % num_slices:
        raise ValueError(
            f"mesh.data={sizes[0]} must be a multiple of the {num_slices} slices"
        )
    try:
        grid = _grid(sizes, devices, num_slices)
    except (AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"mesh data={sizes[0]} × fsdp={sizes[1]} × tensor={sizes[2]} cannot be "
            f"laid on these {len(devices)} devices, first {devices[0]}: they fill no "
            "box of the torus, or config.mesh does not fit it; use all devices of a "
            "slice (python -m mpo_jax.utils.slices lists them) and mesh.fsdp=-1"
        ) from error
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def _grid(sizes: Sequence[int], devices: Sequence[Any], num_slices: int) -> np.ndarray:
    """Devices as an array of these sizes, neighbours in it near in the hardware."""
    data, fsdp, tensor = sizes
    # A mesh axis takes whole axes of the torus where that is possible, else parts of
    # one: half of the meshes of the slices that are sold need it.
    if num_slices > 1:
        return mesh_utils.create_hybrid_device_mesh(
            (data // num_slices, fsdp, tensor),
            (num_slices, 1, 1),
            devices=devices,
            allow_split_physical_axes=True,
        )
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(
            sizes, devices=devices, allow_split_physical_axes=True
        )
    return np.asarray(devices).reshape(data, fsdp, tensor)


def platform() -> str:
    """Platform that is compiled for: the current mesh's, else the default backend's.

    Never ``jax.devices()``: ahead of time, the mesh is a TPU's on a machine without.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """XLA options of every large program on this mesh.

    On a TPU the partitioner would turn a product with a sharded weight into a ring of
    small products that overlap with its gathering. With weights sharded along their
    width over many chips, such a product contracts 128 columns and adds to the whole
    result in HBM each time: by the scheduler's cycles, 1.7 to 1.9 times slower than
    gathering first (docs/planning.md). So the size from which it does so is set out of
    reach.
    """
    if mesh.devices.flat[0].platform != "tpu":
        return {}
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def tensor_shards() -> int:
    """Size of the current mesh's ``tensor`` axis; 1 where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape.get("tensor", 1)


def data_shards(mesh: Mesh) -> int:
    """Number of ways in which the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of values that every device holds whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: rows over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, P(BATCH))


def shards_of_process(mesh: Mesh, process: int | None = None) -> np.ndarray:
    """Row shards of which a process holds a copy, int64, ascending.

    Devices of one process may lie anywhere in the mesh, and a ``tensor`` group that
    spans processes gives each of them the same shard.

    Args:
      process: None is this one.

    Raises:
      ValueError: if the process has no device in the mesh.
    """
    process = jax.process_index() if process is None else process
    owners = np.array([device.process_index for device in mesh.devices.flat])
    groups = owners.reshape(data_shards(mesh), -1)
    shards = np.flatnonzero((groups == process).any(axis=1))
    if not len(shards):
        raise ValueError(
            f"process {process} has none of the {mesh.devices.size} devices of the "
            "mesh; start as many processes as the mesh needs"
        )
    return shards


def rows_of_process(
    mesh: Mesh, num_rows: int, process: int | None = None
) -> np.ndarray:
    """Rows of a global batch that a process loads, int64, ascending.

    The one rule for which rows a process loads; :func:`to_global` places them.

    Args:
      num_rows: ``B``, rows of the global batch.
      process: None is this one.

    Raises:
      ValueError: if the rows do not divide over the shards.
    """
    each, rest = divmod(num_rows, data_shards(mesh))
    if rest or not each:
        raise ValueError(
            f"{num_rows} rows per batch do not divide over the {data_shards(mesh)} "
            "devices of the data and fsdp axes; set rows.rows_per_batch (or, if it is "
            f"derived, rows.row_multiple) to a multiple of {data_shards(mesh)}"
        )
    shards = shards_of_process(mesh, process)
    return (shards[:, None] * each + np.arange(each)).reshape(-1)


def shardings(shapes: Any, axes: Any, mesh: Mesh) -> Any:
    """Shardings of a parameter tree by :data:`RULES`.

    Args:
      shapes: nested dict of arrays or ``ShapeDtypeStruct``.
      axes: nested dict of the same structure with tuples of logical names.
    """
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, RULES.spec(names, leaf.shape, mesh)),
        shapes,
        axes,
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain an activation to the layout that :data:`RULES` give its axes.

    A no-op only where no mesh is set (``jax.set_mesh``), i.e. in unit tests of layers
    and in the notebook API.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, RULES.spec(axes, x.shape, mesh))


def per_shard(
    fn: Callable[..., jax.Array],
    args: Sequence[jax.Array],
    axes: Sequence[Sequence[str | None]],
) -> jax.Array:
    """``fn(*args)`` on every device's own parts; the result lies as the first one does.

    For what the partitioner would move between devices, though it need not.

    Args:
      axes: logical axes of every argument.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return fn(*args)
    specs = tuple(
        RULES.spec(names, x.shape, mesh) for x, names in zip(args, axes, strict=True)
    )
    return jax.shard_map(fn, in_specs=specs, out_specs=specs[0], check_vma=False)(*args)


def to_global(batch: Any, mesh: Mesh) -> Any:
    """Make global arrays from this process's rows of a batch (leading axis).

    Args:
      batch: rows as :func:`rows_of_process` lists them, in that order.

    Raises:
      ValueError: if the rows do not divide over the shards of this process.
    """
    sharding = batch_sharding(mesh)
    shards = shards_of_process(mesh)

    def place(x: Any) -> jax.Array:
        x = np.asarray(x)
        each, rest = divmod(len(x), len(shards))
        if rest:
            raise ValueError(
                f"{len(x)} rows do not divide over the {len(shards)} row shards of "
                "this process; load those of sharding.rows_of_process"
            )

        def part(index: Any) -> np.ndarray:
            shard = (index[0].start or 0) // each if each else 0
            first = int(np.searchsorted(shards, shard)) * each
            return x[first : first + each]

        shape = (each * data_shards(mesh), *x.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(place, batch)


def to_host(tree: Any) -> Any:
    """Fetch arrays as NumPy, gathering those that span several processes."""

    def fetch(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            from jax.experimental import multihost_utils

            return np.asarray(multihost_utils.process_allgather(x, tiled=True))
        return np.asarray(x)

    return jax.tree.map(fetch, tree)
