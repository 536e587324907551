"""Which learning rate is each method's best, by seeds that are not reported."""

from __future__ import annotations

from collections.abc import Sequence

from mpo_jax.miniature import results
from mpo_jax.miniature.config import MiniatureConfig
from mpo_jax.miniature.results import Row


def best(cfg: MiniatureConfig, rows: Sequence[Row]) -> dict[str, float]:
    """Each method's learning rate with the highest mean greedy CoT accuracy.

    Args:
      cfg: with ``search``.
      rows: of its finished run.

    Returns:
      Learning rate by method; the lower one of two that are alike.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cfg.methods}
    for model in cfg.models().values():
        score = results.mean(row.cot for row in results.of(rows, model.name)).value
        found[model.method.name].append((score, -model.learning_rate))
    return {name: -max(tried)[1] for name, tried in found.items()}


def words(cfg: MiniatureConfig, rows: Sequence[Row]) -> str:
    """What was found, as the setting of a run whose seeds are reported."""
    rates = best(cfg, rows)
    asked = ",".join(f"{rates[name]:g}" for name in cfg.methods)
    return (
        "Highest mean greedy accuracy with chain of thought: "
        + ", ".join(f"{name} at {rate:g}" for name, rate in rates.items())
        + f". For other seeds: `--config.methods={','.join(cfg.methods)} "
        f"--config.learning_rates={asked}`."
    )
