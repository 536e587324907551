"""When a run saves: every so many steps, and every so many minutes."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import numpy as np

from mpo_jax import config
from mpo_jax.utils import runtime

_AT_LEAST = 5
_AT_MOST = 1000


class Schedule:
    """After which steps a checkpoint is due: the same answer in every process.

    Steps need no agreement. Time is the first process's: the others ask it, which
    makes the host wait for the step under way. So they ask after half of the steps
    that are likely left, never more often than every 5th step; a save may come 4 steps
    late. One process alone looks at its clock after every step.
    """

    def __init__(
        self,
        cfg: config.CheckpointConfig,
        *,
        first: int,
        now: Callable[[], float] = time.monotonic,
    ):
        """Begin to count.

        Args:
          first: updates that are done.
          now: seconds of a clock that never goes back.
        """
        self._every_steps, self._every_s = cfg.every_steps, 60.0 * cfg.every_minutes
        self._now = now
        self._restart(first)

    def _restart(self, step: int) -> None:
        self._saved, self._saved_s = step, self._now()
        self._ask = step + self._pause(0.0)

    def _pause(self, steps: float) -> int:
        """Steps until the next question, given what is wanted."""
        least = 1 if jax.process_count() == 1 else _AT_LEAST
        return int(min(max(steps, least), _AT_MOST))

    def due(self, step: int) -> bool:
        """Whether to save after `step`; ask after every step, in every process."""
        found = step % self._every_steps == 0 or self._due_by_time(step)
        if found:
            self._restart(step)
        return found

    def _due_by_time(self, step: int) -> bool:
        if not self._every_s or step < self._ask:
            return False
        spent = self._now() - self._saved_s
        left = self._every_s - spent
        steps_left = left * (step - self._saved) / max(spent, 1e-9)
        own = np.array([left <= 0, self._pause(steps_left / 2)], np.int32)
        due, pause = runtime.agreed(own)
        self._ask = step + int(pause)
        return bool(due)
