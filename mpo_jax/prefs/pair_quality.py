"""What a person should know of pairs before training on them, in numbers.

Pairs are read twice and never held; counts and a bounded sample are.
"""

from __future__ import annotations

import collections
import hashlib
import heapq
from collections.abc import Hashable, Mapping
from typing import TypeVar

from mpo_jax.prefs.guesses import Answers, Lengths
from mpo_jax.prefs.overlap_report import Report
from mpo_jax.prefs.pair_folder import OTHER, SIDES, Line, Reader

K = TypeVar("K", bound=Hashable)

ALL = "all"
MAX_RULES = 500
"""Rules that are told apart; further ones count as one."""
Place = tuple[int, int]
"""Annotation and offset of a pair."""


class Quality:
    """Numbers of all pairs.

    Attributes:
      pairs: number of pairs by annotation and reason.
      sources: by annotation, its source.
      characters, tokens: by reason, and of :data:`ALL`; tokens where both sides tell
        theirs.
      rules: number of answers by side, verdict and rule.
      answers: final answers.
      sample: places of the pairs that are shown, by reason, evenly.
      bad: lines that are no pairs, by reason, with the first of them.
    """

    def __init__(self) -> None:
        self.pairs: collections.Counter[tuple[int, str]] = collections.Counter()
        self.sources: dict[int, str] = {}
        self.characters: dict[str, Lengths] = {ALL: Lengths()}
        self.tokens: dict[str, Lengths] = {ALL: Lengths()}
        self.rules: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self.answers = Answers()
        self.sample: list[Place] = []
        self.bad: collections.Counter[str] = collections.Counter()
        self.first_bad = ""

    @property
    def total(self) -> int:
        return sum(self.pairs.values())

    def by_reason(self) -> dict[str, int]:
        """Number of pairs by reason, the most first."""
        found = collections.Counter[str]()
        for (_, reason), number in self.pairs.items():
            found[reason] += number
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def by_source(self) -> dict[str, dict[str, int]]:
        """Number of pairs by source and reason."""
        found: dict[str, collections.Counter[str]] = {}
        for (annotation, reason), number in self.pairs.items():
            of = found.setdefault(self.sources[annotation], collections.Counter())
            of[reason] += number
        return {source: dict(found[source]) for source in sorted(found)}

    def count(self, line: Line) -> None:
        """Take a pair, the first time."""
        self.pairs[line.annotation, line.reason] += 1
        self.sources.setdefault(line.annotation, line.source)
        chosen, rejected = line.sides
        sizes = [(self.characters, len(chosen.text), len(rejected.text))]
        if chosen.tokens is not None and rejected.tokens is not None:
            sizes.append((self.tokens, chosen.tokens, rejected.tokens))
        for lengths, one, other in sizes:
            for reason in (ALL, line.reason):
                lengths.setdefault(reason, Lengths()).add(line.prompt, one, other)
        for name, side in zip(SIDES, line.sides, strict=True):
            key = (name, side.verdict, side.rule)
            if key not in self.rules and len(self.rules) >= MAX_RULES:
                key = (name, "", OTHER)
            self.rules[key] += 1
        self.answers.count(line)


def measure(reader: Reader, *, examples: int, overlap: Report | None) -> Quality:
    """Read all pairs twice.

    Args:
      examples: number of pairs to draw.
      overlap: is shown every pair.

    Raises:
      OSError: an annotation cannot be read.
    """
    found = Quality()
    for line in reader.lines():
        found.count(line)
    sample = Sample(quotas(found.pairs, examples))
    for line in reader.lines():
        found.answers.guess(line)
        sample.offer(line)
        if overlap is not None:
            overlap.look(line)
    found.sample = sample.places()
    found.bad, found.first_bad = reader.bad, reader.first_bad
    return found


def quotas(
    pairs: Mapping[tuple[int, str], int], most: int
) -> dict[tuple[int, str], int]:
    """How many pairs of each annotation and reason are shown.

    Reasons get the same share, and so do the annotations of a reason; what has fewer
    gives the rest to the others.
    """
    by_reason = collections.Counter[str]()
    for (_, reason), number in pairs.items():
        by_reason[reason] += number
    found = {}
    for reason, share in evenly(by_reason, most).items():
        of = {key: number for key, number in pairs.items() if key[1] == reason}
        found |= evenly(of, share)
    return found


def evenly(numbers: Mapping[K, int], most: int) -> dict[K, int]:
    """Shares of `most`, as even as the numbers allow; the larger ones get the rest."""
    found, left = {}, most
    order = sorted(numbers, key=lambda name: (numbers[name], str(name)))
    for place, name in enumerate(order):
        found[name] = min(numbers[name], left // (len(order) - place))
        left -= found[name]
    return found


class Sample:
    """Pairs drawn by the hash of what they say, a given number of each kind."""

    def __init__(self, quotas: Mapping[tuple[int, str], int]):
        self._quotas = quotas
        self._heaps: dict[tuple[int, str], list[tuple[int, Place]]] = {}

    def offer(self, line: Line) -> None:
        """Take a pair, unless enough with smaller hashes are there."""
        key = line.annotation, line.reason
        quota = self._quotas.get(key, 0)
        if not quota:
            return
        heap = self._heaps.setdefault(key, [])
        text = "\0".join((repr(line.id), *(side.text for side in line.sides)))
        digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8)
        # Negated: the largest hash is the first to go.
        item = -int.from_bytes(digest.digest(), "big"), (line.annotation, -line.offset)
        if len(heap) < quota:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)

    def places(self) -> list[Place]:
        """Where they stand, reasons taking turns, each in the order of the hashes."""
        queues: dict[str, list[tuple[int, Place]]] = {}
        for (_, reason), heap in self._heaps.items():
            queues.setdefault(reason, []).extend(heap)
        ordered = [sorted(queues[reason], reverse=True) for reason in sorted(queues)]
        longest = max(map(len, ordered), default=0)
        return [
            (queue[k][1][0], -queue[k][1][1])
            for k in range(longest)
            for queue in ordered
            if k < len(queue)
        ]
