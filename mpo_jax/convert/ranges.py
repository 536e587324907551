"""Safetensors behind an address: the header by one request, tensors by byte ranges.

The library maps local files. The format is eight bytes of length, a JSON header and the
tensors' bytes, so a store that serves ranges gives each tensor for itself
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from mpo_jax.utils import remote

# As the library bounds it.
_MAX_HEADER_BYTES = 100_000_000
_DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
    "BOOL": "bool",
}


class Tensors:
    """The tensors of one object; those of a type unknown to NumPy can be listed."""

    def __init__(self, folder: remote.Folder, name: str, size: int):
        """Read the header.

        Args:
          size: bytes of the object.

        Raises:
          ValueError: if it is no complete safetensors file; names it.
        """
        self._folder, self._name = folder, name
        where = f"{folder.address}/{name}"
        try:
            length = (
                int.from_bytes(folder.read(name, 0, 8), "little") if size > 8 else 0
            )
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            entries = json.loads(folder.read(name, 8, 8 + length))
            entries.pop("__metadata__", None)
            self._data = 8 + length
            self._entries = {
                key: (
                    str(entry["dtype"]),
                    tuple(int(n) for n in entry["shape"]),
                    *(int(n) for n in entry["data_offsets"]),
                )
                for key, entry in entries.items()
            }
            self._check(size)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{where}: not a complete safetensors file ({error}); upload it again"
            ) from error

    def _check(self, size: int) -> None:
        """Tensors lie side by side and end with the file, as the library demands."""
        at = 0
        for key, (code, shape, start, stop) in sorted(
            self._entries.items(), key=lambda item: item[1][2:]
        ):
            if start != at or stop < start or min(shape, default=0) < 0:
                raise ValueError(f"{key} lies at {start} to {stop}, expected at {at}")
            at = stop
            if code in _DTYPES:
                bytes_ = math.prod(shape) * jnp.dtype(_DTYPES[code]).itemsize
                if bytes_ != stop - start:
                    raise ValueError(f"{key}: {stop - start} bytes for {code} {shape}")
        if self._data + at != size:
            raise ValueError(f"{size} bytes, the header says {self._data + at}")

    def keys(self) -> list[str]:
        return list(self._entries)

    def get_slice(self, key: str) -> Any:
        """Shape and type of a tensor, asked for as of the library's own slices."""
        return _Slice(self._entries[key])

    def get_tensor(self, key: str) -> np.ndarray:
        """Read one tensor."""
        code, shape, start, stop = self._entries[key]
        data = np.empty(stop - start, np.uint8)
        if data.size:
            at = self._data + start
            self._folder.read_into(self._name, at, data.data)
        return data.view(jnp.dtype(_DTYPES[code])).reshape(shape)


class _Slice:
    def __init__(self, entry: tuple):
        self._entry = entry

    def get_shape(self) -> list[int]:
        return list(self._entry[1])

    def get_dtype(self) -> str:
        return self._entry[0]
