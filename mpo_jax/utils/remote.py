"""Folders of a bucket or another store, named by an address such as ``gs://b/model``.

The only user of fsspec, which knows the schemes; ``gs://`` needs gcsfs (the extra
``gcs``), others their own package. A store has no folders and cannot rename: what is
written in several objects is whole only when its last one is there, and callers choose
which that is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import pathlib
import posixpath
import re
from collections.abc import Collection, Mapping
from typing import Any

import fsspec

from mpo_jax.utils import store_errors

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ONE_SLASH = re.compile(r"(gs|gcs|s3|az|abfs):/(?!/)")
_BLOCK = 64 * 2**20
_GCS = "pip install -e '.[gcs]' in the checkout"
_EXTRAS = {"gs": _GCS, "gcs": _GCS}


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether a place is an address (``scheme://…``) rather than a path.

    Raises:
      ValueError: it is an address with a slash too few, which would be a folder of this
        machine that is called ``gs:``.
    """
    name = str(place)
    if found := _ONE_SLASH.match(name):
        raise ValueError(
            f"{name}: an address has two slashes: {found[0]}/{name[found.end() :]}"
        )
    return _ADDRESS.match(name) is not None


def join(place: str | pathlib.Path, *names: str) -> str | pathlib.Path:
    """A place inside another one; pathlib would fold the slashes of an address."""
    if isinstance(place, str) and is_remote(place):
        return posixpath.join(place.rstrip("/"), *names)
    return pathlib.Path(place, *names)


def refuse(place: str | os.PathLike[str], *, field: str, why: str) -> None:
    """Raise ValueError if `place` is an address, where only a directory will do.

    Args:
      field: name of the option, for the message.
      why: what is done with it that a store cannot do.
    """
    if is_remote(place):
        raise ValueError(
            f"{field}={str(place)}: {why}; name a directory, or mount the bucket "
            "(tpu_setup/README.md) and name it there"
        )


@dataclasses.dataclass(frozen=True)
class Stored:
    """A file or object as its store describes it.

    Attributes:
      size: in bytes.
      sums: checksums of the content that the store itself keeps, by their names.
      version: changes with the content.
      modified: when it was written, seconds since 1970 by the store's clock; 0 where
        the store does not say.
    """

    size: int
    sums: dict[str, str]
    version: str
    modified: float = 0.0


_SUMS = ("crc32c", "md5Hash", "ETag")
_CONTENT = ("etag", "ETag", "generation", "md5Hash")
_TIMES = ("mtime", "updated", "LastModified", "created")


def _stored(entry: Mapping[str, Any]) -> Stored:
    times = [entry[key] for key in _TIMES if entry.get(key)]
    times = [t.timestamp() if isinstance(t, datetime.datetime) else t for t in times]
    return Stored(
        int(entry["size"]),
        {key: str(entry[key]) for key in _SUMS if entry.get(key)},
        str([entry[key] for key in _CONTENT if entry.get(key)] or times),
        next((float(t) for t in times if isinstance(t, int | float)), 0.0),
    )


class Folder:
    """Objects directly behind an address.

    Attributes:
      address: without a slash at its end.
    """

    def __init__(self, address: str):
        """Connect.

        Raises:
          ValueError: if nothing is installed for the scheme, or it is unknown.
        """
        self.address = address.rstrip("/")
        scheme = address.split("://")[0]
        try:
            self._fs, self._path = fsspec.core.url_to_fs(self.address)
        except ImportError as error:
            remedy = _EXTRAS.get(scheme, str(error))
            raise ValueError(
                f"{address}: nothing is installed for {scheme}:// ({error}); {remedy}"
            ) from error
        except ValueError as error:
            raise ValueError(f"{address}: {error}") from error

    def __repr__(self) -> str:
        return f"Folder({self.address!r})"

    def folder(self, name: str) -> Folder:
        """The folder `name` in this one."""
        return Folder(f"{self.address}/{name}")

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _reads(self, name: str = "") -> contextlib.AbstractContextManager[None]:
        return store_errors.told(f"{self.address}/{name}".rstrip("/"))

    def _writes(self, name: str = "") -> contextlib.AbstractContextManager[None]:
        return store_errors.told(f"{self.address}/{name}".rstrip("/"), writes=True)

    def _entries(self) -> list[dict[str, Any]]:
        self._fs.invalidate_cache()
        try:
            with self._reads():
                found = self._fs.ls(self._path, detail=True)
        except FileNotFoundError:
            return []
        here = self._path.rstrip("/")
        return [entry for entry in found if entry["name"].rstrip("/") != here]

    def sizes(self) -> dict[str, int]:
        """Bytes of every object directly in the folder, by name; empty if absent."""
        return {
            posixpath.basename(entry["name"]): int(entry["size"])
            for entry in self._entries()
            if entry["type"] == "file"
        }

    def folders(self) -> set[str]:
        """Names of the folders in it."""
        return {
            posixpath.basename(entry["name"].rstrip("/"))
            for entry in self._entries()
            if entry["type"] == "directory"
        }

    def state(self) -> list[list[Any]]:
        """Name, size and version of every object, to notice another content."""
        return sorted(
            [
                posixpath.basename(entry["name"]),
                int(entry["size"]),
                _stored(entry).version,
            ]
            for entry in self._entries()
            if entry["type"] == "file"
        )

    def tree(self, *, only: Collection[str] | None = None) -> dict[str, Stored]:
        """Every object behind the address by its path from here; empty if absent.

        Args:
          only: names in it, of objects and folders; nothing else is listed.
        """
        if only is not None:
            found = {
                name: _stored(entry)
                for entry in self._entries()
                if entry["type"] == "file"
                and (name := posixpath.basename(entry["name"])) in only
            }
            for name in self.folders() & set(only):
                below = self.folder(name).tree()
                found |= {f"{name}/{path}": stored for path, stored in below.items()}
            return found
        self._fs.invalidate_cache()
        here = self._path.rstrip("/") + "/"
        with self._reads():
            entries = self._fs.find(self._path, detail=True)
        return {
            name.removeprefix(here): _stored(entry)
            for name, entry in entries.items()
            if not name.endswith("/")  # what some tools leave in place of a folder
        }

    def stored(self, name: str) -> Stored | None:
        """An object as it is now; None where there is none."""
        self._fs.invalidate_cache()
        try:
            with self._reads(name):
                entry = self._fs.info(self._at(name))
        except FileNotFoundError:
            return None
        return _stored(entry) if entry["type"] == "file" else None

    def listed(self, name: str) -> dict[str, Stored]:
        """Objects directly in the folder `name`, by their names in it.

        Asks page by page, however many there are, and keeps none of it.
        """
        self._fs.invalidate_cache()
        here = self._at(name).rstrip("/")
        try:
            with self._reads(name):
                found = self._fs.ls(here, detail=True)
        except FileNotFoundError:
            return {}
        finally:
            self._fs.invalidate_cache()
        return {
            posixpath.basename(entry["name"]): _stored(entry)
            for entry in found
            if entry["type"] == "file" and posixpath.dirname(entry["name"]) == here
        }

    def holds(self, name: str) -> bool:
        """Whether anything is behind the folder `name`."""
        self._fs.invalidate_cache()
        with self._reads(name):
            return bool(self._fs.isdir(self._at(name).rstrip("/")))

    def copy_tree(self, address: str) -> None:
        """Copy every object to another address of the same store, within the store.

        Raises:
          OSError: if objects are missing there afterwards.
        """
        target = Folder(address)
        for name in self.tree():
            with target._writes(name):
                self._fs.makedirs(posixpath.dirname(target._at(name)), exist_ok=True)
                self._fs.cp_file(self._at(name), target._at(name))
        missing = set(self.tree()) - set(target.tree())
        if missing:
            raise OSError(
                f"{address}: {len(missing)} of the objects of {self.address} did not "
                "arrive; copy them by hand, or start again"
            )

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``[start, stop)`` of an object; None is its end."""
        with self._reads(name):
            if not start and stop is None:  # an empty object has no range
                return self._fs.cat_file(self._at(name))
            return self._fs.cat_file(self._at(name), start=start, end=stop)

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `start` on, some megabytes at a time.

        Raises:
          ValueError: if the object ends before.
        """
        for at in range(0, len(buffer), _BLOCK):
            stop = min(at + _BLOCK, len(buffer))
            part = self.read(name, start + at, start + stop)
            if len(part) != stop - at:
                raise ValueError(
                    f"{self.address}/{name}: bytes {start + at} to {start + stop} were "
                    f"asked for, {len(part)} came; upload it again"
                )
            buffer[at:stop] = part

    def write(self, name: str, data: bytes) -> None:
        """Write a small object, replacing one of this name."""
        with self._writes(name):
            self._fs.makedirs(posixpath.dirname(self._at(name)), exist_ok=True)
            self._fs.pipe_file(self._at(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a small object unless one has this name; whether it was written.

        Of several that write at once the store lets one, where it has preconditions, as
        ``gs://`` has.
        """
        with self._writes(name):
            self._fs.makedirs(posixpath.dirname(self._at(name)), exist_ok=True)
            try:
                self._fs.pipe_file(self._at(name), data, mode="create")
            except FileExistsError:
                return False
        return True

    def upload(self, file: pathlib.Path, name: str) -> Stored:
        """Write an object from a file.

        Raises:
          OSError: if the store has another size afterwards.
        """
        wanted = file.stat().st_size
        with self._writes(name):
            self._fs.makedirs(posixpath.dirname(self._at(name)), exist_ok=True)
            self._fs.put_file(str(file), self._at(name))
        found = self.stored(name)
        size = None if found is None else found.size
        if found is None or size != wanted:
            raise OSError(
                f"{self.address}/{name}: {size} bytes arrived of {wanted}; run it again"
            )
        return found

    def download(self, name: str, file: pathlib.Path) -> None:
        """Read a whole object into a file."""
        with self._reads(name):
            self._fs.get_file(self._at(name), str(file))

    def delete(self, name: str) -> None:
        """Delete an object, if it is there."""
        self._fs.invalidate_cache()
        with self._writes(name):
            if self._fs.exists(self._at(name)):
                self._fs.rm_file(self._at(name))

    def clear(self, *, keep: str = "") -> None:
        """Delete everything behind the address but the object `keep`."""
        for entry in self._entries():
            if posixpath.basename(entry["name"].rstrip("/")) != keep:
                with self._writes():
                    self._fs.rm(entry["name"], recursive=True)
        self._fs.invalidate_cache()
