"""Ends a run whose next step does not come, and says where it stands.

A loader that sleeps or a host that hangs stops all hosts without a word: the others
wait inside a collective. Here every process says now and then what it begins to wait
for (:func:`beat`); where nothing is said for a long time, all write the stacks of their
threads into the work directory, print what they wait for, and end with a status on
which launchers start again.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

from mpo_jax.utils import mirror, peers, statuses

FOLDER = "stacks"
"""Below the work directory."""


class Watchdog:
    """Looks whether anything was said lately; :func:`armed` makes it.

    Args:
      limit_s: seconds without a word.
      stacks: file that stacks are appended to.
      end: takes a message, and does not come back.
    """

    def __init__(
        self, limit_s: float, *, stacks: pathlib.Path, end: Callable[[str], None]
    ):
        self._limit_s, self._stacks, self._end = limit_s, stacks, end
        self._said = (time.monotonic(), "its first step")
        self._off = threading.Event()
        self._thread = threading.Thread(
            target=self._look, name="mpo-watchdog", daemon=True
        )
        self._thread.start()

    def beat(self, waiting_for: str) -> None:
        """Say what this process waits for from now on."""
        self._said = (time.monotonic(), waiting_for)

    def close(self) -> None:
        self._off.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._off.wait(min(self._limit_s / 10, 10.0)):
            since, _ = self._said
            if time.monotonic() - since > self._limit_s:
                self._end(
                    f"no step for {self._limit_s / 60:g} minutes "
                    f"(hosts.stuck_minutes): {self.stands()}"
                )
                return

    def stands(self) -> str:
        """Write the stacks of all threads; what this process waits for, and where."""
        since, waiting_for = self._said
        for_s = time.monotonic() - since
        write_stacks(self._stacks, f"waiting for {waiting_for}")
        mirror.offer(self._stacks)
        return (
            f"this host has waited for {waiting_for} for {for_s:.0f} s; its stacks "
            f"are in {self._stacks}"
        )


def stacks_of(workdir: pathlib.Path, number: int) -> pathlib.Path:
    """Where the stacks of process `number` go."""
    return workdir / FOLDER / f"host_{number}.txt"


def write_stacks(path: pathlib.Path, title: str) -> None:
    """Append the stacks of all threads of this process to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(f"\n{now} {title}\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)


_ARMED: list[Watchdog] = []


def beat(waiting_for: str) -> None:
    """Say what this process begins to wait for, where a watchdog is armed."""
    for dog in _ARMED:
        dog.beat(waiting_for)


def _end(message: str) -> None:
    peers.end(message, statuses.TRY_AGAIN, stacks=True)


@contextlib.contextmanager
def armed(workdir: pathlib.Path, *, minutes: float) -> Iterator[None]:
    """A watchdog as long as the block runs; 0 minutes arms none."""
    if not minutes:
        yield
        return
    others = peers.others()
    number = 0 if others is None else others.number
    dog = Watchdog(60 * minutes, stacks=stacks_of(workdir, number), end=_end)
    if others is not None:
        others.stands = dog.stands
    _ARMED.append(dog)
    try:
        yield
    finally:
        _ARMED.remove(dog)
        dog.close()
