"""Records of a file, one at a time: JSON lines, JSON lists and Parquet.

Which of them a file is, its first bytes say, not its name: lists are often called
.jsonl, and lines .json. Memory is bounded by one record (one batch in Parquet),
whatever the size of the file.

Lists are decoded here item by item with the standard library's decoder. ijson was
tried: its fast back end writes "?" for a lone surrogate without a word, its slow one
takes memory without bound for nested brackets, and both drop repeated keys.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mpo_jax import ledger

LINES, LIST, PARQUET = "JSON lines", "JSON list", "Parquet"

Item = tuple[int, Any]
"""1-based number (line, item or row), and the record or the BadRecord that it is."""

_CHUNK = 1 << 16
_LOOK = 64  # characters beyond which a cut-off token is none
_ROWS = 32  # rows of Parquet held at once; each may carry an image


def kind_of(path: str) -> str:
    """What a file is, by its first bytes.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is none of the kinds that are read.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"input {path!r} does not exist")
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"PAR1"):
        return PARQUET
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a pointer of git-lfs, not the data; fetch it with git lfs pull"
        )
    try:
        with _open(path) as file:
            start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if start.startswith(b"["):
        return LIST
    if start.startswith(b"{"):
        return LINES
    if not start:
        raise ValueError(f"{path} is empty")
    raise ValueError(
        f"{path} is neither JSON lines, a JSON list nor Parquet (UTF-8, gzip allowed); "
        f"it begins with {start[:24]!r}"
    )


def read(path: str, kind: str, *, max_bytes: int) -> Iterator[Item]:
    """The records of a file, in order.

    Args:
      path: the file.
      kind: see :func:`kind_of`.
      max_bytes: longer records are bad (lines) or end the reading (lists).

    Raises:
      ValueError: the file cannot be read any further; names the place.
    """
    if kind == PARQUET:
        yield from _parquet(path)
        return
    try:
        with _open(path) as file:
            if kind == LIST:
                yield from _list(file, path, max_bytes)
            else:
                yield from _lines(file, max_bytes)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: the gzip file is damaged: {error}") from error


def _open(path: str) -> IO[bytes]:
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb")) if packed else open(path, "rb")


class _Parser:
    """A JSON decoder that notices repeated keys, of which one value would be lost."""

    def __init__(self):
        self._twice: set[str] = set()
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            keys = [key for key, _ in items]
            self._twice |= {key for key in keys if keys.count(key) > 1}
        return result

    def parse(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at `at` (a BadRecord if keys repeat), and its end."""
        self._twice = set()
        value, end = self._decoder.raw_decode(text, at)
        if self._twice:
            keys = ", ".join(sorted(self._twice))[:100]
            return ledger.BadRecord("bad_json", f"record: repeated keys {keys}"), end
        return value, end


def _lines(file: IO[bytes], max_bytes: int) -> Iterator[Item]:
    parser, number = _Parser(), 0
    while raw := file.readline(max_bytes + 2):
        number += 1
        if not raw.endswith(b"\n"):
            while (rest := file.readline(_CHUNK)) and not rest.endswith(b"\n"):
                pass
        line = raw.rstrip(b"\r\n")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield number, _object(line, parser, max_bytes)


def _object(line: bytes, parser: _Parser, max_bytes: int) -> Any:
    if len(line) > max_bytes:
        detail = f"record: has more than {max_bytes} bytes; raise --max_record_bytes"
        return ledger.BadRecord("line_too_long", detail)
    try:
        text = line.decode("utf-8").strip()
        value, end = parser.parse(text, 0)
        if end != len(text):
            detail = f"record: something follows at character {end + 1}"
            return ledger.BadRecord("bad_json", detail)
        return value
    except RecursionError:
        return ledger.BadRecord("bad_json", "record: is nested too deeply")
    except ValueError as error:
        return ledger.BadRecord("bad_json", f"record: {str(error)[:200]}")


def _list(file: IO[bytes], path: str, max_bytes: int) -> Iterator[Item]:
    """Items of a JSON list; holds the one that is being decoded and what was read."""
    window = _Window(file, path, max_bytes)
    window.skip("[")
    number = 0
    while window.peek() != "]":
        number += 1
        if number > 1:
            window.skip(",")
        yield number, window.item(number)
    window.skip("]")
    if window.peek():
        raise ValueError(f"{path}: something follows the end of the list")


class _Window:
    """A piece of a text file that grows until an item of JSON is whole in it."""

    def __init__(self, file: IO[bytes], path: str, max_bytes: int):
        self._file, self._path, self._max = file, path, max_bytes
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._parser = _Parser()
        self._text, self._at, self._done = "", 0, False

    def _grow(self, size: int) -> None:
        raw = self._file.read(size)
        try:
            more = self._decode.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._path} is not UTF-8: {error}") from error
        self._done = not raw
        self._text, self._at = self._text[self._at :] + more, 0

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or self._done:
                return self._text[self._at : self._at + 1]
            self._grow(_CHUNK)

    def skip(self, wanted: str) -> None:
        found = self.peek()
        if found != wanted:
            where = f"{found!r} stands" if found else "the file ends"
            raise ValueError(
                f"{self._path}: {where} where the list needs {wanted!r}; is it cut off?"
            )
        self._at += 1

    def item(self, number: int) -> Any:
        """Decode the item that begins here."""
        self.peek()
        size = _CHUNK
        while True:
            try:
                value, end = self._parser.parse(self._text, self._at)
                after = self._text[end : end + _LOOK]
                # A number may go on in the next piece: 1 becomes 12 or 1.5.
                if (
                    self._done
                    or len(after) == _LOOK
                    or after.lstrip()[:1] in (",", "]")
                ):
                    self._at = end
                    return value
                problem = "it is cut off"
            except RecursionError:
                raise self._fail(number, "is nested too deeply") from None
            except json.JSONDecodeError as error:
                problem = error.msg
                # Near the end, or a text that goes on: more may mend it.
                inside = error.pos < len(self._text) - _LOOK
                if inside and not problem.startswith("Unterminated string"):
                    raise self._fail(number, problem) from error
            except ValueError as error:  # such as a number of 5,000 digits
                raise self._fail(number, str(error)) from error
            if self._done:
                raise self._fail(number, problem)
            if len(self._text) - self._at > self._max:
                problem = f"is longer than {self._max}; raise --max_record_bytes"
                raise self._fail(number, problem)
            self._grow(size)
            size *= 2  # so that long items are parsed a few times only

    def _fail(self, number: int, problem: str) -> ValueError:
        return ValueError(
            f"{self._path}, item {number} of the list: {problem}; the rest cannot be "
            "read. In JSON lines (one object a line) one bad line costs one record"
        )


def _parquet(path: str) -> Iterator[Item]:
    number = 0
    try:
        # Without pre-buffering and with a buffer, columns are read page by page.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(batch_size=_ROWS, use_threads=False):
                for row in range(batch.num_rows):
                    number += 1
                    yield number, _row(batch.slice(row, 1))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}, after row {number}: {str(error)[:200]}") from error


def _row(batch: pa.RecordBatch) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return ledger.BadRecord("bad_field", f"text: is not UTF-8: {error}")
