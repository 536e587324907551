"""Where lines and image files come from: loose files, or ArrayRecord shards.

Index and loader ask a store, never the file system, so that both kinds give the same
records, the same ledger and the same batches. A position within a source is a byte
offset in loose annotations and a record number in shards; the index keeps it.
Annotations, images and shards may lie at addresses; a bounded folder on this machine
(:mod:`mpo_jax.utils.fetched`) keeps what was fetched from there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent import futures
from typing import Any, Protocol

import numpy as np
from absl import logging

from mpo_jax.inputs import images
from mpo_jax.mmpr import array_records, file_states, image_objects, records
from mpo_jax.mmpr.listings import Listings
from mpo_jax.mmpr.meta import Source, load_meta
from mpo_jax.types import PreferenceRecord
from mpo_jax.utils import atomic, located, objects
from mpo_jax.utils.fetched import Holding, LocalCache

Read = Callable[[str], bytes]
"""Path or address of an image -> its bytes, as :func:`images.read_file`."""


class Store(Protocol):
    """What index and loader need of a data set; picklable, safe in many threads."""

    @property
    def look_at(self) -> Callable[[Sequence[str]], np.ndarray] | None:
        """What image files are now, as :func:`file_states.look_at`.

        By it the index sees at every start what has changed; None where nothing can.
        """
        ...

    def listed(
        self, sources: Sequence[Source], beside: pathlib.Path
    ) -> contextlib.AbstractContextManager[tuple[Store, pathlib.Path | None]]:
        """This store as it looks at images that are objects, closed after the block.

        Beside it is the folder that keeps listings of theirs, None where there is none.
        """
        ...

    def digest(self, source: Source) -> str:
        """Content of the source's annotation, for keys."""
        ...

    def size(self, source: Source) -> int:
        """One past the last position of the source."""
        ...

    def pieces(self, source: Source, *, piece_bytes: int) -> list[tuple[int, int]]:
        """Ranges of positions, of about `piece_bytes` of text each."""
        ...

    def lines(
        self,
        source: Source,
        *,
        start: int,
        stop: int,
        max_bytes: int,
        known: Collection[int] = (),
    ) -> Iterator[tuple[int, int, bytes, Any]]:
        """Yield (position, number from the piece's first line, line, its files).

        Images of lines at the positions `known` will not be asked for.
        """
        ...

    def line(
        self, source: Source, position: int, *, max_bytes: int
    ) -> tuple[bytes, Any]:
        """One line, and its files for :meth:`reader`."""
        ...

    def reader(self, files: Any, record: PreferenceRecord) -> Read:
        """Reads the images of the record, each from storage at most once."""
        ...

    def close(self) -> None:
        """Close what is open; it opens again when needed."""
        ...


class LooseStore:
    """JSON-lines annotations and image files, as MMPR is distributed.

    Annotations at addresses are fetched whole and held while the store is open; images
    there are read when they are asked for, some of them ahead.
    """

    def __init__(
        self,
        sizes: dict[str, int] | None = None,
        *,
        cache: LocalCache | None = None,
        listings: Listings | None = None,
    ):
        """Open nothing yet.

        Args:
          sizes: bytes that annotations must have, by path or address.
          cache: keeps what is fetched; None is the default one.
          listings: of the folders of image objects.
        """
        self._sizes = sizes or {}
        self._cache, self._listings = cache or LocalCache(), listings
        self._files: dict[str, Any] = {}
        self._held: dict[str, Holding] = {}

    def __reduce__(self):
        again = functools.partial(
            LooseStore, cache=self._cache, listings=self._listings
        )
        return again, (self._sizes,)

    @contextlib.contextmanager
    def listed(
        self, sources: Sequence[Source], beside: pathlib.Path
    ) -> Iterator[tuple[LooseStore, pathlib.Path | None]]:
        """This store as it looks at image objects, closed after the block.

        Yields:
          The store, and the folder beside `beside` that keeps its listings until then;
          None where no image of the sources can lie at an address.
        """
        with contextlib.ExitStack() as stack:
            store, folder = self, None
            if any(map(has_objects, sources)):
                folder = stack.enter_context(atomic.scratch(beside))
                listings = Listings(str(folder))
                store = LooseStore(self._sizes, cache=self._cache, listings=listings)
            stack.callback(store.close)
            yield store, folder

    def digest(self, source: Source) -> str:
        # All of it: an edit may keep the size, and copies differ in their times.
        with open(self._path(source), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def size(self, source: Source) -> int:
        return os.path.getsize(self._path(source))

    def pieces(self, source: Source, *, piece_bytes: int) -> list[tuple[int, int]]:
        size = self.size(source)
        return [
            (start, min(start + piece_bytes, size))
            for start in range(0, size, piece_bytes)
        ]

    def look_at(self, paths: Sequence[str]) -> np.ndarray:
        far = [row for row, path in enumerate(paths) if objects.is_store(path)]
        if not far:
            return file_states.look_at(paths)
        if self._listings is None:
            raise ValueError("a store without listings does not look at objects")
        states = np.empty((len(paths), 3), np.int64)
        states[far] = self._listings.look_at([paths[row] for row in far])
        near = sorted(set(range(len(paths))) - set(far))
        states[near] = file_states.look_at([paths[row] for row in near])
        return states

    def texts(
        self, source: Source, *, start: int, stop: int, max_bytes: int
    ) -> Iterator[tuple[int, int, bytes]]:
        """As :meth:`lines`, and no image is read ahead."""
        return records.iter_lines(
            self._path(source), start=start, stop=stop, max_bytes=max_bytes
        )

    def lines(
        self,
        source: Source,
        *,
        start: int,
        stop: int,
        max_bytes: int,
        known: Collection[int] = (),
    ) -> Iterator[tuple[int, int, bytes, Any]]:
        found = self.texts(source, start=start, stop=stop, max_bytes=max_bytes)
        if not has_objects(source):
            for offset, number, line in found:
                yield offset, number, line, None
            return

        def asked(offset: int, line: bytes) -> list[str]:
            if offset in known:
                return []
            paths = records.image_paths(line, source, max_bytes=max_bytes)
            return [path for path in dict.fromkeys(paths) if objects.is_store(path)]

        ahead = image_objects.Ahead(self._cache, self._listings)
        wanted = ((item, asked(item[0], item[2])) for item in found)
        for (offset, number, line), files in ahead.over(wanted):
            yield offset, number, line, files

    def line(
        self, source: Source, position: int, *, max_bytes: int
    ) -> tuple[bytes, Any]:
        fd = self._annotation(source).fileno()
        return records.read_line(fd, position, max_bytes=max_bytes), None

    def reader(
        self, files: dict[str, futures.Future[bytes]] | None, record: PreferenceRecord
    ) -> Read:
        if not any(map(objects.is_store, record.images)):
            return functools.cache(images.read_file)
        ahead = files or {}
        return functools.cache(
            lambda path: ahead[path].result() if path in ahead else self.image(path)
        )

    def image(self, path: str) -> bytes:
        """Bytes of one image, read now; errors as :func:`image_objects.read`."""
        if objects.is_store(path):
            return image_objects.read(path, self._cache, self._listings)
        return images.read_file(path)

    def _path(self, source: Source) -> str:
        """The annotation on this machine."""
        place = source.annotation
        if not objects.is_store(place):
            return place
        holding = self._held.get(place)
        if holding is None:
            stored = objects.stored(place)
            if stored is None:
                raise FileNotFoundError(f"annotation {place} does not exist any more")
            # Of two threads, both use what was first stored; it drops the other.
            holding = self._held.setdefault(place, self._cache.hold({place: stored}))
        return holding.path(place)

    def _annotation(self, source: Source) -> Any:
        place = source.annotation
        file = self._files.get(place)
        if file is not None:
            return file
        file = open(self._path(source), "rb", buffering=0)
        size, expected = os.fstat(file.fileno()).st_size, self._sizes.get(place)
        if expected is not None and size != expected:
            file.close()
            raise ValueError(
                f"{place} has {size} bytes but had {expected} when it was indexed; "
                "start again: every start reads the annotations anew"
            )
        # Of two threads that open at once, both use the file that was first stored.
        return self._files.setdefault(place, file)

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()
        while self._held:
            self._held.popitem()[1].close()


def has_objects(source: Source) -> bool:
    """Whether images of a source may lie at addresses."""
    return source.anywhere or objects.is_store(source.root)


def open_data(
    meta: str | os.PathLike[str],
    *,
    reroot: str = "",
    cache: LocalCache | None = None,
) -> tuple[Store, list[Source]]:
    """Open a data set: a loose meta.json, or the folder (or meta.json) of shards.

    A root that is no folder is warned of.

    Args:
      meta: a path or an address.
      reroot: as :func:`meta.load_meta`.
      cache: keeps what is fetched from addresses; None is the default one.

    Raises:
      FileNotFoundError, ValueError: as :func:`meta.load_meta` and
        :class:`array_records.ShardStore`; `reroot` with shards.
      PermissionError, ConnectionError: of a store.
    """
    place, folder = located.absolute(meta), shards_folder(meta)
    whole = located.is_folder(place) and not located.is_file(place)
    if not folder:
        if whole:
            raise FileNotFoundError(_no_data(place))
        sources = load_meta(meta, reroot=reroot)
        for root in dict.fromkeys(source.root for source in sources):
            if not located.is_folder(root):
                name = next(s.name for s in sources if s.root == root)
                logging.warning(
                    "source %r: root %s is no folder, so it has no image; correct "
                    "root in %s, or data.reroot (text alone needs none)",
                    name,
                    root,
                    place,
                )
        return LooseStore(cache=cache), sources
    if reroot:
        raise ValueError(
            f"data.reroot={reroot!r}: {str(meta)!r} holds shards, which name no path "
            "outside themselves; leave it empty"
        )
    store = array_records.ShardStore(folder, cache=cache)
    meta_path = located.join(place, "meta.json") if whole else place
    return store, load_meta(meta_path, source_places=store.source_places)


def _no_data(folder: str) -> str:
    """What to name instead of a folder that holds no shards."""
    if located.is_folder(located.join(folder, "mmpr")):
        return (
            f"no shards in {folder!r} ({array_records.MANIFEST} is absent): "
            "writing them was not finished; run scripts/prepare_data.py --shards "
            "again, or name a meta.json"
        )
    if objects.is_store(folder):
        names = sorted(objects.listed(folder))
    else:
        names = sorted(path.name for path in pathlib.Path(folder).iterdir())
    found = [n for n in names if n.startswith("meta") and n.endswith(".json")]
    if not found:
        return f"the folder {folder!r} holds neither shards nor a meta.json"
    first = located.join(folder, found[0])
    return (
        f"{folder!r} is a folder without shards; name the file in it: "
        f"--meta={first} (--config.data.meta={first} of train.py)"
    )


def shards_folder(meta: str | os.PathLike[str]) -> str:
    """The folder of the shards that `meta` names, "" where it names loose files."""
    place = located.absolute(meta)
    folder = located.parent(place) if located.is_file(place) else place
    there = located.is_file(located.join(folder, array_records.MANIFEST))
    return folder if there else ""


def open_indexed(
    manifest: dict[str, Any],
    sources: Sequence[Source],
    *,
    shards: str = "",
    check: bool = True,
    cache: LocalCache | None = None,
    listings: Listings | None = None,
) -> Store:
    """The store that an index was made from.

    Args:
      manifest: ``shards`` or ``annotation_bytes`` of the index's manifest.
      sources: of the index.
      shards: where the shards are now; "" is where they were.
      check: as :class:`array_records.ShardStore`.
      cache: keeps what is fetched from addresses; None is the default one.
      listings: of image objects, as they were when the index was made.
    """
    kept = manifest.get("shards")
    if kept is None:
        paths = [source.annotation for source in sources]
        sizes = dict(zip(paths, manifest["annotation_bytes"], strict=True))
        return LooseStore(sizes, cache=cache, listings=listings)
    return array_records.ShardStore(
        shards or kept["directory"],
        fingerprint=kept["fingerprint"],
        check=check,
        cache=cache,
    )
