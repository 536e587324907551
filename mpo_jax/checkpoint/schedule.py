"""When a run saves: every so many steps, and every so many minutes."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import numpy as np

from mpo_jax import config
from mpo_jax.utils import runtime

ASK_EVERY = 10
"""Steps between two questions for the time, on several processes."""


class Schedule:
    """After which steps a checkpoint is due: the same answer in every process.

    Steps need no agreement. Time is the first process's; to ask it, a process waits for
    the step under way. So several processes ask after every 10th step alone: a save may
    come 9 steps late. One process looks at its clock after every step.
    """

    def __init__(
        self,
        cfg: config.CheckpointConfig,
        *,
        now: Callable[[], float] = time.monotonic,
    ):
        """Begin to count.

        Args:
          now: seconds of a clock that never goes back.
        """
        self._every_steps, self._every_s = cfg.every_steps, 60.0 * cfg.every_minutes
        self._now = now
        self._saved_s = now()

    def due(self, step: int) -> bool:
        """Whether to save after `step`; ask after every step, in every process."""
        found = step % self._every_steps == 0 or self._due_by_time(step)
        if found:
            self._saved_s = self._now()
        return found

    def _due_by_time(self, step: int) -> bool:
        if not self._every_s or (jax.process_count() > 1 and step % ASK_EVERY):
            return False
        due = self._now() - self._saved_s >= self._every_s
        return bool(runtime.agreed(np.array(due, np.int32)))
