"""The files beside the weights, in the layout that an export asks for."""

from __future__ import annotations

import json
import pathlib
import shutil

from mpo_jax.convert import files, native_files, table
from mpo_jax.data import tokenizer
from mpo_jax.models import config, native_config

CHOICES = table.LAYOUTS
KEPT_DIRECTORY = "original"
"""Sub-directory of a native export with the files of the original that it came from."""

_TEXTS = ("README*", "LICENSE*", "NOTICE*")
# Files of a native-born model that keep their meaning in the original layout.
_SHARED = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json"),
    *("merges.txt", "added_tokens.json", "special_tokens_map.json"),
    *("generation_config.json", "chat_template.jinja", "chat_template.json", *_TEXTS),
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
    dtype: str,
    template: str = "",
) -> list[str]:
    """Carry files along, or write what the other layout wants instead.

    Args:
      source_dir: model directory of either layout.
      layout: wanted one.
      dtype: of the weights, for ``config.json``.
      template: chat template for a native model that does not name one.

    Returns:
      Notes for the user: what could not be written.

    Raises:
      ValueError: if the model has no form in `layout`; names the file and field.
    """
    source, target = pathlib.Path(source_dir), pathlib.Path(target)
    file = source / "config.json"
    if not file.is_file() or same_files(source, layout):
        files.copy_carried(source, target)
        if (source / KEPT_DIRECTORY).is_dir():
            shutil.copytree(
                source / KEPT_DIRECTORY, target / KEPT_DIRECTORY, dirs_exist_ok=True
            )
        return []
    raw = files.read_json(file)
    try:
        if layout == table.ORIGINAL:
            return _to_original(source, target, raw, template=template)
        return _to_native(source, target, raw, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _to_native(
    source: pathlib.Path, target: pathlib.Path, raw: dict, *, dtype: str
) -> list[str]:
    cfg = config.from_hf(raw)
    token = files.special_token_id(source, tokenizer.IMG_CONTEXT)
    if token is None:
        raise ValueError(
            f"the native layout names the id of {tokenizer.IMG_CONTEXT}, but the "
            "directory has no tokenizer that knows it; name one with --hf_files"
        )
    if dtype == "keep":
        dtype = str(raw.get("torch_dtype") or raw.get("dtype") or "bfloat16")
    native = native_config.from_original(raw, cfg, image_token_id=token, dtype=dtype)
    _write_json(target / "config.json", native)
    notes = native_files.write(source, target, cfg)
    for pattern in _TEXTS:
        for path in source.glob(pattern):
            shutil.copyfile(path, target / path.name)
    kept = target / KEPT_DIRECTORY
    kept.mkdir(exist_ok=True)
    files.copy_carried(source, kept)
    return notes


def _to_original(
    source: pathlib.Path, target: pathlib.Path, raw: dict, *, template: str
) -> list[str]:
    original = native_config.to_original(raw)
    notes = []
    kept = source / KEPT_DIRECTORY
    if kept.is_dir():
        files.copy_carried(kept, target)
    else:
        for pattern in _SHARED:
            for path in source.glob(pattern):
                shutil.copyfile(path, target / path.name)
        notes.append(
            "no remote code is carried, as the source has none: take the *.py files "
            "and auto_map of a released model of this family to load it with them"
        )
    if template:
        original["template"] = template
    if not original.get("template"):
        raise ValueError(
            "the native layout names no chat template; give it, e.g. "
            "--template=internvl2_5 for the series 2.5, 3 and 3.5"
        )
    config.from_hf(original)  # says what is wrong before anything is written
    _write_json(target / "config.json", original)
    return notes


def _write_json(file: pathlib.Path, content: dict) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
