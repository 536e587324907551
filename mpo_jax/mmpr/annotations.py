"""Whether a file is an annotation at all: JSON lines, one object per line, UTF-8.

A file that is something else would give a ledger entry per line, in the parser's words.
It is refused once instead, by name. Single bad lines are left to the ledger.
"""

from __future__ import annotations

import json
from typing import Any

from mpo_jax.utils import file_kinds, located

_HEAD = 1 << 16
_LINES = 50
_RULE = "an annotation is a .jsonl file in UTF-8 with one object per line"


def check(path: str, where: str) -> None:
    """Look at the beginning of an annotation.

    Args:
      path: of the file, or its address.
      where: begins the message.

    Raises:
      ValueError: it is compressed, a pointer, a page, a JSON list or one object over
        many lines, or in another encoding. Names the file and the remedy.
      OSError: it cannot be read.
    """
    head = located.head(path, _HEAD)
    kind = file_kinds.of_text(head) or _of_lines(head, whole=len(head) < _HEAD)
    if kind is not None:
        raise ValueError(
            f"{where}: annotation {path!r} is {kind.name}; {kind.remedy} ({_RULE})"
        )


def is_record(value: Any) -> bool:
    """Whether a JSON value looks like a line of an annotation."""
    names = ("question", "chosen", "rejected", "conversations", "messages", "prompt")
    return isinstance(value, dict) and any(
        name in value and not isinstance(value[name], dict) for name in names
    )


def first_value(head: bytes) -> Any:
    """JSON value of the first line, None where that is none."""
    return _value(head.lstrip().partition(b"\n")[0])


def _of_lines(head: bytes, *, whole: bool) -> file_kinds.Kind | None:
    lines = head.split(b"\n")
    if not whole and len(lines) > 1:
        lines.pop()  # cut
    lines = [line for line in lines[:_LINES] if line.strip()]
    foreign = [line for line in lines if not _is_utf8(line)]
    if len(foreign) > 1 and len(foreign) * 2 > len(lines):
        return file_kinds.of_undecodable(b"\n".join(foreign))
    objects = sum(isinstance(_value(line), dict) for line in lines)
    if objects * 2 >= len(lines):
        return None
    start = b"".join(lines).lstrip(b"\xef\xbb\xbf \t\r")
    if start.startswith(b"[") and start[1:].lstrip().startswith(b"{"):
        return file_kinds.Kind(
            "a JSON list", "write its items as lines: `jq -c '.[]' OLD > NEW`"
        )
    if start.startswith(b"{") and len(lines) > 1 and lines[0].strip() == b"{":
        return file_kinds.Kind(
            "JSON with objects over many lines",
            "write one object per line: `jq -c . OLD > NEW`",
        )
    if start.startswith(b"{'"):
        return file_kinds.Kind("Python text", "write the lines with json.dumps")
    return None


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _value(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
