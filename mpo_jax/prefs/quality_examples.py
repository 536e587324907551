"""Pairs that a quality report shows, as JSON values with fixed names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mpo_jax import ledger
from mpo_jax.mmpr import page_records
from mpo_jax.prefs.pair_folder import Line, Reader, Side
from mpo_jax.prefs.pair_quality import Place

MAX_TEXT = page_records.MAX_TEXT
"""Characters of one text that the page shows; what is cut off is counted."""
MAX_IMAGE_PIXELS = 100_000_000
SAME, DIFFERS, COMMON = "same", "differs", "common"
"""The beginning that both answers share; what the other lacks; what stands in both."""

_CONTROLS = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e"
    "\u2066-\u2069]"
)
_WORDS = re.compile(r"\s+|\S+")


def visible(text: str) -> str:
    """A text whose control characters are named, as they could turn others around."""
    text = text.replace("\r\n", "\n")
    return _CONTROLS.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def clipped(text: str, most: int = MAX_TEXT) -> str:
    """The beginning of a text as it is shown, with how much there is more."""
    more = f" … {len(text) - most:,} more characters" if len(text) > most else ""
    return visible(text[:most]) + more


class Shown:
    """Pairs and their pictures, each picture once.

    Attributes:
      pairs: one entry per pair.
      pictures: ``{"path", "size", "data"}``, or ``{"path", "note"}`` for one that is
        not shown.
      changed: pairs that could not be read a second time.
    """

    def __init__(self) -> None:
        self.pairs: list[dict[str, Any]] = []
        self.pictures: list[dict[str, str]] = []
        self.changed = 0
        self._makes = page_records.Pictures(MAX_IMAGE_PIXELS)
        self._numbers: dict[str, int] = {}

    @property
    def missing(self) -> int:
        """Pictures that are not shown."""
        return sum("note" in picture for picture in self.pictures)

    def add(self, reader: Reader, places: Iterable[Place]) -> None:
        """Take pairs."""
        for annotation, offset in places:
            try:
                line = reader.read(annotation, offset)
            except ledger.BadRecord:
                self.changed += 1
                continue
            self.pairs.append(entry(line) | self._images(reader, line))

    def _images(self, reader: Reader, line: Line) -> dict[str, Any]:
        try:
            paths = reader.images(line)
        except ledger.BadRecord as bad:
            return {"images": [], "image_note": clipped(str(bad))}
        note = ""
        if len(paths) > page_records.MAX_IMAGES:
            note = f"and {len(paths) - page_records.MAX_IMAGES} more images"
        shown = [self._picture(path) for path in paths[: page_records.MAX_IMAGES]]
        return {"images": shown, "image_note": note}

    def _picture(self, path: str) -> int:
        """Its number among the pictures."""
        if path not in self._numbers:
            self._numbers[path] = len(self.pictures)
            name = visible(os.path.basename(path))
            found = self._makes.picture(path)
            if isinstance(found, str):
                self.pictures.append({"path": name, "note": clipped(found)})
            else:
                told = {"path": name, "size": found.size, "data": found.data}
                self.pictures.append(told)
        return self._numbers[path]


def entry(line: Line) -> dict[str, Any]:
    """A pair without its pictures."""
    chosen, rejected = parts(line.chosen.text, line.rejected.text)
    return {
        "id": "" if line.id is None else clipped(str(line.id)),
        "source": line.source,
        "reason": line.reason,
        "form": line.form,
        "verdict": verdict(line.rejected),
        "question": clipped(line.question),
        "truth": None if line.truth is None else visible(line.truth),
        "chosen": _side(line.chosen, chosen),
        "rejected": _side(line.rejected, rejected),
    }


def verdict(side: Side) -> str:
    """What an answer was judged and by which rule, as manifests name it; or ""."""
    if not side.rule:
        return ""
    return visible(f"{side.verdict}: {side.rule}" if side.verdict else side.rule)


def _side(side: Side, found: list[tuple[str, str]]) -> dict[str, Any]:
    more = len(side.text) - MAX_TEXT
    return {
        "parts": [list(part) for part in found],
        "more": max(more, 0),
        "prediction": None if side.prediction is None else visible(side.prediction),
        "verdict": verdict(side),
        "characters": len(side.text),
        "tokens": side.tokens,
    }


def parts(
    chosen: str, rejected: str
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Both answers in parts of a kind: their common beginning, and how they differ.

    Args:
      chosen, rejected: whole; :data:`MAX_TEXT` characters of them are shown.
    """
    texts = [visible(text[:MAX_TEXT]) for text in (chosen, rejected)]
    shared = _shared(*texts)
    rest = page_records.differences(texts[0][shared:], texts[1][shared:])
    found: list[list[tuple[str, str]]] = []
    for text, of in zip(texts, rest, strict=True):
        begin = [(SAME, text[:shared])] if shared else []
        found.append(begin + _joined(of))
    return found[0], found[1]


def _joined(of: Sequence[page_records.Part]) -> list[tuple[str, str]]:
    """Parts of a kind, where blanks between words that differ belong to these."""
    found: list[tuple[str, str]] = []
    for place, (differs, words) in enumerate(of):
        between = 0 < place < len(of) - 1 and not words.strip()
        kind = DIFFERS if differs or between else COMMON
        if found and found[-1][0] == kind:
            words = found.pop()[1] + words
        found.append((kind, words))
    return found


def _shared(first: str, second: str) -> int:
    """Characters of whole words that two texts begin with alike."""
    length = 0
    for one, other in zip(_WORDS.findall(first), _WORDS.findall(second), strict=False):
        if one != other:
            # Without spaces a text is one word: there characters count.
            same = len(os.path.commonprefix([one, other]))
            return length + (same if max(len(one), len(other)) > 40 else 0)
        length += len(one)
    return length
