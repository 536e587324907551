"""meta.json: the sources of a data set, and where their files lie.

It maps a source's name to its image root, its annotation (JSON lines) and how often an
epoch uses it. ``docs/data.md`` lists every field.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from absl import logging

from mpo_jax.data import annotations, file_kinds, ledger

MAX_META_BYTES = 1 << 24

FIELDS = (
    "root",
    "annotation",
    "data_augment",
    "repeat_time",
    "length",
    "max_dynamic_patch",
)
_PEEK = 100  # lines of an annotation that are looked at for a reroot of images


class Place(NamedTuple):
    """Where the files of a source lie; what its records' image paths depend on.

    Attributes:
      root: absolute folder that image paths are relative to.
      annotation: absolute path of the JSON-lines file.
      reroot: ``OLD=NEW``, replaces the leading path of absolute image paths and of
        URLs; NEW is absolute. "" replaces nothing.
      anywhere: absolute image paths need not lie below `root` (meta.json has the
        root "").
    """

    root: str
    annotation: str
    reroot: str = ""
    anywhere: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """One entry of meta.json, paths resolved.

    Attributes:
      name: key of the entry.
      root, annotation, reroot, anywhere: see :class:`Place`.
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
    def place(self) -> Place:
        return Place(self.root, self.annotation, self.reroot, self.anywhere)


def load_meta(
    path: str | os.PathLike[str],
    *,
    reroot: str = "",
    held: Mapping[str, Place] | None = None,
) -> list[Source]:
    """Read and check an MMPR meta.json.

    Relative roots and annotations are relative to the folder of meta.json. What is
    not there but is below the folder's parent is taken from there, with a warning:
    MMPR as released begins its paths with the folder's own name.

    Args:
      path: the meta.json.
      reroot: ``OLD=NEW`` replaces the leading path OLD of roots, annotations and
        absolute image paths by NEW (absolute, or relative to the folder of
        meta.json); empty changes nothing.
      held: places of the sources that shards hold, by name; then nothing is looked
        for on disk.

    Returns:
      Sources in the order of the file.

    Raises:
      FileNotFoundError: meta.json or an annotation is missing.
      ValueError: bad JSON, a field of the wrong type, an annotation that is none, a
        source that asks for ``data_augment``, or a `reroot` that is malformed or
        matches nothing.
    """
    meta_path = pathlib.Path(path).expanduser().absolute()
    meta = _read(meta_path)
    finder = None if held is not None else _Finder(meta_path, reroot)
    sources = [
        _source(f"{meta_path}, source {name!r}", name, entry, finder or held or {})
        for name, entry in meta.items()
    ]
    if finder is not None:
        finder.finish(sources)
    return sources


def _read(path: pathlib.Path) -> dict[str, Any]:
    """The object in meta.json."""
    if not path.is_file():
        raise FileNotFoundError(f"meta file {str(path)!r} does not exist")
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    if path.suffix == ".jsonl" or annotations.is_record(annotations.first_value(head)):
        raise ValueError(_is_annotation(path))
    kind = file_kinds.of_text(head)
    if kind is not None:
        raise ValueError(f"{path} is {kind.name}, not a meta.json; {kind.remedy}")
    size = path.stat().st_size
    if size > MAX_META_BYTES:
        raise ValueError(
            f"{path} has {size} bytes, more than any meta.json; is it an "
            "annotation file?"
        )
    text = path.read_bytes()
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


def _is_annotation(path: pathlib.Path) -> str:
    return (
        f"{path} is an annotation (JSON lines of records), not a meta.json. Write one "
        f"beside it and name that: {_example(path.name)}"
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


def moved(path: str, rule: str) -> str:
    """`path` with its leading part replaced by ``OLD=NEW``; as it is if none matches.

    Only whole components match; OLD may be the beginning of a URL.
    """
    if not _begins(path, rule):
        return path
    old, _, new = rule.partition("=")
    return os.path.join(new, path[len(old) :].lstrip("/"))


def _begins(path: str, rule: str) -> bool:
    old = rule.partition("=")[0]
    return bool(rule) and (path + "/").startswith(old.rstrip("/") + "/")


def _normal(path: str) -> str:
    """A path or URL in the one form in which beginnings are compared."""
    if not path or "://" in path:
        return path.rstrip("/")
    return os.path.normpath(os.path.expanduser(path))


def _begin_of_urls(entry: Mapping[str, Any]) -> str:
    """What the URLs of an entry have in common: one rule moves them all."""
    urls = [entry.get("root"), os.path.dirname(str(entry.get("annotation")))]
    parts = [url.split("/") for url in urls if isinstance(url, str) and "://" in url]
    return "/".join(os.path.commonprefix(parts))


class _Finder:
    """Turns the paths of one meta.json into places on this machine."""

    def __init__(self, meta_path: pathlib.Path, reroot: str):
        self.meta_path, self.folder = meta_path, meta_path.parent
        self.given, self.rule = reroot, ""
        self._rule_used = self._parent_used = False
        if reroot:
            old, equals, new = reroot.partition("=")
            if not (old and equals and new):
                raise ValueError(
                    f"reroot {reroot!r} must read OLD=NEW, both not empty, such as "
                    "/mnt/cluster/MMPR=/data/MMPR"
                )
            new = os.path.normpath(self.folder / os.path.expanduser(new))
            self.rule = f"{_normal(old)}={new}"

    def place(self, where: str, entry: Mapping[str, Any]) -> Place:
        """Where the files of an entry lie; the annotation exists and is one."""
        values = {key: self._value(where, entry, key) for key in ("root", "annotation")}
        annotation = self._find(values["annotation"], os.path.isfile)
        if os.path.isfile(annotation):
            annotations.check(annotation, where)
        if not annotation.endswith(".jsonl"):
            raise ValueError(
                f"{where}: annotation {annotation!r} must end in .jsonl: JSON lines, "
                "one object per line. scripts/import_data.py writes such files from "
                "other layouts"
            )
        if not os.path.isfile(annotation):
            raise FileNotFoundError(
                f"{where}: annotation {annotation!r} does not exist; "
                f"{self._remedy(_normal(entry['annotation']))}"
            )
        root = self._find(values["root"], os.path.isdir)
        return Place(root, annotation, self.rule, anywhere=not values["root"])

    def finish(self, sources: list[Source]) -> None:
        """After all entries: one line about the parent folder; a rule must match."""
        if self._parent_used:
            logging.warning(
                "%s: paths that begin with %r are below %s, as in MMPR as released",
                self.meta_path,
                self.folder.name,
                self.folder.parent,
            )
        if self.rule and not self._rule_used and not self._moves_images(sources):
            raise ValueError(
                f"reroot {self.given!r}: no root, annotation or absolute image path of "
                f"{self.meta_path} begins with {self.given.partition('=')[0]!r}; the "
                f"first root is {sources[0].root!r}"
            )

    def _value(self, where: str, entry: Mapping[str, Any], key: str) -> str:
        """Path of an entry after reroot; only a root may be empty."""
        value = entry.get(key)
        empty = value == "" and key == "annotation"
        if not isinstance(value, str) or empty or "\0" in value:
            none = "; '.' where there are no images" if key == "root" else ""
            raise ValueError(
                f"{where}: {key} must be a path, got {ledger.short(value)}{none}"
            )
        path = _normal(value)
        self._rule_used |= _begins(path, self.rule)
        path = moved(path, self.rule)
        if "://" in path:
            rule = ledger.option("reroot", f"{_begin_of_urls(entry)}=/FOLDER")
            raise ValueError(
                f"{where}: {key} {value!r} is a URL; copy or mount the data and say "
                f"where it is with {rule}"
            )
        return path

    def _find(self, value: str, exists: Callable[[str], bool]) -> str:
        """Absolute path of `value`, from the folder of meta.json or from its parent."""
        path = os.path.normpath(self.folder / value)
        if not exists(path) and value.split("/")[0] == self.folder.name:
            above = os.path.normpath(self.folder.parent / value)
            if exists(above):
                self._parent_used = True
                return above
        return path

    def _remedy(self, value: str) -> str:
        """A rule under which an annotation is found, if there is one."""
        parts = pathlib.PurePath(value).parts
        for count in range(1, len(parts)):
            rest = os.path.join(*parts[count:])
            if (self.folder / rest).is_file():
                old = os.path.join(*parts[:count])
                rule = ledger.option("reroot", f"{old}=.")
                return f"{rest!r} is in {str(self.folder)!r}: give {rule}"
        if "\\" in value:
            return "write / instead of \\"
        rule = ledger.option("reroot", "OLD=NEW")
        return f"unpack the annotations, or replace the leading path with {rule}"

    def _moves_images(self, sources: list[Source]) -> bool:
        """Whether the rule matches an image that the first lines name."""
        for path in {source.annotation for source in sources}:
            for name in _first_images(path):
                if _begins(name, self.rule):
                    return True
        return False


def _first_images(annotation: str) -> Iterator[str]:
    with open(annotation, "rb") as file:
        for line in itertools.islice(iter(lambda: file.readline(1 << 20), b""), _PEEK):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the ledger will have it
            images = record.get("image") if isinstance(record, dict) else None
            for name in images if isinstance(images, list) else [images]:
                if isinstance(name, str):
                    yield name


def _source(
    where: str, name: str, entry: Any, places: _Finder | Mapping[str, Place]
) -> Source:
    if not isinstance(entry, dict):
        raise ValueError(
            f"{where}: must be an object, got {ledger.short(entry)}; meta.json reads "
            f"{_example('a.jsonl')}"
        )
    for key in entry.keys() - set(FIELDS):
        near = difflib.get_close_matches(key, FIELDS, n=1)
        if near:
            raise ValueError(f"{where}: unknown field {key!r}; is {near[0]!r} meant?")
        logging.warning("%s: field %r is not used", where, key)
    if isinstance(places, _Finder):
        place = places.place(where, entry)
    elif name in places:
        place = places[name]
    else:
        raise ValueError(
            f"{where}: the shards beside it hold no such source, only {sorted(places)}"
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
