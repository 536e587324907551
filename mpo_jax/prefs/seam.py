"""Can the place where an answer was cut be told from its tokens?

Chosen and rejected answers of a Dropout-NTP pair share their beginning. If a simple
classifier that sees nothing but some tokens around the cut can tell them apart, then so
can training, and it would learn the seam instead of what was said. At chance is good.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, sparse, special

BEFORE, AFTER = 4, 4
"""Tokens that the classifier sees on each side of the cut."""
BUCKETS = 1 << 14
"""Features; hashing puts any vocabulary into them."""
FOLDS = 5
MAX_PAIRS = 4000
"""Pairs that are looked at; more make the interval no more useful."""
MIN_PAIRS = 20
"""With fewer there is nothing to say."""
_PENALTY = 1.0
"""L2, in the unit of one pair's loss: weak beside hundreds of pairs."""
_NO_TOKEN = -1
Window = tuple[int, ...]
"""Token ids around a cut, :data:`BEFORE` and :data:`AFTER`; -1 where there is none."""


@dataclasses.dataclass(frozen=True)
class Found:
    """How well the two kinds of answers are told apart.

    Attributes:
      accuracy: share told right, on pairs that the classifier was not fitted on.
      low, high: 95 % interval, over pairs.
      pairs: that were looked at.
    """

    accuracy: float
    low: float
    high: float
    pairs: int

    @property
    def at_chance(self) -> bool:
        """Does the interval hold one half?"""
        return self.low <= 0.5 <= self.high


def window(
    text: str,
    shared: int,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
) -> Window:
    """Tokens around a cut as training will have them: those of the whole text.

    Args:
      shared: characters before the cut.
      encode, decode: text to token ids and back.
    """
    ids = list(encode(text))
    low, high = 0, len(ids)  # most tokens whose text is no longer than `shared`
    while low < high:
        middle = (low + high + 1) // 2
        if len(decode(ids[:middle])) <= shared:
            low = middle
        else:
            high = middle - 1
    blank = [_NO_TOKEN] * max(BEFORE, AFTER)
    before = [*blank, *ids[:low]][-BEFORE:]
    return (*before, *[*ids[low:], *blank][:AFTER])


class Windows:
    """At most :data:`MAX_PAIRS` pairs of windows, drawn evenly by the hash of a key.

    Which ones they are depends neither on their order nor on how they are dealt out.
    """

    def __init__(self, most: int = MAX_PAIRS):
        self._most = most
        self._heap: list[tuple[int, Window, Window]] = []  # negated: largest first

    def add(self, key: str, chosen: Window, rejected: Window) -> None:
        """Take a pair, unless enough with smaller hashes are there."""
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        item = (-int.from_bytes(digest, "big"), chosen, rejected)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, item)
        else:
            heapq.heappushpop(self._heap, item)

    def pairs(self) -> list[tuple[Window, Window]]:
        """(chosen, rejected) in the order of the hashes."""
        ordered = sorted(self._heap, reverse=True)
        return [(chosen, rejected) for _, chosen, rejected in ordered]


def check(pairs: Sequence[tuple[Window, Window]]) -> Found | None:
    """Fit a logistic regression and tell its accuracy on pairs left out of the fit.

    Both answers of a pair are in one fold, so that a question cannot be recognised.

    Args:
      pairs: windows of (chosen, rejected).

    Returns:
      None for fewer than :data:`MIN_PAIRS`.
    """
    if len(pairs) < MIN_PAIRS:
        return None
    inputs = _features([side for pair in pairs for side in pair])
    labels = np.tile([1.0, -1.0], len(pairs))
    fold = np.repeat(np.arange(len(pairs)) % FOLDS, 2)
    right = np.zeros(len(labels))
    for number in range(FOLDS):
        test = fold == number
        weights = _fit(inputs[~test], labels[~test])
        margin = labels[test] * (inputs[test] @ weights)
        right[test] = (1 + np.sign(margin)) / 2  # undecided is half right
    by_pair = right.reshape(-1, 2).mean(axis=1)
    mean = float(by_pair.mean())
    # Wilson's interval: it stays within [0, 1] and is none where all are right. Two
    # answers of a pair are nearly always told together, so it counts pairs.
    low, high = wilson(mean, len(by_pair))
    return Found(mean, low, high, len(pairs))


def words(found: Mapping[str, Any] | None) -> str:
    """A manifest's seam check for people."""
    if found is None:
        return f"Seam: fewer than {MIN_PAIRS} pairs, not checked"
    said = "at chance" if found["at_chance"] else "NOT at chance, docs/dropout_ntp.md"
    return (
        f"Seam: told apart by the tokens around the cut {found['accuracy']:.1%} "
        f"[{found['low']:.1%}, {found['high']:.1%}] of {found['pairs']} pairs: {said}"
    )


def wilson(share: float, number: float) -> tuple[float, float]:
    """95 % interval of a share of so many independent cases."""
    z = 1.959964
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    spread = share * (1 - share) / number + z * z / (4 * number * number)
    half = z * np.sqrt(spread) / (1 + z * z / number)
    return float(middle - half), float(middle + half)


def _features(windows: Sequence[Window]) -> sparse.csr_matrix:
    """One column for each token at each place, one for the pair at the seam, hashed."""
    columns, starts = [], [0]
    for one in windows:
        named = [(place, token, 0) for place, token in enumerate(one)]
        named.append((len(one), one[BEFORE - 1], one[BEFORE]))
        columns += [_bucket(item) for item in named]
        starts.append(len(columns))
    used, places = np.unique(columns, return_inverse=True)  # few, as a rule
    matrix = sparse.csr_matrix(
        (np.ones(len(columns)), places, np.array(starts)),
        shape=(len(windows), len(used)),
    )
    matrix.sum_duplicates()
    return matrix


def _bucket(item: tuple[int, int, int]) -> int:
    packed = b"".join(part.to_bytes(8, "little", signed=True) for part in item)
    digest = hashlib.blake2b(packed, digest_size=8).digest()
    return int.from_bytes(digest, "little") % BUCKETS


def _fit(inputs: sparse.csr_matrix, labels: np.ndarray) -> np.ndarray:
    """Weights of a logistic regression, float64, one per column; there is one optimum.

    No intercept: there are as many chosen answers as rejected ones.
    """

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margin = labels * (inputs @ weights)
        value = np.logaddexp(0, -margin).sum() + _PENALTY / 2 * weights @ weights
        slope = inputs.T @ (-labels * special.expit(-margin)) + _PENALTY * weights
        return float(value), slope

    start = np.zeros_like(inputs.T @ labels)
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B")
    return found.x
