"""Ends a run in which nothing moves any more, and says where it stands.

A loader that sleeps or a host that hangs stops all hosts without a word: the others
wait inside a collective. Here every process says now and then that it has come on, and
what it begins to wait for (:func:`beat`; every progress bar does). Hosts hear each
other: one that waits while another one builds the index is not stuck. Where none has
come on for a long time, all write the stacks of their threads into the work directory,
print what they wait for, and end with a status on which launchers start again.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

import jax

from mpo_jax.utils import mirror, peers, statuses

FOLDER = "stacks"
"""Below the work directory."""


class Watchdog:
    """Looks whether anything was said lately; :func:`armed` makes it.

    Args:
      limit_s: seconds without a word of any process.
      stacks: file that stacks are appended to.
      end: takes a message, and does not come back.
      others: the other processes.
    """

    def __init__(
        self,
        limit_s: float,
        *,
        stacks: pathlib.Path,
        end: Callable[[str], None],
        others: peers.Peers | None = None,
    ):
        self._limit_s, self._stacks, self._end = limit_s, stacks, end
        self._others = others
        self._count, self._heard = 0, dict[int, float]()
        self._said = (time.monotonic(), "its first stage")
        self._news = time.monotonic()
        self._every_s = min(limit_s / 10, 10.0)
        self._off = threading.Event()
        self._thread = threading.Thread(
            target=self._look, name="mpo-watchdog", daemon=True
        )
        self._thread.start()

    def beat(self, waiting_for: str = "") -> None:
        """Say that this process has come on, and what it waits for from now on.

        Args:
          waiting_for: "" is what it was.
        """
        self._count += 1
        self._said = (time.monotonic(), waiting_for or self._said[1])

    def close(self) -> None:
        self._off.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._off.wait(self._every_s):
            longest = self._listen()
            silent_s = time.monotonic() - max(self._said[0], self._news)
            # Whoever has waited longest knows why all wait, unless it is frozen.
            if silent_s > self._limit_s + (0 if longest else 3 * self._every_s):
                self._end(
                    f"nothing has come on for {self._limit_s / 60:g} minutes "
                    f"(hosts.stuck_minutes): {self.stands()}"
                )
                return

    def _listen(self) -> bool:
        """Exchange words; whether this process has waited as long as any other."""
        if self._others is None:
            return True
        waited_s = time.monotonic() - self._said[0]
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # then JAX ends us
            self._others.say("beats", {"count": self._count, "waited_s": waited_s})
            said = self._others.heard("beats")
            counts = {number: values["count"] for number, values in said.items()}
            if counts != self._heard:
                self._heard, self._news = counts, time.monotonic()
            longest_s = max(values["waited_s"] for values in said.values())
            return waited_s > longest_s - self._every_s
        return True

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


def beat(waiting_for: str = "") -> None:
    """Say that this process has come on, where a watchdog is armed.

    Args:
      waiting_for: what it begins to wait for; "" is what it was.
    """
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
    dog = Watchdog(
        60 * minutes, stacks=stacks_of(workdir, number), end=_end, others=others
    )
    if others is not None:
        others.stands = dog.stands
    _ARMED.append(dog)
    try:
        yield
    finally:
        _ARMED.remove(dog)
        dog.close()
