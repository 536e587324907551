"""How long a run goes on although its checkpoints cannot be saved."""

from __future__ import annotations

import time
from collections.abc import Callable

from absl import logging

from mpo_jax.checkpoint import saving
from mpo_jax.utils import transient

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 10.0


class Patience:
    """Saves that failed because storage is away are made up for, for a while.

    The first failure begins the time, and a save that is whole ends it. Between two
    tries are pauses, each twice as long as the one before, up to 10 s.
    """

    def __init__(self, seconds: float, *, now: Callable[[], float] = time.monotonic):
        """Begin with nothing to make up for.

        Args:
          seconds: from the first failure on, in which another one ends no run.
          now: seconds of a clock that never goes back.
        """
        self._seconds, self._now = seconds, now
        self._failures = 0
        self._since = self._again = 0.0

    @property
    def tried(self) -> bool:
        """Whether the last save failed, and is to be made up for."""
        return self._failures > 0

    def failed(self, failure: saving.SaveFailed) -> None:
        """Note that a save failed, and say what happens next.

        Raises:
          SaveFailed: it may not pass by itself, or the time is over.
        """
        if not transient.is_transient(failure) or not self._seconds:
            raise failure
        now = self._now()
        if not self._failures:
            self._since = now
        elif now - self._since >= self._seconds:
            raise saving.SaveFailed(
                f"{failure} ({self._failures + 1} saves failed in "
                f"{now - self._since:.0f} s; checkpoint.retry_seconds="
                f"{self._seconds:g})"
            ) from failure
        pause = min(_FIRST_PAUSE_S * 2**self._failures, _LONGEST_PAUSE_S)
        self._failures += 1
        self._again = now + pause
        logging.warning(
            "%s. The run goes on and saves again in %.0f s; it ends if no save is "
            "whole %.0f s from now (checkpoint.retry_seconds=%g)",
            failure.what,
            pause,
            max(self._since + self._seconds - now, pause),
            self._seconds,
        )

    def due(self) -> bool:
        """Whether there is a save to make up for, and the pause is over."""
        return self.tried and self._now() >= self._again

    def pause_s(self) -> float:
        """Seconds until the next try."""
        return max(self._again - self._now(), 0.0)

    def ended_well(self, step: int) -> None:
        """Note that the checkpoint of `step` is whole."""
        if self.tried:
            logging.warning(
                "The checkpoint of step %d is saved, after %d failures in %.0f s",
                step,
                self._failures,
                self._now() - self._since,
            )
        self._failures = 0
