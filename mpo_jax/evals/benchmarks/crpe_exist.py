"""CRPE, existence: what is in the image, as options turned round four times."""

from __future__ import annotations

from mpo_jax.evals.benchmarks import crpe_relation

BENCHMARK = crpe_relation.benchmark("crpe_exist", "CRPE (existence)", "CRPE_EXIST")
