"""Released checkpoints in and out: safetensors in the original layout, streamed.

Reading goes tensor by tensor into one parameter at a time, writing shard by shard, so
that no second copy of the model exists on the host. Both account strictly: every tensor
is used once and every parameter filled, or all that is wrong is named.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from mpo_jax import sharding
from mpo_jax.convert import files, table
from mpo_jax.models import internvl
from mpo_jax.nn import params as params_lib

SHARD_BYTES = 5 * 10**9  # the released files' limit

_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NAMES = {code: name for name, code in _CODES.items()}


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A tensor of the source, not yet read."""

    handle: Any
    file: pathlib.Path
    shape: tuple[int, ...]
    code: str


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


def _open(directory: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, _Stored]:
    """Read the headers of all weight files; the tensors stay on disk.

    Raises:
      FileNotFoundError, ValueError: naming the file; index and headers must agree.
    """
    found: dict[str, _Stored] = {}
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
            found[name] = _Stored(handle, file, shape, view.get_dtype())
    if wrong:
        raise ValueError("inconsistent checkpoint:\n  " + "\n  ".join(wrong))
    return found


def _account(
    directory: pathlib.Path,
    found: Mapping[str, _Stored],
    wanted: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise unless the source holds exactly the wanted tensors."""
    wrong = [
        f"missing {name} {shape}" for name, shape in wanted.items() if name not in found
    ]
    for name, stored in found.items():
        where = f"{name} in {stored.file.name}"
        if name not in wanted:
            wrong.append(f"surplus {where} {stored.shape}")
        elif stored.shape != wanted[name]:
            wrong.append(
                f"misshapen {where}: {stored.shape}, config.json says {wanted[name]}"
            )
        elif stored.code not in _NAMES:
            wrong.append(
                f"dtype of {where}: {stored.code}, only {sorted(_NAMES)} are read"
            )
    if wrong:
        native = any("vision_tower." in name for name in found)
        hint = (
            "\nThese are the names of a transformers-native ('-hf') checkpoint; use "
            "the original one of the same model."
            if native
            else "\nDo weights and config.json belong to the same model?"
        )
        raise ValueError(
            f"{directory}: weights do not fit the model:\n  "
            + "\n  ".join(wrong)
            + hint
        )


def source_dtypes(directory: str | pathlib.Path) -> dict[str, str]:
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
    with contextlib.ExitStack() as stack:
        found = _open(directory, stack)
        return {name: _NAMES.get(s.code, s.code) for name, s in found.items()}


def write_dtypes(directory: str | pathlib.Path, dtypes: Mapping[str, str]) -> None:
    """Leave the record that :func:`source_dtypes` reads."""
    text = json.dumps(dict(dtypes), indent=1)
    (pathlib.Path(directory) / files.DTYPES).write_text(text + "\n", encoding="utf-8")


def check_source(directory: str | pathlib.Path, model: internvl.InternVL) -> None:
    """Check headers and names without reading weights; raises as :func:`load` does."""
    with contextlib.ExitStack() as stack:
        found = _open(pathlib.Path(directory), stack)
        _account(pathlib.Path(directory), found, table.hf_shapes(model.cfg))


def load(
    directory: str | pathlib.Path,
    model: internvl.InternVL,
    *,
    dtype: str = "float32",
    shardings: Mapping[str, Any] | None = None,
) -> params_lib.Params:
    """Read a released checkpoint.

    Args:
      directory: holds ``model.safetensors`` or shards with their index.
      dtype: ``float32``, ``bfloat16`` or ``float16``; ``keep`` takes what the files
        have (where layers of one parameter differ, the narrowest dtype that holds all
        exactly).
      shardings: nested dict like the parameters; each is placed as soon as it is read.
        None returns NumPy arrays.

    Returns:
      Nested dict of the parameters that ``model`` declares.

    Raises:
      FileNotFoundError: if weights are absent; names the file.
      ValueError: naming every missing, surplus or misshapen tensor and its file.
    """
    directory = pathlib.Path(directory)
    _check_dtype(dtype, also="keep")
    table.check(model.cfg, model.declared.shapes)
    places = dict(params_lib.flatten(shardings)) if shardings is not None else {}
    filled: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        found = _open(directory, stack)
        _account(directory, found, table.hf_shapes(model.cfg))
        for group in table.groups(model.cfg):
            for row in group.rows:
                arrays = _fill(row, group.layers, found, dtype=dtype)
                for path, array in zip(row.paths, arrays, strict=True):
                    filled[path] = (
                        array if shardings is None else _place(array, places[path])
                    )
    return params_lib.unflatten(filled)


def _fill(
    row: table.Row, layers: int | None, found: Mapping[str, _Stored], *, dtype: str
) -> list[np.ndarray]:
    """The parameters of a row, layer by layer into one buffer each."""
    names = [row.name.format(layer=i) for i in range(1 if layers is None else layers)]
    if dtype == "keep":
        kinds = [jnp.dtype(_NAMES[found[name].code]) for name in names]
        target = np.dtype(functools.reduce(jnp.promote_types, kinds))
    else:
        target = jnp.dtype(dtype)
    lead = () if layers is None else (layers,)
    buffers = [np.empty((*lead, *s), target) for s in row.transform.part_shapes]
    for number, name in enumerate(names):
        tensor = found[name].handle.get_tensor(name)
        for buffer, part in zip(buffers, row.transform.to_parts(tensor), strict=True):
            buffer[... if layers is None else number] = part
    return buffers


def _place(array: np.ndarray, place: Any) -> jax.Array:
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def _check_dtype(dtype: str, *, also: str) -> None:
    if dtype not in (*_CODES, also):
        raise ValueError(f"dtype={dtype!r}: use one of {[*_CODES, also]}")


@jax.jit
def _take(stacked: jax.Array, layer: Any) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)


def to_hf(
    params: Mapping[str, Any], model: internvl.InternVL
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield ``(name, tensor)`` of the files, in their order, one layer at a time.

    Works for anything of the parameters' shapes, such as gradients. Sharded arrays are
    gathered per tensor; where they span processes, every process must iterate.

    Raises:
      ValueError: if the tree is not that of the model; names the leaves.
    """
    flat = dict(params_lib.flatten(params))
    wanted = {
        path: leaf.shape for path, leaf in params_lib.flatten(model.declared.shapes)
    }
    wrong = [
        f"{path}: got {getattr(flat.get(path), 'shape', None)}, "
        f"the model has {wanted.get(path)}"
        for path in sorted(flat.keys() | wanted.keys())
        if getattr(flat.get(path), "shape", None) != wanted.get(path)
    ]
    if wrong:
        raise ValueError("parameters are not the model's:\n  " + "\n  ".join(wrong))
    table.check(model.cfg, model.declared.shapes)

    def fetch(path: str, layer: int | None) -> np.ndarray:
        leaf = flat[path]
        if layer is None:
            return sharding.to_host(leaf)
        if isinstance(leaf, jax.Array):
            return sharding.to_host(_take(leaf, np.int32(layer)))
        return leaf[layer]

    def generate() -> Iterator[tuple[str, np.ndarray]]:
        for tensor in table.tensors(model.cfg):
            row = tensor.row
            parts = tuple(fetch(path, tensor.layer) for path in row.paths)
            yield tensor.name, np.ascontiguousarray(row.transform.to_hf(parts))

    return generate()


def plan_shards(
    sizes: Mapping[str, int], *, max_shard_bytes: int = SHARD_BYTES
) -> dict[str, str]:
    """File of every tensor, cut greedily in order as the released files are.

    Args:
      sizes: bytes of every tensor, in order.
    """
    numbers, held = {}, 0
    shard = 1
    for name, size in sizes.items():
        if held and held + size > max_shard_bytes:
            shard, held = shard + 1, 0
        held += size
        numbers[name] = shard
    if shard == 1:
        return dict.fromkeys(sizes, files.SINGLE)
    return {
        name: f"model-{number:05d}-of-{shard:05d}.safetensors"
        for name, number in numbers.items()
    }


def target_dtypes(
    model: internvl.InternVL,
    *,
    dtype: str,
    source_dir: str | pathlib.Path | None,
) -> dict[str, str]:
    """Dtype that :func:`save` gives every tensor, in the files' order."""
    _check_dtype(dtype, also="keep")
    names = table.hf_shapes(model.cfg)
    if dtype != "keep":
        return dict.fromkeys(names, dtype)
    if source_dir is None:
        raise ValueError("dtype='keep' needs the source directory; name it or a dtype")
    kept = source_dtypes(source_dir)
    absent = [name for name in names if kept.get(name) not in _CODES]
    if absent:
        raise ValueError(
            f"{source_dir}: no usable dtype is recorded of {', '.join(absent)}; "
            "choose a dtype"
        )
    return {name: kept[name] for name in names}


def save(
    directory: str | pathlib.Path,
    params: Mapping[str, Any],
    model: internvl.InternVL,
    *,
    dtype: str = "bfloat16",
    source_dir: str | pathlib.Path | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Write a directory that the released code loads.

    Call it on every process; the first one writes.

    Args:
      dtype: ``float32``, ``bfloat16`` or ``float16``; ``keep`` gives every tensor the
        dtype that it had in `source_dir`.
      source_dir: model directory whose other files are carried along; None writes
        weights only.
      max_shard_bytes: limit of a file; one tensor is never split.

    Raises:
      FileExistsError: see ``files.new_directory``.
      ValueError: if parameters do not fit, or overflow ``float16``; names them.
    """
    dtypes = target_dtypes(model, dtype=dtype, source_dir=source_dir)
    tensors = to_hf(params, model)
    sizes = {
        tensor.name: tensor.size * jnp.dtype(dtypes[tensor.name]).itemsize
        for tensor in table.tensors(model.cfg)
    }
    plan = plan_shards(sizes, max_shard_bytes=max_shard_bytes)
    if jax.process_index() != 0:
        # Fetching is collective; the tensors are dropped here.
        collections.deque(tensors, maxlen=0)
        return
    with files.new_directory(directory, overwrite=overwrite) as partial:
        if source_dir is not None:
            files.copy_carried(source_dir, partial)
        shard: dict[str, np.ndarray] = {}
        file = next(iter(plan.values()))
        for name, tensor in tensors:
            if plan[name] != file:
                _write(partial / file, shard)
                shard, file = {}, plan[name]
            shard[name] = _cast(name, tensor, dtypes[name])
        _write(partial / file, shard)
        if file != files.SINGLE:
            index = {
                "metadata": {"total_size": sum(sizes.values())},
                "weight_map": plan,
            }
            text = json.dumps(index, indent=2, sort_keys=True)
            (partial / files.INDEX).write_text(text + "\n", encoding="utf-8")


def _cast(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # reported below, by name
        cast = tensor.astype(jnp.dtype(dtype), copy=False)
    if dtype == "float16" and np.isinf(cast).any() and not np.isinf(tensor).any():
        raise ValueError(f"{name} overflows float16; use bfloat16 or float32")
    return cast


def _write(file: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    # "format" is what transformers looks for before it reads a file.
    safetensors_numpy.save_file(tensors, file, metadata={"format": "pt"})
