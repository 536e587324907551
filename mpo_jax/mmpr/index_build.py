"""Building the index: its key, the visits of pieces in parallel, and the merge."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import pathlib
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import process
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from mpo_jax import ledger
from mpo_jax.mmpr import shards as shards_lib
from mpo_jax.mmpr import store as stores
from mpo_jax.mmpr.meta import Source
from mpo_jax.mmpr.shards import Piece, PieceResult
from mpo_jax.utils import atomic

FORMAT = 2
"""Raised whenever a file of the index changes its meaning."""

LISTINGS = "listings"
"""In the folder of an index: see :mod:`mpo_jax.mmpr.listings`."""

_ROW_GROUP = 1 << 17
_DIGEST_THREADS = 4
_LOOK_THREADS = 16  # a network file system answers many questions at once


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far :func:`build_index` is; bytes are those of the annotations."""

    done_pieces: int
    pieces: int
    done_bytes: int
    bytes: int
    kept: int
    left_out: int


def index_key(sources: Sequence[Source], encoding: shards_lib.Encoding) -> dict:
    """What the index depends on, as JSON, images aside (see :func:`directory_name`).

    Each source's key is that of its pieces.
    """
    common = {
        "format": FORMAT,
        "tokenizer": encoding.tokenizer.fingerprint,
        "policy": encoding.policy.fingerprint(),
        "max_text_bytes": encoding.max_text_bytes,
        "chosen_only": encoding.policy.chosen_only,
    }
    with futures.ThreadPoolExecutor(_DIGEST_THREADS) as pool:
        contents = list(pool.map(encoding.store.digest, sources))
    entries = []
    for source, content in zip(sources, contents, strict=True):
        of_source = {
            **source.place._asdict(),
            "max_tiles": source.max_tiles,
            "content": content,
        }
        entry = {
            "key": digest({**common, **of_source}),
            "name": source.name,
            "repeat_time": source.repeat_time,
            "length": source.length,
        }
        entries.append(entry)
    return {**common, "sources": entries}


def directory_name(
    key: Mapping[str, Any],
    pieces: Sequence[Sequence[Piece]],
    results: Mapping[Piece, PieceResult],
) -> str:
    """Folder of the index: its key and what the visits found.

    Images that changed, came or went give another folder, so that a folder never
    changes and a run that reads the one before is not disturbed.
    """
    digests = [[results[piece].digest for piece in row] for row in pieces]
    return digest({**key, "found": digests})[:16]


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def visit_all(
    pieces: Sequence[Piece],
    encoding: shards_lib.Encoding,
    *,
    workers: int,
    progress: Callable[[Progress], None] | None,
) -> dict[Piece, PieceResult]:
    """Visit the pieces that are not visited or not up to date; results of all."""
    results: dict[Piece, PieceResult] = {}
    stamps = {piece: piece.stamp() for piece in pieces}
    with futures.ThreadPoolExecutor(_LOOK_THREADS) as pool:
        good = functools.partial(_still_good, store=encoding.store)
        for piece, result in zip(pieces, pool.map(good, pieces), strict=True):
            if result is not None:
                results[piece] = result

    def report() -> None:
        if progress is not None:
            progress(_progress(pieces, results))

    report()
    todo = [piece for piece in pieces if piece not in results]
    random.shuffle(todo)  # builds that run side by side so share the work
    if workers == 1 or len(todo) <= 1:
        for piece in todo:
            stamp = stamps[piece]
            results[piece] = shards_lib.visit_unless_done(piece, stamp, encoding)
            report()
        return results
    # Spawned, not forked: the caller may hold threads, or a device.
    pool = futures.ProcessPoolExecutor(
        min(workers, len(todo)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=shards_lib.start_worker,
        initargs=(encoding,),
    )
    try:
        running = {
            pool.submit(shards_lib.visit_in_worker, piece, stamps[piece]): piece
            for piece in todo
        }
        for future in futures.as_completed(running):
            results[running[future]] = future.result()
            report()
    except process.BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process of the index died (out of memory?); finished shards are "
            "kept: run again, with fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _progress(
    pieces: Sequence[Piece], results: Mapping[Piece, PieceResult]
) -> Progress:
    return Progress(
        done_pieces=len(results),
        pieces=len(pieces),
        done_bytes=sum(piece.stop - piece.start for piece in results),
        bytes=sum(piece.stop - piece.start for piece in pieces),
        kept=sum(result.kept for result in results.values()),
        left_out=sum(sum(r.left_out.values()) for r in results.values()),
    )


def _still_good(piece: Piece, store: stores.Store) -> PieceResult | None:
    result = shards_lib.finished(piece)
    if result is None or not shards_lib.up_to_date(piece, result, store):
        return None
    return result


def merge(
    directory: pathlib.Path,
    key: Mapping[str, Any],
    sources: Sequence[Source],
    place: Mapping[str, Any],
    pieces: Sequence[Sequence[Piece]],
    results: Mapping[Piece, PieceResult],
    listed: pathlib.Path | None,
) -> None:
    """Join the parts in order; the folder of the index appears whole or not at all.

    Args:
      directory: of the index; named by :func:`directory_name`.
      place: says where the records are; see :func:`mpo_jax.mmpr.store.open_indexed`.
      listed: what stores say of the images at addresses, kept with the index.

    Raises:
      SupersededError: another build has replaced a part.
    """
    with atomic.new_folder(directory) as building:
        if listed is not None:
            _keep_listings(listed, building / LISTINGS)
        content, rows = _merge_tables(building / "index.parquet", pieces, results)
        ledger.write(building / "ledger.jsonl", _merge_ledgers(pieces, results))
        counts = []
        for source, row in zip(sources, pieces, strict=True):
            counts.append(_counts([results[piece] for piece in row]))
            _check_declared(source, counts[-1]["lines"])
        manifest = {
            "format": FORMAT,
            "key": key,
            "rows": rows,
            "content_hash": content,
            "sources": [dataclasses.asdict(source) for source in sources],
            "counts": counts,
            **place,
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (building / "manifest.json").write_text(text, encoding="utf-8")


def _keep_listings(source: pathlib.Path, target: pathlib.Path) -> None:
    target.mkdir()
    for path in source.glob("*.npy"):
        shutil.copyfile(path, target / path.name)


def _counts(results: Sequence[PieceResult]) -> dict[str, Any]:
    """What became of one source's records; see ``index.SourceCounts``."""
    left_out: collections.Counter[str] = collections.Counter()
    unread = collections.Counter[str]()
    for result in results:
        left_out.update(result.left_out)
        unread.update(result.unread)
    kept = sum(result.kept for result in results)
    return {
        "lines": kept + left_out.total(),
        "kept": kept,
        "left_out": dict(left_out),
        "unread": dict(unread),
    }


def _check_declared(source: Source, lines: int) -> None:
    if source.length not in (None, lines):
        logging.warning(
            "source %r: meta.json declares length %d, %s holds %d records",
            source.name,
            source.length,
            source.annotation,
            lines,
        )


def _numbered(
    pieces: Sequence[Sequence[Piece]],
    results: Mapping[Piece, PieceResult],
) -> Iterator[tuple[int, int, Piece]]:
    """Yield (source number, lines before the piece, piece) in order."""
    for position, row in enumerate(pieces):
        base = 0
        for piece in row:
            yield position, base, piece
            base += results[piece].lines


def _merge_tables(
    path: pathlib.Path,
    pieces: Sequence[Sequence[Piece]],
    results: Mapping[Piece, PieceResult],
) -> tuple[str, int]:
    """Write the table; returns (hash over the records' hashes, rows)."""
    schema = pa.schema([("source", pa.int32()), *shards_lib.COLUMNS.items()])
    content, rows = hashlib.sha256(), 0
    waiting: list[pa.Table] = []
    rows_waiting = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for position, base, piece in _numbered(pieces, results):
            part = shards_lib.read_part(piece, results[piece])
            part = part.filter(part["reason"].is_null()).select([*shards_lib.COLUMNS])
            if not len(part):  # such as inside a line that is too long
                continue
            for value in part["hash"].to_pylist():
                content.update(value)
            rows += len(part)
            line = pa.array(part["line"].to_numpy() + base, pa.int64())
            part = part.set_column(part.column_names.index("line"), "line", line)
            number = pa.array(np.full(len(part), position, np.int32))
            part = part.add_column(0, "source", number)
            waiting.append(part.cast(schema))
            # One group per part would be slow to read.
            rows_waiting += len(part)
            if rows_waiting >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting, rows_waiting = [], 0
        writer.write_table(pa.concat_tables([schema.empty_table(), *waiting]))
    return content.hexdigest(), rows


def _merge_ledgers(
    pieces: Sequence[Sequence[Piece]],
    results: Mapping[Piece, PieceResult],
) -> Iterator[ledger.Entry]:
    for _, base, piece in _numbered(pieces, results):
        part = shards_lib.read_part(piece, results[piece])
        # Not of the part: sources that share an annotation share parts.
        for entry in shards_lib.entries(part, piece.source):
            yield dataclasses.replace(entry, line=entry.line + base)
