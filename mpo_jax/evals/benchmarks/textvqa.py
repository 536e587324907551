"""TextVQA (val): ten people's answers, soft accuracy of the VQA challenge."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from mpo_jax import ledger
from mpo_jax.evals import sources, text_scores, vqa
from mpo_jax.evals.benchmark import PAPER, VLMEVALKIT, Benchmark, Item, Protocol

PEOPLE = 10

SOURCE = sources.Source(
    hub="lmms-lab/textvqa",
    files=(
        "textvqa_val.jsonl with textvqa_val_annotations.json (InternVL's)",
        "TextVQA_0.5.1_val.json (the authors', pictures in train_images/)",
        "TextVQA_VAL.tsv (VLMEvalKit)",
        "validation-*.parquet (hub)",
    ),
    licence="CC BY 4.0",
    md5={"TextVQA_VAL.tsv": ("b233b31f551bbf4056f2f955da3a92cd",)},
)


def read(folder: sources.Folder) -> Iterator[Item]:
    """Items; ids are ``question_id``, or a table's index where it has none.

    Raises:
      ValueError: a file is missing, or a row is none of this benchmark.
    """
    path = folder.find(
        "textvqa_val.jsonl",
        "TextVQA_0.5.1_val.json",
        "TextVQA_VAL.tsv",
        "data/validation-*.parquet",
        "validation-*.parquet",
        source=SOURCE,
    )
    answers: dict[str, list[str]] = {}
    shards = [path]
    if path.suffix == ".parquet":
        shards = sorted(path.parent.glob("validation-*.parquet"))
    elif path.suffix == ".jsonl":
        answers = _annotations(folder)
    for shard in shards:
        for row in vqa.unpacked(sources.read_rows(shard, SOURCE)):
            yield _item(row, answers)


def _annotations(folder: sources.Folder) -> dict[str, list[str]]:
    """People's answers by question, from the file of the VQA challenge's form."""
    path = folder.find("textvqa_val_annotations.json", source=SOURCE)
    (whole,) = sources.read_rows(path)
    return {
        vqa.text(row, "question_id"): [
            vqa.text(answer, "answer") for answer in vqa.field(row, "answers")
        ]
        for row in vqa.field(whole, "annotations")
    }


def _item(row: dict[str, Any], answers: dict[str, list[str]]) -> Item:
    id = vqa.text(row, "question_id", "index")
    given = answers.get(id) or vqa.field(row, "answers", "answer")
    found = vqa.answers_of(given)
    if len(found) != PEOPLE:
        raise ValueError(
            f"question {id!r} has {len(found)} answers, not those of {PEOPLE} people: "
            f"{ledger.short(found, 200)}"
        )
    images = sources.images_of(row)
    if not images and row.get("image_id"):
        images = (f"train_images/{row['image_id']}.jpg",)
    path = images[0] if images and isinstance(images[0], str) else ""
    return Item(
        id=id,
        question=vqa.text(row, "question"),
        answer=found,
        images=images,
        group=str(row.get("image_id") or path),
    )


def _soft(found: str, truths: Sequence[str], *, commas: bool) -> float:
    normal = functools.partial(text_scores.evalai, commas=commas)
    return text_scores.soft_accuracy(normal(found), [normal(t) for t in truths])


SOFT = functools.partial(_soft, commas=True)
VLMEVALKIT_SOFT = functools.partial(_soft, commas=False)
_PART = f"an answer counts as right from {vqa.HALF} points: two others said the same"

BENCHMARK = Benchmark(
    name="textvqa",
    title="TextVQA (val)",
    source=SOURCE,
    read=read,
    size=5000,
    protocols={
        PAPER: Protocol(
            ask=vqa.paper_asks(max_tiles=6, tokens=10),
            grade=vqa.grades(SOFT, "vqa_soft_accuracy"),
            notes=(_PART, vqa.NO_COT),
        ),
        VLMEVALKIT: Protocol(
            ask=vqa.vlmevalkit_asks(max_tiles=6),
            grade=vqa.grades(VLMEVALKIT_SOFT, "vqa_soft_accuracy", whole=True),
            corrected=vqa.grades(SOFT, "vqa_soft_accuracy"),
            notes=(
                _PART,
                "its normaliser keeps commas and 's that the challenge's drops; the "
                "corrected rule is the challenge's",
                vqa.WHOLE,
            ),
        ),
    },
)
