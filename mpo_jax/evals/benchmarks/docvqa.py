"""DocVQA (val): questions on scanned pages, scored by ANLS."""

from __future__ import annotations

from collections.abc import Iterator

from mpo_jax.evals import documents, sources
from mpo_jax.evals.benchmark import Benchmark, Item

SOURCE = sources.Source(
    hub="lmms-lab/DocVQA",
    files=(
        *("val.jsonl", "docvqa/val.jsonl", "val_v1.0*.json", "DocVQA_VAL.tsv"),
        *("DocVQA/validation-*.parquet", "validation-*.parquet"),
    ),
    licence="Apache-2.0 on the hub; the original asks for registration at RRC",
    md5={"DocVQA_VAL.tsv": ("d5ee77e1926ff10690d469c56b73eabf",)},
    notes=(
        "val.jsonl is InternVL's; val_v1.0*.json RRC's, with the pictures in documents/"
    ),
)


def read(folder: sources.Folder) -> Iterator[Item]:
    """See ``documents.read``."""
    return documents.read(folder, SOURCE)


BENCHMARK = Benchmark(
    name="docvqa",
    title="DocVQA (val)",
    source=SOURCE,
    read=read,
    size=5349,
    protocols=documents.protocols(max_tiles=18),
)
