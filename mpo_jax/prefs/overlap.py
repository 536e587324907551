"""Which questions are those of an evaluation: by their text, by their picture.

Texts are compared without regard to case, white space, punctuation and placeholders.
They are *equal*, *near* (most of their 5-grams are the same, and all numbers and signs
in order) or *long with other numbers* (equal but for the numbers, and long enough that
nobody would write it twice). Other numbers in a short text are another question.
Memory grows with the evaluation alone.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from mpo_jax.prefs import image_hash

EQUAL, NEAR, RENUMBERED = "equal", "near", "renumbered"
IMAGE = "image"
SAME_TEXT_OTHER_IMAGE = "same_text_other_image"

MEANING = {
    EQUAL: "the question is the same",
    NEAR: "most of the question is the same, and all of its numbers",
    RENUMBERED: "a long question is the same but for its numbers",
    IMAGE: "an image looks the same",
    SAME_TEXT_OTHER_IMAGE: "a short question is the same, its images are others; kept",
}
"""Kinds of overlap, for the report."""

MIN_JACCARD = 0.7
"""Share of common 5-grams from which texts are near."""
LONG = 100
"""Characters from which the text alone tells a question, whatever its image is."""
MAX_TEXT = 20_000
"""Characters of a text that are compared; of a longer one its beginning."""
_GRAM = 5
_BANDS, _ROWS = 48, 4
"""Of the MinHash: at 0.7 it misses two pairs in a million, at 0.3 it spares 2 of 3."""

_PLACEHOLDERS = re.compile(r"<image ?\d*>")  # numbered in MathVision and MMMU
_NUMBER = r"\d+(?:[.,]\d+)*"
_SIGNS = re.compile(rf"{_NUMBER}|[+*/=<>^√×÷±≤≥]|(?<![^\W\d_])[-−]|[-−](?![^\W\d_])")
# A point between digits belongs to the number: 5.9 is not 5 9.
_PUNCTUATION = re.compile(
    r"(?<!\d)[.,]|[.,](?!\d)|[^\w\s.,+*/=<>^√×÷±≤≥−-]|_",
)
_DIGITS = re.compile(_NUMBER)


@dataclasses.dataclass(frozen=True)
class Text:
    """A question as it is compared.

    Attributes:
      plain: normalised.
      signs: numbers and mathematical signs, in order.
      masked: `plain` with every number replaced.
    """

    plain: str
    signs: tuple[str, ...]
    masked: str


def normalised(question: str) -> Text:
    """A question without what does not matter to its meaning."""
    text = unicodedata.normalize("NFKC", _PLACEHOLDERS.sub(" ", question))
    text = text.casefold()[:MAX_TEXT]
    signs = tuple(_SIGNS.findall(text))
    plain = " ".join(_PUNCTUATION.sub(" ", text).split())
    masked = _DIGITS.sub("#", plain)
    return Text(plain, signs, masked)


def grams(text: str) -> np.ndarray:
    """Sorted distinct hashes of all 5-grams, uint64; one of a shorter text."""
    points = np.frombuffer(text.ljust(_GRAM).encode("utf-32-le"), np.uint32)
    windows = np.lib.stride_tricks.sliding_window_view(points.astype(np.uint64), _GRAM)
    powers = np.uint64(0x9E3779B97F4A7C15) ** np.arange(_GRAM, dtype=np.uint64)
    return np.unique(_mixed((windows * powers).sum(axis=1, dtype=np.uint64)))


def _mixed(x: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of uint64 `x` (splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


_SEEDS = _mixed(np.arange(1, _BANDS * _ROWS + 1, dtype=np.uint64) << np.uint64(20))


def _bands(found: np.ndarray) -> list[bytes]:
    """Keys of a text's bands: texts that are near share one of them."""
    least = _mixed(found[None, :] ^ _SEEDS[:, None]).min(axis=1)
    rows = least.reshape(_BANDS, _ROWS)
    return [bytes([band]) + row.tobytes() for band, row in enumerate(rows)]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Share of common ones among all 5-grams of two texts."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


@dataclasses.dataclass(frozen=True)
class Item:
    """A question of an evaluation.

    Attributes:
      source: the benchmark.
      id: there.
      question: as it is asked.
      has_image: it is asked about one.
    """

    source: str
    id: str
    question: str
    has_image: bool


@dataclasses.dataclass(frozen=True)
class Found:
    """Overlap of a question with an evaluation.

    Attributes:
      kind: a key of :data:`MEANING`.
      item: that it overlaps with; of several the first.
    """

    kind: str
    item: Item

    @property
    def removes(self) -> bool:
        """Is it reason enough not to train on the question?"""
        return self.kind != SAME_TEXT_OTHER_IMAGE


class Evaluation:
    """The questions of all evaluations, each source for itself.

    Attributes:
      items: in the order they were added.
      flat: images of one colour, which cannot be compared.
    """

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.flat = 0
        self._sources: dict[str, _Source] = collections.defaultdict(_Source)

    def add(self, item: Item, looks: Iterable[image_hash.Look | None]) -> None:
        """Take an item with what its images look like."""
        number = len(self.items)
        self.items.append(item)
        source = self._sources[item.source]
        source.add_text(number, normalised(item.question), item.has_image)
        for found in looks:
            if found is None:
                self.flat += 1
            else:
                source.looks.add(number, found)

    def find(
        self, question: str, looks: Sequence[image_hash.Look | None], *, has_image: bool
    ) -> list[Found]:
        """Overlap of a question: at most two of each source, text and image.

        A short text that both ask about pictures (`How many are there?`) counts only
        where a picture is the same, too.
        """
        text = normalised(question)
        shingles = grams(text.plain)
        bands = _bands(shingles)
        found = []
        for source in self._sources.values():
            seen = [one for one in looks if one is not None]
            images = [source.looks.alike(one) for one in seen]
            same = [number for number in images if number is not None]
            if same:
                found.append(Found(IMAGE, self.items[min(same)]))
            match = source.find_text(text, shingles, bands, has_image)
            if match is None:
                continue
            kind, number, told_by_text = match
            if not told_by_text and not same:
                kind = SAME_TEXT_OTHER_IMAGE
            found.append(Found(kind, self.items[number]))
        return found


class _Source:
    """Texts and pictures of one source; equal texts are kept once or twice."""

    def __init__(self) -> None:
        self.looks = image_hash.Looks()
        # By text and by whether there is an image, since that decides what counts.
        self._equal: dict[tuple[bytes, bool], int] = {}
        self._masked: dict[bytes, int] = {}
        self._near: dict[bytes, list[int]] = collections.defaultdict(list)
        self._texts: list[tuple[int, bool, tuple[str, ...], np.ndarray]] = []

    def add_text(self, number: int, text: Text, has_image: bool) -> None:
        key = (_key(text.plain), has_image)
        if not text.plain or key in self._equal:
            return
        self._equal[key] = number
        if len(text.masked) >= LONG:
            self._masked.setdefault(_key(text.masked), number)
        shingles = grams(text.plain)
        for band in _bands(shingles):
            self._near[band].append(len(self._texts))
        self._texts.append((number, has_image, text.signs, shingles))

    def find_text(
        self,
        text: Text,
        shingles: np.ndarray,
        bands: Sequence[bytes],
        has_image: bool,
    ) -> tuple[str, int, bool] | None:
        """Kind, number, and whether the text alone tells the question.

        What is told by its text comes first, then what is equal.
        """
        if not text.plain:
            return None
        long = len(text.plain) >= LONG
        key = _key(text.plain)
        matches = [
            (EQUAL, self._equal[key, image], long or not (image and has_image))
            for image in (False, True)
            if (key, image) in self._equal
        ]
        told = [match for match in matches if match[2]]
        if told:
            return told[0]
        if len(text.masked) >= LONG and _key(text.masked) in self._masked:
            return RENUMBERED, self._masked[_key(text.masked)], True
        for number, image in self._nearest(text, shingles, bands):
            matches.append((NEAR, number, long or not (image and has_image)))
        told = [match for match in matches if match[2]]
        return (told or matches or [None])[0]

    def _nearest(
        self, text: Text, shingles: np.ndarray, bands: Sequence[bytes]
    ) -> list[tuple[int, bool]]:
        """Numbers of near texts, and whether these have an image."""
        places: set[int] = set()
        for band in bands:
            places.update(self._near.get(band, ()))
        found = []
        for place in sorted(places):
            number, image, signs, other = self._texts[place]
            if signs == text.signs and jaccard(shingles, other) >= MIN_JACCARD:
                found.append((number, image))
        return found


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
