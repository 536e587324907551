"""One run per work directory: who holds it says so in a file, again and again.

Two runs in one directory would delete each other's checkpoints. The holder writes
host, process and a token into ``lease.json`` and renews it; a run that finds a lease
which is not renewed takes it over, at once where it is sure that the holder is dead.
A file, not a lock of the kernel: the next run may come from another host.

Several may come at once. What can be made only once decides: ``lease.json`` where there
is none, and after a dead holder the file that makes its heir. That one is named after
the token of the dead, so that those who have seen the same one dead meet at one name,
and who looked too long ago finds another holder behind it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import re
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
SETTLE_S = 2.0
"""How long the last writer is looked for where a file system has no hard links."""
_LONGEST = 10_000
_TOKEN = re.compile(r"[0-9a-f]{1,64}")
_NUMBERS = range(1, 2**31)
"""Of processes, of any system."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who runs in a work directory.

    Attributes:
      host, pid: where.
      token: of this run alone.
      since: ISO time of its start, for people.
      beat: number that another renewal changes.
      pids: where `pid` counts: the kernel's boot and the namespace. "" where no system
        tells, and in leases of older versions.
      born: when the process began, in its kernel's ticks; "" as above.
    """

    host: str
    pid: int
    token: str
    since: str
    beat: int = 0
    pids: str = ""
    born: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


Workdir = str | pathlib.Path
"""A directory, or an address."""
Lost = Callable[[str, int], None]
"""Takes a message and a status and ends the program."""

_HELD: list[tuple[Workdir, Holder, Lost]] = []
"""What this process holds."""


def read(workdir: Workdir) -> Holder | None:
    """Who holds a work directory, as its file says; None if nobody ever did.

    Raises:
      ValueError: the file is none of ours.
    """
    return _read(workdir, FILE)


@contextlib.contextmanager
def held(
    workdir: Workdir,
    *,
    tell: Callable[[str], None],
    lost: Lost,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[Holder]:
    """Hold a work directory as long as the block runs.

    Args:
      tell: takes what people should know: who is waited for.
      lost: called where another run took over or the directory is gone: by a thread
        that looks now and then, and by :func:`check`.
      wait: sleeps so many seconds.

    Raises:
      ValueError: another run holds it; says who.
    """
    mine = _of_this_process()
    while not _taken(workdir, mine, tell=tell, wait=wait):
        if others := _holders(workdir):  # else the faster one has ended by now
            raise _refusal(workdir, others[-1])
    over = threading.Event()
    renewing = threading.Thread(
        target=_renew, args=(workdir, mine, over, tell, lost), daemon=True
    )
    renewing.start()
    holding = (workdir, mine, lost)
    _HELD.append(holding)
    try:
        yield mine
    finally:
        _HELD.remove(holding)
        over.set()
        renewing.join()
        _give_back(workdir, mine, tell)


def check() -> None:
    """End the program if a work directory that this process took is no more its own.

    To be called before a folder is made in one: where it was unmounted or renamed, its
    place would fill up in silence, and the next start go on from there. Costs one read
    of a small file, on the process that has the lease; the others end with it.

    Raises:
      OSError: the lease cannot be read.
      ValueError: it is none of ours.
    """
    for workdir, mine, lost in _HELD:
        if problem := _problem(workdir, mine, read(workdir)):
            lost(problem, statuses.FAILED)


def is_gone(holder: Holder) -> bool:
    """Whether the holder was a process of this machine that is there no more.

    Only where that is sure. A container may have the name of its host, or of another
    one, and counts its processes by itself: the number says something in the same
    namespace of the same boot alone. There it may have been given to another process,
    which began at another time.
    """
    here = (socket.gethostname(), _pids())
    if not holder.pids or (holder.host, holder.pids) != here:
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's
    born = _born(holder.pid)
    return bool(born and holder.born) and born != holder.born


def _of_this_process() -> Holder:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        token=secrets.token_hex(8),
        since=now,
        pids=_pids(),
        born=_born(os.getpid()),
    )


def _pids() -> str:
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process began; "" where this is not to be seen."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return ""  # a /proc that counts as another namespace does
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    # The second field is a name in brackets, which may hold blanks and brackets.
    return text.rpartition(")")[2].split()[19]


def _taken(
    workdir: Workdir,
    mine: Holder,
    *,
    tell: Callable[[str], None],
    wait: Callable[[float], None],
) -> bool:
    """Take a lease that is nobody's, or a dead one's; False: another was faster."""
    dead = _wait_until_free(workdir, tell=tell, wait=wait)
    if not dead:
        return _create(workdir, FILE, mine, wait)
    heir = _heir_of(dead[-1])
    if not _create(workdir, heir, mine, wait):
        return False
    if _holders(workdir) != [*dead, mine]:
        _delete(workdir, heir)  # taken over before we came, or it lives after all
        return False
    _write(workdir, FILE, mine)
    for holder in dead:
        _delete(workdir, _heir_of(holder))
    return True


def _holders(workdir: Workdir) -> list[Holder]:
    """The lease's holder and its heirs, of which the last one counts.

    There are heirs for the moment of taking over, and where one was killed in it.
    """
    found: list[Holder] = []
    holder = read(workdir)
    while holder is not None and holder.token not in {one.token for one in found}:
        found.append(holder)
        holder = _read(workdir, _heir_of(holder))
    return found


def _heir_of(holder: Holder) -> str:
    """Name of the file that makes a heir."""
    return f"lease-after-{holder.token}.json"


def _wait_until_free(
    workdir: Workdir,
    *,
    tell: Callable[[str], None],
    wait: Callable[[float], None],
) -> list[Holder]:
    """Come back when nobody renews the lease, with its dead holders, if any.

    Raises:
      ValueError: somebody does.
    """
    first = _holders(workdir)
    if not first or is_gone(first[-1]):
        return first
    tell(
        f"{workdir} is held by {first[-1]}; looking for {STALE_S:g} s whether it lives."
    )
    waited = 0.0
    while waited < STALE_S:
        wait(RENEW_S / 3)
        waited += RENEW_S / 3
        found = _holders(workdir)
        if not found or is_gone(found[-1]):
            return found
        if found != first:
            raise _refusal(workdir, found[-1])
    tell(f"{first[-1]} shows no life; its work directory is taken over.")
    return first


def _refusal(workdir: Workdir, holder: Holder) -> ValueError:
    return ValueError(
        f"{workdir}: another run goes on here ({holder}). Stop it, or name another "
        "--workdir"
    )


def _renew(
    workdir: Workdir,
    mine: Holder,
    over: threading.Event,
    tell: Callable[[str], None],
    lost: Lost,
) -> None:
    beat = 0
    while not over.wait(RENEW_S):
        beat += 1
        try:
            if problem := _problem(workdir, mine, read(workdir)):
                lost(problem, statuses.FAILED)
                return
            _write(workdir, FILE, dataclasses.replace(mine, beat=beat))
        except Exception as error:  # of whatever client: the next look may go well
            tell(f"{_place(workdir)}: the lease cannot be renewed: {error}")


def _problem(workdir: Workdir, mine: Holder, found: Holder | None) -> str | None:
    """Why a run cannot go on that took a lease; None if it still has it."""
    if found is None:
        return (
            f"{_place(workdir)} has vanished: was the directory unmounted, renamed or "
            "deleted? This run ends, before it writes elsewhere; put the "
            "directory back before you start it again"
        )
    if found.token != mine.token:
        return f"{workdir} was taken over by {found}; this run ends"
    return None


def _give_back(workdir: Workdir, mine: Holder, tell: Callable[[str], None]) -> None:
    try:
        found = read(workdir)
        if found is not None and found.token == mine.token:
            _delete(workdir, FILE)
    except Exception as error:  # what ended the run matters more
        tell(f"{_place(workdir)}: the lease cannot be given back: {error}")


def _place(workdir: Workdir, name: str = FILE) -> Workdir:
    return remote.join(workdir, name)


def _read(workdir: Workdir, name: str) -> Holder | None:
    try:
        return _parsed(_content(workdir, name))
    except FileNotFoundError as error:
        if remote.is_remote(workdir) or not os.path.islink(_place(workdir, name)):
            return None
        problem: Exception = error
    except (ValueError, TypeError, RecursionError, IsADirectoryError) as error:
        problem = error
    raise ValueError(
        f"{_place(workdir, name)}: not a lease ({problem}); delete it if no run is "
        "going on here"
    ) from problem


def _content(workdir: Workdir, name: str) -> str:
    if remote.is_remote(workdir):
        return remote.Folder(str(workdir)).read(name)[:_LONGEST].decode()
    with open(_place(workdir, name), "rb") as file:
        return file.read(_LONGEST).decode()


def _parsed(text: str) -> Holder:
    """The holder that a file tells; fields of a newer version are left out.

    Raises:
      ValueError, TypeError: it tells none.
    """
    line = json.loads(text)
    if not isinstance(line, dict):
        raise TypeError("no JSON object")
    names = [field.name for field in dataclasses.fields(Holder)]
    found = Holder(**{name: line[name] for name in names if name in line})
    for name, value in dataclasses.asdict(found).items():
        if type(value) is not (int if name in ("pid", "beat") else str):
            raise TypeError(f"{name} is {value!r}"[:80])
    if found.pid not in _NUMBERS:
        raise ValueError(f"pid is {found.pid}"[:80])
    if not _TOKEN.fullmatch(found.token):
        raise ValueError(f"token is {found.token!r}"[:80])
    return found


def _delete(workdir: Workdir, name: str) -> None:
    if remote.is_remote(workdir):
        remote.Folder(str(workdir)).delete(name)
    else:
        pathlib.Path(workdir, name).unlink(missing_ok=True)


def _create(
    workdir: Workdir, name: str, holder: Holder, wait: Callable[[float], None]
) -> bool:
    """Write a file that is not there yet; False: it is another's."""
    if not _is_created(workdir, name, holder, wait):
        # A request whose answer was lost is sent again, and then it is there: ours.
        found = _read(workdir, name)
        return found is not None and found.token == holder.token
    return True


def _is_created(
    workdir: Workdir, name: str, holder: Holder, wait: Callable[[float], None]
) -> bool:
    text = _text(holder)
    if remote.is_remote(workdir):
        return remote.Folder(str(workdir)).create(name, text.encode())
    try:
        return atomic.write_new(
            pathlib.Path(workdir, name), lambda path: _fill(path, text)
        )
    except OSError as error:
        if error.errno not in atomic.NO_LINKS:
            raise
    # The last one that writes has it, and the others see so.
    if _read(workdir, name) is None:
        _write(workdir, name, holder)
        wait(SETTLE_S)
    return False


def _write(workdir: Workdir, name: str, holder: Holder) -> None:
    text = _text(holder)
    if remote.is_remote(workdir):
        remote.Folder(str(workdir)).write(name, text.encode())
        return
    atomic.write_whole(pathlib.Path(workdir, name), lambda path: _fill(path, text))


def _text(holder: Holder) -> str:
    return json.dumps(dataclasses.asdict(holder))


def _fill(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
