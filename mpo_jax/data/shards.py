"""One shard of the index: a range of one source's lines, visited record by record.

A shard leaves three files: a Parquet part, a ledger part, and last of all a small JSON
whose presence says that the shard is finished. Line numbers in parts count from the
shard's first line; :mod:`mpo_jax.data.index` adds what came before.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from mpo_jax.data import examples, images, ledger, records
from mpo_jax.data import store as stores
from mpo_jax.data import tokenizer as tokenizers
from mpo_jax.types import PreferenceRecord

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
}
"""Columns of a part and their Parquet types."""


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
    _worker_encoding = encoding


def visit_in_worker(shard: Shard) -> ShardResult:
    """Run :func:`visit` in a process that :func:`start_worker` has prepared."""
    if _worker_encoding is None:
        raise RuntimeError("start_worker() has not run in this process")
    return visit(shard, _worker_encoding)


@dataclasses.dataclass(frozen=True)
class Shard:
    """The lines of one source in ``[start, stop)``: bytes, or records of a store."""

    source: records.Source
    start: int
    stop: int
    directory: str

    def path(self, suffix: str) -> pathlib.Path:
        name = f"{self.start:014d}-{self.stop:014d}{suffix}"
        return pathlib.Path(self.directory) / name

    @property
    def part_path(self) -> pathlib.Path:
        return self.path(".parquet")

    @property
    def ledger_path(self) -> pathlib.Path:
        return self.path(".ledger.jsonl")

    @property
    def result_path(self) -> pathlib.Path:
        return self.path(".json")


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """Counts of a finished shard.

    Attributes:
      lines: lines that begin in the shard, blank ones included.
      kept: rows of the part.
      left_out: number of records by ledger reason.
      unread: number of records by field that is neither read nor known.
      part_bytes, ledger_bytes: sizes of the two files, to tell them from torn ones.
    """

    lines: int
    kept: int
    left_out: Mapping[str, int]
    part_bytes: int
    ledger_bytes: int
    unread: Mapping[str, int] = dataclasses.field(default_factory=dict)


def cut(
    source: records.Source, store: stores.Store, *, shard_bytes: int, directory: str
) -> list[Shard]:
    """Cut a source into shards of about `shard_bytes` of text."""
    return [
        Shard(source, start, stop, directory)
        for start, stop in store.pieces(source, piece_bytes=shard_bytes)
    ]


def finished(shard: Shard) -> ShardResult | None:
    """Result of a shard that was finished before, None where there is work to do."""
    try:
        stored = json.loads(shard.result_path.read_text(encoding="utf-8"))
        result = ShardResult(**stored)
        sizes = (shard.part_path.stat().st_size, shard.ledger_path.stat().st_size)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # torn or of another version: made again
        return None
    return result if sizes == (result.part_bytes, result.ledger_bytes) else None


def visit(shard: Shard, encoding: Encoding) -> ShardResult:
    """Validate, measure and hash every record of a shard and store the result.

    Raises:
      RuntimeError: an error that is no fault of the record; names file and position.
      OSError: a file system failed.
    """
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    entries: list[ledger.Entry] = []
    unread = collections.Counter[str]()
    source, limit, number = shard.source, encoding.max_text_bytes, 0
    for offset, number, line, files in encoding.store.lines(
        source, start=shard.start, stop=shard.stop, max_bytes=limit
    ):
        if not line.strip():
            continue  # such as one at the end of the file
        try:
            record = records.parse_record(
                line,
                source=source,
                line_number=number,
                max_bytes=limit,
                chosen_only=encoding.policy.chosen_only,
                unread=unread,
            )
            read = encoding.store.reader(files, record)
            example = examples.build_example(
                record,
                encoding.tokenizer,
                policy=encoding.policy,
                with_tiles=False,
                read=read,
            )
            digest = record_hash(record, read)
        except ledger.BadRecord as bad:
            # Without the source's name: sources that share an annotation share parts.
            entries.append(
                ledger.Entry("", source.annotation, number, bad.reason, bad.detail)
            )
            continue
        except OSError:
            raise
        except Exception as error:
            raise RuntimeError(
                f"{source.annotation}, record at position {offset}: unexpected "
                f"{type(error).__name__}: {error}"
            ) from error
        row = {
            "offset": offset,
            "line": number,
            "prompt_tokens": len(example.prompt),
            "chosen_tokens": len(example.chosen_tokens),
            "rejected_tokens": len(example.rejected_tokens),
            "chosen_labels": int(example.chosen_mask.sum()),
            "rejected_labels": int(example.rejected_mask.sum()),
            "tiles": example.num_tiles,
            "images": len(record.images),
            "hash": digest,
        }
        for name, value in row.items():
            columns[name].append(value)
    return _store(shard, columns, entries, unread, lines=number)


def _store(
    shard: Shard,
    columns: Mapping[str, list],
    entries: list[ledger.Entry],
    unread: Mapping[str, int],
    *,
    lines: int,
) -> ShardResult:
    table = pa.table(dict(columns), schema=pa.schema(list(COLUMNS.items())))
    write_whole(shard.part_path, lambda path: pq.write_table(table, path))
    write_whole(shard.ledger_path, lambda path: ledger.write(path, entries))
    result = ShardResult(
        lines=lines,
        kept=len(table),
        left_out=dict(collections.Counter(entry.reason for entry in entries)),
        part_bytes=shard.part_path.stat().st_size,
        ledger_bytes=shard.ledger_path.stat().st_size,
        unread=dict(unread),
    )
    text = json.dumps(dataclasses.asdict(result))
    write_whole(shard.result_path, lambda path: _write_text(path, text))
    return result


def _write_text(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def record_hash(
    record: PreferenceRecord, read: Callable[[str], bytes] = images.read_file
) -> bytes:
    """BLAKE2b (16 bytes) of the texts and of the bytes of every image file.

    Every part is preceded by its length, so that no two records share a stream.

    Raises:
      BadRecord: an image cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(record, read):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _parts(record: PreferenceRecord, read: Callable[[str], bytes]) -> Iterable[bytes]:
    for text in (record.question, record.chosen, record.rejected):
        yield text.encode("utf-8")
    for path in record.images:
        yield read(path)


def write_whole(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Write a file under a temporary name, then rename: whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    write(temporary)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
