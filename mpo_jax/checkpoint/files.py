"""The files of one checkpoint, in a directory or behind an address."""

from __future__ import annotations

import errno
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any

from mpo_jax.utils import atomic, remote

BLAKE2B = "blake2b"
_DIGEST_BYTES = 32
_NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def blake2b(data: bytes = b"") -> Any:
    """The checksum of files and manifests: 256 bits, from the standard library."""
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES)


class Local:
    """In a directory."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory

    def listed(self) -> dict[str, remote.Stored]:
        """Every file by its path from here, with ``/``; empty if there is nothing.

        What another process is writing is not there yet: manifests appear side by side.
        A link to nothing, or to itself, is no file.
        """
        if not self.directory.is_dir():
            return {}

        def stop(error: OSError) -> None:
            raise error

        found = {}
        for folder, _, names in os.walk(self.directory, onerror=stop):
            for name in names:
                if atomic.is_being_written(name):
                    continue
                path = pathlib.Path(folder, name)
                try:
                    info = path.stat()
                except OSError as error:
                    if error.errno not in _NOWHERE:
                        raise
                    continue
                found[path.relative_to(self.directory).as_posix()] = remote.Stored(
                    info.st_size, {}, str(info.st_mtime_ns)
                )
        return found

    def read(self, name: str, limit: int) -> bytes:
        """The first `limit` bytes of a file."""
        with open(self.directory / name, "rb") as file:
            return file.read(limit)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        atomic.write_whole(self.directory / name, lambda path: _put(path, data))

    def digest(self, name: str, make: Callable[[], Any] = blake2b) -> Any:
        """Checksum of a whole file, read some kilobytes at a time."""
        with open(self.directory / name, "rb") as file:
            return hashlib.file_digest(file, make)

    def move(self, target: str) -> None:
        """Rename the directory; what is there already is an error."""
        os.rename(self.directory, target)


def _put(path: pathlib.Path, data: bytes) -> None:
    path.write_bytes(data)


class Remote:
    """Behind an address. A store keeps checksums itself: nothing is read for them."""

    _BLOCK = 64 * 2**20

    def __init__(self, address: str):
        self._folder = remote.Folder(address)

    def listed(self) -> dict[str, remote.Stored]:
        return self._folder.tree()

    def read(self, name: str, limit: int) -> bytes:
        return self._folder.read(name, 0, limit)

    def write(self, name: str, data: bytes) -> None:
        self._folder.write(name, data)

    def digest(self, name: str, make: Callable[[], Any] = blake2b) -> Any:
        found, start = make(), 0
        size = self._folder.tree()[name].size
        while start < size:
            stop = min(start + self._BLOCK, size)
            part = self._folder.read(name, start, stop)
            if len(part) != stop - start:
                raise FileNotFoundError(f"{self._folder.address}/{name} became shorter")
            found.update(part)
            start = stop
        return found

    def move(self, target: str) -> None:
        """Copy all objects, then delete them here: a kill in between loses nothing."""
        self._folder.copy_tree(target)
        self._folder.clear()


def of(place: Any) -> Local | Remote:
    """The files of a checkpoint at a place of ``places.absolute``, or an address."""
    return Remote(str(place)) if remote.is_remote(place) else Local(pathlib.Path(place))
