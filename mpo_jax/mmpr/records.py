"""Annotations: streaming of JSON lines, and one line to a PreferenceRecord.

A line holds ``question``, ``chosen``, ``rejected`` and, where there are images,
``image``: a path or a list of paths below the source's root.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mpo_jax import ledger
from mpo_jax.mmpr import image_paths as paths
from mpo_jax.mmpr import record_fields
from mpo_jax.mmpr.meta import Source
from mpo_jax.types import PreferenceRecord

MAX_NOTED = 50
"""Names of unread fields that are counted one by one; the others are counted as one."""


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
    unread: collections.Counter[str] | None = None,
) -> PreferenceRecord:
    """Parse and check one annotation line.

    Args:
      line: the line, without its end.
      source: where it comes from.
      line_number: 1-based, for messages.
      max_bytes: limit on the length of the line.
      chosen_only: accept records without ``rejected`` (it is then "").
      unread: counts the fields of good records that are neither read nor known.

    Raises:
      BadRecord: ``line_too_long``, ``bad_json``, ``bad_field``, ``identical``,
        ``image_missing`` (a path that leaves the root) or ``unsupported``.
    """
    record = _parse_object(line, max_bytes=max_bytes)
    extra = record_fields.check(record, chosen_only=chosen_only)
    question, chosen = _text(record, "question"), _text(record, "chosen")
    if chosen_only and record.get("rejected") is None:
        rejected = ""
    else:
        rejected = _text(record, "rejected")
    if not chosen_only and chosen == rejected:
        raise ledger.BadRecord(
            "identical", f"both responses are {ledger.short(chosen)}"
        )
    images = paths.resolve(record.get("image"), source)
    if unread is not None:
        count_unread(unread, extra)
    return PreferenceRecord(
        source=source.name,
        file=source.annotation,
        line=line_number,
        images=images,
        question=question,
        chosen=chosen,
        rejected=rejected,
        max_tiles=source.max_tiles,
    )


def _parse_object(line: bytes, *, max_bytes: int) -> _Object:
    if len(line) > max_bytes:
        remedy = f"raise {ledger.option('max_text_bytes')}"
        if paths.holds_base64(line):
            remedy = f"it holds base64: {paths.FILES}"
        raise ledger.BadRecord(
            "line_too_long", f"the line has more than {max_bytes} bytes; {remedy}"
        )
    try:
        record = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_Object)
    except RecursionError as error:
        raise ledger.BadRecord("bad_json", "nested too deeply") from error
    except ValueError as error:
        raise ledger.BadRecord("bad_json", str(error)[:200]) from error
    if not isinstance(record, _Object):
        raise ledger.BadRecord("bad_json", f"not an object: {ledger.short(record)}")
    if record.repeated:
        raise ledger.BadRecord(
            "bad_field", f"{ledger.short(record.repeated)} stands twice; remove one"
        )
    return record


class _Object(dict[str, Any]):
    """A JSON object that remembers a key which stands twice; the last one wins."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        self.repeated = ""
        if len(self) != len(pairs):
            names = collections.Counter(name for name, _ in pairs)
            self.repeated = names.most_common(1)[0][0]


def count_unread(unread: collections.Counter[str], names: Iterable[str]) -> None:
    """Count fields of a record; at most :data:`MAX_NOTED` are told apart."""
    for name in names:
        full = len(unread) >= MAX_NOTED and name not in unread
        unread["others" if full else name[:60]] += 1


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
        return paths.resolve(record.get("image"), source)
    except (ValueError, RecursionError):  # BadRecord is a ValueError
        return ()


def _text(record: Mapping[str, Any], key: str) -> str:
    if key not in record:
        raise ledger.BadRecord("bad_field", f"{key} is missing")
    value = record[key]
    if not isinstance(value, str):
        detail = f"{key} must be text, got {ledger.short(value)}"
        raise ledger.BadRecord("bad_field", detail)
    if not value.strip():
        raise ledger.BadRecord("bad_field", f"{key} is empty: {ledger.short(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = f"{key} holds a lone surrogate at character {error.start}"
        raise ledger.BadRecord("bad_field", detail) from error
    return value
