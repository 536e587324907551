"""What of a step's time is not the products of its true tokens, and how to save it.

Work is counted in forward passes: the gradient of a pass is two more, so a step without
anything on top is three.
"""

from __future__ import annotations

import dataclasses

from mpo_jax import config as config_lib
from mpo_jax.losses import mixture
from mpo_jax.plan import estimate, programs

_AGAIN = {"full": "all of every layer", "offload": "all of every layer"}
_AGAIN |= {
    "attention": "every layer but its attention",
    "dots": "what is no product of weights",
}


def costs(case: programs.Case, found: estimate.Estimate | None) -> tuple[str, ...]:
    """Causes in words, with the field that saves each; none for a reference pass.

    Args:
      found: of the case; without it padding is not told.
    """
    if case.step != "train":
        return ()
    said = []
    passes = 4 if case.cfg.model.remat in ("full", "offload") else 3
    if case.micro_batches > 1 and mixture.needs_two_passes(case.cfg.loss):
        said.append(
            f"{case.micro_batches} micro-batches and a loss that couples all pairs: "
            f"one more forward pass, 1/{passes} more work"
            f"{_without_second_pass(case.cfg)}"
        )
    again = _AGAIN.get(case.cfg.model.remat)
    if again is not None:
        more = ", 1/3 more work" if passes == 4 else ""
        said.append(
            f"model.remat={case.cfg.model.remat!r} computes {again} twice{more}; "
            "--search finds out what memory allows instead"
        )
    if found is not None and found.useful:
        said.append(
            f"padding: {found.budget / found.useful - 1:.0%} more work than tokens "
            "need, on lengths like MMPR's; rows.short and rows.long decide it "
            "(benchmarks/packing.py)"
        )
    return tuple(said)


def _without_second_pass(cfg: config_lib.RunConfig) -> str:
    """The remedy, where another reward shift is all that it takes."""
    other = dataclasses.replace(cfg.loss, delta="previous")
    if mixture.needs_two_passes(other):
        return "; only a single micro-batch does without"
    return (
        f" for loss.delta={cfg.loss.delta!r}; --config.loss.delta=previous (the shift "
        "without this batch) saves it"
    )
