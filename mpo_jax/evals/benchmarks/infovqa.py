"""InfographicVQA (val): questions on infographics, scored by ANLS."""

from __future__ import annotations

from collections.abc import Iterator

from mpo_jax.evals import documents, sources
from mpo_jax.evals.benchmark import Benchmark, Item

SOURCE = sources.Source(
    hub="lmms-lab/DocVQA",
    files=(
        *("val.jsonl", "infographicsvqa/val.jsonl", "infographicsVQA_val_v1.0*.json"),
        *("InfoVQA_VAL.tsv", "InfographicVQA/validation-*.parquet"),
        "validation-*.parquet",
    ),
    licence="Apache-2.0 on the hub; the original asks for registration at RRC",
    md5={"InfoVQA_VAL.tsv": ("2342e9c225222f0ef4dec545ebb126fe",)},
    notes=(
        "val.jsonl is InternVL's; infographicsVQA_val_v1.0*.json RRC's, with the "
        "pictures beside it"
    ),
)


def read(folder: sources.Folder) -> Iterator[Item]:
    """See ``documents.read``."""
    return documents.read(folder, SOURCE)


BENCHMARK = Benchmark(
    name="infovqa",
    title="InfographicVQA (val)",
    source=SOURCE,
    read=read,
    size=2801,
    protocols=documents.protocols(max_tiles=24),
)
