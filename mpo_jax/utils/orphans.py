"""Processes that a program has started end with it, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing import connection


def end_with_parent() -> None:
    """In a worker process: end when the process that started it is gone.

    One that is killed (by the kernel, where memory is short) cannot stop its workers,
    which would hold their memory and wait for ever. The resource tracker then frees
    what they shared. Does nothing in a process that ``multiprocessing`` did not start.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="mpo-parent", daemon=True).start()
