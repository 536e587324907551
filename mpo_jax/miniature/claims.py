"""What the paper says of its methods, held against the seeds of a miniature."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from mpo_jax.miniature import methods, results
from mpo_jax.miniature.results import Mean, Row

REPRODUCED, OPPOSITE, OPEN = "reproduced", "the opposite is found", "left open"

Side = tuple[str, Callable[[Row], float | None]]
"""Name of a model, and what is taken of its rows."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One thing has more of something than another.

    Attributes:
      text: for people.
      more, less: what is compared, seed by seed.
      unit: of the difference.
      paper: the difference there; None where it gives no such number.
    """

    text: str
    more: Side
    less: Side
    unit: str = "points"
    paper: float | None = None


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the seeds say of a claim.

    Attributes:
      difference: mean over seeds, with its interval.
    """

    claim: Claim
    difference: Mean

    @property
    def verdict(self) -> str:
        """Reproduced where the whole interval is on the claim's side."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None:
            return "one seed: no interval"
        return REPRODUCED if low > 0 else OPPOSITE if high < 0 else OPEN


def _cot(row: Row) -> float:
    return row.cot


def _direct(row: Row) -> float:
    return row.direct


def _sampled(row: Row) -> float | None:
    return row.sampled


def _unparsable(row: Row) -> float:
    return row.unparsable


def _lost(what: str) -> Callable[[Row], float | None]:
    def lost(row: Row) -> float | None:
        gain = getattr(row, what)
        return None if gain is None else -gain

    return lost


def _nothing(row: Row) -> float:
    del row
    return 0.0


def _paper(first: tuple[str, int], second: tuple[str, int]) -> float:
    """Difference of two of the paper's numbers: model, and 0 direct or 1 CoT."""

    def number(name: str, mode: int) -> float:
        if name == methods.START:
            return methods.START_PAPER[mode]
        return methods.METHODS[name].paper[mode]

    return number(*first) - number(*second)


START = methods.START
CLAIMS = (
    Claim(
        "Before, chain of thought is below direct answers",
        (START, _direct),
        (START, _cot),
        paper=_paper((START, 0), (START, 1)),
    ),
    Claim(
        "MPO lifts chain of thought above the start's",
        ("mpo", _cot),
        (START, _cot),
        paper=_paper(("mpo", 1), (START, 1)),
    ),
    Claim(
        "After MPO, chain of thought is above the model's own direct answers",
        ("mpo", _cot),
        ("mpo", _direct),
        paper=_paper(("mpo", 1), ("mpo", 0)),
    ),
    Claim(
        "After MPO, chain of thought is above the start's direct answers",
        ("mpo", _cot),
        (START, _direct),
        paper=_paper(("mpo", 1), (START, 0)),
    ),
    Claim(
        "MPO lifts direct answers, too",
        ("mpo", _direct),
        (START, _direct),
        paper=_paper(("mpo", 0), (START, 0)),
    ),
    Claim(
        "MPO is above SFT on the chosen answers",
        ("mpo", _cot),
        ("sft", _cot),
        paper=_paper(("mpo", 1), ("sft", 1)),
    ),
    Claim(
        "The same for answers at temperature 1", ("mpo", _sampled), ("sft", _sampled)
    ),
    Claim(
        "DPO alone stays below MPO",
        ("mpo", _cot),
        ("dpo", _cot),
        paper=_paper(("mpo", 1), ("dpo", 1)),
    ),
    Claim(
        "After DPO alone, chain of thought is below the model's own direct answers",
        ("dpo", _direct),
        ("dpo", _cot),
        paper=_paper(("dpo", 0), ("dpo", 1)),
    ),
    Claim(
        "DPO alone leaves more answers without a final answer than MPO",
        ("dpo", _unparsable),
        ("mpo", _unparsable),
        paper=16.4 - 0.3,
    ),
    Claim(
        "DPO alone makes the chosen answers less likely",
        ("dpo", _lost("chosen_gain")),
        ("dpo", _nothing),
        unit="nats",
    ),
    Claim(
        "DPO alone makes the rejected answers less likely",
        ("dpo", _lost("rejected_gain")),
        ("dpo", _nothing),
        unit="nats",
    ),
    Claim(
        "MPO is above DPO + SFT (what BCO adds)",
        ("mpo", _cot),
        ("dpo_sft", _cot),
        paper=_paper(("mpo", 1), ("dpo_sft", 1)),
    ),
    Claim(
        "BCO alone is above DPO alone",
        ("bco", _cot),
        ("dpo", _cot),
        paper=_paper(("bco", 1), ("dpo", 1)),
    ),
)


def findings(rows: Sequence[Row]) -> list[Finding]:
    """All claims about models that were made, in order."""
    names = {row.name for row in rows}
    found = []
    for claim in CLAIMS:
        if not {claim.more[0], claim.less[0]} <= names:
            continue
        difference = results.difference(rows, claim.more, claim.less)
        if difference is not None:
            found.append(Finding(claim, difference))
    return found
