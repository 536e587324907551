"""Single objects of any store by their address, read by many threads and processes.

Keys are taken as they are: no wildcard, no version and no chain of file systems is
read out of them. A connection belongs to the process that made it. Errors are those of
``store_errors``.
"""

from __future__ import annotations

import functools
import os
import pathlib
import re

from mpo_jax.utils import remote

_PARTS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)/*(.*)", re.DOTALL)
_NO_STORES = frozenset({"http", "https", "ftp", "file", "local", "data"})


def is_store(place: str) -> bool:
    """Whether a place is an address whose objects are read.

    False for web pages (nobody lists their folders) and for ``file://``, which is a
    path.
    """
    if "://" not in place:  # of every image: 40 ns
        return False
    found = _PARTS.match(place)
    return found is not None and bool(found[2]) and found[1].lower() not in _NO_STORES


def split(address: str) -> tuple[str, str]:
    """``gs://bucket/a/b`` as (``gs://bucket``, ``a/b``).

    Raises:
      ValueError: it is no address of a store.
    """
    found = _PARTS.match(address)
    if found is None or not is_store(address):
        raise ValueError(f"{address!r} is no address such as gs://bucket/folder")
    return f"{found[1]}://{found[2]}", found[3]


def connect(address: str) -> None:
    """Have what is needed for an address; asks the store nothing.

    Raises:
      ValueError: nothing is installed for the scheme.
    """
    _opened(address)


def stored(address: str) -> remote.Stored | None:
    """An object as it is now; None where there is none.

    Raises:
      ValueError: nothing is installed for the scheme.
      PermissionError: the store does not let us.
      ConnectionError: the store is away.
    """
    bucket, key = _opened(address)
    return bucket.stored(key) if key else None


def listed(address: str) -> dict[str, remote.Stored]:
    """Objects directly in a folder, by name; errors as :func:`stored`."""
    bucket, key = _opened(address)
    return bucket.listed(key)


def holds(address: str) -> bool:
    """Whether anything is behind a folder; errors as :func:`stored`."""
    bucket, key = _opened(address)
    return bucket.holds(key)


def read(address: str, start: int = 0, stop: int | None = None) -> bytes:
    """Bytes ``[start, stop)`` of an object; None is its end.

    Raises:
      FileNotFoundError: there is none. Others as :func:`stored`.
    """
    bucket, key = _opened(address)
    if start == 0 and stop is None:
        return bucket.read(key)
    return bucket.read(key, start, stop)


def fetch(address: str, file: pathlib.Path) -> None:
    """Read a whole object into a file; errors as :func:`read`."""
    bucket, key = _opened(address)
    bucket.download(key, file)


def _opened(address: str) -> tuple[remote.Folder, str]:
    root, key = split(address)
    return _bucket(root, os.getpid()), key


@functools.lru_cache(maxsize=64)
def _bucket(root: str, process: int) -> remote.Folder:
    del process  # of a fork, which must connect anew
    return remote.Folder(root)
