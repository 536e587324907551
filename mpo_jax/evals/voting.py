"""One answer of several samples: by vote, by likelihood, or the best there was.

Each way picks one sample of every item, so that what is counted and tested for single
answers is so for these. The mean over samples picks none: it is the score averaged over
rounds, of which each has one sample of every item.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from mpo_jax.evals.lines import Line

MEAN = "mean"
VOTE = "vote"
BEST = "best"
ANY = "any"
MEANING = {
    MEAN: "mean of the score over the samples",
    VOTE: "self-consistency: the prediction that most samples give, the earliest of "
    "those that are equally frequent; a sample without a prediction has no vote",
    BEST: "the sample with the highest mean log-probability per token; no judge, no "
    "knowledge of the truth",
    ANY: "any sample is right: an upper bound that no selection can pass, not a score",
}

Same = Callable[[str, str, Line], bool]
"""Whether two predictions for a line's item mean the same (``verify``, say)."""


def by_item(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Samples of each item in the order of their numbers; items as they first occur."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line.id, []).append(line)
    return {id: sorted(of, key=lambda line: line.sample) for id, of in found.items()}


def rounds(samples: Mapping[str, Sequence[Line]]) -> list[list[Line]]:
    """Lines by sample number: of every item the first, of every item the second, …"""
    numbers = sorted({line.sample for of in samples.values() for line in of})
    found: dict[int, list[Line]] = {number: [] for number in numbers}
    for of in samples.values():
        for line in of:
            found[line.sample].append(line)
    return list(found.values())


def select(
    samples: Mapping[str, Sequence[Line]], how: str, *, same: Same | None = None
) -> list[Line] | None:
    """One line per item, of the mode ``<mode>@<how>``.

    Args:
      how: ``vote``, ``best`` or ``any``.
      same: see :data:`Same`; None: equal after normalisation.

    Returns:
      None for ``best`` where a sample does not say its log-probability and length.
    """
    if how == BEST and not all(
        line.logprob is not None and line.tokens
        for of in samples.values()
        for line in of
    ):
        return None
    if how == VOTE:
        picked = [vote(of, same=same) for of in samples.values()]
    else:
        score = {BEST: _likelihood, ANY: _points}[how]
        # Of equals `max` takes the first.
        picked = [max(of, key=score) for of in samples.values()]
    return [dataclasses.replace(line, mode=f"{line.mode}@{how}") for line in picked]


def vote(samples: Sequence[Line], *, same: Same | None = None) -> Line:
    """The earliest sample with the most frequent prediction.

    Where no sample has a prediction, the first one.

    Args:
      samples: of one item, in order.
    """
    camps: list[list[Line]] = []
    for line in samples:
        if not line.grade.prediction.strip():
            continue
        camp = next((c for c in camps if _agree(c[0], line, same)), None)
        if camp is None:
            camps.append([line])
        else:
            camp.append(line)
    return max(camps, key=len)[0] if camps else samples[0]


def normal(prediction: str) -> str:
    """A prediction without what does not tell it from others: case, white space."""
    return " ".join(unicodedata.normalize("NFKC", prediction).casefold().split())


def _agree(first: Line, second: Line, same: Same | None) -> bool:
    one, other = first.grade.prediction, second.grade.prediction
    if normal(one) == normal(other):
        return True
    return same is not None and same(one, other, first)


def _likelihood(line: Line) -> float:
    assert line.logprob is not None and line.tokens  # `select` has looked
    return line.logprob / line.tokens


def _points(line: Line) -> float:
    return line.grade.points
