"""Pictures that look alike: a difference hash finds them, their pixels confirm it.

A hash of 64 bits survives another encoding and another size, but drawings of some lines
on white often share one; so what it finds is compared as a small grey picture.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

MAX_DISTANCE = 4
"""Bits in which hashes of one picture may differ."""
MIN_CORRELATION = 0.95
"""Of the grey pictures; a re-encoded or resized picture has 0.98 and more."""
SIDE = 32
"""Pixels of the grey picture, each way."""
_BANDS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))
"""Start and width in bits: of five bands four differing bits leave one alone."""
_STEP = 2
"""Grey levels of a step that counts: on a white ground, less is the encoder's noise."""
_FLAT = 2.0
"""Standard deviation in grey levels, below which there is nothing to recognise."""


@dataclasses.dataclass(frozen=True)
class Look:
    """What a picture looks like.

    Attributes:
      hash: 64 bits; bit ``8 y + x`` says that brightness grows from column x to
        x + 1.
      grey: float32 ``[SIDE * SIDE]`` of mean 0 and length 1.
    """

    hash: int
    grey: np.ndarray


def look(image: Image.Image) -> Look | None:
    """Of an RGB picture; None where it is of one colour."""
    grey = image.convert("L")
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    if small.std() < _FLAT:
        return None
    rows = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (rows[:, 1:] > rows[:, :-1] + _STEP).reshape(-1)
    number = int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")
    centred = (small - small.mean()).reshape(-1)
    return Look(number, centred / np.linalg.norm(centred))


class Looks:
    """Pictures by number, found again by what looks like them."""

    def __init__(self) -> None:
        self._bands: tuple[dict[int, list[int]], ...] = tuple(
            collections.defaultdict(list) for _ in _BANDS
        )
        self._looks: list[Look] = []
        self._numbers: list[int] = []

    def __len__(self) -> int:
        return len(self._looks)

    def add(self, number: int, found: Look) -> None:
        """Take a picture; several may have one number."""
        for band, key in zip(self._bands, _keys(found.hash), strict=True):
            band[key].append(len(self._looks))
        self._looks.append(found)
        self._numbers.append(number)

    def alike(self, found: Look) -> int | None:
        """The lowest number of a picture that looks the same; None if none does."""
        places: set[int] = set()
        for band, key in zip(self._bands, _keys(found.hash), strict=True):
            places.update(band.get(key, ()))
        near = [place for place in places if self._is_near(place, found)]
        if not near:
            return None
        alike = self._correlated(near, found)
        return min((self._numbers[place] for place in alike), default=None)

    def _is_near(self, place: int, found: Look) -> bool:
        return (self._looks[place].hash ^ found.hash).bit_count() <= MAX_DISTANCE

    def _correlated(self, places: Sequence[int], found: Look) -> list[int]:
        greys = np.stack([self._looks[place].grey for place in places])
        alike = greys @ found.grey >= MIN_CORRELATION
        return [place for place, same in zip(places, alike, strict=True) if same]


def _keys(number: int) -> list[int]:
    return [(number >> start) & ((1 << width) - 1) for start, width in _BANDS]
