"""MMPR on disk: meta.json, annotation lines, one line to a PreferenceRecord.

``meta.json`` maps a source's name to its image root, its JSON-lines annotation file
and how often it is used. A line holds ``question``, ``chosen``, ``rejected`` and, where
there are images, ``image``: a path or a list of paths below the root.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from mpo_jax.data import ledger
from mpo_jax.types import PreferenceRecord

MAX_META_BYTES = 1 << 24
MAX_IMAGES = 256
"""Images per record; a line of a megabyte could otherwise name 200,000."""

_META_FIELDS = (
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
      root: absolute folder that image paths are relative to.
      annotation: absolute path of the JSON-lines file.
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


def load_meta(
    path: str | os.PathLike[str],
    *,
    reroot: str = "",
    held: Mapping[str, tuple[str, str]] | None = None,
) -> list[Source]:
    """Read and check an MMPR meta.json.

    Relative roots and annotations are relative to the folder of meta.json.

    Args:
      path: the meta.json.
      reroot: ``OLD=NEW`` replaces the leading path OLD of roots and annotations by
        NEW (absolute, or relative to the folder of meta.json); empty changes nothing.
      held: root and annotation of the sources that shards hold, by name; then neither
        is looked for on disk.

    Returns:
      Sources in the order of the file.

    Raises:
      FileNotFoundError: meta.json or an annotation is missing.
      ValueError: bad JSON, a field of the wrong type, a source that asks for
        ``data_augment``, or a `reroot` that is malformed or matches nothing.
    """
    meta_path = pathlib.Path(path).absolute()
    if not meta_path.is_file():
        raise FileNotFoundError(f"meta file {str(path)!r} does not exist")
    size = meta_path.stat().st_size
    if size > MAX_META_BYTES:
        raise ValueError(
            f"{meta_path} has {size} bytes, more than any meta.json; is it an "
            "annotation file?"
        )
    try:
        text = meta_path.read_text(encoding="utf-8-sig")
        meta = json.loads(text, object_pairs_hook=_unique_object)
        json.dumps(meta, ensure_ascii=False).encode("utf-8")  # no lone surrogates
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{meta_path} is not valid JSON: {error}") from error
    if not isinstance(meta, dict) or not meta:
        raise ValueError(f"{meta_path} must be a JSON object with one entry per source")
    move = _Reroot(reroot)
    sources = [
        _source(
            f"{meta_path}, source {name!r}", name, entry, meta_path.parent, move, held
        )
        for name, entry in meta.items()
    ]
    if move.old is not None and not move.used:
        raise ValueError(
            f"reroot {reroot!r}: no root or annotation of {meta_path} begins with "
            f"{move.old!r}; the first root is {next(iter(meta.values()))['root']!r}"
        )
    return sources


class _Reroot:
    """Replacement of a leading path; remembers whether it was ever used."""

    def __init__(self, rule: str):
        self.old: str | None = None
        self.used = False
        if rule:
            old, equals, new = rule.partition("=")
            if not (old and equals and new):
                raise ValueError(
                    f"reroot {rule!r} must read OLD=NEW, both not empty, such as "
                    "/mnt/cluster/MMPR=/data/MMPR"
                )
            self.old, self.new = old.rstrip("/") or "/", new

    def __call__(self, path: str) -> str:
        if self.old is None:
            return path
        prefix = self.old if self.old == "/" else self.old + "/"
        if path != self.old and not path.startswith(prefix):
            return path
        self.used = True
        return os.path.join(self.new, path[len(prefix) :])


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; a repeated key would silently drop a source."""
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"repeated keys {repeated}")
    return result


def _source(
    where: str,
    name: str,
    entry: Any,
    folder: pathlib.Path,
    move: _Reroot,
    held: Mapping[str, tuple[str, str]] | None,
) -> Source:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: must be an object, got {_short(entry)}")
    for key in entry.keys() - set(_META_FIELDS):
        near = difflib.get_close_matches(key, _META_FIELDS, n=1)
        if near:
            raise ValueError(f"{where}: unknown field {key!r}; is {near[0]!r} meant?")
        logging.warning("%s: field %r is not used", where, key)
    if held is None:
        root, annotation = _paths(where, entry, folder, move)
    elif name in held:
        root, annotation = held[name]
    else:
        raise ValueError(
            f"{where}: the shards beside it hold no such source, only {sorted(held)}"
        )
    augment = entry.get("data_augment", False)
    if not isinstance(augment, bool):
        raise ValueError(f"{where}: data_augment must be true or false")
    if augment:
        raise ValueError(
            f"{where}: data_augment is true. Random JPEG noise would make stored "
            "reference log-probs wrong, so it is not supported; set it to false"
        )
    repeat = entry.get("repeat_time", 1)
    if not _is_number(repeat) or not math.isfinite(repeat) or repeat < 0:
        raise ValueError(
            f"{where}: repeat_time must be a number >= 0, got {_short(repeat)}"
        )
    return Source(
        name=name,
        root=root,
        annotation=annotation,
        repeat_time=float(repeat),
        max_tiles=_count(where, entry, "max_dynamic_patch", least=1),
        length=_count(where, entry, "length", least=0),
    )


def _paths(
    where: str, entry: Mapping[str, Any], folder: pathlib.Path, move: _Reroot
) -> tuple[str, str]:
    """Root and annotation, absolute; the annotation exists."""
    paths = {}
    for key in ("root", "annotation"):
        value = entry.get(key)
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(f"{where}: {key} must be a path, got {_short(value)}")
        if "://" in value:
            raise ValueError(
                f"{where}: {key} {value!r} is a URL; copy or mount the data and point "
                "reroot at it"
            )
        paths[key] = os.path.normpath(folder / move(value))
    if not paths["annotation"].endswith(".jsonl"):
        raise ValueError(
            f"{where}: annotation {paths['annotation']!r} must end in .jsonl"
        )
    if not os.path.isfile(paths["annotation"]):
        raise FileNotFoundError(
            f"{where}: annotation {paths['annotation']!r} does not exist; unpack the "
            "annotations, or replace the leading path with reroot OLD=NEW"
        )
    return paths["root"], paths["annotation"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(where: str, entry: Mapping[str, Any], key: str, *, least: int) -> int | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{where}: {key} must be a whole number >= {least}, got {_short(value)}"
        )
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def iter_lines(
    path: str | os.PathLike[str],
    *,
    start: int = 0,
    stop: int | None = None,
    max_bytes: int,
) -> Iterator[tuple[int, int, bytes]]:
    """Stream the lines of a file whose first byte lies in ``[start, stop)``.

    Holds one line at a time. Blank lines are given out too; they are no records.

    Args:
      path: the file.
      start: byte offset; a line that begins before it is skipped.
      stop: byte offset; None is the end of the file.
      max_bytes: longer lines are given cut to ``max_bytes + 1`` bytes, which
        :func:`parse_record` refuses.

    Yields:
      (byte offset, number, line without its end); the number is 1-based and counts
      from the first line that begins at or after `start`.
    """
    with open(path, "rb") as file:
        if start > 0:
            file.seek(start - 1)
            _skip_line(file)  # ends at `start` exactly if a line begins there
        offset, number = file.tell(), 0
        while stop is None or offset < stop:
            raw = file.readline(max_bytes + 2)  # the line end may have two bytes
            if not raw:
                return
            number += 1
            line = _strip_end(raw)
            if not raw.endswith(b"\n"):
                _skip_line(file)
            yield offset, number, line[: max_bytes + 1]
            offset = file.tell()


def file_digest(path: str, *, block: int = 1 << 20, blocks: int = 16) -> str:
    """Hash of a file's size and of evenly spaced blocks, first and last included.

    Sees every edit of a file up to ``block * blocks`` bytes and, above, nearly every
    edit that keeps the size (an edit that does not is always seen), without reading
    gigabytes at each start. Modification times are left out: copies of a data set
    differ in them.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        last = max(size - block, 0)
        for number in range(blocks):
            file.seek(last * number // (blocks - 1))
            digest.update(file.read(block))
    return digest.hexdigest()


def _strip_end(raw: bytes) -> bytes:
    return raw.removesuffix(b"\n").removesuffix(b"\r")


def _skip_line(file: Any) -> None:
    while True:
        chunk = file.readline(1 << 16)
        if not chunk or chunk.endswith(b"\n"):
            return


def read_line(fd: int, offset: int, *, max_bytes: int) -> bytes:
    """Read one line at a byte offset; safe with many threads on one descriptor.

    Returns:
      The line as :func:`iter_lines` gives it.
    """
    line, size = b"", 1 << 13
    while len(line) <= max_bytes + 1:
        chunk = os.pread(fd, size, offset + len(line))
        end = chunk.find(b"\n")
        line += chunk if end < 0 else chunk[: end + 1]
        if end >= 0 or not chunk:
            break
        size *= 2
    return _strip_end(line)[: max_bytes + 1]


def read_record(
    source: Source,
    offset: int,
    *,
    line_number: int,
    max_bytes: int,
    chosen_only: bool = False,
) -> PreferenceRecord:
    """Read the record whose line begins at byte `offset` of the annotation.

    Raises:
      BadRecord: as :func:`parse_record`.
      OSError: the annotation cannot be read.
    """
    with open(source.annotation, "rb", buffering=0) as file:
        line = read_line(file.fileno(), offset, max_bytes=max_bytes)
    return parse_record(
        line,
        source=source,
        line_number=line_number,
        max_bytes=max_bytes,
        chosen_only=chosen_only,
    )


def parse_record(
    line: bytes,
    *,
    source: Source,
    line_number: int,
    max_bytes: int,
    chosen_only: bool = False,
) -> PreferenceRecord:
    """Parse and check one annotation line.

    Args:
      line: the line, without its end.
      source: where it comes from.
      line_number: 1-based, for messages.
      max_bytes: limit on the length of the line.
      chosen_only: accept records without ``rejected`` (it is then "").

    Raises:
      BadRecord: ``line_too_long``, ``bad_json``, ``bad_field``, ``identical``,
        ``image_missing`` (a path that leaves the root) or ``unsupported``.
    """
    if len(line) > max_bytes:
        raise ledger.BadRecord(
            "line_too_long",
            f"the line has more than {max_bytes} bytes; raise data.max_text_bytes",
        )
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except RecursionError as error:
        raise ledger.BadRecord("bad_json", "nested too deeply") from error
    except ValueError as error:
        raise ledger.BadRecord("bad_json", str(error)[:200]) from error
    if not isinstance(record, dict):
        raise ledger.BadRecord("bad_json", f"not an object: {_short(record)}")
    for key in ("video", "system_prompt"):
        if record.get(key):
            raise ledger.BadRecord(
                "unsupported", f"{key} is {_short(record[key])}; remove the field"
            )
    question, chosen = _text(record, "question"), _text(record, "chosen")
    if chosen_only and record.get("rejected") is None:
        rejected = ""
    else:
        rejected = _text(record, "rejected")
    if not chosen_only and chosen == rejected:
        raise ledger.BadRecord("identical", f"both responses are {_short(chosen)}")
    return PreferenceRecord(
        source=source.name,
        file=source.annotation,
        line=line_number,
        images=_images(record.get("image"), source.root),
        question=question,
        chosen=chosen,
        rejected=rejected,
        max_tiles=source.max_tiles,
    )


def image_paths(line: bytes, source: Source, *, max_bytes: int) -> tuple[str, ...]:
    """Images that :func:`parse_record` would name if all else in the line were good.

    () where even those cannot be told.
    """
    if len(line) > max_bytes:
        return ()
    try:
        record = json.loads(line.decode("utf-8-sig"))
        if not isinstance(record, dict):
            return ()
        return _images(record.get("image"), source.root)
    except (ValueError, RecursionError):  # BadRecord is a ValueError
        return ()


def _text(record: Mapping[str, Any], key: str) -> str:
    if key not in record:
        near = difflib.get_close_matches(key, record, n=1)
        hint = f"; is {near[0]!r} meant?" if near else ""
        raise ledger.BadRecord("bad_field", f"{key} is missing{hint}")
    value = record[key]
    if not isinstance(value, str):
        raise ledger.BadRecord("bad_field", f"{key} must be text, got {_short(value)}")
    if not value.strip():
        raise ledger.BadRecord("bad_field", f"{key} is empty: {_short(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = f"{key} holds a lone surrogate at character {error.start}"
        raise ledger.BadRecord("bad_field", detail) from error
    return value


def _images(value: Any, root: str) -> tuple[str, ...]:
    """Image paths below `root`, normalised. None, "" and [] mean text only."""
    if value is None or value == "" or value == []:
        return ()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name for name in names
    ):
        raise ledger.BadRecord(
            "bad_field", f"image must be a path or a list of paths, got {_short(value)}"
        )
    if len(names) > MAX_IMAGES:
        detail = f"image lists {len(names)} files, the limit is {MAX_IMAGES}"
        raise ledger.BadRecord("bad_field", detail)
    return tuple(_inside(name, root) for name in names)


def _inside(name: str, root: str) -> str:
    """Join lexically: links below the root are the user's, ``..`` is the file's."""
    normal = os.path.normpath(name)
    try:
        normal.encode("utf-8")
        bad = "\0" in normal
    except UnicodeEncodeError:
        bad = True
    if bad or os.path.isabs(normal) or normal.split(os.sep)[0] in ("..", "."):
        raise ledger.BadRecord(
            "image_missing",
            f"image {_short(name)} is not a file below the root {root!r}; make the "
            "path relative to the root",
        )
    return os.path.join(root, normal)
