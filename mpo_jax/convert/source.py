"""The tensors of a released checkpoint on disk: headers first, data when asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from mpo_jax.convert import files, table
from mpo_jax.models.config import InternVLConfig

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
NAMES = {code: name for name, code in CODES.items()}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of the source, not yet read."""

    handle: Any
    name: str
    file: pathlib.Path
    shape: tuple[int, ...]
    code: str

    def read(self) -> np.ndarray:
        return self.handle.get_tensor(self.name)


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    Attributes:
      directory: where it lies.
      found: its tensors by name.
      layout: of ``table.LAYOUTS``, told from the names.
    """

    directory: pathlib.Path
    found: Mapping[str, Stored]
    layout: str

    def dtype(self, names: tuple[str, ...]) -> np.dtype:
        """Narrowest dtype that holds all of these tensors exactly."""
        kinds = [jnp.dtype(NAMES[self.found[name].code]) for name in names]
        return np.dtype(functools.reduce(jnp.promote_types, kinds))

    def read(self, unit: table.Unit) -> tuple[np.ndarray, ...]:
        """Parameters (a layer's slice of them) that a unit fills."""
        tensors = tuple(self.found[name].read() for name in unit.names)
        return unit.row.transform.to_parts(tensors)


def _shards(directory: pathlib.Path) -> dict[pathlib.Path, set[str] | None]:
    """Weight files and the names that the index says they hold (None: no index)."""
    single, index = directory / files.SINGLE, directory / files.INDEX
    if single.is_file() and index.is_file():
        raise ValueError(
            f"{directory} holds both {files.SINGLE} and {files.INDEX}; remove one"
        )
    if single.is_file():
        return {single: None}
    if not index.is_file():
        others = [p.name for p in directory.glob("*.bin")] if directory.is_dir() else []
        hint = (
            f"; it holds {others[0]}: pickled weights are not read, convert them to "
            "safetensors first"
            if others
            else "; give a model directory with safetensors weights"
        )
        raise FileNotFoundError(
            f"{directory} holds no {files.SINGLE} or {files.INDEX}{hint}"
        )
    weight_map = files.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: 'weight_map' must map tensor names to files")
    shards: dict[pathlib.Path, set[str] | None] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or pathlib.PurePath(shard).name != shard:
            raise ValueError(
                f"{index}: weight_map[{name!r}]={shard!r} must be the name of a file "
                "beside the index"
            )
        held = shards.setdefault(directory / shard, set())
        assert held is not None
        held.add(name)
    absent = sorted(file.name for file in shards if not file.is_file())
    if absent:
        raise FileNotFoundError(
            f"{index} names files that are absent: {', '.join(absent)}; download them"
        )
    stray = sorted(set(directory.glob("*.safetensors")) - shards.keys())
    if stray:
        raise ValueError(
            f"{stray[0]}: not named by {files.INDEX}; remove it, or a stale index"
        )
    return shards


def _open(directory: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Stored]:
    """Read the headers of all weight files; the tensors stay on disk.

    Raises:
      FileNotFoundError, ValueError: naming the file; index and headers must agree.
    """
    found: dict[str, Stored] = {}
    wrong = []
    for file, listed in _shards(directory).items():
        try:
            handle = stack.enter_context(
                safetensors.safe_open(file, framework="np")  # type: ignore[no-untyped-call]
            )
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{file}: not a complete safetensors file ({error}); download it again"
            ) from error
        names = set(handle.keys())
        if listed is not None:
            for name in sorted(listed - names):
                wrong.append(f"{file}: {files.INDEX} places {name} here, but it is not")
            for name in sorted(names - listed):
                wrong.append(
                    f"{file}: holds {name}, which {files.INDEX} does not place here"
                )
        for name in sorted(names):
            if name in found:
                wrong.append(f"{file}: {name} stands in {found[name].file.name} too")
                continue
            view = handle.get_slice(name)
            shape = tuple(int(size) for size in view.get_shape())
            found[name] = Stored(handle, name, file, shape, view.get_dtype())
    if wrong:
        raise ValueError("inconsistent checkpoint:\n  " + "\n  ".join(wrong))
    return found


@contextlib.contextmanager
def opened(directory: str | pathlib.Path) -> Iterator[Source]:
    """Read the headers of a checkpoint's files; tensors stay on disk until read.

    Raises:
      FileNotFoundError, ValueError: naming the file; index and headers must agree.
    """
    with contextlib.ExitStack() as stack:
        found = _open(pathlib.Path(directory), stack)
        yield Source(pathlib.Path(directory), found, table.detect(found.keys()))


def account(source: Source, cfg: InternVLConfig) -> None:
    """Check that a source holds exactly the tensors of an architecture.

    Raises:
      ValueError: naming every missing, surplus or misshapen tensor and its file.
    """
    wanted = table.hf_shapes(cfg, source.layout)
    wrong = [
        f"missing {name} {shape}"
        for name, shape in wanted.items()
        if name not in source.found
    ]
    for name, stored in source.found.items():
        where = f"{name} in {stored.file.name}"
        if name not in wanted:
            wrong.append(f"surplus {where} {stored.shape}")
        elif stored.shape != wanted[name]:
            wrong.append(
                f"misshapen {where}: {stored.shape}, config.json says {wanted[name]}"
            )
        elif stored.code not in NAMES:
            wrong.append(
                f"dtype of {where}: {stored.code}, only {sorted(NAMES)} are read"
            )
    if wrong:
        raise ValueError(
            f"{source.directory}: weights ({source.layout} layout) do not fit the "
            "model:\n  "
            + "\n  ".join(wrong)
            + "\nDo weights and config.json belong to the same model?"
        )


def dtypes(directory: str | pathlib.Path) -> dict[str, str]:
    """Dtype of every tensor of a source, e.g. ``{"mlp1.0.bias": "bfloat16"}``.

    Read from the headers of its weights or, in the ``hf`` part of a converted
    checkpoint, from the record of them.

    Raises:
      FileNotFoundError: if there is neither.
    """
    directory = pathlib.Path(directory)
    if (directory / files.DTYPES).is_file():
        return {
            name: str(dtype)
            for name, dtype in files.read_json(directory / files.DTYPES).items()
        }
    with opened(directory) as source:
        return {n: NAMES.get(s.code, s.code) for n, s in source.found.items()}


def write_dtypes(directory: str | pathlib.Path, kinds: Mapping[str, str]) -> None:
    """Leave the record that :func:`dtypes` reads."""
    text = json.dumps(dict(kinds), indent=1)
    (pathlib.Path(directory) / files.DTYPES).write_text(text + "\n", encoding="utf-8")
