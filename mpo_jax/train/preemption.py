"""SIGTERM as a wish to stop: all processes agree on the step after which they do."""

from __future__ import annotations

import signal
from typing import Any

import jax

EXIT_STATUS = 42
"""Of a run that was stopped and has saved; launchers restart on it."""


class Preemption:
    """Notes SIGTERM while it is entered."""

    def __init__(self) -> None:
        self._noted = False
        self._previous: Any = None

    def __enter__(self) -> Preemption:
        if jax.process_count() == 1:

            def note(*_: Any) -> None:
                self._noted = True

            try:
                self._previous = signal.signal(signal.SIGTERM, note)
            except ValueError:  # not the main thread: the embedding program decides
                self._previous = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`: the same answer in every process."""
        if jax.process_count() == 1:
            return self._noted
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
