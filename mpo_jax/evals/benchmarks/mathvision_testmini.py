"""MATH-Vision testmini: 304 of its problems; the paper's figures are of these."""

from __future__ import annotations

from mpo_jax.evals.benchmarks import mathvision

BENCHMARK = mathvision.part(
    name="mathvision_testmini",
    title="MATH-Vision testmini",
    files=(
        *("data/testmini-*.parquet", "testmini-*.parquet", "testmini.jsonl"),
        *("data/testmini.jsonl", "mathvision/testmini.jsonl", "MathVision_MINI.tsv"),
    ),
    size=304,
)
