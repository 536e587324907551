"""Reading ArrayRecord shards of text and images: all of a data set in few files.

A folder of shards is written by :mod:`mpo_jax.mmpr.shard_writer` and holds::

    meta.json      the sources; repeat_time and max_dynamic_patch may be edited
    shards.json    every file with its size, number of records and hashes
    mmpr/lines/…   one record per annotation line, in order, as a TFDS data set
    mmpr/images/…  one record per image file, in order of first use

A line names its images by number, so an image that many pairs share is stored once.
What could not be read when the shards were written is stored as the reason why, and
makes the same ledger entry as the file itself would. Only Grain and protobuf are
needed to read; TFDS can read the folder too.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import json
import os
import pathlib
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import grain
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from mpo_jax import ledger
from mpo_jax.mmpr import records
from mpo_jax.mmpr.meta import Source
from mpo_jax.mmpr.places import Place
from mpo_jax.types import PreferenceRecord
from mpo_jax.utils import fetched, located, objects

MANIFEST = "shards.json"
FORMAT = 2
"""Raised whenever a file of the shards changes its meaning."""

_MAX_MANIFEST = 1 << 28
_REMEDY = "copy it again, or write the shards anew"

LINES, IMAGES = "lines", "images"
SAMPLE = {"block": 1 << 12, "blocks": 16}
"""What is hashed of a shard at each start; prepare_data --verify hashes all of it."""


class Instruction(NamedTuple):
    """A whole file; the number of records spares opening it to count them."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class ShardStore:
    """A :class:`mpo_jax.mmpr.store.Store` over a folder of shards.

    Positions are line numbers from 0. Pickling carries the folder only.

    Attributes:
      directory: path or address.
      look_at: None: what is in shards does not change.
      fingerprint: hash over the contents of all shards.
      source_places: where the sources were, by name; they make the paths that records
        and ledger name.
    """

    look_at = None

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        fingerprint: str = "",
        check: bool = True,
        cache: fetched.LocalCache | None = None,
    ):
        """Open a folder of shards; what lies at an address is fetched whole first.

        Args:
          directory: the folder that holds ``shards.json``, or its address.
          fingerprint: what the shards must be; "" takes any.
          check: compare size and sampled blocks of every shard with the manifest.
          cache: keeps what is fetched from addresses; None is the default one.

        Raises:
          FileNotFoundError: there are no finished shards.
          ValueError: a shard is not the one that was written (names the file), the
            shards are others than `fingerprint`, or of another version.
        """
        self.directory = located.absolute(directory)
        self._cache = cache or fetched.LocalCache()
        manifest = read_manifest(self.directory)
        self.fingerprint: str = manifest["fingerprint"]
        if fingerprint and fingerprint != self.fingerprint:
            raise ValueError(
                f"the shards in {self.directory} are {self.fingerprint[:16]}, the "
                f"index was made from {fingerprint[:16]}; start again: every start "
                "looks which shards there are"
            )
        self.max_text_bytes: int = manifest["max_text_bytes"]
        self.source_places = {
            entry["name"]: Place(*(entry[key] for key in Place._fields))
            for entry in manifest["sources"]
        }
        self._ranges = {
            entry["name"]: (entry["first"], entry["lines"], entry["bytes"])
            for entry in manifest["sources"]
        }
        self._names = {place: name for name, place in self.source_places.items()}
        self._files = {
            kind: [
                File(located.join(self.directory, entry["path"]), entry)
                for entry in manifest["files"][kind]
            ]
            for kind in (LINES, IMAGES)
        }
        self._lock = threading.Lock()
        self._open: _Open | None = None
        if check:
            self.check()

    def __reduce__(self):
        again = functools.partial(ShardStore, check=False, cache=self._cache)
        return again, (self.directory,)

    def __repr__(self) -> str:
        return f"ShardStore({self.directory!r})"

    def files(self) -> list[tuple[File, str]]:
        """Every shard and where it is on this machine; fetched if it was not.

        Raises:
          ValueError: a shard is missing, or all are larger than the bound of what is
            kept here.
          OSError: a store failed.
        """
        opened = self._opened()
        return [
            (file, opened.path(file)) for kind in self._files.values() for file in kind
        ]

    def check(self) -> None:
        """Compare size and sampled blocks of every shard with the manifest.

        Raises:
          ValueError: naming the first shard that is not the one that was written.
        """
        for file, path in self.files():
            _check_file(file, path)

    def _opened(self) -> _Open:
        with self._lock:
            if self._open is None:
                self._open = _Open(self._files, self._cache)
            return self._open

    @contextlib.contextmanager
    def listed(
        self, sources: Sequence[Source], beside: pathlib.Path
    ) -> Iterator[tuple[ShardStore, None]]:
        """This store, closed after the block: no image of it is an object."""
        del sources, beside
        with contextlib.closing(self):
            yield self, None

    def _range(self, source: Source) -> tuple[int, int, int]:
        # By paths, not by name: two entries of meta.json may name one source.
        return self._ranges[self._names[source.place]]

    def digest(self, source: Source) -> str:
        first, lines, _ = self._range(source)
        return f"{self.fingerprint}:{first}+{lines}"

    def size(self, source: Source) -> int:
        return self._range(source)[1]

    def pieces(self, source: Source, *, piece_bytes: int) -> list[tuple[int, int]]:
        _, lines, size = self._range(source)
        step = max(1, lines * piece_bytes // max(size, 1))
        return [(start, min(start + step, lines)) for start in range(0, lines, step)]

    def lines(
        self,
        source: Source,
        *,
        start: int,
        stop: int,
        max_bytes: int,
        known: Collection[int] = (),
    ) -> Iterator[tuple[int, int, bytes, Any]]:
        del known  # a line says by number what it needs
        for position in range(start, stop):
            line, files = self.line(source, position, max_bytes=max_bytes)
            yield position, position - start + 1, line, files

    def line(
        self, source: Source, position: int, *, max_bytes: int
    ) -> tuple[bytes, Any]:
        if max_bytes > self.max_text_bytes:
            raise ValueError(
                f"data.max_text_bytes={max_bytes}, but longer lines than "
                f"{self.max_text_bytes} were cut when the shards in {self.directory} "
                "were written; lower it, or write them again with --max_text_bytes"
            )
        first, lines, _ = self._range(source)
        if not 0 <= position < lines:
            raise IndexError(f"line {position} of {lines} of source {source.name!r}")
        fields = self._opened().kinds[LINES].read(first + position)
        return bytes(fields["text"][0])[: max_bytes + 1], list(fields["images"])

    def reader(self, files: Any, record: PreferenceRecord) -> Any:
        numbers = dict(zip(record.images, files, strict=True))
        return functools.cache(lambda path: self._image(path, numbers[path]))

    def image(self, number: int) -> bytes | None:
        """Bytes of an image by its number, None where there was none to store."""
        fields = self._opened().kinds[IMAGES].read(number)
        return None if fields["reason"][0] else bytes(fields["data"][0])

    def _image(self, path: str, number: int) -> bytes:
        shards = self._opened().kinds[IMAGES]
        fields = shards.read(number)
        if bytes(fields["path"][0]).decode("utf-8") != path:
            name = shards.file_of(number)
            raise ValueError(f"{name}: image {number} is not that of {path!r}")
        reason = bytes(fields["reason"][0]).decode("ascii")
        if reason:
            raise ledger.BadRecord(reason, bytes(fields["detail"][0]).decode("utf-8"))
        return bytes(fields["data"][0])

    def close(self) -> None:
        with self._lock:
            if self._open is not None:
                self._open.close()
                self._open = None


class File(NamedTuple):
    """A shard.

    Attributes:
      name: its path or address, for messages.
      entry: what ``shards.json`` says of it.
    """

    name: str
    entry: dict[str, Any]


class _Open:
    """Shards that are on this machine, fetched and held where they are elsewhere."""

    def __init__(self, files: dict[str, list[File]], cache: fetched.LocalCache):
        names = [file.name for kind in files.values() for file in kind]
        self._holding: fetched.Holding | None = None
        if names and objects.is_store(names[0]):
            folders = {name: located.parent(name) for name in names}
            there = {folder: objects.listed(folder) for folder in set(folders.values())}
            missing = [
                name for name in names if located.name(name) not in there[folders[name]]
            ]
            if missing:
                raise ValueError(f"shard {missing[0]} is missing; {_REMEDY}")
            self._holding = cache.hold(
                {name: there[folders[name]][located.name(name)] for name in names}
            )
        self.kinds = {
            kind: _Records(found, [self.path(file) for file in found])
            for kind, found in files.items()
        }

    def path(self, file: File) -> str:
        """Where a shard is on this machine."""
        return self._holding.path(file.name) if self._holding else file.name

    def close(self) -> None:
        for kind in self.kinds.values():
            kind.close()
        if self._holding is not None:
            self._holding.close()


class _Records:
    """All records of one kind, by number; every record carries its own number."""

    def __init__(self, files: list[File], paths: list[str]):
        self._names, self._paths = [file.name for file in files], paths
        self._counts = [file.entry["records"] for file in files]
        self._ends: list[int] = []
        for count in self._counts:
            self._ends.append(count + (self._ends[-1] if self._ends else 0))
        self._lock = threading.Lock()
        self._source: Any = None

    def file_of(self, number: int) -> str:
        return self._names[bisect.bisect_right(self._ends, number)]

    def read(self, number: int) -> dict[str, Any]:
        with self._lock:
            if self._source is None:
                instructions: Any = [
                    Instruction(path, 0, count, count)
                    for path, count in zip(self._paths, self._counts, strict=True)
                ]
                self._source = grain.sources.ArrayRecordDataSource(instructions)
            source = self._source
        try:
            fields = parse_example(source[number])
            if fields["number"][0] != number:
                raise ValueError(f"found record {fields['number'][0]}")
        except Exception as error:  # the reader's errors name no file
            raise ValueError(
                f"{self.file_of(number)}: record {number} cannot be read "
                f"({type(error).__name__}: {str(error)[:200]}); the shard has changed "
                "since it was written: copy it again, or write the shards anew"
            ) from error
        return fields

    def close(self) -> None:
        with self._lock:
            if self._source is not None:
                self._source.__exit__(None, None, None)
                self._source = None


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """``shards.json`` of a folder or address.

    Raises:
      FileNotFoundError: it is absent; writing the shards was not finished.
      ValueError: it is of another version or no manifest.
    """
    path = located.join(os.fspath(directory), MANIFEST)
    if not located.is_file(path):
        raise FileNotFoundError(
            f"no shards in {directory} ({MANIFEST} is absent); write them with "
            "scripts/prepare_data.py --shards"
        )
    try:
        manifest = json.loads(located.head(path, _MAX_MANIFEST).decode("utf-8"))
        found = manifest["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no manifest of shards: {error!r}") from error
    if found != FORMAT:
        raise ValueError(
            f"{path} has format {found!r}, this version reads {FORMAT}; write the "
            "shards again"
        )
    return manifest


def _check_file(file: File, path: str) -> None:
    if not os.path.isfile(path):
        raise ValueError(f"shard {file.name} is missing; {_REMEDY}")
    size, written = os.path.getsize(path), file.entry["bytes"]
    if size != written:
        raise ValueError(
            f"shard {file.name} has {size} bytes, {written} were written; {_REMEDY}"
        )
    if records.file_digest(path, **SAMPLE) != file.entry["sample"]:
        raise ValueError(
            f"shard {file.name} is not the one that was written; {_REMEDY}"
        )


@functools.cache
def _example_class() -> type:
    """Message class of ``tf.train.Example``, in a descriptor pool of its own."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="mpo_example.proto", package="mpo", syntax="proto3"
    )
    optional, repeated = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    for name, members in {
        "BytesList": [("value", 1, field.TYPE_BYTES, "", repeated)],
        "Int64List": [("value", 1, field.TYPE_INT64, "", repeated)],
        "Feature": [
            ("bytes_list", 1, field.TYPE_MESSAGE, ".mpo.BytesList", optional),
            ("int64_list", 3, field.TYPE_MESSAGE, ".mpo.Int64List", optional),
        ],
        # A map on the wire is a repeated entry of key and value.
        "Entry": [
            ("key", 1, field.TYPE_STRING, "", optional),
            ("value", 2, field.TYPE_MESSAGE, ".mpo.Feature", optional),
        ],
        "Features": [("feature", 1, field.TYPE_MESSAGE, ".mpo.Entry", repeated)],
        "Example": [("features", 1, field.TYPE_MESSAGE, ".mpo.Features", optional)],
    }.items():
        message = file.message_type.add(name=name)
        for member, number, kind, type_name, label in members:
            entry = message.field.add(name=member, number=number, type=kind)
            entry.label = label
            if type_name:
                entry.type_name = type_name
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mpo.Example"))


def parse_example(data: bytes) -> dict[str, Any]:
    """Fields of a serialised ``tf.train.Example`` as sequences of bytes or int."""
    example: Any = _example_class()()
    example.ParseFromString(data)
    fields = {}
    for entry in example.features.feature:
        value = entry.value
        chosen = value.int64_list if value.HasField("int64_list") else value.bytes_list
        fields[entry.key] = chosen.value
    return fields
