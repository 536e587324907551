"""Building the index: its key, the visits of shards in parallel, and the merge."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import multiprocessing
import pathlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import process
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from mpo_jax import ledger
from mpo_jax.mmpr import shards
from mpo_jax.mmpr.meta import Source
from mpo_jax.utils import atomic

FORMAT = 2
"""Raised whenever a file of the index changes its meaning."""

_ROW_GROUP = 1 << 17
_DIGEST_THREADS = 4
_LOOK_THREADS = 16  # a network file system answers many questions at once


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far :func:`build_index` is; bytes are those of the annotations."""

    done_shards: int
    shards: int
    done_bytes: int
    bytes: int
    kept: int
    left_out: int


def index_key(sources: Sequence[Source], encoding: shards.Encoding) -> dict:
    """What the index depends on, as JSON, images aside (see :func:`directory_name`).

    Each source's key is that of its shards.
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
        own = {
            **source.place._asdict(),
            "max_tiles": source.max_tiles,
            "content": content,
        }
        entry = {
            "key": digest({**common, **own}),
            "name": source.name,
            "repeat_time": source.repeat_time,
            "length": source.length,
        }
        entries.append(entry)
    return {**common, "sources": entries}


def directory_name(
    key: Mapping[str, Any],
    plan: Sequence[Sequence[shards.Shard]],
    results: Mapping[shards.Shard, shards.ShardResult],
) -> str:
    """Folder of the index: its key and what the visits found.

    Images that changed, came or went give another folder, so that a folder never
    changes and a run that reads the one before is not disturbed.
    """
    found = [[results[shard].digest for shard in row] for row in plan]
    return digest({**key, "found": found})[:16]


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def visit_all(
    plan: Sequence[shards.Shard],
    encoding: shards.Encoding,
    *,
    workers: int,
    progress: Callable[[Progress], None] | None,
) -> dict[shards.Shard, shards.ShardResult]:
    """Visit the shards that are not visited or not up to date; results of all."""
    results: dict[shards.Shard, shards.ShardResult] = {}
    stamps = {shard: shard.stamp() for shard in plan}
    with futures.ThreadPoolExecutor(_LOOK_THREADS) as pool:
        for shard, result in zip(plan, pool.map(_still_good, plan), strict=True):
            if result is not None:
                results[shard] = result
    total_bytes = sum(shard.stop - shard.start for shard in plan)

    def report() -> None:
        if progress is not None:
            progress(
                Progress(
                    done_shards=len(results),
                    shards=len(plan),
                    done_bytes=sum(shard.stop - shard.start for shard in results),
                    bytes=total_bytes,
                    kept=sum(result.kept for result in results.values()),
                    left_out=sum(sum(r.left_out.values()) for r in results.values()),
                )
            )

    report()
    todo = [shard for shard in plan if shard not in results]
    random.shuffle(todo)  # builds that run side by side so share the work
    if workers == 1 or len(todo) <= 1:
        for shard in todo:
            results[shard] = shards.visit_unless_done(shard, stamps[shard], encoding)
            report()
        return results
    # Spawned, not forked: the caller may hold threads, or a device.
    pool = futures.ProcessPoolExecutor(
        min(workers, len(todo)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=shards.start_worker,
        initargs=(encoding,),
    )
    try:
        running = {
            pool.submit(shards.visit_in_worker, shard, stamps[shard]): shard
            for shard in todo
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


def _still_good(shard: shards.Shard) -> shards.ShardResult | None:
    result = shards.finished(shard)
    if result is None or not shards.up_to_date(shard, result):
        return None
    return result


def merge(
    directory: pathlib.Path,
    key: Mapping[str, Any],
    sources: Sequence[Source],
    place: Mapping[str, Any],
    plan: Sequence[Sequence[shards.Shard]],
    results: Mapping[shards.Shard, shards.ShardResult],
) -> None:
    """Join the parts in order; the folder of the index appears whole or not at all.

    Args:
      directory: of the index; named by :func:`directory_name`.
      place: says where the records are; see :func:`mpo_jax.mmpr.store.open_indexed`.

    Raises:
      SupersededError: another build has replaced a part.
    """
    with atomic.new_folder(directory) as building:
        content, rows = _merge_tables(building / "index.parquet", plan, results)
        ledger.write(building / "ledger.jsonl", _merge_ledgers(plan, results))
        counts = []
        for source, row in zip(sources, plan, strict=True):
            left_out: collections.Counter[str] = collections.Counter()
            unread = collections.Counter[str]()
            for shard in row:
                left_out.update(results[shard].left_out)
                unread.update(results[shard].unread)
            kept = sum(results[shard].kept for shard in row)
            lines = kept + left_out.total()
            counts.append(
                {
                    "lines": lines,
                    "kept": kept,
                    "left_out": dict(left_out),
                    "unread": dict(unread),
                }
            )
            if source.length not in (None, lines):
                logging.warning(
                    "source %r: meta.json declares length %d, %s holds %d records",
                    source.name,
                    source.length,
                    source.annotation,
                    lines,
                )
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


def _numbered(
    plan: Sequence[Sequence[shards.Shard]],
    results: Mapping[shards.Shard, shards.ShardResult],
) -> Iterator[tuple[int, int, shards.Shard]]:
    """Yield (source number, lines before the shard, shard) in order."""
    for position, row in enumerate(plan):
        base = 0
        for shard in row:
            yield position, base, shard
            base += results[shard].lines


def _merge_tables(
    path: pathlib.Path,
    plan: Sequence[Sequence[shards.Shard]],
    results: Mapping[shards.Shard, shards.ShardResult],
) -> tuple[str, int]:
    """Write the table; returns (hash over the records' hashes, rows)."""
    schema = pa.schema([("source", pa.int32()), *shards.COLUMNS.items()])
    content, rows = hashlib.sha256(), 0
    waiting: list[pa.Table] = []
    held = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for position, base, shard in _numbered(plan, results):
            part = shards.read_part(shard, results[shard])
            part = part.filter(part["reason"].is_null()).select([*shards.COLUMNS])
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
            held += len(part)
            if held >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting, held = [], 0
        writer.write_table(pa.concat_tables([schema.empty_table(), *waiting]))
    return content.hexdigest(), rows


def _merge_ledgers(
    plan: Sequence[Sequence[shards.Shard]],
    results: Mapping[shards.Shard, shards.ShardResult],
) -> Iterator[ledger.Entry]:
    for _, base, shard in _numbered(plan, results):
        part = shards.read_part(shard, results[shard])
        # Not of the part: sources that share an annotation share parts.
        for entry in shards.entries(part, shard.source):
            yield dataclasses.replace(entry, line=entry.line + base)
