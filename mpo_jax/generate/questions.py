"""Questions from a file of JSON lines, each checked, or named in the ledger.

``{"id", "question", "image": "a.png" | ["a.png", …] | absent, "prefix"?, "system"?,
"history"?, "seed"?}``; `prefix` is text or a list of token ids, `history` a list of
[question, answer].
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

from mpo_jax import fields, ledger
from mpo_jax.generate import requests
from mpo_jax.mmpr import image_paths

READ = ("id", "question", "image", "prefix", "system", "history", "seed")
MAX_LINE_BYTES = 4_000_000
MAX_IMAGES = 64
MAX_TURNS = 64
MAX_PREFIX_IDS = 65_536
MAX_ID = 256

Line = requests.Question | ledger.Entry


def read(
    path: str | pathlib.Path, *, root: str | pathlib.Path = ""
) -> Iterator[tuple[int, Line]]:
    """Number and content of every line that is not blank, in order.

    Args:
      path: of the file.
      root: what image paths are below; "" joins relative ones to the file's own folder
        and takes any absolute one.

    Yields:
      Line number from 1, and the question, or why it is left out.
    """
    path = pathlib.Path(path)
    folder = os.path.abspath(str(root) or path.parent)
    base = Base(folder, anywhere=not str(root))
    seen: dict[str | int, int] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(lines_of(file), 1):
            if line is not None and not line.strip():
                continue
            try:
                found = parse(line, base)
                if found.id in seen:
                    raise ledger.BadRecord(
                        "bad_field",
                        f"id={found.id!r} is that of line {seen[found.id]} too; ids "
                        "must differ",
                    )
                seen[found.id] = number
            except ledger.BadRecord as error:
                yield number, entry(path, number, error)
            else:
                yield number, found


def entry(path: str | pathlib.Path, line: int, error: ledger.BadRecord) -> ledger.Entry:
    """The ledger's entry of a line."""
    return ledger.Entry("questions", str(path), line, error.reason, error.detail)


def lines_of(file: IO[bytes]) -> Iterator[bytes | None]:
    """Lines of a file; None for one with more than :data:`MAX_LINE_BYTES`."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
        yield None


class Base(NamedTuple):
    """What image paths are below.

    Attributes:
      folder: absolute; relative paths are joined to it.
      anywhere: other places are fine too, as no folder was named.
    """

    folder: str
    anywhere: bool


def parse(line: bytes | None, base: Base) -> requests.Question:
    """A question of one line.

    Raises:
      BadRecord: it is none; names field and value.
    """
    record = record_of(line)
    _check_names(record)
    return requests.Question(
        id=_id(record),
        question=_text(record, "question"),
        images=_images(record, base),
        prefix=_prefix(record),
        system=None if record.get("system") is None else _text(record, "system"),
        history=_history(record),
        seed=_seed(record),
    )


def record_of(
    line: bytes | None, *, most: int = 0, strict: bool = False
) -> dict[str, Any]:
    """The JSON object of a line; None is one that was too long to be read.

    Args:
      most: bytes of a line that is read, for the message; 0 is :data:`MAX_LINE_BYTES`.
      strict: refuse NaN and infinities, which are no JSON and cannot be written again.

    Raises:
      BadRecord: ``bad_json``.
    """
    if line is None:
        detail = f"the line has more than {most or MAX_LINE_BYTES} bytes"
        raise ledger.BadRecord("bad_json", detail)
    constant = _no_number if strict else None
    try:
        record = json.loads(line.decode("utf-8-sig"), parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise ledger.BadRecord("bad_json", f"{error}"[:200]) from error
    if not isinstance(record, dict):
        raise ledger.BadRecord("bad_json", f"{ledger.short(record)} is no JSON object")
    return record


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _bad(name: str, value: Any, wanted: str) -> ledger.BadRecord:
    return ledger.BadRecord(
        "bad_field", f"{name}={ledger.short(value)}: must be {wanted}"
    )


def _check_names(record: Mapping[str, Any]) -> None:
    """Refuse a name that is nearly one that is read; other fields are notes."""
    for name in record:
        near = fields.nearest(name, [n for n in READ if n not in record])
        if name not in READ and near:
            raise ledger.BadRecord(
                "bad_field",
                f"{ledger.short(name)} is not read; did you mean {near[0]}?",
            )


def _id(record: Mapping[str, Any]) -> str | int:
    value = record.get("id")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _bad("id", value, "a text or an integer")
    if len(str(value)) > MAX_ID or value == "":
        raise _bad("id", value, f"of 1 to {MAX_ID} characters")
    _check_unicode("id", str(value))
    return value


def _check_unicode(name: str, text: str) -> None:
    """Refuse lone surrogates, which no file and no path can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _bad(name, text, "Unicode text") from error


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise _bad(name, value, "a text")
    return value


def _images(record: Mapping[str, Any], base: Base) -> tuple[str, ...]:
    value = record.get("image")
    if value is None or value == "" or value == []:
        return ()
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(p, str) and p for p in paths):
        raise _bad("image", value, "a path or a list of paths")
    if len(paths) > MAX_IMAGES:
        raise _bad("image", value, f"at most {MAX_IMAGES} paths")
    return tuple(_below(path, base) for path in paths)


def _below(name: str, base: Base) -> str:
    """A path below the folder, where one was named; as training data are read."""
    problem = image_paths.no_path(name)
    if problem is not None:
        raise ledger.BadRecord("bad_field", f"image {problem}")
    if "://" in name:
        detail = (
            f"image {ledger.short(name, 300)} is a URL; fetch it, and give the path"
        )
        raise ledger.BadRecord("bad_field", detail)
    path = os.path.normpath(os.path.join(base.folder, name))
    if not base.anywhere and os.path.commonpath([path, base.folder]) != base.folder:
        raise ledger.BadRecord(
            "image_missing",
            f"image {ledger.short(name, 300)} does not lie below --root={base.folder}; "
            "name a root that holds it, or none",
        )
    return path


def _prefix(record: Mapping[str, Any]) -> str | tuple[int, ...]:
    value = record.get("prefix")
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    integers = isinstance(value, list) and all(type(i) is int for i in value)
    if not integers or len(value) > MAX_PREFIX_IDS:
        raise _bad("prefix", value, f"a text or at most {MAX_PREFIX_IDS} token ids")
    return tuple(value)


def _history(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    value = record.get("history")
    if value is None:
        return ()
    wanted = f"a list of at most {MAX_TURNS} pairs [question, answer]"
    if not isinstance(value, list) or len(value) > MAX_TURNS:
        raise _bad("history", value, wanted)
    for turn in value:
        is_pair = isinstance(turn, list) and len(turn) == 2
        if not is_pair or not all(isinstance(text, str) for text in turn):
            raise _bad("history", turn, wanted)
    return tuple((asked, answered) for asked, answered in value)


def _seed(record: Mapping[str, Any]) -> int | None:
    value = record.get("seed")
    if value is None:
        return None
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise _bad("seed", value, "an integer of 64 bits")
    return value
