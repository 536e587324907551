"""Released checkpoints in and out: safetensors in either layout, streamed.

Reading goes tensor by tensor into what each device keeps, writing tensor by tensor into
files, so that no second copy of the model exists on the host. Both account strictly:
every tensor is used once and every parameter filled, or all that is wrong is named.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import pathlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpo_jax import sharding
from mpo_jax.convert import files, layouts, places, source, table, writer
from mpo_jax.convert.settings import NONE, Settings
from mpo_jax.models import adapted, internvl
from mpo_jax.nn import lora
from mpo_jax.nn import params as params_lib
from mpo_jax.utils import remote, watchdog

Fetch = Callable[[str, int | None], np.ndarray]


def check_source(directory: str | pathlib.Path, model: internvl.InternVL) -> None:
    """Check headers and names without reading weights; raises as :func:`load` does."""
    with source.opened(directory) as opened:
        source.account(opened, model.cfg)


def load(
    directory: str | pathlib.Path,
    model: internvl.InternVL,
    *,
    dtype: str | Mapping[str, Any] = "float32",
    shardings: Mapping[str, Any] | None = None,
) -> params_lib.Params:
    """Read a released checkpoint, in whichever layout its tensors are named.

    Args:
      directory: holds ``model.safetensors`` or shards with their index.
      dtype: ``float32``, ``bfloat16`` or ``float16``; ``keep`` takes what the files
        have (where layers of one parameter differ, the narrowest dtype that holds all
        exactly). A nested dict like the parameters names one for each.
      shardings: nested dict like the parameters; only the slices of this process's
        devices are kept. None returns NumPy arrays.

    Returns:
      Nested dict of the parameters that ``model`` declares.

    Raises:
      FileNotFoundError: if weights are absent; names the file.
      ValueError: naming every missing, surplus or misshapen tensor and its file.
    """
    table.check(model.cfg, model.shapes)
    if isinstance(dtype, str):
        dtypes = {path: dtype for path, _ in params_lib.flatten(model.shapes)}
    else:
        dtypes = dict(params_lib.flatten(dtype))
    for kind in set(dtypes.values()):
        _check_dtype(kind)
    places = dict(params_lib.flatten(shardings)) if shardings is not None else {}
    filled: dict[str, Any] = {}
    with source.opened(directory) as opened:
        source.account(opened, model.cfg)
        for group in table.groups(model.cfg, opened.layout):
            for row in group.rows:
                watchdog.beat()
                filled |= _fill(row, group.layers, opened, places, dtypes=dtypes)
    return params_lib.unflatten(filled)


def _fill(
    row: table.Row,
    layers: int | None,
    opened: source.Source,
    places: Mapping[str, Any],
    *,
    dtypes: Mapping[str, str],
) -> dict[str, Any]:
    """The parameters of a row, layer by layer into the slices that are kept."""
    numbers = (None,) if layers is None else tuple(range(layers))
    units = [table.Unit(row, number) for number in numbers]

    def target(path: str) -> Any:
        if dtypes[path] != "keep":
            return jnp.dtype(dtypes[path])
        return opened.dtype(tuple(name for unit in units for name in unit.names))

    lead = () if layers is None else (layers,)
    slots = [
        _Slots((*lead, *shape), target(path), places.get(path))
        for path, shape in zip(row.paths, row.transform.part_shapes, strict=True)
    ]
    for unit in units:
        for slot, part in zip(slots, opened.read(unit), strict=True):
            slot.put(part, unit.layer)
    return {path: slot.done() for path, slot in zip(row.paths, slots, strict=True)}


class _Slots:
    """Host buffers for the slices of one parameter that this process's devices hold."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, place: Any):
        self._shape, self._place = shape, place
        indices = [tuple(slice(0, size) for size in shape)]  # the whole
        self._devices: dict[Any, tuple[slice, ...]] = {}
        if place is not None:
            for device, index in place.addressable_devices_indices_map(shape).items():
                self._devices[device] = tuple(
                    slice(*part.indices(size)[:2])
                    for part, size in zip(index, shape, strict=True)
                )
            indices = list(self._devices.values())
        self._buffers = {
            self._key(index): np.empty([s.stop - s.start for s in index], dtype)
            for index in indices
        }

    @staticmethod
    def _key(index: tuple[slice, ...]) -> tuple[tuple[int, int], ...]:
        return tuple((part.start, part.stop) for part in index)

    def put(self, part: np.ndarray, layer: int | None) -> None:
        """Copy what is kept of a layer (None: of the whole)."""
        for bounds, buffer in self._buffers.items():
            kept = tuple(slice(*b) for b in bounds)
            if layer is None:
                buffer[...] = part[kept]
            elif kept[0].start <= layer < kept[0].stop:
                buffer[layer - kept[0].start] = part[kept[1:]]

    def done(self) -> Any:
        if self._place is None:
            return next(iter(self._buffers.values()))
        shards = [
            jax.device_put(self._buffers[self._key(index)], device)
            for device, index in self._devices.items()
        ]
        return jax.make_array_from_single_device_arrays(
            self._shape, self._place, shards
        )


def _check_dtype(dtype: str) -> None:
    known = [*source.CODES, "keep"]
    if dtype not in known:
        raise ValueError(f"dtype={dtype!r}: use one of {known}")


@jax.jit
def _take(stacked: jax.Array, layer: Any) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)


def fetch_params(params: Mapping[str, Any], model: internvl.InternVL) -> Fetch:
    """How to get a layer's slice of a base parameter, as NumPy; adapters are folded in.

    Sharded arrays are gathered per slice; where they span processes, every process
    must ask for the same.

    Raises:
      ValueError: if the tree is not that of the model; names the leaves.
    """
    flat = dict(params_lib.flatten(params))
    wanted = {path: leaf.shape for path, leaf in params_lib.flatten(model.shapes)}
    wrong = [
        f"{path}: got {getattr(flat.get(path), 'shape', None)}, "
        f"the model has {wanted.get(path)}"
        for path in sorted(flat.keys() | wanted.keys())
        if getattr(flat.get(path), "shape", None) != wanted.get(path)
    ]
    if wrong:
        raise ValueError("parameters are not the model's:\n  " + "\n  ".join(wrong))
    table.check(model.cfg, model.base.shapes)

    def fetch(path: str, layer: int | None) -> np.ndarray:
        leaf = flat[path]
        if layer is None:
            return sharding.to_host(leaf)
        if isinstance(leaf, jax.Array):
            return sharding.to_host(_take(leaf, np.int32(layer)))
        return leaf[layer]

    return folded(fetch, model)


def folded(fetch: Fetch, model: internvl.InternVL) -> Fetch:
    """The same of a base's parameters, from one of a run's that may have adapters.

    Products and sums are in float32, and so is the result of a merged kernel.
    """
    if model.base is model:
        return fetch
    present = dict(params_lib.flatten(model.shapes))

    def one(path: str, layer: int | None) -> np.ndarray:
        path, layer = adapted.locate(path, layer, present)
        kernel, found = fetch(path, layer), lora.paths(path, present)
        if found is None:
            return kernel
        a, b = (fetch(name, layer).astype(np.float32) for name in found)
        scale = np.float32(adapted.scale_of(path, model.adaptation))
        return kernel.astype(np.float32) + scale * np.tensordot(a, b, 1)

    return one


def fetch_source(opened: source.Source, model: internvl.InternVL) -> Fetch:
    """The same from files; each slice can be asked for once."""
    source.account(opened, model.cfg)
    holders = {
        (path, unit.layer): unit
        for unit in table.units(model.cfg, opened.layout)
        for path in unit.row.paths
    }
    read: dict[tuple[str, int | None], np.ndarray] = {}

    def fetch(path: str, layer: int | None) -> np.ndarray:
        if (path, layer) not in read:
            unit = holders[path, layer]
            for part, value in zip(unit.row.paths, opened.read(unit), strict=True):
                read[part, layer] = value
        return read.pop((path, layer))

    return fetch


def to_hf(
    params: Mapping[str, Any],
    model: internvl.InternVL,
    *,
    layout: str = table.ORIGINAL,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield ``(name, tensor)`` of the files, in their order, one layer at a time.

    Works for anything of the parameters' shapes, such as gradients; see
    :func:`fetch_params` for sharded arrays and errors.
    """
    fetch = fetch_params(params, model)
    return (
        (name, np.ascontiguousarray(tensor))
        for unit in table.units(model.cfg, layout)
        for name, tensor in tensors_of(unit, fetch)
    )


def tensors_of(unit: table.Unit, fetch: Fetch) -> Iterator[tuple[str, np.ndarray]]:
    """Yield ``(name, tensor)`` of a unit, from the parameters that it holds.

    A tensor may be a transposed view: a contiguous copy of a vocabulary is large.
    """
    parts = tuple(fetch(path, unit.layer) for path in unit.row.paths)
    yield from zip(unit.names, unit.row.transform.to_hf(parts), strict=True)


def target_dtypes(
    model: internvl.InternVL,
    *,
    dtype: str,
    source_dir: str | pathlib.Path | None,
    layout: str = table.ORIGINAL,
) -> dict[str, str]:
    """Dtype that :func:`save` gives every tensor, in the files' order."""
    _check_dtype(dtype)
    names = table.hf_shapes(model.cfg, layout)
    if dtype != "keep":
        return dict.fromkeys(names, dtype)
    if source_dir is None:
        raise ValueError("dtype='keep' needs the source directory; name it or a dtype")
    kept = source.dtypes(source_dir)
    # By parameter, since the other layout may have taken a tensor apart.
    by_path: dict[tuple[str, int | None], list[str]] = {}
    absent = []
    for unit in table.units(model.cfg, table.detect(kept)):
        absent += [name for name in unit.names if kept.get(name) not in source.CODES]
        for path in unit.row.paths:
            by_path[path, unit.layer] = [kept.get(name, "") for name in unit.names]
    if absent:
        raise ValueError(
            f"{source_dir}: no usable dtype is recorded of {', '.join(absent)}; "
            "choose a dtype"
        )
    out = {}
    for unit in table.units(model.cfg, layout):
        kinds = [k for path in unit.row.paths for k in by_path[path, unit.layer]]
        if len(kinds) == len(unit.names):  # one to one, or split the same way
            out |= dict(zip(unit.names, kinds, strict=True))
            continue
        wide = functools.reduce(jnp.promote_types, map(jnp.dtype, kinds))
        out |= dict.fromkeys(unit.names, jnp.dtype(wide).name)
    return out


def save(
    directory: str | pathlib.Path,
    params: Mapping[str, Any],
    model: internvl.InternVL,
    *,
    dtype: str = "bfloat16",
    source_dir: str | pathlib.Path | None = None,
    settings: Settings = NONE,
    layout: str | None = None,
    max_shard_bytes: int = writer.SHARD_BYTES,
    overwrite: bool = False,
) -> list[str]:
    """Write a directory that the released code, or transformers, loads.

    Call it on every process; the first one writes.

    Args:
      directory: a path, or an address (``gs://…``), where ``config.json`` comes last.
      dtype: ``float32``, ``bfloat16`` or ``float16``; ``keep`` gives every tensor the
        dtype that it had in `source_dir`.
      source_dir: model directory whose other files are carried along, or rewritten
        where `layout` is another than theirs; None writes weights only.
      settings: what was trained with where it is not what those files say.
      layout: ``original`` or ``native``; None is that of `source_dir`.
      max_shard_bytes: limit of a file; one tensor is never split.

    Returns:
      Notes for the user, on the process that writes: see ``layouts.write_files``.

    Raises:
      FileExistsError: see ``files.new_directory``.
      ValueError: if parameters do not fit, overflow ``float16``, or the architecture
        has no form in `layout`; names what.
    """
    layout = layouts.choose(layout, source_dir)
    fetch = fetch_params(params, model)
    target = target_dtypes(model, dtype=dtype, source_dir=source_dir, layout=layout)
    if jax.process_index() != 0:
        # Fetching is collective; the tensors are dropped here.
        for unit in table.units(model.cfg, layout):
            collections.deque(tensors_of(unit, fetch), maxlen=0)
        return []
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        store = None
        if remote.is_remote(directory):
            # Weights in memory have no name: such a job never goes on.
            place = places.new_model(
                str(directory), job={"run": uuid.uuid4().hex}, overwrite=overwrite
            )
            partial, _, store = stack.enter_context(place)
        else:
            place = files.new_directory(directory, overwrite=overwrite)
            partial = stack.enter_context(place)
        if source_dir is not None:
            notes = layouts.write_files(
                source_dir,
                partial,
                layout=layout,
                kinds=set(target.values()),
                settings=settings,
            )
        notes += write_weights(
            partial,
            fetch,
            model,
            target,
            layout=layout,
            max_bytes=max_shard_bytes,
            store=store,
        )
    return notes


def write_weights(
    directory: str | pathlib.Path,
    fetch: Fetch,
    model: internvl.InternVL,
    dtypes: Mapping[str, str],
    *,
    layout: str,
    max_bytes: int = writer.SHARD_BYTES,
    by_row: bool = False,
    store: remote.Folder | None = None,
) -> list[str]:
    """Write weight files and index; files that are complete already are kept.

    Args:
      store: see ``writer.Writer``.
      by_row: ask for all layers of a parameter in a row, which fills all files at
        once; else in the files' order, which finishes one after another.

    Returns:
      Notes on weights that look damaged.
    """
    shapes = table.hf_shapes(model.cfg, layout)
    out = writer.Writer(
        directory, shapes, dtypes, max_shard_bytes=max_bytes, store=store
    )
    for unit in table.units(model.cfg, layout, by_row=by_row):
        watchdog.beat()
        if out.pending(unit.names):
            for name, tensor in tensors_of(unit, fetch):
                out.put(name, tensor)
    out.close()
    return out.health.notes()
