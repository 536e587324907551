"""What `generate` asks of both sides: prompts, lengths of answers, one job per process.

NumPy alone, so that the peers' environment can import it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from benchmarks import workload

TOKENS_PER_TILE = 256
PROMPT_TOKENS = 1856
"""Of a prompt with seven tiles: 1,792 of the image and 64 of template and question."""
SHORTEST, LONGEST = 16, 512
"""New tokens of an answer where lengths are unequal."""
_MEDIAN, _SPREAD = 80, 0.9  # of the log-normal distribution of those lengths


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt and how long its answers are.

    Attributes:
      tokens: of the whole prompt, those of the image included.
      tiles: of its image, 0 for none.
      new_tokens: of each answer; nothing ends one earlier.
      words: seed of its words.
      picture: seed of its image.
    """

    tokens: int
    tiles: int
    new_tokens: int
    words: int = 0
    picture: int = 0

    def ids(self, vocab_size: int) -> np.ndarray:
        """Token ids, int64 ``[tokens]``.

        Raises:
          ValueError: if template and image alone are longer than `tokens`.
        """
        name = workload.SPECIALS.index
        head = [name("<|im_start|>"), name("user")]
        if self.tiles:
            image = [workload.IMAGE_ID] * (self.tiles * TOKENS_PER_TILE)
            head += [name("<img>"), *image, name("</img>")]
        tail = [name("<|im_end|>"), name("<|im_start|>"), name("assistant")]
        free = self.tokens - len(head) - len(tail)
        if free < 1:
            raise ValueError(
                f"tokens={self.tokens}: {self.tiles} tiles and the template take "
                f"{len(head) + len(tail)}, at least one word more is needed"
            )
        rng = np.random.default_rng(self.words)
        words = rng.integers(len(workload.SPECIALS), vocab_size, free)
        return np.array([*head, *words.tolist(), *tail])

    def pixels(self) -> np.ndarray:
        """Its tiles, uint8 ``[tiles, S, S, 3]``."""
        rng = np.random.default_rng(self.picture)
        size = (self.tiles, workload.TILE, workload.TILE, 3)
        return rng.integers(0, 256, size, np.uint8)


@dataclasses.dataclass(frozen=True)
class Case:
    """Prompts that are answered together.

    Attributes:
      prompts: one, or many different ones.
      n: answers to each.
      slots: answers at a time: `n` for one prompt; for many the batch of the peer.
    """

    prompts: tuple[Prompt, ...]
    n: int
    slots: int

    @property
    def new_tokens(self) -> int:
        """Tokens that somebody asked for."""
        return self.n * sum(prompt.new_tokens for prompt in self.prompts)

    @property
    def peers(self) -> tuple[str, ...]:
        """What ours is compared with."""
        return ("generate", "cache") if len(self.prompts) == 1 else ("padded",)

    def batches(self) -> list[tuple[Prompt, ...]]:
        """Prompts that a padded batch holds, in the order in which they come."""
        starts = range(0, len(self.prompts), self.slots)
        return [self.prompts[i : i + self.slots] for i in starts]

    def positions(self, side: str) -> int:
        """Positions that a peer's decoder computes, padding included.

        A new token is computed when the next one is asked for, so the last of an
        answer is not.
        """
        if side == "padded":
            return sum(
                len(batch)
                * (max(p.tokens for p in batch) + max(p.new_tokens for p in batch) - 1)
                for batch in self.batches()
            )
        (prompt,) = self.prompts
        if side == "generate":
            return self.n * (prompt.tokens + prompt.new_tokens - 1)
        # The last token of the prompt is computed with the answers.
        return prompt.tokens - 1 + self.n * prompt.new_tokens


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
      config: of the model, original layout.
      case: what is asked.
      weights: directory of :func:`benchmarks.peer.prepare`; empty: drawn on the
        device, each side its own.
      device: ``cpu`` or ``gpu``.
      dtype: ``float32`` or ``bfloat16``.
      threads: of the process.
      calls: how often everything is answered; the first is warm-up if there are more.
      temperature: 0 is greedy; nothing else narrows the distribution.
    """

    config: dict[str, Any]
    case: Case
    weights: str
    device: str
    dtype: str
    threads: int
    calls: int
    temperature: float

    @property
    def vocab_size(self) -> int:
        return self.config["llm_config"]["vocab_size"]

    def write(self, file: pathlib.Path) -> None:
        file.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")


def read(file: pathlib.Path) -> Job:
    """The job that :meth:`Job.write` wrote."""
    fields = json.loads(file.read_text(encoding="utf-8"))
    case = fields.pop("case")
    prompts = tuple(Prompt(**prompt) for prompt in case.pop("prompts"))
    return Job(**fields, case=Case(prompts=prompts, **case))


def answer_lengths(count: int, *, shortest: int, longest: int) -> list[int]:
    """Lengths of `count` answers, log-normal, cut to the bounds; always the same."""
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(np.log(_MEDIAN * longest / LONGEST), _SPREAD, count)
    return np.clip(drawn, shortest, longest).astype(int).tolist()


def _many(tiles: int, *, count: int, slots: int, lengths: list[int]) -> Case:
    """Different prompts, half to three halves as much text as in the other cases."""
    rng = np.random.default_rng(1)
    text = 128 if not tiles else PROMPT_TOKENS - 7 * TOKENS_PER_TILE
    extra = rng.integers(text // 2, text * 3 // 2, count)
    prompts = tuple(
        Prompt(int(e) + tiles * TOKENS_PER_TILE, tiles, k, words=i, picture=i)
        for i, (e, k) in enumerate(zip(extra, lengths, strict=True))
    )
    return Case(prompts, n=1, slots=slots)


def timed(*, quick: bool) -> dict[str, Case]:
    """The cases that are timed, by name; `quick` ones try the script."""
    tiles, new, most = (1, 8, 4) if quick else (7, 256, 32)
    tokens = PROMPT_TOKENS - (7 - tiles) * TOKENS_PER_TILE
    count, slots = (6, 2) if quick else (64, 16)
    low, high = (2, 12) if quick else (SHORTEST, LONGEST)
    lengths = answer_lengths(count, shortest=low, longest=high)
    image, text = Prompt(tokens, tiles, new), Prompt(128, 0, new)
    return {
        f"n{most}": Case((image,), n=most, slots=most),
        "n8": Case((image,), n=8, slots=8),
        "n1": Case((image,), n=1, slots=1),
        f"text_n{most}": Case((text,), n=most, slots=most),
        "many_text": _many(0, count=count, slots=slots, lengths=lengths),
        "many_tiles": _many(tiles, count=count, slots=slots, lengths=lengths),
    }


def checked(*, quick: bool) -> dict[str, Case]:
    """Short cases whose greedy tokens are compared.

    The first two prompts of the last have the same words and other pictures.
    """
    tiles, new = (1, 6) if quick else (7, 24)
    tokens = PROMPT_TOKENS - (7 - tiles) * TOKENS_PER_TILE
    short = TOKENS_PER_TILE + 64
    return {
        "image": Case((Prompt(tokens, tiles, new, words=1),), n=3, slots=3),
        "text": Case((Prompt(128, 0, new, words=2),), n=2, slots=2),
        "many": Case(
            (
                Prompt(short, 1, new, words=3, picture=1),
                Prompt(short, 1, new, words=3, picture=2),
                Prompt(40, 0, new // 2, words=4),
                Prompt(tokens, tiles, new + 3, words=5, picture=3),
                Prompt(100, 0, 2, words=6),
            ),
            n=1,
            slots=2,
        ),
    }
