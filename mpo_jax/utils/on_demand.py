"""``kill -USR1``: where a running program stands, and a trace of its next steps."""

from __future__ import annotations

import contextlib
import faulthandler
import pathlib
import signal
import threading
from collections.abc import Iterator

from mpo_jax.utils import watchdog


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
    while Python itself waits inside a collective. Outside the main thread nothing is
    listened to: signals are the embedding program's.

    Args:
      number: of this process.
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    path = watchdog.stacks_of(workdir, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    previous = signal.signal(signal.SIGUSR1, wish.ask)
    with open(path, "a", encoding="utf-8") as file:
        faulthandler.register(signal.SIGUSR1, file, all_threads=True, chain=True)
        try:
            yield wish
        finally:
            faulthandler.unregister(signal.SIGUSR1)
            signal.signal(signal.SIGUSR1, previous)
            if not file.tell():
                path.unlink()  # nobody asked
                with contextlib.suppress(OSError):  # other hosts' are there
                    path.parent.rmdir()
