"""What somebody would get right who sees no question: by length, or by the answer.

Training can learn such a short cut instead of what makes an answer right. Pairs stream;
memory does not grow with their number.
"""

from __future__ import annotations

import collections
import hashlib
import math
import re
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np

from mpo_jax.prefs import seam
from mpo_jax.prefs.pair_folder import Line

MAX_LENGTH = 1 << 16
"""Longer answers count as of this length."""
BUCKETS = 1 << 16
"""Of answers, by hash: any number of different ones fits."""
TOP = 15
"""Answers that are told by name."""
_LETTER = re.compile(r"\(?([a-z])(?:\)|\.)?")
_CANDIDATES = 20 * TOP
_MAX_EXACT = 20_000


class Share:
    """Share of pairs in which something holds, a tie being half.

    Attributes:
      pairs: that were seen.
      wins: pairs in which it holds.
      ties: pairs of which nothing can be said.
    """

    def __init__(self) -> None:
        self.pairs = self.wins = self.ties = 0
        self._prompt: Hashable = None
        self._open = (0.0, 0)
        self._prompts = 0
        self._squares = np.zeros(3)

    def add(self, prompt: Hashable, difference: float) -> None:
        """Take a pair; it holds where `difference` is positive.

        Args:
          prompt: pairs of one prompt, which are alike, come one after the other.
        """
        if self.pairs and prompt != self._prompt:
            self._prompts, self._squares = self._closed()
            self._open = (0.0, 0)
        self._prompt = prompt
        won, number = self._open
        self._open = won + (difference > 0) + 0.5 * (difference == 0), number + 1
        self.pairs += 1
        self.wins += difference > 0
        self.ties += difference == 0

    def _closed(self) -> tuple[int, np.ndarray]:
        """Number of prompts and sums of squares with the open one."""
        won, number = self._open
        more = np.array([won * won, won * number, number * number])
        return self._prompts + bool(number), self._squares + more

    @property
    def value(self) -> float | None:
        """The share; None without pairs."""
        return (self.wins + self.ties / 2) / self.pairs if self.pairs else None

    def interval(self) -> tuple[float, float] | None:
        """95 %, over prompts: Wilson's at the number of independent pairs that would
        vary as much. None for fewer than two prompts."""
        share, (prompts, squares) = self.value, self._closed()
        if share is None or prompts < 2:
            return None
        won, both, number = squares
        spread = won - 2 * share * both + share * share * number
        variance = spread * prompts / (prompts - 1) / self.pairs**2
        alone = share * (1 - share) / variance if variance > 0 else prompts
        return seam.wilson(share, max(1.0, min(alone, self.pairs)))


class Lengths:
    """Lengths of both sides of pairs.

    Attributes:
      chosen, rejected: number of answers by length.
      longer: share of pairs whose chosen answer is the longer one: 0.5 says nothing.
    """

    def __init__(self) -> None:
        self.chosen: collections.Counter[int] = collections.Counter()
        self.rejected: collections.Counter[int] = collections.Counter()
        self.longer = Share()

    def add(self, prompt: Hashable, chosen: int, rejected: int) -> None:
        """Take a pair."""
        self.chosen[min(chosen, MAX_LENGTH)] += 1
        self.rejected[min(rejected, MAX_LENGTH)] += 1
        self.longer.add(prompt, chosen - rejected)


def quantile(lengths: collections.Counter[int], share: float) -> int:
    """The least length that so many of all do not exceed; 0 without any."""
    wanted, seen = share * sum(lengths.values()), 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= wanted:
            return length
    return 0


def steps(most: int) -> list[int]:
    """Lower ends of bins up to `most`, two for each doubling: 0, 1, 2, 3, 4, 6, 8, …"""
    found = [0, 1]
    while found[-1] <= most:
        found.append(found[-1] * 3 // 2 if _is_power(found[-1]) else _next(found[-1]))
    return found[:-1] if found[-1] > most else found


def _is_power(number: int) -> bool:
    return number & (number - 1) == 0 and number > 1


def _next(number: int) -> int:
    return 1 << number.bit_length()


def binned(lengths: collections.Counter[int], edges: list[int]) -> list[int]:
    """Number of answers in the bins that begin at `edges`."""
    found = [0] * len(edges)
    for length, number in lengths.items():
        found[int(np.searchsorted(edges, length, side="right")) - 1] += number
    return found


class Answers:
    """Final answers of both sides, and a guess by them alone.

    Whoever guesses knows how often an answer is chosen and rejected in pairs of other
    questions: questions are halved by hash, and each half is guessed by the other.
    Pairs pass twice: :meth:`count`, then :meth:`guess`.

    Attributes:
      guessed: share of pairs that are guessed right.
      without: pairs in which a side has no final answer.
    """

    def __init__(self) -> None:
        self.guessed = Share()
        self.without = 0
        self._counts = np.zeros((2, 2, BUCKETS), np.int64)  # half, side, answer
        self._frequent: set[int] | None = None
        self._exact: collections.Counter[tuple[int, str]] = collections.Counter()

    def count(self, line: Line) -> None:
        """Take a pair, the first time."""
        half = _half(line)
        said = list(_said(line))
        self.without += len(said) < 2
        if len(said) == 2:
            for side, (bucket, _) in enumerate(said):
                self._counts[half, side, bucket] += 1

    def guess(self, line: Line) -> None:
        """Take a pair, the second time."""
        if self._frequent is None:
            order = np.argsort(self._counts.sum((0, 1)), kind="stable")
            self._frequent = set(order[-_CANDIDATES:].tolist())
        said = list(_said(line))
        if len(said) < 2:
            return
        other = self._counts[1 - _half(line)]
        liked = []
        for side, (bucket, answer) in enumerate(said):
            liked.append(math.log((other[0, bucket] + 1) / (other[1, bucket] + 1)))
            known = (side, answer) in self._exact or len(self._exact) < _MAX_EXACT
            if bucket in self._frequent and known:
                self._exact[side, answer] += 1
        self.guessed.add(line.prompt, liked[0] - liked[1])

    def top(self) -> list[tuple[str, int, int]]:
        """The most frequent answers with how often they are chosen and rejected."""
        total = collections.Counter[str]()
        for (_, answer), number in self._exact.items():
            total[answer] += number
        first = sorted(total, key=lambda answer: (-total[answer], answer))[:TOP]
        return [(one, self._exact[0, one], self._exact[1, one]) for one in first]


def _said(line: Line) -> Iterator[tuple[int, str]]:
    """Buckets and texts of the final answers of both sides, as far as there are any."""
    for side in line.sides:
        if side.prediction is not None:
            answer = " ".join(side.prediction.casefold().split())
            letter = _LETTER.fullmatch(answer)
            answer = letter[1] if letter else answer
            yield _hash(answer) % BUCKETS, answer


def _half(line: Line) -> int:
    """Which half a question is in; all prompts of it are in one."""
    return _hash(line.question if line.id is None else repr(line.id)) & 1


def _hash(value: Any) -> int:
    digest = hashlib.blake2b(str(value).encode("utf-8", "replace"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
