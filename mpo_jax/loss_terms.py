"""Names of the loss terms and what each reads.

Facts alone, so that a configuration is checked without JAX; ``losses`` computes the
terms, ``docs/losses.md`` has their formulas.
"""

from __future__ import annotations

from collections.abc import Sequence

SFT_TERM = "sft"
"""Likelihood of the chosen response; needs neither reference nor rejected ones."""

ORPO_TERM = "orpo"
"""Odds ratio of both responses; needs no reference."""

PAIR_TERMS = (
    *("sigmoid", "hinge", "ipo", "bco_pair", "sppo_hard", "nca_pair", "robust"),
    *("aot", "aot_pair", "exo_pair"),
)
"""Terms that compare policy and reference on a pair."""

ALIASES = {"cdpo": "sigmoid", "rso": "hinge"}
"""Names used in the paper: cDPO is `sigmoid` with label smoothing, RSO is `hinge`."""

BATCH_COUPLED = frozenset({"aot", "aot_pair"})
"""Terms that mix the pairs of a batch; they need the whole global batch at once."""

SMOOTHED = frozenset({"sigmoid", "robust", "aot", "aot_pair", "exo_pair"})
"""Terms that read `label_smoothing`."""

TERMS = (*PAIR_TERMS, *ALIASES, SFT_TERM, ORPO_TERM)
"""What ``loss.terms`` may name."""


def canonical(term: str) -> str:
    """The term that an alias stands for; every other name is its own."""
    return ALIASES.get(term, term)


def with_reference(terms: Sequence[str]) -> tuple[str, ...]:
    """Those of the terms that compare policy and reference on pairs."""
    return tuple(term for term in terms if term not in (SFT_TERM, ORPO_TERM))
