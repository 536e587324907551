"""The ledger: every record that was left out, with file, line and reason."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

REASONS = {
    "bad_json": "the line is not a JSON object",
    "bad_field": "a field is missing, of the wrong type, empty or misnamed",
    "line_too_long": "the line is longer than data.max_text_bytes",
    "image_missing": "the image file does not exist or lies outside its root",
    "image_unreadable": "the image cannot be decoded",
    "image_too_large": "the image has more pixels than data.max_image_pixels",
    "image_count": "the number of <image> placeholders and images differ",
    "smuggled_token": "the text holds a special image token such as <IMG_CONTEXT>",
    "chat_marker": "the text holds a chat or control token such as <|im_end|>",
    "identical": "chosen and rejected are the same",
    "no_labels": "a response has no trained token",
    "tokenisation": "text and tokens of a response cannot be aligned",
    "too_long": "the pair fits in no row shape",
    "unknown_id": "the benchmark has no item of this id",
    "unsupported": "the record needs something not supported (video, history, ...)",
}

MAX_DETAIL = 1000
"""Characters of a detail; the middle of a longer one is left out."""


def option(name: str, value: str = "") -> str:
    """A field of config.data in messages, under the names that the scripts give it."""
    setting = f"data.{name}={value}" if value else f"data.{name}"
    return (
        f"{setting} (--{name} of prepare_data.py and inspect_data.py, "
        f"--config.data.{name} of train.py)"
    )


def short(value: Any, limit: int = 80) -> str:
    """`repr` of a value for messages, cut to `limit` characters."""
    # A text is cut first: the repr of an image in base64 would be megabytes.
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class BadRecord(ValueError):
    """A record that must be left out.

    Attributes:
      reason: a key of :data:`REASONS`.
      detail: the offending field, its value (shortened) and what to do.
    """

    def __init__(self, reason: str, detail: str):
        if reason not in REASONS:
            raise KeyError(f"unknown ledger reason {reason!r}; known: {list(REASONS)}")
        if len(detail) > MAX_DETAIL:
            half = MAX_DETAIL // 2 - 10
            detail = f"{detail[:half]} [...] {detail[-half:]}"
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self):
        # Exceptions are rebuilt from their message alone; worker processes need both.
        return type(self), (self.reason, self.detail)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One left-out record."""

    source: str
    file: str
    line: int
    reason: str
    detail: str


def write(path: str | pathlib.Path, entries: Iterable[Entry]) -> None:
    """Write entries as JSON lines."""
    with open(path, "w", encoding="utf-8") as file:
        for entry in entries:
            line = json.dumps(dataclasses.asdict(entry), ensure_ascii=False)
            file.write(line + "\n")


def read(path: str | pathlib.Path) -> Iterator[Entry]:
    """Yield the entries of a ledger file in order."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield Entry(**json.loads(line))


def count(entries: Iterable[Entry]) -> dict[tuple[str, str], int]:
    """Number of left-out records by (source, reason)."""
    return dict(collections.Counter((e.source, e.reason) for e in entries))
