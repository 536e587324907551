"""The files beside the weights, in the layout that an export asks for."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
import shutil
from collections.abc import Collection, Iterable
from typing import Any

from mpo_jax.convert import files, native_files, remote_code, table
from mpo_jax.convert.settings import NONE, Settings, state_weights, stated_dtype
from mpo_jax.inputs import tokenizer
from mpo_jax.models import config, native_config

CHOICES = table.LAYOUTS

_TEXTS = ("README*", "LICENSE*", "NOTICE*")
# Files of a native-born model that keep their meaning in the original layout.
_SHARED = (
    *files.TOKENIZER_FILES,
    *("generation_config.json", *_TEXTS),
)


def of_files(directory: str | pathlib.Path) -> str:
    """Layout of a model directory, by its ``config.json``.

    Both native ones have the same: ``native``, whose names every version reads.
    """
    raw = files.read_json(pathlib.Path(directory) / "config.json")
    return table.NATIVE if native_config.is_native(raw) else table.ORIGINAL


def choose(layout: str | None, source_dir: str | pathlib.Path | None) -> str:
    """`layout`, or that of `source_dir`, or the original one.

    Raises:
      ValueError: on an unknown name.
    """
    if layout is not None:
        if layout not in CHOICES:
            raise ValueError(f"layout={layout!r}: use one of {list(CHOICES)}")
        return layout
    if source_dir is None or not (pathlib.Path(source_dir) / "config.json").is_file():
        return table.ORIGINAL
    return of_files(source_dir)


def same_files(directory: str | pathlib.Path, layout: str) -> bool:
    """Whether the files beside the weights of a directory are those of `layout`."""
    return (of_files(directory) == table.ORIGINAL) == (layout == table.ORIGINAL)


def write_files(
    source_dir: str | pathlib.Path,
    target: str | pathlib.Path,
    *,
    layout: str,
    kinds: Collection[str],
    settings: Settings = NONE,
) -> list[str]:
    """Carry files along, or write what the other layout wants instead.

    Args:
      source_dir: model directory of either layout.
      layout: wanted one.
      kinds: dtypes of the weights, for ``config.json``.
      settings: what was trained with where it is not what the files say; also the chat
        template for a native model that does not name one.

    Returns:
      Notes for the user: what could not be written.

    Raises:
      ValueError: if the model has no form in `layout`; names the file and field.
    """
    source, target = pathlib.Path(source_dir), pathlib.Path(target)
    file = source / "config.json"
    if not file.is_file():
        files.copy_model_files(source, target)
        return []
    export = _Export(source, target, files.read_json(file), kinds, settings)
    try:
        if same_files(source, layout):
            notes = _carried(export)
        elif layout == table.ORIGINAL:
            notes = _to_original(export)
        else:
            notes = _to_native(export)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return [*notes, *remote_code.missing(target)]


@dataclasses.dataclass(frozen=True)
class _Export:
    """Arguments of :func:`write_files`, and ``config.json`` of the source."""

    source: pathlib.Path
    target: pathlib.Path
    raw: dict[str, Any]
    kinds: Collection[str]
    settings: Settings


def _carried(export: _Export) -> list[str]:
    """The same layout: files as they are, but for what the run or the dtype changed."""
    files.copy_model_files(export.source, export.target)
    changed, native = copy.deepcopy(export.raw), native_config.is_native(export.raw)
    if native:
        export.settings.into_native_config(changed)
    else:
        export.settings.into_config(changed)
        export.settings.into_tokenizer(export.target)
    state_weights(changed, export.kinds)
    if changed != export.raw:  # else the file stays as it is, to the byte
        files.write_json(export.target / "config.json", changed)
    if not native or export.settings == NONE:
        return []
    if (export.target / files.KEPT).is_dir():
        export.settings.into_tokenizer(export.target / files.KEPT)
    return native_files.amend(
        export.source, export.target, config.from_hf(changed), export.settings.tokenizer
    )


def _to_native(export: _Export) -> list[str]:
    raw = copy.deepcopy(export.raw)
    export.settings.into_config(raw)
    cfg = config.from_hf(raw)
    # The files of the original, as the run has them, are also what is kept of it.
    kept = export.target / files.KEPT
    kept.mkdir(exist_ok=True)
    files.copy_carried(export.source, kept)
    export.settings.into_tokenizer(kept)
    if raw != files.read_json(export.source / "config.json"):
        files.write_json(kept / "config.json", raw)
    token = files.special_token_id(kept, tokenizer.IMG_CONTEXT)
    if token is None:
        raise ValueError(
            f"the native layout names the id of {tokenizer.IMG_CONTEXT}, but the "
            "directory has no tokenizer that knows it; name one with --hf_files"
        )
    dtype = stated_dtype(export.kinds, raw.get("torch_dtype") or raw.get("dtype"))
    native = native_config.from_original(raw, cfg, image_token_id=token, dtype=dtype)
    state_weights(native, export.kinds)
    files.write_json(export.target / "config.json", native)
    notes = native_files.write(
        kept, export.target, cfg, trained=bool(export.settings.template)
    )
    _copy_matching(export, _TEXTS)
    return notes


def _to_original(export: _Export) -> list[str]:
    original = native_config.to_original(export.raw)
    notes = []
    kept = export.source / files.KEPT
    if kept.is_dir():
        files.copy_carried(kept, export.target)
    else:
        _copy_matching(export, _SHARED)
        notes.append(
            "no remote code is carried, as the source has none: take the *.py files "
            "and auto_map of a released model of this family to load it with them"
        )
    export.settings.into_tokenizer(export.target)
    export.settings.into_config(original)
    if not original.get("template"):
        raise ValueError(
            "the native layout names no chat template; give it, e.g. "
            "--template=internvl2_5 for the series 2.5, 3 and 3.5"
        )
    config.from_hf(original)  # says what is wrong before weights are written
    state_weights(original, export.kinds)
    files.write_json(export.target / "config.json", original)
    return notes


def _copy_matching(export: _Export, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in export.source.glob(pattern):
            shutil.copyfile(path, export.target / path.name)
