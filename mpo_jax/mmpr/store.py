"""Where lines and image files come from: loose files, or ArrayRecord shards.

Index and loader ask a store, never the file system, so that both kinds give the same
records, the same ledger and the same batches. A position within a source is a byte
offset in loose annotations and a record number in shards; the index keeps it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from absl import logging

from mpo_jax.inputs import images
from mpo_jax.mmpr import array_records, records
from mpo_jax.mmpr.meta import Source, load_meta
from mpo_jax.types import PreferenceRecord

Read = Callable[[str], bytes]
"""Path of an image -> its bytes, as :func:`mpo_jax.inputs.images.read_file`."""


class Store(Protocol):
    """What index and loader need of a data set; picklable, safe in many threads.

    Attributes:
      watched: whether image files can change under it; then the index looks at their
        sizes and times again at every start.
    """

    watched: bool

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
        self, source: Source, *, start: int, stop: int, max_bytes: int
    ) -> Iterator[tuple[int, int, bytes, Any]]:
        """Yield (position, number from the piece's first line, line, its files)."""
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
    """JSON-lines annotations and image files, as MMPR is distributed."""

    watched = True

    def __init__(self, sizes: dict[str, int] | None = None):
        """`sizes`: bytes that annotations must have, by path."""
        self._sizes = sizes or {}
        self._files: dict[str, Any] = {}

    def __reduce__(self):
        return LooseStore, (self._sizes,)

    def digest(self, source: Source) -> str:
        # All of it: an edit may keep the size, and copies differ in their times.
        with open(source.annotation, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def size(self, source: Source) -> int:
        return os.path.getsize(source.annotation)

    def pieces(self, source: Source, *, piece_bytes: int) -> list[tuple[int, int]]:
        size = self.size(source)
        return [
            (start, min(start + piece_bytes, size))
            for start in range(0, size, piece_bytes)
        ]

    def lines(
        self, source: Source, *, start: int, stop: int, max_bytes: int
    ) -> Iterator[tuple[int, int, bytes, Any]]:
        for offset, number, line in records.iter_lines(
            source.annotation, start=start, stop=stop, max_bytes=max_bytes
        ):
            yield offset, number, line, None

    def line(
        self, source: Source, position: int, *, max_bytes: int
    ) -> tuple[bytes, Any]:
        fd = self._annotation(source.annotation).fileno()
        return records.read_line(fd, position, max_bytes=max_bytes), None

    def reader(self, files: Any, record: PreferenceRecord) -> Read:
        del files, record
        return functools.cache(images.read_file)

    def _annotation(self, path: str) -> Any:
        file = self._files.get(path)
        if file is not None:
            return file
        file = open(path, "rb", buffering=0)
        size, expected = os.fstat(file.fileno()).st_size, self._sizes.get(path)
        if expected is not None and size != expected:
            file.close()
            raise ValueError(
                f"{path} has {size} bytes but had {expected} when it was indexed; "
                "start again: every start reads the annotations anew"
            )
        # Of two threads that open at once, both use the file that was first stored.
        return self._files.setdefault(path, file)

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()


def open_data(
    meta: str | os.PathLike[str], *, reroot: str = ""
) -> tuple[Store, list[Source]]:
    """Open a data set: a loose meta.json, or the folder (or meta.json) of shards.

    A root that is no folder is warned of.

    Raises:
      FileNotFoundError, ValueError: as :func:`meta.load_meta` and
        :class:`array_records.ShardStore`; `reroot` with shards.
    """
    path, folder = pathlib.Path(meta).expanduser(), shards_folder(meta)
    if not folder:
        if path.is_dir() and not (path / "mmpr").is_dir():
            raise FileNotFoundError(_no_data(path))
        if path.is_dir():
            raise FileNotFoundError(
                f"no shards in {str(meta)!r} ({array_records.MANIFEST} is absent): "
                "writing them was not finished; run scripts/prepare_data.py --shards "
                "again, or name a meta.json"
            )
        sources = load_meta(path, reroot=reroot)
        for source in sources:
            if not os.path.isdir(source.root):
                logging.warning(
                    "source %r: root %s is no folder, so it has no image; correct "
                    "root in %s, or data.reroot (text alone needs none)",
                    source.name,
                    source.root,
                    path,
                )
        return LooseStore(), sources
    if reroot:
        raise ValueError(
            f"data.reroot={reroot!r}: {str(meta)!r} holds shards, which name no path "
            "outside themselves; leave it empty"
        )
    store = array_records.ShardStore(folder)
    meta_path = path / "meta.json" if path.is_dir() else path
    return store, load_meta(meta_path, source_places=store.source_places)


def _no_data(folder: pathlib.Path) -> str:
    """What to name instead of a folder that holds no shards."""
    found = sorted(folder.glob("meta*.json"))
    if not found:
        return f"the folder {str(folder)!r} holds neither shards nor a meta.json"
    return (
        f"{str(folder)!r} is a folder without shards; name the file in it: "
        f"--meta={found[0]} (--config.data.meta={found[0]} of train.py)"
    )


def shards_folder(meta: str | os.PathLike[str]) -> str:
    """The folder of the shards that `meta` names, "" where it names loose files."""
    path = pathlib.Path(meta).expanduser().absolute()
    folder = path if path.is_dir() else path.parent
    return str(folder) if (folder / array_records.MANIFEST).is_file() else ""


def open_indexed(
    manifest: dict[str, Any],
    sources: Sequence[Source],
    *,
    shards: str = "",
    check: bool = True,
) -> Store:
    """The store that an index was made from.

    Args:
      manifest: ``shards`` or ``annotation_bytes`` of the index's manifest.
      sources: of the index.
      shards: where the shards are now; "" is where they were.
      check: as :class:`array_records.ShardStore`.
    """
    kept = manifest.get("shards")
    if kept is None:
        paths = [source.annotation for source in sources]
        return LooseStore(dict(zip(paths, manifest["annotation_bytes"], strict=True)))
    return array_records.ShardStore(
        shards or kept["directory"], fingerprint=kept["fingerprint"], check=check
    )
