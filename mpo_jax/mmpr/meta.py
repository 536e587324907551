"""meta.json: the sources of a data set, and where their files lie.

It maps a source's name to its image root, its annotation (JSON lines) and how often an
epoch uses it. ``docs/data.md`` lists every field.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from absl import logging

from mpo_jax import fields, ledger
from mpo_jax.mmpr import annotations, places
from mpo_jax.utils import file_kinds, located

MAX_META_BYTES = 1 << 24

FIELDS = (
    "root",
    "annotation",
    "data_augment",
    "repeat_time",
    "length",
    "max_dynamic_patch",
)


@dataclasses.dataclass(frozen=True)
class Source:
    """One entry of meta.json, paths resolved.

    Attributes:
      name: key of the entry.
      root, annotation, reroot, anywhere: see :class:`places.Place`.
      repeat_time: how often an epoch uses each record; below 1 a share of them.
      max_tiles: tile limit (``max_dynamic_patch``), None where meta.json has none.
      length: number of records as declared, None where not; informative.
      data_augment: always False, see :func:`load_meta`.
    """

    name: str
    root: str
    annotation: str
    repeat_time: float = 1.0
    max_tiles: int | None = None
    length: int | None = None
    data_augment: bool = False
    reroot: str = ""
    anywhere: bool = False

    @property
    def place(self) -> places.Place:
        return places.Place(self.root, self.annotation, self.reroot, self.anywhere)


def load_meta(
    path: str | os.PathLike[str],
    *,
    reroot: str = "",
    source_places: Mapping[str, places.Place] | None = None,
) -> list[Source]:
    """Read and check an MMPR meta.json.

    Relative roots and annotations are relative to the folder of meta.json. What is
    not there but is below the folder's parent is taken from there, with a warning:
    MMPR as released begins its paths with the folder's own name.

    Args:
      path: the meta.json, or its address.
      reroot: ``OLD=NEW`` replaces the leading path OLD of roots, annotations and
        absolute image paths by NEW (absolute, or relative to the folder of
        meta.json); empty changes nothing.
      source_places: of the sources that shards hold, by name; then nothing is
        looked for.

    Returns:
      Sources in the order of the file.

    Raises:
      FileNotFoundError: meta.json or an annotation is missing.
      ValueError: bad JSON, a field of the wrong type, an annotation that is none, a
        source that asks for ``data_augment``, or a `reroot` that is malformed or
        matches nothing.
      PermissionError, ConnectionError: of a store.
    """
    meta_path = located.absolute(path)
    if not located.is_file(meta_path):
        raise FileNotFoundError(f"meta file {str(path)!r} does not exist")
    meta = _read(meta_path)
    finder = None if source_places is not None else places.Finder(meta_path, reroot)
    sources = [
        _source(
            f"{meta_path}, source {name!r}", name, entry, finder or source_places or {}
        )
        for name, entry in meta.items()
    ]
    if finder is not None:
        finder.finish()
    return sources


def _read(path: str) -> dict[str, Any]:
    """The object in meta.json."""
    text = located.head(path, MAX_META_BYTES + 1)
    head = text[: 1 << 16]
    if path.endswith(".jsonl") or annotations.is_record(annotations.first_value(head)):
        raise ValueError(_is_annotation(path))
    kind = file_kinds.of_text(head)
    if kind is not None:
        raise ValueError(f"{path} is {kind.name}, not a meta.json; {kind.remedy}")
    if len(text) > MAX_META_BYTES:
        raise ValueError(
            f"{path} has {located.size(path)} bytes, more than any meta.json; is it an "
            "annotation file?"
        )
    try:
        meta = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_unique_object)
        json.dumps(meta, ensure_ascii=False).encode("utf-8")  # no lone surrogates
    except json.JSONDecodeError as error:
        problem = f"{_trailing_comma(error)}{error}"
        raise ValueError(f"{path} is not valid JSON: {problem}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if annotations.is_record(meta):
        raise ValueError(_is_annotation(path))
    if not isinstance(meta, dict) or not meta:
        raise ValueError(
            f"{path} must be a JSON object with one entry per source, such as "
            f"{_example('a.jsonl')}"
        )
    return meta


def _is_annotation(path: str) -> str:
    return (
        f"{path} is an annotation (JSON lines of records), not a meta.json. Write one "
        f"beside it and name that: {_example(located.name(path))}"
    )


def _example(annotation: str) -> str:
    entry = {"root": "images", "annotation": annotation}
    return json.dumps({"name": entry}, ensure_ascii=False)


def _trailing_comma(error: json.JSONDecodeError) -> str:
    """Where a comma stands before a closing bracket: the usual mistake by hand."""
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if after.startswith(","):  # Python 3.13 points at the comma itself
        before, after = before + ",", after[1:].lstrip()
    if not (before.endswith(",") and after[:1] in ("}", "]")):
        return ""
    line = before.count("\n") + 1
    column = len(before) - before.rfind("\n") - 1
    return f"remove the trailing comma at line {line} column {column}: "


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; a repeated key would silently drop a source."""
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"repeated keys {repeated}")
    return result


def _source(
    where: str, name: str, entry: Any, known: places.Finder | Mapping[str, places.Place]
) -> Source:
    if not isinstance(entry, dict):
        raise ValueError(
            f"{where}: must be an object, got {ledger.short(entry)}; meta.json reads "
            f"{_example('a.jsonl')}"
        )
    for key in entry.keys() - set(FIELDS):
        near = fields.nearest(key, FIELDS)
        if near:
            raise ValueError(f"{where}: unknown field {key!r}; is {near[0]!r} meant?")
        logging.warning("%s: field %r is not used", where, key)
    if isinstance(known, places.Finder):
        place = known.place(where, entry)
    elif name in known:
        place = known[name]
    else:
        raise ValueError(
            f"{where}: the shards beside it hold no such source, only {sorted(known)}"
        )
    augment = entry.get("data_augment")
    if not isinstance(augment, bool | None):
        raise ValueError(f"{where}: data_augment must be true or false")
    if augment:
        raise ValueError(
            f"{where}: data_augment is true. Random JPEG noise would make stored "
            "reference log-probs wrong, so it is not supported; set it to false"
        )
    repeat = entry.get("repeat_time")
    repeat = 1 if repeat is None else repeat
    if not _is_number(repeat) or not math.isfinite(repeat) or repeat < 0:
        raise ValueError(
            f"{where}: repeat_time must be a number >= 0, got {ledger.short(repeat)}"
        )
    return Source(
        name=name,
        repeat_time=float(repeat),
        max_tiles=_count(where, entry, "max_dynamic_patch", least=1),
        length=_count(where, entry, "length", least=0),
        **place._asdict(),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(where: str, entry: Mapping[str, Any], key: str, *, least: int) -> int | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{where}: {key} must be a whole number >= {least}, got "
            f"{ledger.short(value)}"
        )
    return value
