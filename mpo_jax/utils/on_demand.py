"""``kill -USR1``: where a running program stands, and a trace of its next steps."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator

from absl import logging

from mpo_jax.utils import mirror, watchdog

_END = b"\0"
"""No number of a signal."""


class Wish:
    """Whether somebody asked for a trace since the last look."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self, *_: object) -> None:
        self._asked = True

    def taken(self) -> bool:
        """True once after each signal."""
        asked, self._asked = self._asked, False
        return asked


@contextlib.contextmanager
def signals(workdir: pathlib.Path, *, number: int) -> Iterator[Wish]:
    """Listen to SIGUSR1 as long as the block runs.

    The stacks of all threads go to ``stacks/host_N.txt`` in the work directory, also
    while the main thread waits inside a collective. Elsewhere than in the main thread
    nothing is listened to: signals are the embedding program's.

    Args:
      number: of this process.
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    path = watchdog.stacks_of(workdir, number)
    before = signal.signal(signal.SIGUSR1, wish.ask)
    try:
        with _seen_at_once(lambda: _write_stacks(path)):
            yield wish
    finally:
        signal.signal(signal.SIGUSR1, before)


def _write_stacks(path: pathlib.Path) -> None:
    try:
        watchdog.write_stacks(path, "asked for by SIGUSR1")
    except OSError as error:
        logging.warning("no stacks: %s", error)
    mirror.offer(path)


@contextlib.contextmanager
def _seen_at_once(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` after each SIGUSR1, in a thread of its own, as long as the block runs.

    A handler of Python's waits for the main thread, which may wait for other hosts. One
    of ``faulthandler.register`` does not, but it reads the stacks of threads that run
    on, and now and then the process dies of it; a thread holds the others while it
    reads. Python writes the number of a signal to the wake-up descriptor at once.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(
        target=_listen, args=(reading, before, act), name="mpo-signals", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.set_blocking(writing, True)
        os.write(writing, _END)  # closing would not do: a child may hold a copy
        thread.join()
        os.close(writing)
        os.close(reading)


def _listen(reading: int, before: int, act: Callable[[], None]) -> None:
    """Read signals up to the end; pass them on to the descriptor `before`, if any."""
    numbers = b""
    while not numbers.endswith(_END):
        numbers = os.read(reading, 1024)
        if before >= 0:
            with contextlib.suppress(OSError):
                os.write(before, numbers.rstrip(_END))
        if signal.SIGUSR1 in numbers:
            act()
