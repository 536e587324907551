"""VLMEvalKit's tables: tab-separated, pictures as base64 in a column ``image``.

Such a file may have gigabytes: it is read row by row, twice only where rows share
pictures.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from mpo_jax import ledger
from mpo_jax.evals import source_rows

KEY = "index"
MAX_REFERENCE = 64
"""Characters; a shorter ``image`` names the row that has the picture (as upstream)."""

MAX_IMAGES = 64
"""Pictures of a row."""

_KEPT = 32  # pictures that several rows show, held at once
_MAX_FIELD = source_rows.MAX_LINE
_BASE64 = "base64,"  # ends the head of a data URI


def rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Rows as texts, but ``image`` as bytes and lists where a row has several.

    A row whose ``image`` is the ``index`` of another one has that one's pictures. A
    list of pictures or of ``image_path`` is written as a Python literal there.

    Raises:
      ValueError: the file, or a row, is no such table, or a picture is no base64;
        names file and row.
    """
    table = _Table(path)
    for number, _, row in table.rows():
        where = f"{path}, row {number}"
        found: dict[str, Any] = dict(row)
        if row.get("image"):
            pictures = table.images(row["image"], where)
            found["image"] = pictures[0] if len(pictures) == 1 else list(pictures)
        if row.get("image_path"):
            paths = _listed(row["image_path"], where)
            found["image_path"] = paths[0] if len(paths) == 1 else paths
        yield found


def shape(path: pathlib.Path) -> tuple[tuple[str, ...], int]:
    """Columns of a table and its number of rows.

    Raises:
      ValueError: as :func:`rows`, pictures aside.
    """
    table = _Table(path)
    count = sum(1 for _ in table.rows())
    return table.columns, count


def missing_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """What a question on a picture needs and a table has not."""
    missing = [name for name in (KEY, "question") if name not in columns]
    if not {"image", "image_path"} & set(columns):
        missing.append("image or image_path")
    return tuple(missing)


class _Table:
    """A table on disk.

    Attributes:
      columns: known once rows are read.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.columns: tuple[str, ...] = ()
        # The module has one limit for all; nobody relies on its being low.
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD))
        self._shared = functools.lru_cache(maxsize=_KEPT)(self._images_of_row)

    def rows(self, start: int = 0) -> Iterator[tuple[int, int, dict[str, str]]]:
        """Number from 1 (0 after a jump), offset in bytes, and texts of rows.

        Args:
          start: offset of the first row; 0 is the table's beginning.
        """
        number, at = 0, start
        with source_rows.open_checked(self.path) as file:
            file.seek(start)
            texts = _Texts(source_rows.lines(file, self.path), self.path)
            reader = csv.reader(texts, delimiter="\t", strict=True)
            if not start:
                self.columns = self._header(self._next(reader, "the header"))
                at = file.tell()
            while True:
                cells = self._next(reader, f"row {number + 1}")
                if cells is None:
                    return
                if cells:  # a blank line is none
                    number += 1
                    yield number, at, self._row(cells, number)
                at = file.tell()

    def _next(self, reader: Any, what: str) -> list[str] | None:
        try:
            return next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{self.path}, {what}: {error}; fetch the file again"
            ) from error

    def _header(self, cells: list[str] | None) -> tuple[str, ...]:
        columns = tuple(cells or ())
        if KEY not in columns or len(set(columns)) < len(columns):
            raise ValueError(
                f"{self.path}: its header {ledger.short(columns, 200)} must have a "
                f"column {KEY!r}, and none twice; is it a table of VLMEvalKit?"
            )
        return columns

    def _row(self, cells: list[str], number: int) -> dict[str, str]:
        if len(cells) != len(self.columns):
            raise ValueError(
                f"{self.path}, row {number}: has {len(cells)} cells, the header "
                f"{len(self.columns)}; is the file whole? Fetch it again"
            )
        return dict(zip(self.columns, cells, strict=True))

    def images(self, cell: str, where: str) -> tuple[bytes, ...]:
        """Pictures of a cell, or of the row that it names."""
        if len(cell) > MAX_REFERENCE:
            return _decoded(cell, where)
        offset = self._offsets.get(cell)
        if offset is None:
            raise ValueError(
                f"{where}: image={ledger.short(cell)} is neither base64 nor the "
                f"{KEY} of a row"
            )
        return self._shared(cell, offset)

    @functools.cached_property
    def _offsets(self) -> dict[str, int]:
        """Where the rows with a picture of their own begin, by their index."""
        return {
            row[KEY]: at
            for _, at, row in self.rows()
            if len(row["image"]) > MAX_REFERENCE
        }

    def _images_of_row(self, key: str, offset: int) -> tuple[bytes, ...]:
        _, _, row = next(self.rows(offset))
        return _decoded(row["image"], f"{self.path}, {KEY} {key}")


class _Texts:
    """Lines as texts, for csv."""

    def __init__(self, lines: Iterator[tuple[int, bytes]], path: pathlib.Path):
        self._lines, self._path = lines, path

    def __iter__(self) -> _Texts:
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self._path}, line {number}: is no UTF-8 ({error}); fetch the file "
                "again"
            ) from error


def _listed(cell: str, where: str) -> list[str]:
    """A text, or the texts of a list that is written as a Python literal."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell]
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"{where}: {ledger.short(cell)} is no list of texts: {str(error)[:100]}"
        ) from error
    if not all(isinstance(text, str) for text in found):
        raise ValueError(f"{where}: {ledger.short(cell)} is no list of texts")
    if not 0 < len(found) <= MAX_IMAGES:
        raise ValueError(
            f"{where}: a list of {len(found)} pictures, from 1 to {MAX_IMAGES} are read"
        )
    return found


def _decoded(cell: str, where: str) -> tuple[bytes, ...]:
    return tuple(picture(text, where) for text in _listed(cell, where))


def picture(text: str, where: str) -> bytes:
    """A picture from base64, perhaps as a data URI or in lines.

    Raises:
      ValueError: it is no base64, or too large; names where it stands.
    """
    if text.startswith("data:"):
        text = text[text.find(_BASE64) + len(_BASE64) :]
    source_rows.check_image_size(len(text) * 3 // 4, where)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            f"{where}: image is broken base64 ({error}): {ledger.short(text)}; fetch "
            "the file again"
        ) from error
