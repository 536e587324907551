"""A run as reports know it: its answers, and what pins them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from mpo_jax.evals import lines as lines_lib
from mpo_jax.evals.lines import Line, Unanswered
from mpo_jax.evals.pin import Pin

ITEMS = "items.jsonl"
UNANSWERED = "unanswered.jsonl"
JSON = "report.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """The answers of a run.

    Attributes:
      name: in tables.
      lines, unanswered: what ``items.jsonl`` and its second list hold.
      pin: None where it is not known.
    """

    name: str
    lines: Sequence[Line]
    unanswered: Sequence[Unanswered] = ()
    pin: Pin | None = None

    @classmethod
    def read(cls, folder: str | pathlib.Path, *, name: str = "") -> Run:
        """A run from its work directory, to compare with.

        Args:
          name: "" is the folder's.

        Raises:
          OSError: there is no ``items.jsonl``.
          ValueError: it, or ``report.json``, is damaged.
        """
        folder = pathlib.Path(folder)
        found = lines_lib.read(folder / ITEMS)
        missing = folder / UNANSWERED
        unanswered = lines_lib.read_unanswered(missing) if missing.is_file() else ()
        path = folder / JSON
        pinned = None
        if path.is_file():
            try:
                report = json.loads(path.read_bytes())
            except ValueError as error:
                raise ValueError(
                    f"{path}: not JSON ({error}); evaluate again"
                ) from error
            value = report.get("pin") if isinstance(report, dict) else None
            pinned = None if value is None else Pin.from_json(value, str(path))
        return cls(name or folder.resolve().name, found, unanswered, pinned)
