"""Metrics on Weights & Biases, for those who ask for it (``log.wandb``).

The key comes from ``WANDB_API_KEY`` or from the file that ``wandb login`` writes; no
option of ours takes one. What the service cannot do ends no run.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

EXTRA = "wandb"
"""Of ``pyproject.toml``, which brings the library."""


def check(project: str) -> None:
    """Raise ValueError where a project is named and the library is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"log.wandb={project!r}: the library wandb is not installed; run "
            f"`pip install -e '.[{EXTRA}]'` in the checkout, or leave log.wandb empty"
        )


class Board:
    """One run there; the same one after a restart.

    Args:
      project: name of the project.
      place: the work directory, a path or an address: names the run, and by it a
        restart is known.
      directory: of this machine, where the library has its files.
      config: of the run, shown there.
    """

    def __init__(
        self,
        project: str,
        place: str | pathlib.Path,
        directory: pathlib.Path,
        config: Mapping[str, Any],
    ):
        wandb = importlib.import_module("wandb")
        address = str(place)
        self._run: Any = None
        try:
            self._run = wandb.init(
                project=project,
                name=address.rsplit("/", 1)[-1],
                id=hashlib.blake2b(address.encode(), digest_size=8).hexdigest(),
                resume="allow",
                dir=str(directory),
                config=dict(config),
            )
            # A step has lines of several kinds, and is done again after a kill.
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # of the network, the service, the account
            logging.warning("nothing goes to Weights & Biases: %s", error)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of one step."""
        if self._run is None:
            return
        try:
            self._run.log({**values, "step": step})
        except Exception as error:  # as above
            logging.warning("Weights & Biases lacks step %d: %s", step, error)

    def close(self) -> None:
        """Wait until everything is sent."""
        if self._run is not None:
            self._run.finish()
