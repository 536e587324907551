"""A bounded folder on this machine that keeps what was fetched from addresses.

Any number of processes use it at once. A file is named by its address and the store's
version of it, so that a changed object is another file. How much is kept, and what is
removed for what comes next, is decided by one process at a time, which holds a lock.
What a process works with it *claims*: the names stand in a file of its own on which it
keeps a lock, and nothing that is claimed is removed. Room for what is being fetched is
claimed in the same way. The kernel frees that lock when the process ends, however it
ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import pathlib
import secrets
import shutil
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures

from absl import logging

from mpo_jax.utils import atomic, objects
from mpo_jax.utils.remote import Stored, refuse

_LOCK, _CLAIMS, _BUSY = ".lock", "claims", ".fetching"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_KEEP = 0.9  # of the bound, after making room: the next files need not look again
_SUM = 16  # bytes of the checksum behind a small file
_THREADS = 8  # one stream of a bucket is slower than a network


class NoRoomError(ValueError):
    """A file does not fit; names it, the sizes, the field and a remedy."""


@dataclasses.dataclass(frozen=True)
class LocalCache:
    """What is fetched and how much of it is kept; picklable, safe in many threads.

    Attributes:
      directory: on a local disk; "" is ``mpo_jax/data`` in the user's cache folder.
      gb: bound in 1e9 bytes; what is least recently used goes first.
    """

    directory: str = ""
    gb: float = 50.0

    def __post_init__(self) -> None:
        why = "files are locked and removed in it"
        refuse(self.directory, field="data.local_cache", why=why)

    @property
    def folder(self) -> pathlib.Path:
        if self.directory:
            return pathlib.Path(self.directory).expanduser().absolute()
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return pathlib.Path(home).absolute() / "mpo_jax" / "data"

    @property
    def limit(self) -> int:
        """The bound in bytes."""
        return int(self.gb * 1e9)

    def hold(self, wanted: Mapping[str, Stored]) -> Holding:
        """Fetch objects that are not here, and keep them until the holding is closed.

        Args:
          wanted: what the store says of each object, by address.

        Raises:
          NoRoomError: together they are larger than the bound, what others hold leaves
            no room, or the disk is full.
          ValueError: an object is not what `wanted` says, or the folder has no locks.
          OSError: as :func:`objects.fetch`.
        """
        size = sum(stored.size for stored in wanted.values())
        if size > self.limit:
            first = next(iter(wanted))
            what = first if len(wanted) == 1 else f"{len(wanted)} files of {first} …"
            raise NoRoomError(
                f"{what}: {size} bytes are to be fetched, but data.local_cache_gb="
                f"{self.gb:g} bounds what is kept in {self.folder}; "
                f"{_more(size)}, mount the bucket (tpu_setup/README.md), or copy the "
                "files to a disk and name them there"
            )
        holding = Holding(
            self, {name: self._name(name, wanted[name]) for name in wanted}
        )
        try:
            with futures.ThreadPoolExecutor(_THREADS) as pool:
                for _ in pool.map(self._fetch, wanted, wanted.values()):
                    pass
        except BaseException:
            holding.close()
            raise
        return holding

    def read(self, address: str, stored: Stored) -> bytes:
        """Bytes of a small object: those that are kept, else of the store.

        What finds no room is read all the same, and a warning says so once.

        Raises:
          OSError: as :func:`objects.read`.
        """
        path = self.folder / self._name(address, stored)
        data = _checked(path, stored.size)
        if data is not None:
            return data
        data = objects.read(address)
        if len(data) != stored.size:  # replaced meanwhile: not of this name
            return data
        try:
            self._keep(path, data, address)
        except NoRoomError as error:
            _warn_once(str(error))
        return data

    def _keep(self, path: pathlib.Path, data: bytes, address: str) -> None:
        """Write a small file with its checksum, which spares waiting for the disk."""
        whole = data + _sum(data)
        with self._room(len(whole), address):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_whole(path, lambda file: _write(file, whole), sync=False)

    def _name(self, address: str, stored: Stored) -> str:
        text = f"{address}\0{stored.size}\0{stored.version}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{digest[:2]}/{digest[2:40]}"

    def _fetch(self, address: str, stored: Stored) -> None:
        """Have a large file here; of several that want it, one fetches."""
        path = self.folder / self._name(address, stored)
        if _there(path, stored.size):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.alone(
            path.with_name(path.name + _BUSY),
            busy=lambda: logging.info("another process fetches %s", address),
        ):
            if _there(path, stored.size):
                return
            with self._room(stored.size, address):
                logging.info("fetching %s (%.1f MB)", address, stored.size / 1e6)
                atomic.write_whole(path, lambda file: _download(address, stored, file))

    @contextlib.contextmanager
    def _room(self, size: int, address: str) -> Iterator[None]:
        """Room for a file that the block writes; given back where the block fails."""
        with self._book() as book:
            used = book.used()
            if used is None or used + size > self.limit:
                used = self._make_room(size)
            if used + size > self.limit:
                raise NoRoomError(
                    f"{address}: {size} bytes find no room in {self.folder}: of "
                    f"data.local_cache_gb={self.gb:g} (1e9 bytes) {used} bytes are in "
                    f"use by running programs; {_more(used + size)}"
                )
            free = shutil.disk_usage(self.folder).free
            if size > free:
                raise NoRoomError(self._full(address, size, free))
            book.set(used + size)
            claim = _Claim(self.folder / _CLAIMS, room=size)
        try:
            yield
        except BaseException as error:
            with self._book() as book:
                book.set(max((book.used() or 0) - size, 0))
            if isinstance(error, OSError) and error.errno in _FULL:
                free = shutil.disk_usage(self.folder).free
                raise NoRoomError(self._full(address, size, free)) from error
            raise
        finally:
            claim.close()

    def _full(self, address: str, size: int, free: int) -> str:
        return (
            f"{address}: {size} bytes are to be fetched, the disk of {self.folder} has "
            f"{free} free; make room, lower data.local_cache_gb={self.gb:g}, or name a "
            "folder on another disk in data.local_cache"
        )

    @contextlib.contextmanager
    def _book(self) -> Iterator[_Book]:
        """The count of what is kept, for one process and thread at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(fd, self.folder)
            yield _Book(fd)
        finally:
            os.close(fd)

    def _make_room(self, size: int) -> int:
        """Remove what was used longest ago, until `size` fits well; what is kept then.

        Called under the lock.
        """
        held, used = self._claimed()
        found = []
        for part in _folders(self.folder):
            atomic.clean(part)
            for entry in os.scandir(part):
                if atomic.is_being_written(entry.name) or entry.name.endswith(_BUSY):
                    continue  # its room is claimed
                with contextlib.suppress(FileNotFoundError):  # removed by hand
                    status = entry.stat()
                    used += status.st_size
                    name = f"{part.name}/{entry.name}"
                    found.append((status.st_mtime_ns, status.st_size, name))
        for _, bytes_, name in sorted(found):
            if used + size <= self.limit * _KEEP:
                break
            if name in held:
                continue
            (self.folder / name).unlink(missing_ok=True)
            used -= bytes_
        return used

    def _claimed(self) -> tuple[set[str], int]:
        """Names that living processes claim, and the bytes of what they fetch.

        What dead ones claimed is forgotten.
        """
        names: set[str] = set()
        room = 0
        for path in (self.folder / _CLAIMS).glob("*"):
            try:
                with open(path, encoding="utf-8") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            except FileNotFoundError:
                continue
            except BlockingIOError:
                with contextlib.suppress(FileNotFoundError):  # closed just now
                    first, *rest = path.read_text(encoding="utf-8").split("\n")
                    room += int(first)
                    names |= set(rest)
        return names, room


class Holding:
    """Objects that are here and stay here; made by :meth:`LocalCache.hold`."""

    def __init__(self, cache: LocalCache, names: Mapping[str, str]):
        self._paths = {name: str(cache.folder / at) for name, at in names.items()}
        with cache._book():  # so that nobody is removing files now
            self._claim = _Claim(cache.folder / _CLAIMS, names=names.values())

    def path(self, address: str) -> str:
        """Where an object is."""
        return self._paths[address]

    def close(self) -> None:
        """Let the files go; safe to call twice."""
        self._claim.close()


class _Claim:
    """A file with a lock that says what its process uses; made under the book's lock.

    Its first line is room in bytes, the others are names.
    """

    def __init__(
        self, folder: pathlib.Path, *, room: int = 0, names: Iterable[str] = ()
    ):
        folder.mkdir(exist_ok=True)
        path = folder / secrets.token_hex(8)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # Called once: by close(), when nobody holds it any more, or at the end.
        self.close = weakref.finalize(self, _release, fd, path, os.getpid())
        _lock(fd, folder)
        text = "\n".join([str(room), *names]).encode()
        if os.write(fd, text) != len(text):
            raise OSError(errno.ENOSPC, f"{path} cannot be written whole")


def _release(fd: int, path: pathlib.Path, process: int) -> None:
    if process == os.getpid():  # a fork ends before its parent
        path.unlink(missing_ok=True)
    os.close(fd)


class _Book:
    """Bytes that are kept, as text in the file that is locked."""

    def __init__(self, fd: int):
        self._fd = fd

    def used(self) -> int | None:
        """None where nobody has counted yet."""
        text = os.pread(self._fd, 32, 0).strip()
        return int(text) if text.isdigit() else None

    def set(self, used: int) -> None:
        os.pwrite(self._fd, f"{used:<31}\n".encode(), 0)


def _lock(fd: int, folder: pathlib.Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        raise ValueError(
            f"data.local_cache: the file system of {folder} has no locks ({error}), "
            "which processes that share it need; name a folder on a local disk"
        ) from error


def _folders(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for entry in os.scandir(folder):
        if len(entry.name) == 2 and entry.is_dir():
            yield pathlib.Path(entry.path)


def _there(path: pathlib.Path, size: int) -> bool:
    """Whether a large file is kept; says that it is used."""
    try:
        if path.stat().st_size != size:
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _checked(path: pathlib.Path, size: int) -> bytes | None:
    """A small file that is kept, whole and as it was written; says that it is used."""
    try:
        with open(path, "rb") as file:
            data = file.read()
            os.utime(file.fileno())
    except FileNotFoundError:
        return None
    content = data[:size]
    return content if data[size:] == _sum(content) else None


def _sum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_SUM).digest()


def _write(file: pathlib.Path, data: bytes) -> None:
    file.write_bytes(data)


def _download(address: str, stored: Stored, file: pathlib.Path) -> None:
    before = objects.stored(address)  # listings may write versions in another way
    objects.fetch(address, file)
    size, now = file.stat().st_size, objects.stored(address)
    if now is None or now != before or size != stored.size:
        raise ValueError(
            f"{address} was replaced while it was fetched ({size} bytes came, "
            f"{stored.size} were announced); start again when it is complete"
        )


def _more(size: int) -> str:
    return f"raise data.local_cache_gb to {size / 1e9 / _KEEP + 0.1:.1f} or more"


_warned = threading.Event()


def _warn_once(text: str) -> None:
    if not _warned.is_set():
        _warned.set()
        logging.warning("%s. Images are read anew each time meanwhile", text)
