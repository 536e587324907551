"""The index: every record visited once, validated, measured and hashed.

One Parquet table has a row per usable record, in the order (source, line); the ledger
has an entry per record that was left out. Both are made from pieces, byte ranges of
the annotations, so that the work is parallel and resumes where it stopped. Under
``out_dir``::

    shards/<key of source>/<start>-<stop>.parquet
    <key of index>/{index.parquet,ledger.jsonl,manifest.json}
    <key of index>/listings/    of images at addresses

A source's key covers whatever its pieces depend on (annotation, paths, tokenizer,
policy) but the images, so editing ``repeat_time`` or adding a source repeats no work.
Images are looked at again at every start (size and time), and records whose images
changed, came or went are examined again. The key of the index covers what was found,
so a folder never changes once it is there, any number of them live side by side, and
any number of processes may build at once.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from absl import logging

from mpo_jax import ledger
from mpo_jax.inputs import template
from mpo_jax.inputs import tokenizer as tokenizers
from mpo_jax.mmpr import array_records, examples, index_build, records
from mpo_jax.mmpr import shards as shards_lib
from mpo_jax.mmpr import store as stores
from mpo_jax.mmpr.listings import Listings
from mpo_jax.mmpr.meta import Source
from mpo_jax.types import PreferenceRecord
from mpo_jax.utils import atomic, fetched

_PIECES = "shards"  # a name that users' folders have


@dataclasses.dataclass(frozen=True)
class SourceCounts:
    """What became of one source's records.

    Attributes:
      lines: records in the annotation (blank lines not counted).
      kept: rows in the index.
      left_out: number of records by ledger reason.
      unread: number of records by field that is neither read nor known.
    """

    lines: int
    kept: int
    left_out: Mapping[str, int]
    unread: Mapping[str, int] = dataclasses.field(default_factory=dict)


def _column(name: str) -> functools.cached_property[np.ndarray]:
    return functools.cached_property(lambda index: index._read(name))


class Index:
    """All usable records of a data set; row ``i`` is record number ``i``.

    Columns are NumPy arrays ``[len(index)]``, read from disk on first use. Pickling
    carries the folder only, so that worker processes start fast. Methods are safe to
    call from many threads.

    Attributes:
      directory: folder of the index.
      sources: the sources, in the order of meta.json.
      counts: :class:`SourceCounts` of every source.
      key: what the index was made from; see :func:`build_index`.
      content_hash: sha256 hex over the hashes of all records in order.
      ledger_path: JSON lines of :class:`mpo_jax.ledger.Entry`.
      source: int32, position in `sources`.
      offset: int64, where the line is: a byte of the annotation, or a record of shards.
      line: int64, 1-based line number.
      prompt_tokens, chosen_tokens, rejected_tokens: int32, lengths of the segments of
        :class:`mpo_jax.types.Example`.
      chosen_labels, rejected_labels: int32, trained tokens.
      tiles, images: int32, image tiles and image files.
      hash: uint8 ``[len(index), 16]``, BLAKE2b of texts and image files.
      prompt_key, chosen_key, rejected_key: int64, see :func:`likeness.keys`.
      markers: int32, chat markers in the texts.
    """

    source = _column("source")
    offset = _column("offset")
    line = _column("line")
    prompt_tokens = _column("prompt_tokens")
    chosen_tokens = _column("chosen_tokens")
    rejected_tokens = _column("rejected_tokens")
    chosen_labels = _column("chosen_labels")
    rejected_labels = _column("rejected_labels")
    tiles = _column("tiles")
    images = _column("images")
    hash = _column("hash")
    prompt_key = _column("prompt_key")
    chosen_key = _column("chosen_key")
    rejected_key = _column("rejected_key")
    markers = _column("markers")

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        shards: str = "",
        check: bool = True,
        cache: fetched.LocalCache | None = None,
    ):
        self.directory = pathlib.Path(directory).absolute()
        path = self.directory / "manifest.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"no index in {self.directory} (manifest.json is absent); make it with "
                "scripts/prepare_data.py"
            )
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.get("format") != index_build.FORMAT:
            raise ValueError(
                f"{path} has format {manifest.get('format')!r}, this version reads "
                f"{index_build.FORMAT}; run scripts/prepare_data.py, which makes "
                "another beside it"
            )
        self.sources = [Source(**entry) for entry in manifest["sources"]]
        self.counts = [SourceCounts(**entry) for entry in manifest["counts"]]
        self.key: dict[str, Any] = manifest["key"]
        self.content_hash: str = manifest["content_hash"]
        self.ledger_path = self.directory / "ledger.jsonl"
        self._rows: int = manifest["rows"]
        self._max_bytes: int = self.key["max_text_bytes"]
        self._chosen_only: bool = self.key["chosen_only"]
        self._shards, self._check, self._cache = shards, check, cache
        self._manifest_place = {
            name: manifest.get(name) for name in ("annotation_bytes", "shards")
        }
        self._store: stores.Store | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        return f"Index({str(self.directory)!r}, {len(self)} records)"

    def __reduce__(self):
        # A worker need not check again what this process has opened.
        again = functools.partial(
            Index, shards=self._shards, check=False, cache=self._cache
        )
        return again, (self.directory,)

    def _read(self, name: str) -> np.ndarray:
        path = self.directory / "index.parquet"
        column = pq.read_table(path, columns=[name]).column(0)
        if name != "hash":
            return column.to_numpy()
        digests = b"".join(
            chunk.buffers()[1].slice(chunk.offset * 16, len(chunk) * 16).to_pybytes()
            for chunk in column.chunks
        )
        return np.frombuffer(digests, np.uint8).reshape(-1, 16)

    def record(self, number: int) -> PreferenceRecord:
        """Read record `number` from its annotation.

        Raises:
          IndexError: no such record.
          BadRecord: the line is no longer the one that was indexed.
          ValueError: the annotation has changed its size since it was indexed.
          FileNotFoundError: the annotation is gone.
        """
        return self.fetch(number)[0]

    def where(self, number: int) -> str:
        """Annotation and line of record `number`, for messages; nothing is read."""
        source = self.sources[int(self.source[number])]
        return f"{source.annotation}, line {self.line[number]}"

    def fetch(self, number: int) -> tuple[PreferenceRecord, stores.Read]:
        """Record `number` and a reader of its images, each read at most once.

        Raises:
          As :meth:`record`; the reader as :func:`mpo_jax.inputs.images.read_file`.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of an index with {len(self)} records")
        source = self.sources[int(self.source[number])]
        line, files = self.store.line(
            source, int(self.offset[number]), max_bytes=self._max_bytes
        )
        record = records.parse_record(
            line,
            source=source,
            line_number=int(self.line[number]),
            max_bytes=self._max_bytes,
            chosen_only=self._chosen_only,
        )
        return record, self.store.reader(files, record)

    @property
    def store(self) -> stores.Store:
        """Where the records are read from; opened on first use."""
        with self._lock:
            if self._store is None:
                self._store = stores.open_indexed(
                    self._manifest_place,
                    self.sources,
                    shards=self._shards,
                    check=self._check,
                    cache=self._cache,
                    listings=self._listings(),
                )
            return self._store

    def _listings(self) -> Listings | None:
        directory = self.directory / index_build.LISTINGS
        return Listings(str(directory), closed=True) if directory.is_dir() else None

    def close(self) -> None:
        """Close annotations or shards; they open again when needed."""
        with self._lock:
            if self._store is not None:
                self._store.close()

    def ledger(self) -> list[ledger.Entry]:
        """All left-out records, in the order (source, line)."""
        return list(ledger.read(self.ledger_path))


def load_index(
    directory: str | os.PathLike[str],
    *,
    shards: str = "",
    cache: fetched.LocalCache | None = None,
) -> Index:
    """Open an index that :func:`build_index` has made; warns of unread fields.

    Args:
      directory: folder of the index.
      shards: where the shards are that it was made from; "" is where they were.
      cache: keeps what is fetched from addresses; None is the default one.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it was made by another version.
    """
    index = Index(directory, shards=shards, cache=cache)
    for source, counts in zip(index.sources, index.counts, strict=True):
        if counts.unread:
            fields = ", ".join(f"{k!r} ({n} records)" for k, n in counts.unread.items())
            logging.warning("source %r: fields not used: %s", source.name, fields)
    return index


def pairs_of(repeat_time: float, records: int) -> int:
    """Pairs that an epoch has of a source with so many records.

    As released: ``int(n * r)`` of them for r < 1, else ``int(r)`` copies of each.
    """
    if repeat_time < 1:
        return int(records * repeat_time)
    return records * int(repeat_time)


def effective(index: Index, *, seed: int, epoch: int) -> np.ndarray:
    """Record numbers of one epoch after ``repeat_time``.

    As released, a source with ``repeat_time`` r < 1 gives ``int(n * r)`` of its n
    records and one with r >= 1 gives ``int(r)`` copies; a fraction that is dropped
    so is warned of. Unlike the release the sample depends on nothing but
    (`seed`, `epoch`, the source's name, n), and n counts usable records only.

    Returns:
      int64 ``[n]``, grouped by source, ascending within each copy.
    """
    bounds = np.searchsorted(index.source, np.arange(len(index.sources) + 1))
    parts = [np.zeros(0, np.int64)]
    for position, source in enumerate(index.sources):
        numbers = np.arange(bounds[position], bounds[position + 1], dtype=np.int64)
        repeat = source.repeat_time
        if repeat < 1:
            name = int.from_bytes(source.name.encode("utf-8"), "little")
            rng = np.random.default_rng([seed, epoch, name])
            count = pairs_of(repeat, len(numbers))
            parts.append(np.sort(rng.choice(numbers, count, replace=False)))
            continue
        if repeat != int(repeat):
            warnings.warn(
                f"source {source.name!r}: repeat_time {repeat} counts as "
                f"{int(repeat)}, as in the released trainer",
                stacklevel=2,
            )
        parts.append(np.tile(numbers, int(repeat)))
    return np.concatenate(parts)


def build_index(
    meta_path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    tokenizer_path: str | os.PathLike[str],
    policy: examples.EncodePolicy,
    reroot: str = "",
    max_text_bytes: int = 1_000_000,
    workers: int = 0,
    piece_bytes: int = 1 << 22,
    progress: Callable[[index_build.Progress], None] | None = None,
    cache: fetched.LocalCache | None = None,
) -> Index:
    """Visit every record once and store the index, or open it if it is there.

    Killed at any moment, the next call goes on with the pieces that were not finished.
    Several processes may build at once, the same index too; they share the work.

    Args:
      meta_path, reroot: meta.json or shards, see :func:`mpo_jax.mmpr.store.open_data`.
      out_dir: folder of visited pieces and indexes; made if absent.
      tokenizer_path: directory of the tokenizer.
      policy: template, tiling and limits.
      max_text_bytes: longer annotation lines are left out.
      workers: processes; 1 works in this one, 0 is one per core.
      piece_bytes: bytes of annotation per piece; does not change the index.
      progress: called at the start and after each piece.
      cache: keeps what is fetched from addresses; None is the default one.

    Raises:
      ValueError, FileNotFoundError: bad meta.json, tokenizer or argument.
      OSError: a file system or a store failed.
      RuntimeError: a record met an unexpected error, or a worker process died.
    """
    if max_text_bytes < 1 or piece_bytes < 1 or workers < 0:
        raise ValueError(
            f"{max_text_bytes=} and {piece_bytes=} must be positive, {workers=} not "
            "negative"
        )
    chat = tokenizers.load_tokenizer(os.fspath(tokenizer_path))
    template.check_tokenizer(
        template.get_template(policy.template), chat, where=os.fspath(tokenizer_path)
    )
    store, sources = stores.open_data(meta_path, reroot=reroot, cache=cache)
    out = pathlib.Path(out_dir).absolute()
    with store.listed(sources, out / "listings") as (store, listed):
        encoding = shards_lib.Encoding(
            tokenizer=chat,
            policy=policy,
            max_text_bytes=max_text_bytes,
            store=store,
        )
        return _build(
            sources,
            encoding,
            out,
            listed,
            workers=workers or os.cpu_count() or 1,
            piece_bytes=piece_bytes,
            progress=progress,
            cache=cache,
        )


def _build(
    sources: list[Source],
    encoding: shards_lib.Encoding,
    out: pathlib.Path,
    listed: pathlib.Path | None,
    *,
    workers: int,
    piece_bytes: int,
    progress: Callable[[index_build.Progress], None] | None,
    cache: fetched.LocalCache | None,
) -> Index:
    """Visit what is to be visited, join the parts, open the index."""
    store = encoding.store
    key = index_build.index_key(sources, encoding)
    shards_at, place = "", {}
    if isinstance(store, array_records.ShardStore):
        shards_at = str(store.directory)
        place["shards"] = {"directory": shards_at, "fingerprint": store.fingerprint}
    else:
        place["annotation_bytes"] = [store.size(source) for source in sources]
    by_source = _cut(out, sources, key, store, piece_bytes=piece_bytes)
    while True:
        results = index_build.visit_all(
            [piece for row in by_source for piece in row],
            encoding,
            workers=workers,
            progress=progress,
        )
        directory = out / index_build.directory_name(key, by_source, results)
        if (directory / "manifest.json").is_file():
            break
        if directory.exists():  # it appears whole, so somebody has taken it apart
            shutil.rmtree(directory)
        try:
            index_build.merge(
                directory, key, sources, place, by_source, results, listed
            )
            break
        except shards_lib.SupersededError as part:
            logging.info("%s: images have changed meanwhile; looking again", part)
    return load_index(directory, shards=shards_at, cache=cache)


def _cut(
    out: pathlib.Path,
    sources: Sequence[Source],
    key: Mapping[str, Any],
    store: stores.Store,
    *,
    piece_bytes: int,
) -> list[list[shards_lib.Piece]]:
    """Pieces of every source, their folders made and cleared of dead builds."""
    out.mkdir(parents=True, exist_ok=True)
    atomic.clean(out)
    by_source = []
    for source, entry in zip(sources, key["sources"], strict=True):
        folder = out / _PIECES / entry["key"][:16]
        folder.mkdir(parents=True, exist_ok=True)
        atomic.clean(folder)
        by_source.append(
            shards_lib.cut(
                source, store, piece_bytes=piece_bytes, directory=str(folder)
            )
        )
    return by_source
