"""Wishes to stop: all processes agree on the step after which they do."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import jax

from mpo_jax.utils import statuses


class Preemption:
    """Notes SIGTERM, and Ctrl-C, while it is entered.

    A second Ctrl-C interrupts at once, as without it.

    Attributes:
      status: with which a program ends that has stopped for it.
    """

    def __init__(self) -> None:
        self.status = statuses.STOPPED
        self._noted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        handlers = {signal.SIGINT: self._interrupted}
        if jax.process_count() == 1:  # else JAX catches SIGTERM, and tells the others
            handlers[signal.SIGTERM] = self._note
        try:
            for number, handler in handlers.items():
                self._previous[number] = signal.signal(number, handler)
        except ValueError:  # not the main thread: the embedding program decides
            self._previous = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, *_: Any) -> None:
        self._noted = True

    def _interrupted(self, *_: Any) -> None:
        """Stop after this step; a second time, at once."""
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
        print("Saving after this step; Ctrl-C again ends at once.", file=sys.stderr)
        if jax.process_count() == 1:
            self.status = statuses.INTERRUPTED
            self._noted = True
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`: the same answer in every process."""
        if self._noted:  # by this process, which is alone
            return True
        if not jax.distributed.is_initialized():
            return False
        # A process that is alone on its slice, too: JAX has caught what came before.
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
