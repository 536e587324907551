"""ChartQA, questions by people and made by rule: numbers within 5 % count."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

import numpy as np

from mpo_jax.evals import extract, rows, sources, text_scores, vqa
from mpo_jax.evals.benchmark import (
    PAPER,
    VLMEVALKIT,
    Benchmark,
    Item,
    Protocol,
    Weighted,
)

HUMAN, AUGMENTED = SPLITS = ("human", "augmented")
SPLIT = "split"

SOURCE = sources.Source(
    hub="lmms-lab/ChartQA",
    files=(
        *("test_human.jsonl", "chartqa/test_human.jsonl", "ChartQA_TEST.tsv"),
        *("data/test-*.parquet", "test-*.parquet"),
    ),
    licence="GPL-3.0",
    md5={"ChartQA_TEST.tsv": ("c902e0aa9be5582a7aad6dcf52734b42",)},
    notes="test_human.jsonl and test_augmented.jsonl beside it are Qwen-VL's",
)


def read(folder: sources.Folder) -> Iterator[Item]:
    """Items of both splits; ids are a table's index, else ``human-0`` and so on.

    Raises:
      ValueError: a file is missing, or a row is none of this benchmark.
    """
    path = folder.find(*SOURCE.files, source=SOURCE)
    if path.suffix == ".jsonl":
        found = _of_both(sources.Folder(path.parent))
    else:
        found = (
            (where, _split(rows.text(row, where, SPLIT, "type"), where), row)
            for where, row in rows.read(folder, SOURCE)
        )
    numbers = collections.Counter[str]()
    for where, split, row in found:
        yield Item(
            id=rows.optional(row, "index") or f"{split}-{numbers[split]}",
            question=rows.text(row, where, "question"),
            # What looks like a list is one answer; VLMEvalKit alone takes it apart.
            answer=vqa.answers({"answer": row.get("answer")}, where, "answer"),
            images=sources.images_of(row),
            categories={SPLIT: split},
            group=vqa.group(row, sources.images_of(row), "imgname"),
        )
        numbers[split] += 1


def _of_both(folder: sources.Folder) -> Iterator[tuple[str, str, rows.Row]]:
    """Rows of both files of lines."""
    names = {split: f"test_{split}.jsonl" for split in SPLITS}
    for name in names.values():
        folder.find(name, source=SOURCE)  # one alone would give half a score
    for split, name in names.items():
        for where, row in rows.read(folder, SOURCE, name):
            yield where, split, row


def _split(name: str, where: str) -> str:
    found = [split for split in SPLITS if split in name]
    if len(found) != 1:
        raise ValueError(f"{where}: split {name!r} must name one of {SPLITS}")
    return found[0]


def mean_of_splits(items: Sequence[Item], points: np.ndarray) -> Weighted:
    """Mean of the accuracies of the splits in percent; NaN where one has no weight."""
    human = np.array([item.categories[SPLIT] == HUMAN for item in items], bool)

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


OF_TRUTH = vqa.any_of(text_scores.relaxed)
OF_ANSWER = vqa.any_of(lambda found, truth: text_scores.relaxed(truth, found))


def _of_parts(found: str, truth: str) -> bool:
    """VLMEvalKit's: a truth that is a Python list has several, any of which will do."""
    parts = vqa.alternatives(truth)
    parts = parts if isinstance(parts, list) else [parts]
    return any(text_scores.relaxed(found, str(part)) for part in parts)


_BY_TRUTH, _BY_ANSWER = "within 5 % of the truth", "within 5 % of the answer"
_NUMBERS = (
    "a percentage is its hundredth: 50% is wrong where the truth is 50",
    "years are numbers to this rule: 2011 passes for 2012",
)

BENCHMARK = Benchmark(
    name="chartqa",
    title="ChartQA (test, human and augmented)",
    source=SOURCE,
    read=read,
    size=2500,
    protocols={
        PAPER: Protocol(
            ask=vqa.paper_asks(max_tiles=12, tokens=100),
            grade=vqa.grades(OF_ANSWER, _BY_ANSWER, vqa.quick),
            corrected=vqa.grades(OF_TRUTH, _BY_TRUTH, extract.final_answer),
            metric=mean_of_splits,
            notes=(
                "as released, 5 % are of the answer; corrected, of the truth",
                *(*_NUMBERS, vqa.PAPER_COT, vqa.STATED),
            ),
        ),
        VLMEVALKIT: Protocol(
            ask=vqa.vlmevalkit_asks(max_tiles=12),
            grade=vqa.grades(vqa.any_of(_of_parts), _BY_TRUTH, vqa.whole),
            corrected=vqa.grades(OF_TRUTH, _BY_TRUTH, extract.final_answer),
            metric=mean_of_splits,
            notes=(
                "as released, one part of an answer like [2010, 2014] will do",
                *(*_NUMBERS, vqa.WHOLE, vqa.STATED),
            ),
        ),
    },
)
