"""What the tests of rules share."""

from __future__ import annotations

from mpo_jax.verify import ladder
from mpo_jax.verify.policy import DEFAULT, Policy
from mpo_jax.verify.verdict import Truth


def judged(
    prediction: str,
    answer: str,
    *options: str,
    kind: str = "",
    policy: Policy = DEFAULT,
) -> str:
    """Outcome, or ``maths`` where mathematics is to be asked."""
    truth = Truth(answer, options, kind)
    verdict = ladder.decide(prediction, truth, policy)
    return "maths" if verdict is None else verdict.outcome


def rule(prediction: str, answer: str, *options: str, kind: str = "") -> str:
    """Name of the rule that decided."""
    verdict = ladder.decide(prediction, Truth(answer, options, kind))
    return "maths" if verdict is None else verdict.rule
