"""What stores say of image objects: each folder is listed once for all processes.

One request per image would take an hour for a million of them; a listing gives a
thousand at a time. It is kept as a file per folder, 24 bytes per object, which worker
processes map into memory instead of asking again.
"""

from __future__ import annotations

import hashlib
import pathlib
import threading
from collections.abc import Sequence

import numpy as np

from mpo_jax.mmpr import file_states
from mpo_jax.utils import atomic, located, objects
from mpo_jax.utils.remote import Stored

_COLUMNS = 3  # hash of the name, size in bytes, hash of the version


class Listings:
    """States of objects, in the form of :mod:`file_states`; safe in many threads.

    An object's two times are one number that its version gives.

    Attributes:
      directory: of the files.
      closed: whether folders that are not listed yet stay so.
    """

    def __init__(self, directory: str, *, closed: bool = False):
        self.directory, self.closed = directory, closed
        self._folders: dict[str, np.ndarray] = {}
        self._locks: dict[str, threading.Lock] = {}

    def __reduce__(self):
        return _again, (self.directory, self.closed)

    def look_at(self, addresses: Sequence[str]) -> np.ndarray:
        """Size and twice the version's number of many objects: int64 ``[n, 3]``.

        Raises:
          OSError: as :func:`objects.listed`.
        """
        states = np.full((len(addresses), 3), file_states.ABSENT, np.int64)
        rows: dict[str, list[int]] = {}
        for row, address in enumerate(addresses):
            rows.setdefault(located.parent(address), []).append(row)
        for folder, mine in rows.items():
            table = self._table(folder)
            if table is None:
                continue
            wanted = np.array([_number(located.name(addresses[row])) for row in mine])
            at = np.minimum(np.searchsorted(table[:, 0], wanted), len(table) - 1)
            if len(table):
                there = table[at, 0] == wanted
                states[np.array(mine)[there]] = table[at[there]][:, [1, 2, 2]]
        return states

    def stored(self, address: str) -> Stored | None:
        """Size and version of an object; None where it is absent or not known."""
        size, version, _ = self.look_at([address])[0].tolist()
        return None if size == file_states.ABSENT else Stored(size, {}, str(version))

    def knows(self, address: str) -> bool:
        """Whether the folder of an object is listed, or will be."""
        return not self.closed or self._file(located.parent(address)).is_file()

    def _table(self, folder: str) -> np.ndarray | None:
        """int64 ``[n, 3]``, sorted by the first column."""
        # One thread lists a folder, the others that want it wait.
        with self._locks.setdefault(folder, threading.Lock()):
            if folder not in self._folders:
                path = self._file(folder)
                if not path.is_file():
                    if self.closed:
                        return None
                    self._list(folder, path)
                self._folders[folder] = np.load(path, mmap_mode="r", allow_pickle=False)
            return self._folders[folder]

    def _list(self, folder: str, path: pathlib.Path) -> None:
        with atomic.alone(path.with_suffix(".listing"), busy=lambda: None):
            if path.is_file():  # another process was faster
                return
            table = np.array(
                [
                    (_number(name), stored.size, _number(stored.version))
                    for name, stored in objects.listed(folder).items()
                ],
                np.int64,
            ).reshape(-1, _COLUMNS)
            table = table[np.argsort(table[:, 0], kind="stable")]
            atomic.write_whole(path, lambda file: _save(file, table), sync=False)

    def _file(self, folder: str) -> pathlib.Path:
        digest = hashlib.sha256(folder.encode("utf-8", "surrogatepass")).hexdigest()
        return pathlib.Path(self.directory) / f"{digest[:32]}.npy"


def _again(directory: str, closed: bool) -> Listings:
    return Listings(directory, closed=closed)


def _number(text: str) -> int:
    """63 bits of a hash: a number that is never :data:`file_states.ABSENT`."""
    data = text.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _save(file: pathlib.Path, table: np.ndarray) -> None:
    with open(file, "wb") as opened:  # np.save would add an ending to the name
        np.save(opened, table, allow_pickle=False)
