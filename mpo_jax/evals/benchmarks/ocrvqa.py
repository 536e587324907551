"""OCR-VQA (test): questions on book covers, the same words wanted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mpo_jax.evals import sources, text_scores, vqa
from mpo_jax.evals.benchmark import PAPER, VLMEVALKIT, Benchmark, Item, Protocol

TEST = 3
"""Split of the authors' file; 1 is train, 2 validation."""

SOURCE = sources.Source(
    hub="howard-hou/OCR-VQA",
    files=(
        "ocrvqa_test.jsonl (InternVL's)",
        "dataset.json (the authors', pictures as images/ID.jpg)",
        "OCRVQA_TESTCORE.tsv or OCRVQA_TEST.tsv (VLMEvalKit)",
        "test-*.parquet (hub, several questions a row)",
    ),
    licence="not stated",
    md5={
        "OCRVQA_TESTCORE.tsv": ("c5239fe77db8bdc1f2ad8e55e0d1fe97",),
        "OCRVQA_TEST.tsv": ("ca46a6d74b403e9d6c0b670f6fc00db9",),
    },
    notes="VLMEvalKit's TESTCORE is 3,072 of 100,424 questions",
)
_PARQUET = ("data/test-*.parquet", "test-*.parquet")


def read(folder: sources.Folder) -> Iterator[Item]:
    """Items; ids are ``question_id``, a table's index, or ``COVER-0`` and so on.

    Raises:
      ValueError: a file is missing, or a row is none of this benchmark.
    """
    path = folder.find(
        "ocrvqa_test.jsonl",
        "dataset.json",
        "OCRVQA_TESTCORE.tsv",
        "OCRVQA_TEST.tsv",
        *_PARQUET,
        source=SOURCE,
    )
    shards = [path]
    if path.suffix == ".parquet":
        shards = sorted(path.parent.glob("test-*.parquet"))
    for shard in shards:
        for row in sources.read_rows(shard, SOURCE):
            if isinstance(row.get("questions"), list):
                yield from _of_a_cover(row)
            else:
                yield _item(row, vqa.text(row, "question_id", "index"))


def _of_a_cover(row: dict[str, Any]) -> Iterator[Item]:
    """All questions on one cover, as the authors and the hub keep them."""
    if row.get("split", TEST) not in (TEST, "test"):
        return
    name = vqa.text(row, "_key", "image_id")
    cover = dict(row)
    if not sources.images_of(row):
        ending = str(row.get("imageURL", ".jpg")).rpartition(".")[2]
        cover["image"] = f"images/{name}.{ending}"
    answers = vqa.field(row, "answers")
    if not isinstance(answers, list) or len(answers) != len(row["questions"]):
        raise ValueError(
            f"cover {name!r}: has {len(row['questions'])} questions, and other answers"
        )
    pairs = zip(row["questions"], answers, strict=True)
    for number, (question, answer) in enumerate(pairs):
        one = {**cover, "question": question, "answer": answer, "image_id": name}
        yield _item(one, f"{name}-{number}")


def _item(row: dict[str, Any], id: str) -> Item:
    images = sources.images_of(row)
    path = images[0] if images and isinstance(images[0], str) else ""
    return Item(
        id=id,
        question=vqa.text(row, "question"),
        answer=vqa.answers_of(vqa.field(row, "answer")),
        images=images,
        group=str(row.get("image_id") or path),
    )


EXACT = vqa.any_of(text_scores.exact)

BENCHMARK = Benchmark(
    name="ocrvqa",
    title="OCR-VQA (test)",
    source=SOURCE,
    read=read,
    size=100_424,
    protocols={
        PAPER: Protocol(
            ask=vqa.paper_asks(max_tiles=6, tokens=100),
            grade=vqa.grades(EXACT, "exact"),
            notes=("InternVL's runs take a part of the questions", vqa.NO_COT),
        ),
        VLMEVALKIT: Protocol(
            ask=vqa.vlmevalkit_asks(max_tiles=12),
            grade=vqa.grades(EXACT, "exact", whole=True),
            corrected=vqa.grades(EXACT, "exact"),
            notes=(vqa.WHOLE,),
        ),
    },
)
