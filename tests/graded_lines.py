"""Lines of evaluated items and benchmarks, for tests of reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpo_jax.evals import benchmark as benchmark_lib
from mpo_jax.evals import sources
from mpo_jax.evals.benchmark import Benchmark, Grade, Protocol
from mpo_jax.evals.lines import Judgement, Line
from mpo_jax.verify.verdict import Verdict


def grade(outcome: str = "right", prediction: str = "6", rule: str = "number") -> Grade:
    return Grade(prediction, Verdict(outcome, rule), float(outcome == "right"))


def judgement(outcome: str, model: str = "judge-1") -> Judgement:
    return Judgement(model, f"I say {outcome}", grade(outcome, rule="judge"))


def line(id: str = "1", outcome: str = "right", **fields: Any) -> Line:
    """A line of benchmark ``sums`` in mode direct; `fields` change it."""
    made = Line(
        benchmark="sums",
        protocol="paper",
        mode="direct",
        id=id,
        answer="It is 6.",
        grade=grade(outcome),
        question="2 + 4?",
        truth="6",
    )
    return dataclasses.replace(made, **fields)


def benchmark(name: str = "sums", size: int = 0, **protocol: Any) -> Benchmark:
    """A benchmark that is only reported; `protocol` are fields of its protocols."""
    rules = Protocol(
        ask=lambda item, mode: benchmark_lib.Ask(item.question, 10),
        grade=lambda item, response, mode, tools: grade(),
        **protocol,
    )
    return Benchmark(
        name=name,
        title=f"The {name}",
        source=sources.Source("hub/none", (), "mit"),
        read=lambda folder: iter(()),
        protocols={"paper": rules, "official": rules},
        size=size,
    )


def f1(items: Sequence[benchmark_lib.Item], points: np.ndarray):
    """F1 of the answer "yes", in percent: a metric that is no mean."""
    yes = np.array([item.answer == "yes" for item in items], bool)

    def of(weights: np.ndarray) -> float:
        hits = weights @ (yes * points)
        false = weights @ (~yes * (1 - points)) + weights @ (yes * (1 - points))
        return float(200 * hits / (2 * hits + false)) if hits else float("nan")

    return of
