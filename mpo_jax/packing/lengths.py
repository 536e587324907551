"""What records cost and rows hold, in the five budgets of a row."""

from __future__ import annotations

import dataclasses

import numpy as np

from mpo_jax.types import RowShape

BUDGETS = ("prompt_tokens", "chosen_tokens", "rejected_tokens", "tiles", "pairs")
"""The budgets of a row, in the column order of every ``[..., 5]`` array here."""


def capacity(shape: RowShape) -> list[int]:
    """What a row of a shape holds, in the order of :data:`BUDGETS`."""
    return [getattr(shape, name) for name in BUDGETS]


@dataclasses.dataclass(frozen=True, eq=False)
class Lengths:
    """What every record of the index costs; all int32 ``[records]``, non-negative.

    Attributes:
      prompt: prompt tokens, image tokens included.
      chosen, rejected: tokens of the response segments (``rejected`` 0 in SFT mode).
      tiles: image tiles.
      max_sequence: tokens of a prompt and one response that the model takes, the last
        label included; 0 is no bound. A longer pair fits no row shape.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    tiles: np.ndarray
    max_sequence: int = 0

    def __post_init__(self):
        for name, value in self.columns().items():
            if value.ndim != 1 or not np.issubdtype(value.dtype, np.integer):
                raise ValueError(
                    f"Lengths.{name} must be a 1-D integer array; got "
                    f"{value.dtype} {value.shape}"
                )
            if len(value) != len(self.prompt):
                raise ValueError(
                    f"Lengths.{name} has {len(value)} records, Lengths.prompt "
                    f"{len(self.prompt)}; all columns must come from one index"
                )
            if len(value) and value.min() < 0:
                where = int(value.argmin())
                raise ValueError(f"Lengths.{name}[{where}] = {value[where]} < 0")

    def __len__(self) -> int:
        return len(self.prompt)

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        fields = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in fields if name != "max_sequence"}

    def sequence(self, record_ids: np.ndarray) -> np.ndarray:
        """Tokens of the longer sequence of every pair: int64 ``[n]``.

        A response segment leaves out its last label, a sequence does not.
        """
        longer = np.maximum(self.chosen[record_ids], self.rejected[record_ids])
        return self.prompt[record_ids].astype(np.int64) + longer + 1

    def beyond_model(self, record_ids: np.ndarray) -> np.ndarray:
        """Pairs that are longer than ``max_sequence``: bool ``[n]``."""
        if not self.max_sequence:
            return np.zeros(len(record_ids), bool)
        return self.sequence(record_ids) > self.max_sequence

    def need(self, record_ids: np.ndarray) -> np.ndarray:
        """Budget use of records: int64 ``[n, 5]``, columns as in :data:`BUDGETS`."""
        columns = [self.prompt, self.chosen, self.rejected, self.tiles]
        need = np.ones((len(record_ids), len(BUDGETS)), np.int64)
        for i, column in enumerate(columns):
            need[:, i] = column[record_ids]
        return need
