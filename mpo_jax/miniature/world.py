"""What is drawn for one seed: a mixture, a tiny model, new questions, held-out ones."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from mpo_jax.demo import benchmark, mixture, questions, tiny_model
from mpo_jax.miniature.config import WorldConfig
from mpo_jax.prefs import prompts

MIXTURE, MODEL, QUESTIONS, BLIND = "mixture", "model", "questions", "blind"
HELD_OUT = "benchmarks"
SOURCE = "drawings"
"""The blind questions' file and source are called so."""
_SEEDS = 4
"""Kinds of drawings."""


@dataclasses.dataclass(frozen=True)
class World:
    """Where the parts of a world lie.

    Attributes:
      folder: of all.
    """

    folder: pathlib.Path

    @property
    def mixture(self) -> pathlib.Path:
        """meta.json of what the start is trained on."""
        return self.folder / MIXTURE / mixture.META

    @property
    def model(self) -> pathlib.Path:
        """Tokenizer and config of the tiny model."""
        return self.folder / MODEL

    @property
    def questions(self) -> pathlib.Path:
        """New questions with their answers."""
        return self.folder / QUESTIONS / questions.FILE

    @property
    def blind(self) -> pathlib.Path:
        """New questions for Dropout-NTP, in the format ``en``."""
        return self.folder / BLIND / f"{SOURCE}.jsonl"

    @property
    def benchmarks(self) -> pathlib.Path:
        """Data folder of evaluations."""
        return self.folder / HELD_OUT


def draw(cfg: WorldConfig, folder: pathlib.Path, *, seed: int) -> dict[str, Any]:
    """Draw everything; the same arguments give the same files.

    Returns:
      Numbers of what was drawn, and of tokens of the model's vocabulary.
    """
    world, first = World(folder), _SEEDS * seed
    mixture.write(
        folder / MIXTURE,
        count=cfg.mixture,
        seed=first,
        shares=mixture.Shares(cfg.direct, cfg.blind, cfg.wrong),
        topics=cfg.topics,
    )
    tiny_model.write_tiny_model(world.model, corpus=mixture.corpus(world.mixture))
    for place, number, offset, split in (
        (world.questions.parent, cfg.questions, 1, "train"),
        (world.blind.parent, cfg.blind_questions, 2, "train"),
        (world.benchmarks / benchmark.NAME, cfg.held_out, 3, "eval"),
    ):
        questions.write(
            place, count=number, seed=first + offset, split=split, topics=cfg.topics
        )
    _write_blind(world)
    model = json.loads((world.model / "config.json").read_text(encoding="utf-8"))
    return {
        "mixture": cfg.mixture,
        "questions": cfg.questions,
        "blind_questions": cfg.blind_questions,
        "held_out": cfg.held_out,
        "vocabulary": model["llm_config"]["vocab_size"],
    }


def _write_blind(world: World) -> None:
    """The questions as they are sent: with the prompt of a chain of thought."""
    form = prompts.get_format(benchmark.FORMS["cot"])
    with open(world.blind, "w", encoding="utf-8") as file:
        for line in questions.read(world.blind.parent / questions.FILE):
            asked = f"{prompts.PLACEHOLDER}\n{form.wrap(line['question'])}"
            entry = {"id": line["id"], "question": asked, "image": line["image"]}
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
