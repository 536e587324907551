"""What a start is trained with: names, losses, and what the paper found of each."""

from __future__ import annotations

import copy
import dataclasses

from mpo_jax import config, types


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train on pairs.

    Attributes:
      name: in configs.
      title: for people.
      terms, weights: of the loss.
      paper: direct and CoT accuracy on M3CoT in percent (arXiv 2411.10442, ablations:
        all trained on M3CoT's pairs at one learning rate).
    """

    name: str
    title: str
    terms: tuple[str, ...]
    weights: tuple[float, ...]
    paper: tuple[float, float]

    @property
    def mode(self) -> str:
        """Of the trainer."""
        return types.SFT if self.terms == ("sft",) else types.MPO


START, START_TITLE = "start", "Start (SFT)"
START_PAPER = (59.3, 57.0)
"""Direct and CoT accuracy of InternVL2-8B, as of ``Method.paper``."""

_ALL = (
    Method("sft", "SFT on chosen", ("sft",), (1.0,), (65.7, 68.5)),
    Method("dpo", "DPO", ("sigmoid",), (1.0,), (75.8, 72.7)),
    Method("bco", "BCO", ("bco_pair",), (1.0,), (78.1, 78.4)),
    Method("dpo_sft", "DPO + SFT", ("sigmoid", "sft"), (1.0, 1.0), (76.4, 78.9)),
    Method("mpo", "MPO", ("sigmoid", "bco_pair", "sft"), (0.8, 0.2, 1.0), (77.7, 79.1)),
)
METHODS = {method.name: method for method in _ALL}


@dataclasses.dataclass(frozen=True)
class Model:
    """What is trained from a start: a method at a learning rate.

    Attributes:
      name: of its folder and its rows.
      title: for people.
    """

    name: str
    title: str
    method: Method
    learning_rate: float


def model(name: str, learning_rate: float) -> Model:
    """A method at its learning rate."""
    return Model(name, METHODS[name].title, METHODS[name], learning_rate)


def candidate(name: str, learning_rate: float) -> Model:
    """A method at one of several learning rates."""
    method, rate = METHODS[name], f"{learning_rate:g}"
    return Model(f"{name}_{rate}", f"{method.title} at {rate}", method, learning_rate)


def training(shared: config.RunConfig, model: Model, *, seed: int) -> config.RunConfig:
    """The training of a model, of what all have in common."""
    method, found = model.method, copy.deepcopy(shared)
    found.name, found.seed, found.mode = model.name, seed, method.mode
    found.loss.terms, found.loss.weights = method.terms, method.weights
    found.optim.learning_rate = model.learning_rate
    if method.mode == types.SFT:
        found.reference.mode = "none"
        found.rows.short.rejected_tokens = 0
    return found
