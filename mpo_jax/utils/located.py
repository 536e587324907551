"""Paths and addresses alike: joined, looked at, and read from the beginning."""

from __future__ import annotations

import os
import posixpath

from mpo_jax.utils import objects


def normal(place: str) -> str:
    """A path or address in its one form: no ``.``, ``..`` or doubled slashes.

    ``..`` never leads out of a bucket.
    """
    if not objects.is_store(place):
        return os.path.normpath(place)
    root, key = objects.split(place)
    key = posixpath.normpath("/" + key).lstrip("/")
    return f"{root}/{key}" if key else root


def absolute(place: str | os.PathLike[str]) -> str:
    """As :func:`normal`, from the working directory, ``~`` expanded."""
    place = os.fspath(place)
    if objects.is_store(place):
        return normal(place)
    return os.path.abspath(os.path.expanduser(place))


def is_absolute(place: str) -> bool:
    return objects.is_store(place) or os.path.isabs(place)


def join(folder: str, value: str) -> str:
    """A place as seen from a folder; `value` wins where it is absolute."""
    if is_absolute(value):
        return value
    if not objects.is_store(folder):
        return os.path.join(folder, value)
    return posixpath.join(folder.rstrip("/"), value)


def parent(place: str) -> str:
    """The folder that a place lies in; a bucket lies in itself."""
    if not objects.is_store(place):
        return os.path.dirname(place)
    root, key = objects.split(place)
    return normal(f"{root}/{posixpath.dirname(key)}")


def name(place: str) -> str:
    """The last part of a path or address."""
    return posixpath.basename(place.rstrip("/"))


def is_file(place: str) -> bool:
    """Whether there is a file or object; errors of stores as ``objects.stored``."""
    if objects.is_store(place):
        return objects.stored(place) is not None
    return os.path.isfile(place)


def is_folder(place: str) -> bool:
    """Whether there is a folder, or an object behind an address."""
    if objects.is_store(place):
        return objects.holds(place)
    return os.path.isdir(place)


def size(place: str) -> int:
    """Bytes of a file or object.

    Raises:
      FileNotFoundError: there is none.
    """
    if not objects.is_store(place):
        return os.path.getsize(place)
    found = objects.stored(place)
    if found is None:
        raise FileNotFoundError(f"{place} does not exist")
    return found.size


def head(place: str, count: int) -> bytes:
    """The first `count` bytes of a file or object, or all of a shorter one."""
    if not objects.is_store(place):
        with open(place, "rb") as file:
            return file.read(count)
    try:
        return objects.read(place, 0, count)
    except FileNotFoundError:
        raise
    except Exception:
        if size(place):
            raise
        return b""  # stores refuse a range of an empty object, each in its own words
