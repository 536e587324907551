"""ChartQA, questions by people and made by rule: numbers within 5 % count."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mpo_jax.evals import sources, text_scores, vqa
from mpo_jax.evals.benchmark import (
    PAPER,
    VLMEVALKIT,
    Benchmark,
    Item,
    Protocol,
    Weighted,
)

HUMAN, AUGMENTED = SPLITS = ("human", "augmented")

SOURCE = sources.Source(
    hub="lmms-lab/ChartQA",
    files=(
        "test_human.jsonl and test_augmented.jsonl (Qwen-VL's and InternVL's)",
        "ChartQA_TEST.tsv (VLMEvalKit)",
        "*test*.parquet (hub)",
    ),
    licence="GPL-3.0",
    md5={"ChartQA_TEST.tsv": ("c902e0aa9be5582a7aad6dcf52734b42",)},
)


def read(folder: sources.Folder) -> Iterator[Item]:
    """Items of both splits; ids are ``human-0`` and so on, or a table's index.

    Raises:
      ValueError: a file is missing, or a row is none of this benchmark.
    """
    lines = [folder.find_all(f"**/test_{split}.jsonl") for split in SPLITS]
    if any(lines):
        for split in SPLITS:
            path = folder.find(f"**/test_{split}.jsonl", source=SOURCE)
            for number, row in enumerate(sources.read_rows(path)):
                yield _item(row, f"{split}-{row.get('question_id', number)}", split)
        return
    path = folder.find("ChartQA_TEST.tsv", "**/*test*.parquet", source=SOURCE)
    shards = [path] if path.suffix == ".tsv" else folder.find_all("**/*test*.parquet")
    numbers = collections.Counter[str]()
    for shard in shards:
        for row in sources.read_rows(shard, SOURCE):
            split = _split(vqa.text(row, "split", "type"))
            yield _item(row, row.get("index") or f"{split}-{numbers[split]}", split)
            numbers[split] += 1


def _split(name: str) -> str:
    found = [split for split in SPLITS if split in name]
    if len(found) != 1:
        raise ValueError(f"split={name!r}: must name one of {SPLITS}")
    return found[0]


def _item(row: dict[str, Any], id: str, split: str) -> Item:
    return Item(
        id=id,
        question=vqa.text(row, "question"),
        answer=vqa.answers_of(vqa.field(row, "answer")),
        images=sources.images_of(row),
        categories={"split": split},
    )


def mean_of_splits(items: Sequence[Item], points: np.ndarray) -> Weighted:
    """Mean of the accuracies of the splits in percent; NaN where one has no weight."""
    human = np.array([item.categories["split"] == HUMAN for item in items])

    def mean(weights: np.ndarray) -> float:
        totals = [weights[part].sum() for part in (human, ~human)]
        if not all(totals):
            return float("nan")
        shares = [
            weights[part] @ points[part] / total
            for part, total in zip((human, ~human), totals, strict=True)
        ]
        return float(100 * np.mean(shares))

    return mean


RELAXED = vqa.any_of(text_scores.relaxed)
SWAPPED = vqa.any_of(lambda text, truth: text_scores.relaxed(truth, text))
_YEARS = "years are numbers to this rule: 2011 passes for 2012"

BENCHMARK = Benchmark(
    name="chartqa",
    title="ChartQA (test, human and augmented)",
    source=SOURCE,
    read=read,
    size=2500,
    protocols={
        PAPER: Protocol(
            ask=vqa.paper_asks(max_tiles=12, tokens=100),
            grade=vqa.grades(SWAPPED, "relaxed_5_percent_of_answer"),
            corrected=vqa.grades(RELAXED, "relaxed_5_percent_of_truth"),
            metric=mean_of_splits,
            notes=(
                "as released, 5 % are of the answer, not of the truth; the corrected "
                "rule takes them of the truth",
                "a percentage is its hundredth: 50% is wrong where the truth is 50",
                _YEARS,
                vqa.NO_COT,
            ),
        ),
        VLMEVALKIT: Protocol(
            ask=vqa.vlmevalkit_asks(max_tiles=12),
            grade=vqa.grades(RELAXED, "relaxed_5_percent_of_truth", whole=True),
            corrected=vqa.grades(RELAXED, "relaxed_5_percent_of_truth"),
            metric=mean_of_splits,
            notes=(
                "a percentage is its hundredth: 50% is wrong where the truth is 50",
                _YEARS,
                vqa.WHOLE,
            ),
        ),
    },
)
