"""What is to be written into shards: numbered lists of lines and image files.

The lists are made of the annotations alone, in one pass, and are read in ranges: by one
process or by many, in any order, with the same result.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mpo_jax import ledger
from mpo_jax.mmpr import records
from mpo_jax.mmpr.array_records import IMAGES, LINES
from mpo_jax.mmpr.meta import Source
from mpo_jax.mmpr.store import LooseStore

_RANGE = 256  # entries of the list per unit of work


@dataclasses.dataclass(frozen=True)
class Work:
    """The numbered list of what is to be written; picklable.

    Attributes:
      directory: of the lists, ``lines.jsonl`` and ``images.jsonl``.
      sources: what the lines are of.
      store: reads lines and images.
      max_text_bytes: longer lines are cut, see :func:`records.iter_lines`.
    """

    directory: str
    sources: tuple[Source, ...]
    store: LooseStore
    max_text_bytes: int

    def path(self, kind: str) -> pathlib.Path:
        return pathlib.Path(self.directory) / f"{kind}.jsonl"

    def ranges(self, kind: str) -> list[tuple[int, int]]:
        """Byte ranges of a list, :data:`_RANGE` entries each."""
        starts, position = [], 0
        with open(self.path(kind), "rb") as file:
            for number, line in enumerate(file):
                if number % _RANGE == 0:
                    starts.append(position)
                position += len(line)
        return list(zip(starts, [*starts[1:], position], strict=True))

    def examples(
        self, kind: str, part: tuple[int, int]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """The (number, fields) of a range of a list."""
        with open(self.path(kind), "rb") as file:
            file.seek(part[0])
            entries = file.read(part[1] - part[0]).splitlines()
        make = self._line if kind == LINES else self._image
        for entry in entries:
            number, *rest = json.loads(entry)
            yield number, {"number": number, **make(*rest)}

    def _line(
        self, position: int, offset: int, numbers: Sequence[int]
    ) -> dict[str, Any]:
        source = self.sources[position]
        text, _ = self.store.line(source, offset, max_bytes=self.max_text_bytes)
        return {"text": text, "images": np.asarray(numbers, np.int64)}

    def _image(self, path: str) -> dict[str, Any]:
        fields = {"path": path, "data": b"", "reason": "", "detail": ""}
        try:
            return fields | {"data": self.store.image(path)}
        except ledger.BadRecord as bad:  # the index will leave it out, and say why
            return fields | {"reason": bad.reason, "detail": bad.detail}


def write_lists(work: Work) -> tuple[list[dict[str, Any]], list[str]]:
    """Number all lines and image files.

    Returns:
      The sources for the manifest, and the paths of the images in order.
    """
    described, numbers, number = [], dict[str, int](), 0
    with (
        open(work.path(LINES), "w", encoding="utf-8") as lines,
        open(work.path(IMAGES), "w", encoding="utf-8") as files,
    ):
        for position, source in enumerate(work.sources):
            first = number
            size = work.store.size(source)
            for offset, _, line in work.store.texts(
                source, start=0, stop=size, max_bytes=work.max_text_bytes
            ):
                used = []
                for path in records.image_paths(
                    line, source, max_bytes=work.max_text_bytes
                ):
                    if path not in numbers:
                        numbers[path] = len(numbers)
                        files.write(json.dumps([numbers[path], path]) + "\n")
                    used.append(numbers[path])
                lines.write(json.dumps([number, position, offset, used]) + "\n")
                number += 1
            described.append(
                {
                    "name": source.name,
                    **source.place._asdict(),
                    "first": first,
                    "lines": number - first,
                    "bytes": size,
                }
            )
    return described, list(numbers)
