"""The tensors of a released checkpoint on disk: headers first, data when asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from mpo_jax.convert import files, ranges, table
from mpo_jax.models.config import InternVLConfig
from mpo_jax.utils import remote

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_SHARD = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_SHOWN = 20  # lines of a list of what is wrong
NAMES = {code: name for name, code in CODES.items()}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of the source, not yet read."""

    handle: Any
    name: str
    file: str
    shape: tuple[int, ...]
    code: str

    def read(self) -> np.ndarray:
        return self.handle.get_tensor(self.name)


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    Attributes:
      directory: where it lies; a path or an address.
      found: its tensors by name.
      layout: of ``table.LAYOUTS``, told from the names.
    """

    directory: str | pathlib.Path
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


def _shards(
    directory: str | pathlib.Path, present: Mapping[str, int]
) -> dict[str, set[str] | None]:
    """Weight files and the names that the index says they hold (None: no index).

    Args:
      present: sizes of the files in the directory, by name.
    """
    if files.SINGLE in present and files.INDEX not in present:
        return {files.SINGLE: None}
    if files.INDEX not in present:
        others = sorted(name for name in present if name.endswith(".bin"))
        hint = (
            f"; it holds {others[0]}: pickled weights are not read, convert them to "
            "safetensors first"
            if others
            else "; give a model directory with safetensors weights"
        )
        raise FileNotFoundError(
            f"{directory} holds no {files.SINGLE} or {files.INDEX}{hint}"
        )
    index = remote.join(directory, files.INDEX)
    weight_map = files.read_json_at(directory, files.INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: 'weight_map' must map tensor names to files")
    shards: dict[str, set[str] | None] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or pathlib.PurePath(shard).name != shard:
            raise ValueError(
                f"{index}: weight_map[{name!r}]={shard!r} must be the name of a file "
                "beside the index"
            )
        tensors = shards.setdefault(shard, set())
        assert tensors is not None
        tensors.add(name)
    absent = sorted(shards.keys() - present.keys())
    if absent:
        raise FileNotFoundError(
            f"{index} names files that are absent: {', '.join(absent)}; download them"
        )
    # Other weights of a model: of these and those of the index one is stale. Further
    # files, such as adapters, are not a model's.
    stray = sorted(n for n in present.keys() - shards.keys() if _SHARD.fullmatch(n))
    if stray:
        raise ValueError(
            f"{remote.join(directory, stray[0])}: not named by {files.INDEX}; remove "
            "it, or a stale index"
        )
    return shards


def _tensors(
    directory: str | pathlib.Path, name: str, size: int, stack: contextlib.ExitStack
) -> Any:
    """The opened file, with the interface of ``safetensors.safe_open``."""
    if remote.is_remote(directory):
        return ranges.Tensors(remote.Folder(str(directory)), name, size)
    file = pathlib.Path(directory) / name
    with file.open("rb"):  # says what is wrong; the library calls it absent
        pass
    try:
        return stack.enter_context(_File(file))
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{file}: not a complete safetensors file ({error}); download it again"
        ) from error


class _File:
    """A local file, mapped anew for every tensor.

    One mapping for all would hold each page that was ever read, so that the resident
    memory grew to the size of the model.
    """

    def __init__(self, file: pathlib.Path):
        self._file = file

    def _open(self) -> Any:
        return safetensors.safe_open(  # type: ignore[no-untyped-call]
            self._file, framework="np"
        )

    def __enter__(self) -> Any:
        self._headers = self._open()
        return self

    def __exit__(self, *error: Any) -> None:
        self._headers.__exit__(*error)

    def keys(self) -> list[str]:
        return list(self._headers.keys())

    def get_slice(self, name: str) -> Any:
        return self._headers.get_slice(name)

    def get_tensor(self, name: str) -> np.ndarray:
        with self._open() as opened:
            return opened.get_tensor(name)


def _open(
    directory: str | pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, Stored]:
    """Read the headers of all weight files; the tensors stay where they are.

    Raises:
      FileNotFoundError, ValueError: naming the file; index and headers must agree.
    """
    found: dict[str, Stored] = {}
    wrong = []
    present = files.file_sizes(directory)
    for shard, listed in _shards(directory, present).items():
        handle = _tensors(directory, shard, present[shard], stack)
        file = remote.join(directory, shard)
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
                wrong.append(f"{file}: {name} stands in {found[name].file} too")
                continue
            view = handle.get_slice(name)
            shape = tuple(int(size) for size in view.get_shape())
            found[name] = Stored(handle, name, shard, shape, view.get_dtype())
    if wrong:
        raise ValueError("inconsistent checkpoint:\n  " + "\n  ".join(wrong))
    return found


def _ties(directory: str | pathlib.Path) -> bool:
    """Whether a model without a head means its embedding by it.

    Transformers' default for a model as a whole; a configuration can say otherwise.
    """
    if "config.json" not in files.file_sizes(directory):
        return False
    raw = files.read_json_at(directory, "config.json")
    sections = (raw, raw.get("llm_config"), raw.get("text_config"))
    said = [
        section["tie_word_embeddings"]
        for section in sections
        if isinstance(section, dict) and "tie_word_embeddings" in section
    ]
    return any(said) or not said


@contextlib.contextmanager
def opened(directory: str | pathlib.Path) -> Iterator[Source]:
    """Read the headers of a checkpoint's files; tensors stay there until read.

    Args:
      directory: a path, or an address, whose tensors are fetched one by one. A head
        that is tied to the embedding, and so absent, is read as a copy of it.

    Raises:
      FileNotFoundError, ValueError: naming the file; index and headers must agree.
    """
    with contextlib.ExitStack() as stack:
        found = _open(directory, stack)
        pair = table.tied(found.keys())
        if pair is not None and _ties(directory):
            head, embedding = pair
            found[head] = found[embedding]
        yield Source(directory, found, table.detect(found.keys()))


_ADAPTERS = re.compile(r"\.(lora_[A-Za-z_]+|base_layer|modules_to_save)\.")
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_(packed|scale|scale_inv|zero_point)|SCB"
    r"|weight\.(absmax|quant_map|quant_state\..*)|input_scale)$"
)
# Codes of safetensors that quantised weights are stored in.
_QUANTISED_CODES = ("I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4")


def _check_plain(source: Source) -> None:
    """Raise ValueError where the tensors are not the weights of a whole model."""
    adapters = [name for name in source.found if _ADAPTERS.search(name)]
    if adapters:
        raise ValueError(
            f"{source.directory}: adapters (LoRA) stand beside the weights in "
            f"{len(adapters)} tensors, such as {adapters[0]}; merge them first, with "
            "what trained them (upstream: tools/merge_lora.py; PEFT: "
            "merge_and_unload), and name the result"
        )
    packed = [
        name
        for name, stored in source.found.items()
        if _QUANTISED.search(name) or stored.code in _QUANTISED_CODES
    ]
    if packed:
        method = _quantisation(source.directory)
        raise ValueError(
            f"{source.directory}: the weights are quantised{method}, {len(packed)} "
            f"tensors such as {packed[0]} ({source.found[packed[0]].code}); name the "
            "release in bfloat16, float16 or float32"
        )


def _quantisation(directory: str | pathlib.Path) -> str:
    """What the configuration calls it, for the message."""
    if "config.json" not in files.file_sizes(directory):
        return ""
    raw = files.read_json_at(directory, "config.json")
    for section in (raw, raw.get("llm_config"), raw.get("text_config")):
        said = section.get("quantization_config") if isinstance(section, dict) else None
        if isinstance(said, dict) and said.get("quant_method"):
            return f" ({said['quant_method']})"
    return ""


def account(source: Source, cfg: InternVLConfig) -> None:
    """Check that a source holds exactly the tensors of an architecture.

    Raises:
      ValueError: naming missing, surplus or misshapen tensors and their files, or what
        else was done to the weights: adapters beside them, quantisation.
    """
    _check_plain(source)
    wanted = table.hf_shapes(cfg, source.layout)
    wrong = [
        f"missing {name} {shape}"
        for name, shape in wanted.items()
        if name not in source.found
    ]
    for name, stored in source.found.items():
        where = f"{name} in {stored.file}"
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
        more = f"\n  … and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ValueError(
            f"{source.directory}: weights ({source.layout} layout) do not fit the "
            "model:\n  "
            + "\n  ".join(wrong[:_SHOWN])
            + more
            + "\nDo weights and config.json belong to the same model?"
        )


def dtypes(directory: str | pathlib.Path) -> dict[str, str]:
    """Dtype of every tensor of a source, e.g. ``{"mlp1.0.bias": "bfloat16"}``.

    Read from the headers of its weights or, in the ``hf`` part of a converted
    checkpoint, from the record of them.

    Raises:
      FileNotFoundError: if there is neither.
    """
    if files.DTYPES in files.file_sizes(directory):
        recorded = files.read_json_at(directory, files.DTYPES)
        return {name: str(dtype) for name, dtype in recorded.items()}
    with opened(directory) as source:
        return {n: NAMES.get(s.code, s.code) for n, s in source.found.items()}


def write_dtypes(directory: str | pathlib.Path, kinds: Mapping[str, str]) -> None:
    """Leave the record that :func:`dtypes` reads."""
    text = json.dumps(dict(kinds), indent=1)
    (pathlib.Path(directory) / files.DTYPES).write_text(text + "\n", encoding="utf-8")
