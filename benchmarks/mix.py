"""Lengths of pairs as the paper describes MMPR (arXiv 2411.10442, section 3).

The paper gives means and extremes of instructions and responses for its two halves,
names the sources and allows 6 tiles for general questions and 12 for text-rich images.
What it does not give is assumed here and can be varied: the shape of the length
distributions, the sizes of images, the share of each kind of source.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mpo_jax.inputs import images
from mpo_jax.packing import plan as plan_lib

TOKENS_PER_TILE = 256
TEMPLATE_TOKENS = 47  # of the chat templates around a question with one image
STOP_TOKENS = 1  # a response's end of turn


@dataclasses.dataclass(frozen=True)
class Half:
    """One half of MMPR; tokens of instruction, chosen and rejected response.

    Attributes:
      share: of all pairs (0.75 of 3.25 million have no ground truth).
      means: mean tokens.
      least, most: shortest and longest response (chosen, rejected).
    """

    share: float
    means: tuple[float, float, float]
    least: tuple[int, int]
    most: tuple[int, int]


HALVES = (
    Half(0.75 / 3.25, (25.0, 211.4, 171.2), (20, 17), (1342, 1642)),
    Half(2.5 / 3.25, (79.5, 300.0, 350.5), (32, 33), (2018, 4097)),
)

# Kind of source: share, width and height ranges in pixels, tile limit. Assumed; the
# paper names the sources, not how much each gives.
SOURCES = {
    "photographs": (0.30, (480, 640), (400, 640), 6),
    "science figures": (0.20, (250, 900), (150, 700), 12),
    "geometry drawings": (0.20, (120, 500), (100, 400), 12),
    "charts": (0.15, (400, 900), (400, 800), 12),
    "scenes with text": (0.08, (600, 1100), (500, 1100), 12),
    "documents": (0.07, (1200, 2000), (1600, 2600), 12),
}


def _lognormal(
    rng: np.random.Generator, mean: float, spread: float, count: int
) -> np.ndarray:
    return rng.lognormal(np.log(mean) - spread**2 / 2, spread, count)


def tiles_of_sources(rng: np.random.Generator, count: int) -> np.ndarray:
    """Tiles per pair, int32 ``[count]``: sizes drawn per source, then the true grid."""
    shares = np.array([source[0] for source in SOURCES.values()])
    result = np.empty(count, np.int32)
    kinds = rng.choice(len(shares), count, p=shares / shares.sum())
    for kind, (_, widths, heights, limit) in enumerate(SOURCES.values()):
        where = np.flatnonzero(kinds == kind)
        sizes = zip(
            rng.integers(*widths, len(where), endpoint=True).tolist(),
            rng.integers(*heights, len(where), endpoint=True).tolist(),
            strict=True,
        )
        result[where] = [
            images.tile_count(
                width,
                height,
                min_num=1,
                max_num=limit,
                image_size=448,
                use_thumbnail=True,
            )
            for width, height in sizes
        ]
    return result


def tiles_even(rng: np.random.Generator, count: int) -> np.ndarray:
    """Tiles per pair, every number that an image can give equally often (mean 7.7)."""
    return rng.choice([1, *range(3, 14)], count).astype(np.int32)


TILES = {"sources": tiles_of_sources, "even": tiles_even}


def mmpr_like(
    count: int, *, seed: int = 0, spread: float = 0.6, tiles: str = "sources"
) -> plan_lib.Lengths:
    """Lengths of `count` pairs with the paper's means and extremes.

    Args:
      spread: standard deviation of the logarithm of response lengths. The paper's
        extremes suggest 0.4 to 0.5 for so many draws; 0.6 is on the side of caution,
        since a longer tail packs worse. Both responses are independent of each other.
      tiles: a key of :data:`TILES`.
    """
    rng = np.random.default_rng(seed)
    half = rng.random(count) >= HALVES[0].share
    columns = np.empty((3, count), np.int32)
    for number, part in enumerate(HALVES):
        where = np.flatnonzero(half == bool(number))
        text = _lognormal(rng, part.means[0], 0.5, len(where))
        columns[0, where] = np.maximum(text, 3) + TEMPLATE_TOKENS
        for side in range(2):
            tokens = _lognormal(rng, part.means[1 + side], spread, len(where))
            tokens = np.clip(tokens, part.least[side], part.most[side])
            columns[1 + side, where] = np.round(tokens) + STOP_TOKENS
    count_of_tiles = TILES[tiles](rng, count)
    return plan_lib.Lengths(
        prompt=columns[0] + TOKENS_PER_TILE * count_of_tiles,
        chosen=columns[1],
        rejected=columns[2],
        tiles=count_of_tiles,
    )
