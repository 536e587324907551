"""Safetensors files written tensor by tensor, so that one tensor is in memory at once.

The library writes a file from a dict of everything in it. Names, shapes and dtypes are
known beforehand here, so the header is written first and each tensor at its place.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO

import jax.numpy as jnp
import numpy as np

from mpo_jax.convert import files, health
from mpo_jax.convert.source import CODES
from mpo_jax.utils import remote

SHARD_BYTES = 5 * 10**9  # the released files' limit
_BLOCK_BYTES = 32 * 2**20


def plan_shards(
    sizes: Mapping[str, int], *, max_shard_bytes: int = SHARD_BYTES
) -> dict[str, str]:
    """File of every tensor, cut greedily in order as the released files are.

    Args:
      sizes: bytes of every tensor, in order.
    """
    numbers, shard, filled = {}, 1, 0
    for name, size in sizes.items():
        if filled and filled + size > max_shard_bytes:
            shard, filled = shard + 1, 0
        filled += size
        numbers[name] = shard
    if shard == 1:
        return dict.fromkeys(sizes, files.SINGLE)
    return {
        name: f"model-{number:05d}-of-{shard:05d}.safetensors"
        for name, number in numbers.items()
    }


class Writer:
    """The weight files of one checkpoint.

    A file gets its name when its last tensor is written; one that has it already, with
    the same header, is complete and is not written again.

    Attributes:
      plan: file of every tensor.
      total: bytes of all tensors.
      health: what the tensors that were written look like.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, str],
        *,
        max_shard_bytes: int = SHARD_BYTES,
        store: remote.Folder | None = None,
    ):
        """Plan the files.

        Args:
          directory: exists.
          shapes: of every tensor, in the order that decides how files are cut.
          dtypes: ``float32``, ``bfloat16`` or ``float16``, by name.
          max_shard_bytes: limit of a file; one tensor is never split.
          store: where files go when they are complete; `directory` then holds only
            those being written.
        """
        self._store = store
        self._stored = {} if store is None else store.sizes()
        self._directory = pathlib.Path(directory)
        self._shapes, self._dtypes = dict(shapes), dict(dtypes)
        sizes = {
            name: math.prod(shape) * jnp.dtype(dtypes[name]).itemsize
            for name, shape in shapes.items()
        }
        self.total = sum(sizes.values())
        self.plan = plan_shards(sizes, max_shard_bytes=max_shard_bytes)
        self._offsets: dict[str, int] = {}
        self._headers: dict[str, bytes] = {}
        self._bytes: dict[str, int] = {}
        self._missing: dict[str, set[str]] = {}
        for file in dict.fromkeys(self.plan.values()):
            names = [name for name in self.plan if self.plan[name] == file]
            self._headers[file] = self._header(names, sizes)
            if not self._complete(file):
                self._missing[file] = set(names)
        self._open: dict[str, IO[bytes]] = {}
        self.health = health.Health()

    def _header(self, names: list[str], sizes: Mapping[str, int]) -> bytes:
        """Header of a file, with its length; fills the offsets behind it."""
        # "format" is what transformers looks for before it reads a file.
        entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        start = 0
        # Wide dtypes first, so that every tensor lies aligned.
        for name in sorted(names, key=lambda n: -jnp.dtype(self._dtypes[n]).itemsize):
            entries[name] = {
                "dtype": CODES[self._dtypes[name]],
                "shape": list(self._shapes[name]),
                "data_offsets": [start, start + sizes[name]],
            }
            self._offsets[name] = start
            start += sizes[name]
        self._bytes[self.plan[names[0]]] = start
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _complete(self, file: str) -> bool:
        path, header = self._directory / file, self._headers[file]
        if self._store is not None:
            return (
                self._stored.get(file) == len(header) + self._bytes[file]
                and self._store.read(file, 0, len(header)) == header
            )
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return stream.read(len(header)) == header

    def pending(self, names: tuple[str, ...]) -> bool:
        """Whether any of these tensors must still be written."""
        return any(name in self._missing.get(self.plan[name], ()) for name in names)

    def put(self, name: str, tensor: np.ndarray) -> None:
        """Write one tensor; in any order.

        Raises:
          ValueError: if it overflows ``float16``, or has another shape; names it.
        """
        if not self.pending((name,)):
            return
        if tensor.shape != self._shapes[name]:
            raise ValueError(f"{name}: {tensor.shape}, must be {self._shapes[name]}")
        file = self.plan[name]
        partial = self._directory / f".{file}.partial"
        if file not in self._open:
            self._open[file] = partial.open("wb")
            self._open[file].write(self._headers[file])
        stream = self._open[file]
        stream.seek(len(self._headers[file]) + self._offsets[name])
        for block in _blocks(tensor):
            cast = np.ascontiguousarray(_cast(name, block, self._dtypes[name]))
            self.health.see(name, cast)
            with files.naming(partial):
                stream.write(cast.reshape(-1).view(np.uint8).data)
        self._missing[file].remove(name)
        if not self._missing[file]:
            del self._missing[file]
            stream = self._open.pop(file)
            with files.naming(partial):
                stream.flush()
                os.fsync(stream.fileno())
                stream.close()
            if self._store is None:
                partial.rename(self._directory / file)
            else:
                self._store.upload(partial, file)
                partial.unlink()

    def close(self) -> None:
        """Write the index.

        Raises:
          ValueError: naming tensors that never came.
        """
        left = sorted(name for names in self._missing.values() for name in names)
        if left:
            raise ValueError(f"{self._directory}: never written: {', '.join(left)}")
        if files.SINGLE in self._headers:
            return
        index = {"metadata": {"total_size": self.total}, "weight_map": self.plan}
        text = json.dumps(index, indent=2, sort_keys=True)
        (self._directory / files.INDEX).write_text(text + "\n", encoding="utf-8")


def _blocks(tensor: np.ndarray) -> Iterator[np.ndarray]:
    """Rows in turn, since a transposed tensor is copied to be written."""
    if tensor.ndim < 2:
        yield tensor
        return
    rows = max(1, _BLOCK_BYTES // max(1, tensor[:1].nbytes))
    for start in range(0, len(tensor), rows):
        yield tensor[start : start + rows]


def _cast(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # reported below, by name
        cast = tensor.astype(jnp.dtype(dtype), copy=False)
    if dtype == "float16" and np.isinf(cast).any() and not np.isinf(tensor).any():
        raise ValueError(f"{name} overflows float16; use bfloat16 or float32")
    return cast
