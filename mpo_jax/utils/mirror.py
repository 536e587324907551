"""Folders of this machine that are kept in step with an address (``gs://…``).

Most of a run's files are appended to, renamed or read from the middle, which no store
can do. So every process works in a folder of its own machine, and the address has what
is to last: at :func:`open_mirror` the folder becomes what the address holds, from then
on what is new goes there every few seconds, and at the end. Where processes read what
others have written, :func:`barrier` exchanges it; on a directory that all share it is a
barrier and nothing else.

The address is the truth: what a killed process had not sent is gone, and done again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping

import jax
from absl import logging

from mpo_jax.utils import atomic, line_parts, remote, runtime, transient

_STATE = ".mirror.json"
_OWN = ".mirror."
"""Beginning of names that are the mirror's own."""
PATIENCE_S = 120.0
"""How long a store that is away is waited for."""
MOST_BYTES = 32 * 10**9
"""More than the index and log-probs of any run: it holds models or images."""


def folder_of(address: str, number: int) -> pathlib.Path:
    """Where a process keeps its files of an address: below ``$XDG_CACHE_HOME``.

    Args:
      number: of the process.
    """
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    address = address.rstrip("/")
    name = address.rsplit("/", 1)[-1]
    digest = hashlib.sha256(address.encode()).hexdigest()[:10]
    return pathlib.Path(
        root, "mpo_jax", "mirrors", f"{name}-{digest}", f"host_{number}"
    )


@dataclasses.dataclass(frozen=True)
class _Synced:
    """A file that is the same here and there: its version there, its state here."""

    version: str
    size: int
    mtime_ns: int


class Mirror:
    """One folder; :func:`open_mirror` makes it.

    Args:
      address: of the other side.
      folder: of this side.
      growing: names of files of lines, which are there in parts, ``<stem>/…``.
      elsewhere: names directly below, which others write behind the address.
      wanted: names directly below that :meth:`fill` fetches; None is everything.
    """

    def __init__(
        self,
        address: str,
        folder: pathlib.Path,
        *,
        growing: Collection[str] = (),
        elsewhere: Collection[str] = (),
        wanted: Collection[str] | None = None,
    ):
        self.folder, self.address = folder, address.rstrip("/")
        self._there = remote.Folder(address)
        self._growing, self._wanted = frozenset(growing), wanted
        self._elsewhere = frozenset(elsewhere) | set(map(_stem, growing))
        self._lock = threading.RLock()
        self._lines: dict[str, line_parts.LineParts] = {}
        self._synced = self._read_state()

    def grow(self, name: str) -> None:
        """Send a growing file from now on; what is there is replaced by it."""
        with self._lock:
            parts = line_parts.LineParts(
                self.folder / name, self._there.folder(_stem(name))
            )
            parts.begin()
            self._lines[name] = parts

    def drop(self) -> None:
        """Remove what is here and never got there."""
        with self._lock:
            for name, path in self._files("").items():
                if not self._is_synced(name, _state(path)):
                    path.unlink()

    def fill(self) -> None:
        """Fetch what is wanted of what is there; errors as :meth:`pull`."""
        self.pull()
        for name in self._growing:
            fetch_lines(self._there, name, self.folder)

    def pull(self, below: str = "") -> None:
        """Fetch what is new there; what is new here stays.

        Args:
          below: one folder; "" is what is wanted.

        Raises:
          ValueError: that is more than :data:`MOST_BYTES`.
        """
        with self._lock:
            there = self._listed(below)
            _check_size(self.address, there)
            for name in set(self._known(below)) - set(there):
                if self._is_synced(name, _state(self.folder / name)):
                    (self.folder / name).unlink(missing_ok=True)
                del self._synced[name]
            for name, stored in there.items():
                known, here = self._synced.get(name), _state(self.folder / name)
                if here is not None and not self._is_synced(name, here):
                    continue  # newer, on its way there
                if here is None or known is None or known.version != stored.version:
                    self._fetch(name, stored)
            self._write_state()

    def _fetch(self, name: str, stored: remote.Stored) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{_OWN}fetched"
        try:
            self._there.download(name, partial)
        except FileNotFoundError:  # another process has deleted it since it was listed
            path.unlink(missing_ok=True)
            self._synced.pop(name, None)
            return
        if stored.modified:
            os.utime(partial, (stored.modified, stored.modified))
        partial.replace(path)
        state = path.stat()
        self._synced[name] = _Synced(stored.version, state.st_size, state.st_mtime_ns)

    def push(self, below: str = "") -> None:
        """Send what is new here, in the order in which it was written.

        Args:
          below: a file or a folder; "" is everything.
        """
        with self._lock:
            for name, parts in self._lines.items():
                if _is_below(name, below):
                    parts.push()
            here = self._files(below)
            states = {
                name: state
                for name, path in here.items()
                if (state := _state(path)) is not None
                and not self._is_synced(name, state)
            }
            for name in sorted(states, key=lambda name: states[name].st_mtime_ns):
                self._send(name, here[name], states[name])
            for name in set(self._known(below)) - set(here):
                now = self._there.stored(name)
                if now is not None and now.version == self._synced[name].version:
                    self._there.delete(name)  # else another process made it anew
                del self._synced[name]
            self._write_state()

    def _send(self, name: str, path: pathlib.Path, state: os.stat_result) -> None:
        """Send a copy: a file that grows would have another size on arrival."""
        copy = self.folder / f"{_OWN}sent"
        try:
            shutil.copyfile(path, copy)
        except FileNotFoundError:
            return  # gone since it was seen; the next look takes it from there, too
        stored = self._there.upload(copy, name)
        copy.unlink()
        self._synced[name] = _Synced(stored.version, state.st_size, state.st_mtime_ns)

    def _is_synced(self, name: str, state: os.stat_result | None) -> bool:
        known = self._synced.get(name)
        if known is None or state is None:
            return False
        return (state.st_size, state.st_mtime_ns) == (known.size, known.mtime_ns)

    def _known(self, below: str) -> list[str]:
        return [name for name in self._synced if _is_below(name, below)]

    def _listed(self, below: str) -> dict[str, remote.Stored]:
        """What is there."""
        if below:
            found = self._there.folder(below).tree()
            return {f"{below}/{name}": stored for name, stored in found.items()}
        found = self._there.tree(only=self._wanted)
        return {
            name: stored
            for name, stored in found.items()
            if name.split("/")[0] not in self._elsewhere
        }

    def _files(self, below: str) -> dict[str, pathlib.Path]:
        """What is here and whole, by its name there."""
        root = self.folder / below
        if root.is_file():
            return {below: root} if below not in self._growing else {}
        found = {}
        for folder, folders, names in os.walk(root):
            top = pathlib.Path(folder) == self.folder
            if top:
                folders[:] = [name for name in folders if name not in self._elsewhere]
            for file in names:
                path = pathlib.Path(folder, file)
                name = path.relative_to(self.folder).as_posix()
                own = top and file.startswith(_OWN)
                if own or file.endswith(".tmp") or path.is_symlink():
                    continue
                if name not in self._growing | self._elsewhere:
                    found[name] = path
        return found

    def _read_state(self) -> dict[str, _Synced]:
        try:
            text = (self.folder / _STATE).read_text(encoding="utf-8")
            return {name: _Synced(*known) for name, known in json.loads(text).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError) as error:
            logging.warning("%s is fetched anew: %s", self.folder, error)
            return {}

    def _write_state(self) -> None:
        known = {name: dataclasses.astuple(one) for name, one in self._synced.items()}
        text = json.dumps(known)
        atomic.write_whole(self.folder / _STATE, lambda path: _fill(path, text))


def _check_size(address: str, there: Mapping[str, remote.Stored]) -> None:
    """Refuse a folder that was named by mistake, before all of it is on a disk."""
    sizes = collections.Counter[str]()
    for name, stored in there.items():
        sizes[name.split("/")[0]] += stored.size
    if sizes.total() > MOST_BYTES:
        largest = [
            f"{name} ({size / 1e9:.0f} GB)" for name, size in sizes.most_common(3)
        ]
        raise ValueError(
            f"{address}: {sizes.total() / 1e9:.0f} GB lie there, more than is kept on "
            f"this machine's disk ({MOST_BYTES / 1e9:.0f} GB), most in "
            f"{', '.join(largest)}; name a folder of its own"
        )


def _fill(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _state(path: pathlib.Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _stem(name: str) -> str:
    return pathlib.PurePath(name).stem


def _is_below(name: str, below: str) -> bool:
    return not below or name == below or name.startswith(f"{below}/")


def fetch_lines(there: remote.Folder, name: str, folder: pathlib.Path) -> None:
    """Put a file of lines together from its parts, with the time of the last."""
    lines, modified = line_parts.read(there.folder(_stem(name)))
    path = folder / name
    if not lines:
        path.unlink(missing_ok=True)
        return
    path.write_bytes(lines)
    if modified:
        os.utime(path, (modified, modified))


def snapshot(
    address: str, folder: pathlib.Path, names: Collection[str], *, growing: str
) -> None:
    """Fetch some files that lie directly behind an address, those that are there.

    Args:
      growing: a file that is there in parts.
    """
    there = remote.Folder(address)
    for name in names:
        stored = there.stored(name)
        if stored is not None:
            there.download(name, folder / name)
            os.utime(folder / name, (stored.modified, stored.modified))
    fetch_lines(there, growing, folder)


_OPEN: list[Mirror] = []


@contextlib.contextmanager
def open_mirror(
    address: str,
    *,
    number: int,
    every_s: float,
    growing: Collection[str] = (),
    elsewhere: Collection[str] = (),
    wanted: Collection[str] | None = None,
) -> Iterator[Mirror]:
    """A mirror of an address as long as the block runs.

    Args:
      number: of this process; each has a folder of its own.
      every_s: seconds between two looks for what is new here.
      growing, elsewhere, wanted: see :class:`Mirror`.

    The first process begins with all that is there, the others with what they
    :func:`fetch`.

    Raises:
      ValueError: another process of this machine has it open.
      TryAgain: the store is away, at the beginning or at the end.
    """
    folder = folder_of(address, number)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.alone(folder / f"{_OWN}lock", busy=_busy(address, folder)):
        atomic.clean(folder)
        mirror = Mirror(
            address,
            folder,
            growing=growing,
            elsewhere=elsewhere,
            wanted=wanted,
        )
        mirror.drop()
        if not number:
            _patiently(mirror.fill, f"reading {address}")
        over = threading.Event()
        sending = threading.Thread(
            target=_keep_sending, args=(mirror, every_s, over), daemon=True
        )
        sending.start()
        _OPEN.append(mirror)
        try:
            yield mirror
        except BaseException:
            _send_the_rest(mirror)
            raise
        else:
            _patiently(mirror.push, f"writing {address}")
        finally:
            over.set()
            sending.join()
            _OPEN.remove(mirror)


def _busy(address: str, folder: pathlib.Path) -> Callable[[], None]:
    def refuse() -> None:
        raise ValueError(
            f"{address}: another process of this machine works with it, in {folder}; "
            "wait for it, or set XDG_CACHE_HOME to another folder for this one"
        )

    return refuse


def _keep_sending(mirror: Mirror, every_s: float, over: threading.Event) -> None:
    while not over.wait(every_s):
        try:
            mirror.push()
        except Exception as error:  # of whatever client: the next look sends it
            _tell_behind(mirror, error)


def _tell_behind(mirror: Mirror, error: Exception) -> None:
    logging.warning("%s is behind: %s: %s", mirror.address, type(error).__name__, error)


def _send_the_rest(mirror: Mirror) -> None:
    """After an error, which matters more than what happens here."""
    try:
        mirror.push()
    except Exception as error:
        logging.warning("%s lacks the last lines: %s", mirror.address, error)


def _patiently(action: Callable[[], None], what: str) -> None:
    transient.patiently(action, what, seconds=PATIENCE_S)


def _holding(path: pathlib.Path) -> tuple[Mirror, str] | None:
    """The mirror that a path lies in, and its name there."""
    for mirror in _OPEN:
        if path.is_relative_to(mirror.folder):
            name = path.relative_to(mirror.folder).as_posix()
            return mirror, "" if name == "." else name
    return None


def known_as(path: pathlib.Path) -> str:
    """How people know a path: by its address, where it lies in a mirror."""
    found = _holding(path)
    return str(path) if found is None else f"{found[0].address}/{found[1]}"


def publish(path: pathlib.Path) -> None:
    """Send a file or folder now, where it lies in a mirror.

    Raises:
      TryAgain: the store is away.
    """
    _act(path, Mirror.push, "writing")


def _act(path: pathlib.Path, action: Callable[[Mirror, str], None], what: str) -> None:
    found = _holding(path)
    if found is not None:
        mirror, name = found
        _patiently(lambda: action(mirror, name), f"{what} {mirror.address}/{name}")


def offer(path: pathlib.Path) -> None:
    """As :func:`publish`, but tried once, and a store that is away ends nothing."""
    found = _holding(path)
    if found is not None:
        mirror, name = found
        try:
            mirror.push(name)
        except Exception as error:  # of whatever client: the next look sends it
            _tell_behind(mirror, error)


def grow(path: pathlib.Path) -> None:
    """Send a growing file from now on, where it lies in a mirror.

    Raises:
      TryAgain: the store is away.
    """
    _act(path, Mirror.grow, "writing")


def fetch(path: pathlib.Path) -> None:
    """Fetch a folder now, where it lies in a mirror.

    Raises:
      TryAgain: the store is away.
    """
    _act(path, Mirror.pull, "reading")


def barrier(name: str, path: pathlib.Path) -> None:
    """Wait for every process; then each sees what all have written below a folder."""
    if jax.process_count() == 1:
        return
    publish(path)
    runtime.barrier(name)
    fetch(path)
