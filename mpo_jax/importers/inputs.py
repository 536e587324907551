"""What the user names as input: files, folders, hub ids, and files that list others."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mpo_jax.importers import hub, messages, readers
from mpo_jax.importers.messages import Tags
from mpo_jax.mmpr.meta import Source, load_meta
from mpo_jax.utils import remote

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MAX_INFO_BYTES = 1 << 24  # no meta.json or dataset_info.json is larger
_HUB = "data set of the hub"
_FOLDER = "folder of a data set"


@dataclasses.dataclass(frozen=True)
class Input:
    """One source to be.

    Attributes:
      name: key in meta.json.
      path: file, folder or hub id.
      kind: how it is read, for people and for :func:`rows`.
      root: absolute folder of relative image paths.
      columns: name in the data by name in the layout.
      tags: how messages are written.
      layout: name of the layout, "" to detect it.
      subset, split: of a data set.
      entry: fields that the source keeps in meta.json (``repeat_time``, …).
    """

    name: str
    path: str
    kind: str
    root: str
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tags: Tags = Tags()
    layout: str = ""
    subset: str = ""
    split: str = ""
    entry: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def rows(source: Input, *, max_bytes: int) -> Iterator[readers.Item]:
    """The records of an input, with fields renamed as ``columns`` says."""
    if source.kind in (_HUB, _FOLDER):
        items = hub.read(source.path, subset=source.subset, split=source.split)
    else:
        items = readers.read(source.path, source.kind, max_bytes=max_bytes)
    for number, record in items:
        if source.columns and isinstance(record, dict):
            record = _renamed(record, source.columns)
        yield number, record


def _renamed(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Fields under the layout's names; what had such a name before gives way."""
    theirs = set(columns.values())
    kept = {
        key: value
        for key, value in record.items()
        if key not in theirs and key not in columns
    }
    return kept | {
        ours: record[name] for ours, name in columns.items() if name in record
    }


def find(
    paths: Sequence[str],
    *,
    image_root: str = "",
    columns: Mapping[str, str] | None = None,
    layout: str = "",
    subset: str = "",
    split: str = "",
) -> list[Input]:
    """The inputs behind what the user named, each under a name of its own.

    Args:
      paths: files, folders, hub ids; a meta.json stands for its sources.
      image_root: folder of relative image paths; "" is the folder of the file.
      columns: name in the data by name in the layout.
      layout, subset, split: see :class:`Input`.

    Raises:
      FileNotFoundError, ValueError: naming the input.
    """
    _check_root(image_root)
    found: list[Input] = []
    for path in map(os.path.expanduser, paths):
        sources = _meta_sources(path)
        if sources is not None:
            if image_root:
                raise ValueError(f"--image_root: {path} has a root for each source")
            found += [_of_meta(source, layout, columns or {}) for source in sources]
            continue
        kind = _kind(path)
        if (subset or split) and kind not in (_HUB, _FOLDER):
            raise ValueError(f"{path} is a file: --subset and --split choose nothing")
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        found.append(
            Input(
                name=_stem(path),
                path=path,
                kind=kind,
                root=os.path.abspath(image_root or folder),
                columns=columns or {},
                layout=layout,
                subset=subset,
                split=split,
            )
        )
    return _named_apart(found)


def from_dataset_info(
    path: str, names: Sequence[str], *, image_root: str = "", layout: str = ""
) -> list[Input]:
    """Data sets as LLaMA-Factory's dataset_info.json describes them.

    Args:
      path: the file; data lie beside it.
      names: entries to import.
      image_root: as :func:`find`.
      layout: overrides what ``formatting`` says.

    Raises:
      FileNotFoundError, ValueError: naming the entry and the field.
    """
    _check_root(image_root)
    info = _json_object(path)
    if info is None:
        raise ValueError(f"--dataset_info={path} is not a JSON object in a file")
    found = []
    for name in names:
        entry, where = info.get(name), f"{path}, entry {name!r}"
        if not isinstance(entry, dict):
            known = ", ".join(sorted(info))[:200]
            raise ValueError(f"{where}: there is no such entry; it has {known}")
        unread = set(entry) - _ENTRY
        if unread:
            raise ValueError(
                f"{where}: {messages.names(unread)} cannot be followed; remove it, or "
                "import the file itself"
            )
        folder = os.path.dirname(path)  # what image paths are relative to
        if entry.get("hf_hub_url"):
            source = entry["hf_hub_url"]
        elif entry.get("file_name"):
            source = os.path.join(folder, entry["file_name"])
        else:
            raise ValueError(f"{where}: needs file_name or hf_hub_url")
        sharegpt = entry.get("formatting", "alpaca") == "sharegpt"
        found.append(
            Input(
                name=name,
                path=source,
                kind=_kind(source),
                root=os.path.abspath(image_root or folder),
                columns=_factory_columns(entry.get("columns") or {}, where),
                tags=_factory_tags(entry.get("tags") or {}, where),
                layout=layout or _factory_layout(entry, sharegpt),
                subset=entry.get("subset") or "",
                split=entry.get("split") or "",
            )
        )
    return _named_apart(found)


def _check_root(image_root: str) -> None:
    if image_root and not os.path.isdir(image_root):
        raise FileNotFoundError(f"--image_root={image_root} is not a folder")


def _factory_layout(entry: Mapping[str, Any], sharegpt: bool) -> str:
    if not sharegpt:
        return "alpaca"
    return "sharegpt" if entry.get("ranking") else "internvl"


_ENTRY = frozenset(
    "hf_hub_url ms_hub_url om_hub_url script_url file_name file_sha1 formatting "
    "ranking subset split columns tags".split()
)
"""Fields of an entry that are read, or say once more where the data are."""

_FACTORY = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "messages": "conversations",
}
"""Columns of dataset_info.json whose field in the layout has another name."""

_FACTORY_SAME = (
    *("chosen", "rejected", "images", "system", "history"),
    *("tools", "videos", "audios", "kto_tag"),
)


def _factory_columns(columns: Any, where: str) -> dict[str, str]:
    known = {**_FACTORY, **{name: name for name in _FACTORY_SAME}}
    if not isinstance(columns, dict) or not set(columns) <= set(known):
        raise ValueError(f"{where}: columns must be an object of {', '.join(known)}")
    return {known[key]: value for key, value in columns.items() if value is not None}


def _factory_tags(tags: Any, where: str) -> Tags:
    usual, ends = Tags(), "_tag"
    speakers = ("user", "assistant", "system")
    ignored = ("observation", "function")  # their messages are refused by role
    known = ("role", "content", *speakers, *ignored)
    if not isinstance(tags, dict) or not set(tags) <= {name + ends for name in known}:
        raise ValueError(
            f"{where}: tags must be an object of {', '.join(known)} + _tag"
        )

    def keys(name: str, usual: tuple[str, ...]) -> tuple[str, ...]:
        return (tags[name + ends],) if tags.get(name + ends) else usual

    speaking = {tags[name + ends]: name for name in speakers if tags.get(name + ends)}
    return Tags(
        role_keys=keys("role", usual.role_keys),
        content_keys=keys("content", usual.content_keys),
        roles={**usual.roles, **speaking},
    )


def _kind(path: str) -> str:
    """How an input is read.

    Raises:
      FileNotFoundError, ValueError: it cannot be.
    """
    if os.path.isdir(path):
        if os.path.isfile(os.path.join(path, "dataset_info.json")) and not any(
            os.path.isfile(os.path.join(path, marker))
            for marker in ("state.json", "dataset_dict.json")
        ):
            raise ValueError(
                f"{path} has LLaMA-Factory's dataset_info.json; import its entries by "
                f"name with --dataset_info={os.path.join(path, 'dataset_info.json')}"
            )
        return _FOLDER
    if os.path.exists(path):
        return readers.kind_of(path)
    if "://" in path:
        raise ValueError(
            f"input {path} is an address; download it, or give a hub id OWNER/NAME"
        )
    suffixes = (".json", ".jsonl", ".gz", ".parquet")
    if _HUB_ID.fullmatch(path) and not path.endswith(suffixes):
        return _HUB
    raise FileNotFoundError(f"input {path!r} does not exist")


def _json_object(path: str) -> dict[str, Any] | None:
    """A small JSON file that holds one object; None where `path` is no such file."""
    if not os.path.isfile(path) or os.path.getsize(path) > _MAX_INFO_BYTES:
        return None
    try:
        with open(path, encoding="utf-8-sig") as file:
            value = json.load(file)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _meta_sources(path: str) -> list[Source] | None:
    """Sources of a meta.json; None where the file is none."""
    value = _json_object(path) if path.endswith(".json") else None
    if not value or not all(
        isinstance(entry, dict) and {"root", "annotation"} <= set(entry)
        for entry in value.values()
    ):
        return None
    sources = load_meta(path)
    for source in sources:
        for place in (source.root, source.annotation):
            why = "the importer reads files"
            remote.refuse(place, field=f"{path}, source {source.name!r}", why=why)
    return sources


def _of_meta(source: Source, layout: str, columns: Mapping[str, str]) -> Input:
    entry: dict[str, Any] = {"repeat_time": source.repeat_time}
    if source.max_tiles is not None:
        entry["max_dynamic_patch"] = source.max_tiles
    return Input(
        name=source.name,
        path=source.annotation,
        kind=_kind(source.annotation),
        root=source.root,
        columns=columns,
        layout=layout,
        entry=entry,
    )


def _stem(path: str) -> str:
    name = os.path.basename(os.path.normpath(path))
    for suffix in (".gz", ".jsonl", ".json", ".parquet"):
        name = name.removesuffix(suffix)
    return name or "data"


def _named_apart(sources: list[Input]) -> list[Input]:
    """Names that are file names, each given once; the folder tells equal ones apart."""
    names = collections.Counter(source.name for source in sources)
    taken: set[str] = set()
    result = []
    for source in sources:
        stem = source.name
        if names[stem] > 1:
            folder = os.path.dirname(os.path.abspath(source.path))
            stem = f"{os.path.basename(folder)}_{stem}"
        stem = re.sub(r"[^\w.-]+", "_", stem)
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        result.append(dataclasses.replace(source, name=name))
    return result


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """``["question=query_text"]`` to a dict.

    Raises:
      ValueError: an entry has no =, or a name is given twice.
    """
    result: dict[str, str] = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs) or ours in result:
            raise ValueError(
                f"--columns: {messages.short(pair)} must read FIELD=THEIRS, each once"
            )
        result[ours] = theirs
    return result
