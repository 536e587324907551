"""The same pairs for both trainers: words, images, tokenizer, weights on disk.

Pure NumPy and Pillow, so that the peer's environment can import it. A word is a token
(``w17``), so lengths are exact; images are whole multiples of a tile, so that no
resize lies between the trainers but that of the thumbnail.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
from PIL import Image

TILE = 448
GRIDS = {1: (1, 1), 7: (3, 2), 13: (4, 3)}
"""Tiles of a pair (thumbnail included) and the grid that gives them."""

SPECIALS = (
    "<pad>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<video>",
    "user",
    "assistant",
)
IMAGE_ID = SPECIALS.index("<IMG_CONTEXT>")
PROMPT_TEXT = {0: 72, 1: 127}
"""Prompt tokens beside the image's, template included, by half of MMPR."""
RESPONSES = {0: (212, 172), 1: (301, 351)}
"""Chosen and rejected tokens, end of turn included: the paper's means."""

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|> ' + m['role'] + ' ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT> ' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ ' <|im_end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
)
"""Chat template; blanks separate words and are no tokens."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Token ids of one pair.

    Attributes:
      question, chosen, rejected: int64 ids of plain words.
      tiles: of its image.
    """

    question: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    tiles: int

    def prompt_ids(self, tokens_per_tile: int) -> np.ndarray:
        """Ids of the whole prompt, generation prompt included."""
        ids = {name: i for i, name in enumerate(SPECIALS)}
        image = [IMAGE_ID] * (self.tiles * tokens_per_tile)
        return np.array(
            [ids["<|im_start|>"], ids["user"], ids["<img>"], *image, ids["</img>"]]
            + [*self.question.tolist(), ids["<|im_end|>"]]
            + [ids["<|im_start|>"], ids["assistant"]]
        )

    def response_ids(self, side: str) -> np.ndarray:
        """Ids of a response, end of turn included."""
        words = getattr(self, side)
        return np.append(words, SPECIALS.index("<|im_end|>"))


def draw(*, pairs: int, tiles: int, vocab_size: int, seed: int = 0) -> list[Pair]:
    """Pairs with the paper's mean lengths; every fourth is one without ground truth."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(pairs):
        half = 0 if i % 4 == 3 else 1
        chosen, rejected = RESPONSES[half]
        # Seven tokens of the prompt are the template's.
        lengths = (PROMPT_TEXT[half] - 7, chosen - 1, rejected - 1)
        words = [rng.integers(len(SPECIALS), vocab_size, n) for n in lengths]
        result.append(Pair(*words, tiles=tiles))
    return result


def of_lengths(
    *, prompt: int, chosen: int, rejected: int, tiles: int, vocab_size: int, seed: int
) -> Pair:
    """A pair that costs what one line of ``plan.Lengths`` says (256 per tile)."""
    rng = np.random.default_rng(seed)
    lengths = (prompt - 6 - 256 * tiles, chosen - 1, rejected - 1)
    words = [rng.integers(len(SPECIALS), vocab_size, n) for n in lengths]
    return Pair(*words, tiles=tiles)


def picture(tiles: int, *, seed: int) -> Image.Image:
    """A smooth random image that is cut into `tiles` tiles, thumbnail included."""
    columns, rows = GRIDS[tiles]
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8 * rows, 8 * columns, 3), np.uint8)
    size = (columns * TILE, rows * TILE)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def words(ids: np.ndarray) -> str:
    """Text of plain words, as the tokenizer reads it back."""
    return " ".join(f"w{i}" for i in ids.tolist())


def tokenizer_json(vocab_size: int) -> str:
    """A ``tokenizers`` file: one token per word."""
    names = [*SPECIALS, *(f"w{i}" for i in range(len(SPECIALS), vocab_size))]
    added = [
        {
            "id": i,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, name in enumerate(SPECIALS[:8])
    ]
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": added,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {
                "type": "WordLevel",
                "vocab": {name: i for i, name in enumerate(names)},
                "unk_token": "<unk>",
            },
        }
    )


def write(
    directory: pathlib.Path, *, pairs: int, tiles: int, vocab_size: int
) -> list[Pair]:
    """Write ``pairs.json`` and one PNG per pair; returns the pairs."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = draw(pairs=pairs, tiles=tiles, vocab_size=vocab_size)
    records = []
    for i, pair in enumerate(drawn):
        picture(tiles, seed=i).save(directory / f"{i}.png")
        sides = {
            name: getattr(pair, name).tolist()
            for name in ("question", "chosen", "rejected")
        }
        records.append({"image": f"{i}.png", "tiles": tiles, **sides})
    (directory / "pairs.json").write_text(json.dumps(records), encoding="utf-8")
    return drawn


def read(directory: pathlib.Path) -> list[tuple[pathlib.Path, Pair]]:
    """Image file and ids of every pair that :func:`write` wrote."""
    records = json.loads((directory / "pairs.json").read_text(encoding="utf-8"))
    return [
        (
            directory / record["image"],
            Pair(
                *(np.array(record[n]) for n in ("question", "chosen", "rejected")),
                tiles=record["tiles"],
            ),
        )
        for record in records
    ]
