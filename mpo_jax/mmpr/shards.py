"""The folder ``shards/`` of an index: pieces of sources, visited record by record.

A piece is a range of lines. (Files of ArrayRecords are another matter:
:mod:`mpo_jax.mmpr.shard_writer`.)

A visited piece is one Parquet file, its *part*: a row per record, kept or left out,
and the counts in the file's metadata. A row also says what the image files were when
they were read, so that a later visit examines again only what has changed since. Line
numbers count from the piece's first line; :mod:`mpo_jax.mmpr.index_build` adds what
came before.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from mpo_jax import ledger
from mpo_jax.inputs import tokenizer as tokenizers
from mpo_jax.mmpr import examples, likeness, records
from mpo_jax.mmpr import store as stores
from mpo_jax.mmpr.meta import Source
from mpo_jax.utils import orphans
from mpo_jax.utils.atomic import write_whole

COLUMNS = {
    "offset": pa.int64(),
    "line": pa.int64(),
    "prompt_tokens": pa.int32(),
    "chosen_tokens": pa.int32(),
    "rejected_tokens": pa.int32(),
    "chosen_labels": pa.int32(),
    "rejected_labels": pa.int32(),
    "tiles": pa.int32(),
    "images": pa.int32(),
    "hash": pa.binary(16),
    "prompt_key": pa.int64(),
    "chosen_key": pa.int64(),
    "rejected_key": pa.int64(),
    "markers": pa.int32(),
}
"""Columns of the index and their Parquet types."""

LEFT_OUT = {"reason": pa.string(), "detail": pa.string()}
"""Columns of a part that say why a record is left out, null where it is kept."""

_FILES = {
    "paths": pa.list_(pa.string()),
    "sizes": pa.list_(pa.int64()),
    "times": pa.list_(pa.int64()),
}
_UNREAD = ("unread", pa.list_(pa.string()))
_SCHEMA = pa.schema([*COLUMNS.items(), *LEFT_OUT.items(), _UNREAD, *_FILES.items()])
_RESULT = b"mpo_jax.result"


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How records become examples; travels once to each worker process.

    Attributes:
      tokenizer: of the model.
      policy: template, tiling and limits.
      max_text_bytes: limit on the length of a line.
      store: where lines and images come from.
    """

    tokenizer: tokenizers.ChatTokenizer
    policy: examples.EncodePolicy
    max_text_bytes: int
    store: stores.Store


_worker_encoding: Encoding | None = None


def start_worker(encoding: Encoding) -> None:
    """Prepare this process for :func:`visit_in_worker`."""
    global _worker_encoding
    orphans.end_with_parent()
    _worker_encoding = encoding


def visit_in_worker(piece: Piece, stamp: int | None) -> PieceResult:
    """Run :func:`visit_unless_done` in a process that :func:`start_worker` prepared."""
    if _worker_encoding is None:
        raise RuntimeError("start_worker() has not run in this process")
    return visit_unless_done(piece, stamp, _worker_encoding)


def visit_unless_done(
    piece: Piece, stamp: int | None, encoding: Encoding
) -> PieceResult:
    """Visit a piece, unless another build has done so since its part had `stamp`."""
    if piece.stamp() != stamp:
        result = finished(piece)
        if result is not None:
            return result
    return visit(piece, encoding)


@dataclasses.dataclass(frozen=True)
class Piece:
    """The lines of one source in ``[start, stop)``: bytes, or records of a store."""

    source: Source
    start: int
    stop: int
    directory: str

    @property
    def part_path(self) -> pathlib.Path:
        name = f"{self.start:014d}-{self.stop:014d}.parquet"
        return pathlib.Path(self.directory) / name

    def stamp(self) -> int | None:
        """Tells one version of the part from another; None where there is none."""
        try:
            return self.part_path.stat().st_mtime_ns
        except FileNotFoundError:
            return None


@dataclasses.dataclass(frozen=True)
class PieceResult:
    """Counts of a visited piece.

    Attributes:
      lines: lines that begin in the piece, blank ones included.
      kept: records that are kept.
      left_out: number of records by ledger reason.
      unread: number of records by field that is neither read nor known.
      files: image files that the rows watch, counted once per record.
      digest: hash over everything that the piece adds to index and ledger.
    """

    lines: int
    kept: int
    left_out: Mapping[str, int]
    unread: Mapping[str, int]
    files: int
    digest: str


def cut(
    source: Source, store: stores.Store, *, piece_bytes: int, directory: str
) -> list[Piece]:
    """Cut a source into pieces of about `piece_bytes` of text."""
    return [
        Piece(source, start, stop, directory)
        for start, stop in store.pieces(source, piece_bytes=piece_bytes)
    ]


def finished(piece: Piece) -> PieceResult | None:
    """Result of a piece that was visited before, None where there is none."""
    try:
        stored = pq.read_schema(piece.part_path).metadata[_RESULT]
        return PieceResult(**json.loads(stored))
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        logging.warning("%s is made again: %s", piece.part_path, error)
        return None


def up_to_date(piece: Piece, result: PieceResult, store: stores.Store) -> bool:
    """Whether every image file is what it was when the piece was visited."""
    if not result.files:
        return True
    table = pq.read_table(piece.part_path, columns=["reason", *_FILES])
    return not _changed(table, store).any()


def _changed(table: pa.Table, store: stores.Store) -> np.ndarray:
    """Rows of a part whose image files have changed, come or gone: bool ``[n]``.

    A file that could not be used is also looked at again when anything else about it
    has changed, such as a permission.
    """
    if store.look_at is None:
        return np.zeros(len(table), bool)
    paths = table["paths"].combine_chunks()
    row_of = paths.value_parent_indices().to_numpy()
    names = paths.flatten().dictionary_encode()
    now = store.look_at(names.dictionary.to_pylist())
    now = now[names.indices.to_numpy()]
    left_out = table["reason"].is_valid().to_numpy()[row_of]
    sizes, times = (
        table[name].combine_chunks().flatten().to_numpy() for name in ("sizes", "times")
    )
    differs = now[:, 0] != sizes
    differs |= np.where(left_out, now[:, 2], now[:, 1]) != times
    return np.bincount(row_of[differs], minlength=len(table)) > 0


def _unchanged_rows(piece: Piece, store: stores.Store) -> dict[int, dict[str, Any]]:
    """Rows of the part that is there, if any, that are as good as new, by offset."""
    if finished(piece) is None:
        return {}
    table = pq.read_table(piece.part_path)
    rows = table.filter(pa.array(~_changed(table, store))).to_pylist()
    return {row["offset"]: row for row in rows}


def visit(piece: Piece, encoding: Encoding) -> PieceResult:
    """Validate, measure and hash every record of a piece and store the part.

    Records of the part that is there are taken over where their images are unchanged.

    Raises:
      RuntimeError: an error that is no fault of the record; names file and position.
      OSError: a file system failed.
    """
    before = _unchanged_rows(piece, encoding.store)
    rows, lines = [], 0
    for offset, lines, line, files in encoding.store.lines(
        piece.source,
        start=piece.start,
        stop=piece.stop,
        max_bytes=encoding.max_text_bytes,
        known=before,
    ):
        if not line.strip():
            continue  # such as one at the end of the file
        row = before.get(offset)
        if row is None:
            try:
                row = _examine(line, files, lines, piece.source, encoding)
            except OSError:
                raise
            except Exception as error:
                raise RuntimeError(
                    f"{piece.source.annotation}, record at position {offset}: "
                    f"unexpected {type(error).__name__}: {error}"
                ) from error
        rows.append({**row, "offset": offset, "line": lines})
    return _store(piece, rows, lines=lines)


def _examine(
    line: bytes,
    files: Any,
    number: int,
    source: Source,
    encoding: Encoding,
) -> dict[str, Any]:
    """The row of a record: its measures, or the reason why it is left out."""
    record, states, unread = None, [], collections.Counter[str]()
    try:
        record = records.parse_record(
            line,
            source=source,
            line_number=number,
            max_bytes=encoding.max_text_bytes,
            chosen_only=encoding.policy.chosen_only,
            unread=unread,
        )
        if encoding.store.look_at is not None:
            # Before the files are read: what changes after that will be seen.
            states = encoding.store.look_at(record.images).tolist()
        read = encoding.store.reader(files, record)
        example = examples.build_example(
            record,
            encoding.tokenizer,
            policy=encoding.policy,
            with_tiles=False,
            read=read,
        )
        digest = likeness.record_hash(record, read)
    except ledger.BadRecord as bad:
        row: dict[str, Any] = {"reason": bad.reason, "detail": bad.detail}
        if record is None or not bad.reason.startswith("image_"):
            return row | _watched((), ())  # no file can make it good
        return row | _watched(record.images, [(s[0], s[2]) for s in states])
    return {
        "prompt_tokens": len(example.prompt),
        "chosen_tokens": len(example.chosen_tokens),
        "rejected_tokens": len(example.rejected_tokens),
        "chosen_labels": int(example.chosen_mask.sum()),
        "rejected_labels": int(example.rejected_mask.sum()),
        "tiles": example.num_tiles,
        "images": len(record.images),
        "hash": digest,
        "markers": likeness.markers(record),
        **likeness.keys(record, read),
        "unread": list(unread),
        **_watched(record.images, [(s[0], s[1]) for s in states]),
    }


def _watched(
    paths: Iterable[str], states: Iterable[tuple[int, int]]
) -> dict[str, list[Any]]:
    """File columns of a row; no states, no files to watch."""
    watched = list(zip(paths, states, strict=False))
    return {
        "paths": [path for path, _ in watched],
        "sizes": [size for _, (size, _) in watched],
        "times": [time for _, (_, time) in watched],
    }


def _store(piece: Piece, rows: list[dict[str, Any]], *, lines: int) -> PieceResult:
    digest = hashlib.sha256(f"{lines}\n".encode())
    for row in rows:
        told = [row.get(name) for name in (*COLUMNS, *LEFT_OUT)]
        digest.update(f"{told!r}\n".encode("utf-8", "surrogatepass"))
    reasons = collections.Counter(row["reason"] for row in rows if row.get("reason"))
    unread = collections.Counter[str]()
    for row in rows:
        records.count_unread(unread, row.get("unread") or ())
    result = PieceResult(
        lines=lines,
        kept=len(rows) - reasons.total(),
        left_out=dict(reasons),
        unread=dict(unread),
        files=sum(len(row["paths"]) for row in rows),
        digest=digest.hexdigest(),
    )
    text = json.dumps(dataclasses.asdict(result))
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    table = table.replace_schema_metadata({_RESULT: text.encode()})
    write_whole(piece.part_path, lambda path: pq.write_table(table, path))
    return result


class SupersededError(Exception):
    """Another build has replaced a part, since its images have changed."""


def read_part(piece: Piece, result: PieceResult) -> pa.Table:
    """The rows of a part, files aside.

    Raises:
      SupersededError: the part is no longer the one that `result` tells of.
    """
    table = pq.read_table(piece.part_path, columns=[*COLUMNS, *LEFT_OUT])
    if PieceResult(**json.loads(table.schema.metadata[_RESULT])) != result:
        raise SupersededError(piece.part_path)
    return table


def entries(table: pa.Table, source: Source) -> Iterator[ledger.Entry]:
    """Ledger entries of a part."""
    left_out = table.filter(table["reason"].is_valid())
    for row in left_out.select(["line", *LEFT_OUT]).to_pylist():
        yield ledger.Entry(
            source.name, source.annotation, row["line"], row["reason"], row["detail"]
        )
