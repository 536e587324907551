"""Rows of JSON, JSON lines and parquet files, with bounds; ``sources.read_rows``."""

from __future__ import annotations

import codecs
import json
import pathlib
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mpo_jax import ledger
from mpo_jax.utils import file_kinds

MAX_LINE = 1 << 28
"""Bytes of a line; pictures stand in them as base64."""

MAX_JSON = 1 << 30
"""Bytes of a JSON file that is not in lines, which is read whole."""

MAX_IMAGE = 1 << 27
"""Bytes of an encoded picture in a table."""

_BATCH = 32  # rows of parquet held at once; each may carry pictures
_IMAGE = {"bytes", "path"}  # a picture, as the hub's data sets have it
Row = dict[str, Any]


def json_lines(path: pathlib.Path) -> Iterator[Row]:
    """Objects of JSON lines.

    Raises:
      ValueError: a line is too long, no UTF-8 or no object; names the file and it.
    """
    with open_checked(path) as file:
        for number, line in lines(file, path):
            if line.strip():
                yield _object(_parsed(line, f"{path}, line {number}"), path, number)


def json_objects(path: pathlib.Path) -> Iterator[Row]:
    """Objects of a list, or by key; benchmarks also call JSON lines so.

    Raises:
      ValueError: the file is too large or something else; names it and the item.
    """
    size = path.stat().st_size
    if size > MAX_JSON:
        raise ValueError(
            f"{path} has {size} bytes, a JSON file may have {MAX_JSON}; write it in "
            "lines, one object each, as .jsonl"
        )
    with open_checked(path) as file:
        text = file.read().removeprefix(codecs.BOM_UTF8)
    try:
        value = _parsed(text, str(path))
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise
        yield from json_lines(path)
        return
    if isinstance(value, dict) and all(isinstance(v, dict) for v in value.values()):
        yield from ({**row, "_key": key} for key, row in value.items())
    elif isinstance(value, list):
        for number, row in enumerate(value, 1):
            yield _object(row, path, number)
    elif isinstance(value, dict):  # one line
        yield value
    else:
        raise ValueError(f"{path}: must be a list of objects, or objects by key")


def parquet(path: pathlib.Path) -> Iterator[Row]:
    """Rows of a parquet file, a few at a time; pictures as bytes.

    Raises:
      ValueError: the file is damaged, or a picture too large; names the file and row.
    """
    number = 0
    try:
        # Without pre-buffering and with a buffer, columns are read page by page.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(batch_size=_BATCH, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    where = f"{path}, row {number}"
                    yield {name: _plain(cell, where) for name, cell in row.items()}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}, after row {number}: {str(error)[:200]}; fetch the file again"
        ) from error


def _plain(cell: Any, where: str) -> Any:
    """A cell with its pictures as bytes, or as paths where the table has no bytes."""
    if isinstance(cell, list):
        return [_plain(item, where) for item in cell]
    if not isinstance(cell, dict) or set(cell) != _IMAGE:
        return cell
    data = cell["bytes"]
    if data is None:
        return cell["path"]
    check_image_size(len(data), where)
    return data


def check_image_size(size: int, where: str) -> None:
    """Raise ValueError where a picture has too many bytes."""
    if size > MAX_IMAGE:
        raise ValueError(
            f"{where}: a picture of {size} bytes, at most {MAX_IMAGE} are read; "
            "shrink it"
        )


def open_checked(path: pathlib.Path) -> IO[bytes]:
    """Open a text file for its bytes, if it is one.

    Raises:
      ValueError: it begins as something else, such as a git-lfs pointer.
    """
    file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    kind = file_kinds.of_text(file.read(4096))
    if kind is not None:
        file.close()
        raise ValueError(f"{path} is {kind.name}; {kind.remedy}")
    file.seek(0)
    return file


def lines(file: IO[bytes], path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1; without a mark of the encoding.

    Raises:
      ValueError: a line is longer than :data:`MAX_LINE`.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise ValueError(f"{path}, line {number}: has more than {MAX_LINE} bytes")
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        words = f"{error.msg} ({where}; is the file whole? fetch it again)"
        raise json.JSONDecodeError(words, error.doc, error.pos) from error
    except RecursionError as error:
        raise ValueError(f"{where}: is nested too deeply") from error
    except ValueError as error:  # no UTF-8, or a number of 5,000 digits
        raise ValueError(f"{where}: {error}; fetch the file again") from error


def _object(value: Any, path: pathlib.Path, number: int) -> Row:
    if not isinstance(value, dict):
        raise ValueError(
            f"{path}, item {number}: {ledger.short(value)} is no JSON object"
        )
    return value
