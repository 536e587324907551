"""What a start is trained with: names, losses, and what the paper found of each."""

from __future__ import annotations

import copy
import dataclasses

from mpo_jax import config, types


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train on pairs.

    Attributes:
      title: for people.
      terms, weights: of the loss.
      paper: direct and CoT accuracy on M3CoT in percent (arXiv 2411.10442, ablations:
        all trained on M3CoT's pairs at one learning rate).
    """

    title: str
    terms: tuple[str, ...]
    weights: tuple[float, ...]
    paper: tuple[float, float]

    @property
    def mode(self) -> str:
        """Of the trainer."""
        return types.SFT if self.terms == ("sft",) else types.MPO


START = "start"
START_PAPER = (59.3, 57.0)
"""Direct and CoT accuracy of InternVL2-8B, as of ``Method.paper``."""

METHODS = {
    "sft": Method("SFT on chosen", ("sft",), (1.0,), (65.7, 68.5)),
    "dpo": Method("DPO", ("sigmoid",), (1.0,), (75.8, 72.7)),
    "bco": Method("BCO", ("bco_pair",), (1.0,), (78.1, 78.4)),
    "dpo_sft": Method("DPO + SFT", ("sigmoid", "sft"), (1.0, 1.0), (76.4, 78.9)),
    "mpo": Method("MPO", ("sigmoid", "bco_pair", "sft"), (0.8, 0.2, 1.0), (77.7, 79.1)),
}


def title_of(name: str) -> str:
    """For people; the start is one, too."""
    return "Start (SFT)" if name == START else METHODS[name].title


def training(
    shared: config.RunConfig, name: str, *, learning_rate: float, seed: int
) -> config.RunConfig:
    """The training of a method, of what all have in common."""
    method, found = METHODS[name], copy.deepcopy(shared)
    found.name, found.seed, found.mode = name, seed, method.mode
    found.loss.terms, found.loss.weights = method.terms, method.weights
    found.optim.learning_rate = learning_rate
    if method.mode == types.SFT:
        found.reference.mode = "none"
        found.rows.short.rejected_tokens = 0
    return found
