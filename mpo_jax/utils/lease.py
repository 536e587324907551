"""One run per work directory: who holds it says so in a file, again and again.

Two runs in one directory would delete each other's checkpoints. The holder writes
host, process and a token into ``lease.json`` and renews it; a run that finds a lease
which is not renewed takes it over, at once where it can see that the holder is dead.
A file, not a lock of the kernel: the next run may come from another host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator

from mpo_jax.utils import atomic, remote, statuses

FILE = "lease.json"
RENEW_S = 15.0
STALE_S = 60.0
"""After how long without renewal a holder is taken for dead."""
_LONGEST = 10_000


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who runs in a work directory.

    Attributes:
      host, pid: where.
      token: of this run alone.
      since: ISO time of its start, for people.
      beat: number that another renewal changes.
      pids: where `pid` counts: boot and namespace, "" where no kernel tells.
    """

    host: str
    pid: int
    token: str
    since: str
    beat: int = 0
    pids: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


Workdir = str | pathlib.Path
"""A directory, or an address."""


def read(workdir: Workdir) -> Holder | None:
    """Who holds a work directory, as its file says; None if nobody ever did.

    Raises:
      ValueError: the file is none of ours.
    """
    text = _read(workdir)
    if text is None:
        return None
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{_place(workdir)}: not a lease ({error}); delete it if no run is going "
            "on here"
        ) from error


@contextlib.contextmanager
def held(
    workdir: Workdir,
    *,
    tell: Callable[[str], None],
    lost: Callable[[str, int], None],
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[Holder]:
    """Hold a work directory as long as the block runs.

    Args:
      tell: takes what people should know: who is waited for.
      lost: takes a message and a status and ends the program, where another run took
        over or the directory is gone.
      wait: sleeps so many seconds.

    Raises:
      ValueError: another run holds it; says who.
    """
    _wait_until_free(workdir, tell=tell, wait=wait)
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    mine = Holder(
        socket.gethostname(), os.getpid(), secrets.token_hex(8), since=now, pids=_pids()
    )
    _write(workdir, mine)
    over = threading.Event()
    renewing = threading.Thread(
        target=_renew, args=(workdir, mine, over, tell, lost), daemon=True
    )
    renewing.start()
    try:
        yield mine
    finally:
        over.set()
        renewing.join()
        found = read(workdir)
        if found is not None and found.token == mine.token:
            _delete(workdir)


def _wait_until_free(
    workdir: Workdir,
    *,
    tell: Callable[[str], None],
    wait: Callable[[float], None],
) -> None:
    """Come back when nobody renews the lease."""
    first = read(workdir)
    if first is None or _is_dead(first):
        return
    tell(f"{workdir} is held by {first}; looking for {STALE_S:g} s whether it lives.")
    waited = 0.0
    while waited < STALE_S:
        wait(RENEW_S / 3)
        waited += RENEW_S / 3
        found = read(workdir)
        if found is None or _is_dead(found):
            return
        if found != first:
            raise ValueError(
                f"{workdir}: another run goes on here ({found}). Stop it, or name "
                "another --workdir"
            )
    tell(f"{first} shows no life; its work directory is taken over.")


def is_gone(holder: Holder) -> bool:
    """Whether the holder was a process of this host that is there no more.

    A container may have the name of its host and count processes by itself: of another
    count nothing can be seen, and the answer is no.
    """
    if (holder.host, holder.pids) != (socket.gethostname(), _pids()):
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _is_dead(holder: Holder) -> bool:
    """The same of a process that asks for the lease: its own number is free, too.

    A container that is started again has its old name and numbers, and a new count.
    """
    own = (holder.host, holder.pid) == (socket.gethostname(), os.getpid())
    return own or is_gone(holder)


def _pids() -> str:
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _renew(
    workdir: Workdir,
    mine: Holder,
    over: threading.Event,
    tell: Callable[[str], None],
    lost: Callable[[str, int], None],
) -> None:
    beat = 0
    while not over.wait(RENEW_S):
        beat += 1
        try:
            found = read(workdir)
            if found is None:
                lost(
                    f"{_place(workdir)} has vanished: was the directory unmounted, or "
                    "deleted? This run ends, before it writes elsewhere",
                    statuses.TRY_AGAIN,
                )
                return
            if found.token != mine.token:
                lost(
                    f"{workdir} was taken over by {found}; this run ends",
                    statuses.FAILED,
                )
                return
            _write(workdir, dataclasses.replace(mine, beat=beat))
        except Exception as error:  # of whatever client: the next look may go well
            tell(f"{_place(workdir)}: the lease cannot be renewed: {error}")


def _place(workdir: Workdir) -> Workdir:
    return remote.join(workdir, FILE)


def _read(workdir: Workdir) -> str | None:
    try:
        if remote.is_remote(workdir):
            return remote.Folder(str(workdir)).read(FILE, 0, _LONGEST).decode()
        with open(_place(workdir), encoding="utf-8") as file:
            return file.read(_LONGEST)
    except FileNotFoundError:
        return None


def _delete(workdir: Workdir) -> None:
    if remote.is_remote(workdir):
        remote.Folder(str(workdir)).delete(FILE)
    else:
        pathlib.Path(workdir, FILE).unlink(missing_ok=True)


def _write(workdir: Workdir, holder: Holder) -> None:
    text = json.dumps(dataclasses.asdict(holder))
    if remote.is_remote(workdir):
        remote.Folder(str(workdir)).write(FILE, text.encode())
        return
    workdir = pathlib.Path(workdir)
    atomic.write_whole(workdir / FILE, lambda path: _fill(path, text))


def _fill(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
