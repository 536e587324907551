"""Single objects of any store by their address, read by many threads and processes.

Keys are taken as they are: no wildcard, no version and no chain of file systems is
read out of them. A connection belongs to the process that made it. What may pass by
itself is a ``ConnectionError``, whatever the client calls it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
from collections.abc import Iterator

from mpo_jax.utils import remote

_PARTS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)/*(.*)", re.DOTALL)
_NO_STORES = frozenset({"http", "https", "ftp", "file", "local", "data"})
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_DENIED = frozenset({401, 403})
_CLIENTS = ("aiohttp", "requests", "urllib3", "botocore")
"""Libraries whose errors speak of the connection, unless they carry another code."""


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
    with _told(address):
        return bucket.stored(key) if key else None


def listed(address: str) -> dict[str, remote.Stored]:
    """Objects directly in a folder, by name; errors as :func:`stored`."""
    bucket, key = _opened(address)
    with _told(address):
        return bucket.listed(key)


def holds(address: str) -> bool:
    """Whether anything is behind a folder; errors as :func:`stored`."""
    bucket, key = _opened(address)
    with _told(address):
        return bucket.holds(key)


def read(address: str, start: int = 0, stop: int | None = None) -> bytes:
    """Bytes ``[start, stop)`` of an object; None is its end.

    Raises:
      FileNotFoundError: there is none. Others as :func:`stored`.
    """
    bucket, key = _opened(address)
    with _told(address):
        if start == 0 and stop is None:
            return bucket.read(key)
        return bucket.read(key, start, stop)


def fetch(address: str, file: pathlib.Path) -> None:
    """Read a whole object into a file; errors as :func:`read`."""
    bucket, key = _opened(address)
    with _told(address):
        bucket.download(key, file)


def _opened(address: str) -> tuple[remote.Folder, str]:
    root, key = split(address)
    return _bucket(root, os.getpid()), key


@functools.lru_cache(maxsize=64)
def _bucket(root: str, process: int) -> remote.Folder:
    del process  # of a fork, which must connect anew
    return remote.Folder(root)


@contextlib.contextmanager
def _told(address: str) -> Iterator[None]:
    """Every error of a client as one of ours that names the address."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{address} does not exist") from error
    except Exception as error:
        kind = _kind(error)
        if kind is None:
            raise
        remedy = ""
        if kind is PermissionError:
            remedy = (
                "; give the account of this machine the right to read and list it (on "
                "Google Cloud the role Storage Object Viewer; your own with `gcloud "
                "auth application-default login`)"
            )
        words = f"{type(error).__name__}: {str(error)[:300]}"
        raise kind(f"{address}: {words}{remedy}") from error


def _kind(error: Exception) -> type[OSError] | None:
    """What an error of a client is to us; None: what it says itself."""
    text = str(getattr(error, "code", None) or getattr(error, "status", None))
    code = int(text) if text.isdigit() else None
    if code in _DENIED or isinstance(error, PermissionError):
        return PermissionError
    if str(error).startswith("Forbidden"):  # gcsfs, an OSError without a number
        return PermissionError
    if code in _PASSING:
        return ConnectionError
    library = type(error).__module__.partition(".")[0]
    if library == "botocore" and "Credentials" in type(error).__name__:
        return PermissionError
    if code is None and library in _CLIENTS:
        return ConnectionError
    if isinstance(error, TimeoutError | ConnectionError):
        return ConnectionError
    return None
