"""What a miniature would make, before it makes anything."""

from __future__ import annotations

from collections.abc import Iterator

from mpo_jax import config
from mpo_jax.miniature.config import MiniatureConfig


def words(cfg: MiniatureConfig) -> Iterator[str]:
    """Lines for people: what every seed makes, then all of it."""
    world, recipe, train = cfg.world, cfg.recipe, cfg.recipe.train
    seeds, models = len(cfg.seeds), 1 + len(cfg.models())
    yield (
        f"Each of {seeds} seeds ({', '.join(map(str, cfg.seeds))}): a start from "
        f"{_visits(cfg.start)} of {world.mixture:,} records;"
    )
    answers = world.questions * recipe.sampling.n * len(recipe.sampling.formats)
    yield (
        f"  {answers:,} answers to {world.questions:,} questions in "
        f"{', '.join(recipe.sampling.formats)}, at most {recipe.pairs.max_pairs} pairs "
        f"of a prompt and a reason, and at most {world.blind_questions:,} pairs of "
        "Dropout-NTP;"
    )
    titles = ", ".join(model.title for model in cfg.models().values())
    yield f"  {titles}, each from {_visits(train)} of the same pairs;"
    asked = world.held_out * (len(recipe.evaluate.modes) + cfg.samples)
    held_out = f"{world.held_out:,} held-out questions"
    yield f"  {models} models scored by {asked:,} answers to {held_out}."
    yield (
        f"In all {seeds * models} models: "
        f"{seeds * (_count(cfg.start) + len(cfg.models()) * _count(train)):,} records "
        f"and pairs in training, {seeds * (answers + models * asked):,} answers."
    )


def _count(train: config.RunConfig) -> int:
    return train.optim.max_steps * train.rows.pairs_per_batch


def _visits(train: config.RunConfig) -> str:
    return f"{train.optim.max_steps} x {train.rows.pairs_per_batch} visits"
