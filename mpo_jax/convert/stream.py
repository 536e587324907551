"""Orbax checkpoints of weights, written and read a layer at a time.

Orbax saves arrays that are in memory as a whole. Its files are OCDBT stores of zarr
arrays, though, which TensorStore, the library underneath, also writes in parts: Orbax
makes a checkpoint of placeholders here, and each is replaced by an array of the real
shape whose chunks are layers. Orbax reads the result like any other; a test holds it to
that.
"""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore

from mpo_jax import checkpoint
from mpo_jax.convert import files, health, source, table, vocabulary
from mpo_jax.models import internvl
from mpo_jax.nn import lora
from mpo_jax.nn import params as params_lib
from mpo_jax.utils import remote

_CHUNK_BYTES = 64 * 2**20


def _spec(directory: str | pathlib.Path, path: str) -> dict[str, Any]:
    place = remote.join(directory, checkpoint.PARAMS)
    base = place if isinstance(place, str) else place.absolute().as_uri()
    return {
        "driver": "zarr3",
        "kvstore": {
            "driver": "ocdbt",
            "base": base + "/",
            "path": path.replace("/", ".") + "/",
        },
    }


def _chunk(shape: tuple[int, ...], itemsize: int, *, stacked: bool) -> list[int]:
    """One layer of what is `stacked`, the whole of what is not; in bounded pieces."""
    chunk = [1, *shape[1:]] if stacked else list(shape)
    for axis in range(int(stacked), len(chunk)):
        size = math.prod(chunk) * itemsize
        if size > _CHUNK_BYTES:
            others = size // chunk[axis]
            chunk[axis] = max(1, _CHUNK_BYTES // others)
    return chunk


def _pieces(
    shape: tuple[int, ...], sizes: tuple[int, ...]
) -> Iterator[tuple[slice, ...]]:
    """Slices that cut an array of `shape` along the borders of its chunks."""
    ranges = [
        [slice(start, min(start + size, whole)) for start in range(0, whole, size)]
        for whole, size in zip(shape, sizes, strict=True)
    ]
    return itertools.product(*ranges)


def _read(store: Any) -> np.ndarray:
    """A whole array, a chunk at a time: each is held compressed and decoded, too."""
    out = np.empty(store.shape, store.dtype.numpy_dtype)
    for index in _pieces(store.shape, store.chunk_layout.read_chunk.shape):
        out[index] = store[index].read().result()
    return out


class Sink:
    """A checkpoint of weights that is filled part by part; see ``save_params``."""

    def __init__(
        self,
        directory: str | pathlib.Path,
        model: internvl.InternVL,
        dtypes: Mapping[str, np.dtype],
        *,
        metadata: dict,
        resume: bool,
    ):
        """Make the checkpoint, or go on with one (`resume`).

        Args:
          directory: of the checkpoint; its parent exists.
          dtypes: by parameter path.
        """
        self.health = health.Health()
        self._stores: dict[str, Any] = {}
        flat = dict(params_lib.flatten(model.shapes))
        if not resume:
            placeholders = {path: np.zeros((1,), np.float32) for path in flat}
            checkpoint.save_params(
                directory, params_lib.unflatten(placeholders), metadata=metadata
            )
        groups = [group for group in table.groups(model.cfg) if group.layers]
        stacked = {p for group in groups for row in group.rows for p in row.paths}
        for path, leaf in flat.items():
            shape, dtype = tuple(leaf.shape), np.dtype(dtypes[path])
            chunk = _chunk(shape, dtype.itemsize, stacked=path in stacked)
            layout = tensorstore.ChunkLayout(chunk_shape=chunk)
            self._stores[path] = tensorstore.open(
                _spec(directory, path),
                create=not resume,
                delete_existing=not resume,
                open=resume,
                **(
                    {}
                    if resume
                    else {
                        "dtype": tensorstore.dtype(dtype),
                        "shape": shape,
                        "chunk_layout": layout,
                    }
                ),
            ).result()

    def put(self, path: str, layer: int | None, part: np.ndarray) -> None:
        """Write a layer (None: all) of a parameter; on disk when this returns."""
        name = path if layer is None else f"{path}[{layer}]"
        store = self._stores[path]
        sizes = store.chunk_layout.write_chunk.shape
        target, sizes = (store, sizes) if layer is None else (store[layer], sizes[1:])
        # A chunk at a time, since a copy of it is made.
        for index in _pieces(part.shape, sizes):
            piece = np.ascontiguousarray(part[index])
            self.health.see(name, piece)
            target[index].write(
                piece.astype(store.dtype.numpy_dtype, copy=False)
            ).result()


def write(
    directory: str | pathlib.Path,
    opened: source.Source,
    model: internvl.InternVL,
    progress: files.Progress,
    *,
    dtype: str,
    metadata: dict,
    addition: vocabulary.Addition,
) -> list[str]:
    """Stream released files into a checkpoint, going on where `progress` says.

    Args:
      directory: of the checkpoint; a path or a ``gs://`` address.
      opened: files that fit the model (``source.account``).
      dtype: as for ``hf.load``.
      addition: tokens that get new rows.

    Returns:
      Notes on weights that look damaged.
    """
    dtypes: dict[str, np.dtype] = {}
    for group in table.groups(model.cfg, opened.layout):
        layers = (None,) if group.layers is None else range(group.layers)
        for row in group.rows:
            names = [n for layer in layers for n in table.Unit(row, layer).names]
            kind = opened.dtype(tuple(names)) if dtype == "keep" else jnp.dtype(dtype)
            dtypes |= dict.fromkeys(row.paths, np.dtype(kind))
    resume = progress.done("made")
    larger = internvl.InternVL(vocabulary.extended(model.cfg, addition))
    sink = Sink(directory, larger, dtypes, metadata=metadata, resume=resume)
    progress.mark("made")
    for unit in table.units(model.cfg, opened.layout):
        if progress.done(unit.names[0]):
            continue
        for path, part in zip(unit.row.paths, opened.read(unit), strict=True):
            sink.put(path, unit.layer, vocabulary.extend(path, part, addition))
        progress.mark(unit.names[0])
    return sink.health.notes()


class Reader:
    """A checkpoint's parameters, a layer at a time; an ``hf.Fetch``.

    A checkpoint of training keeps all layers in one piece: there a parameter is read as
    a whole and kept until another one's turn, so ask for all layers of one (or of the
    few that stand in one tensor) in a row. Adapters are small and kept for good.
    """

    _KEPT = 3  # query, key and value stand in one tensor

    def __init__(self, directory: str | pathlib.Path):
        self._directory = directory
        self._stores: dict[str, Any] = {}
        self._whole: dict[str, np.ndarray] = {}

    def shape(self, path: str) -> tuple[int, ...]:
        """Shape of a parameter as stored."""
        return tuple(self._store(path).shape)

    def _store(self, path: str) -> Any:
        if path not in self._stores:
            self._stores[path] = tensorstore.open(
                _spec(self._directory, path), open=True, read=True
            ).result()
        return self._stores[path]

    def __call__(self, path: str, layer: int | None) -> np.ndarray:
        store = self._store(path)
        if layer is None:
            return _read(store)
        if store.chunk_layout.read_chunk.shape[0] == 1:
            return store[layer].read().result()
        if path not in self._whole:
            large = [name for name in self._whole if not lora.is_adapter(name)]
            if not lora.is_adapter(path) and len(large) >= self._KEPT:
                del self._whole[large[0]]
            self._whole[path] = _read(store)
        return self._whole[path][layer]
