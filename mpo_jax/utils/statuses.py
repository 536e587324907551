"""With what status a program ends, and what launchers make of it.

``tpu_setup/qr.sh watch`` and ``xpk.sh`` start a run again after ``STOPPED``,
``TRY_AGAIN`` and signals, and never after ``FAILED``.
"""

from __future__ import annotations

DONE = 0
FAILED = 1
"""A setting, a file or a bug: the same command would fail again."""
STOPPED = 42
"""Stopped by SIGTERM, and saved."""
TRY_AGAIN = 75
"""Storage or another host is away; the same command goes on (``EX_TEMPFAIL``)."""
INTERRUPTED = 130
"""Ctrl-C, as shells have it."""


class Stopped(SystemExit):
    """The end of a training that was asked to stop, and that all hosts have saved."""


class TryAgain(Exception):
    """What may pass by itself: the program ends with ``TRY_AGAIN``."""
