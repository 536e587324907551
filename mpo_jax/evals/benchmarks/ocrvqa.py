"""OCR-VQA (test): questions on book covers, the same words wanted."""

from __future__ import annotations

from collections.abc import Iterator

from mpo_jax.evals import extract, rows, sources, text_scores, vqa
from mpo_jax.evals.benchmark import PAPER, VLMEVALKIT, Benchmark, Item, Protocol

TEST = 3
"""Split of the authors' file; 1 is train, 2 validation."""

SOURCE = sources.Source(
    hub="howard-hou/OCR-VQA",
    files=(
        *("ocrvqa_test.jsonl", "ocrvqa/ocrvqa_test.jsonl", "dataset.json"),
        *("OCRVQA_TEST.tsv", "OCRVQA_TESTCORE.tsv"),
        *("data/test-*.parquet", "test-*.parquet"),
    ),
    licence="not stated",
    md5={
        "OCRVQA_TESTCORE.tsv": ("c5239fe77db8bdc1f2ad8e55e0d1fe97",),
        "OCRVQA_TEST.tsv": ("ca46a6d74b403e9d6c0b670f6fc00db9",),
    },
    notes="ocrvqa_test.jsonl is InternVL's; dataset.json the authors', with images/",
)


def read(folder: sources.Folder) -> Iterator[Item]:
    """Items; ids are ``question_id``, a table's index, or ``COVER-0`` and so on.

    Raises:
      ValueError: a file is missing, or a row is none of this benchmark.
    """
    for where, row in rows.read(folder, SOURCE):
        if isinstance(row.get("questions"), list):
            yield from _of_a_cover(row, where)
        else:
            id = rows.text(row, where, "question_id", "index")
            yield _item(row, where, id)


def _of_a_cover(row: rows.Row, where: str) -> Iterator[Item]:
    """All questions on one cover, as the authors and the hub keep them."""
    if row.get("split", TEST) != TEST:
        return
    name = rows.text(row, where, "_key", "image_id")
    image = row.get("image")
    if not image:
        ending = rows.optional(row, "imageURL").rpartition(".")[2] or "jpg"
        image = f"images/{name}.{ending}"
    questions, answers = row["questions"], row.get("answers")
    if not isinstance(answers, list) or len(answers) != len(questions):
        raise ValueError(
            f"{where}: there must be as many answers as questions, {len(questions)}"
        )
    for number, pair in enumerate(zip(questions, answers, strict=True)):
        one = {"question": pair[0], "answer": pair[1], "image": image, "image_id": name}
        yield _item(one, where, f"{name}-{number}")


def _item(row: rows.Row, where: str, id: str) -> Item:
    images = sources.images_of(row)
    return Item(
        id=id,
        question=rows.text(row, where, "question"),
        answer=vqa.answers(row, where, "answer"),
        images=images,
        group=vqa.group(row, images, "image_id"),
        fields=vqa.fields(row),
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
            grade=vqa.grades(EXACT, "exact", vqa.quick),
            corrected=vqa.grades(EXACT, "exact", extract.final_answer),
            notes=(vqa.PAPER_COT, vqa.STATED),
        ),
        VLMEVALKIT: Protocol(
            ask=vqa.vlmevalkit_asks(max_tiles=12),
            grade=vqa.grades(EXACT, "exact", vqa.whole),
            corrected=vqa.grades(EXACT, "exact", extract.final_answer),
            notes=(
                "its usual set, OCRVQA_TESTCORE, is 3,072 of the questions",
                *(vqa.WHOLE, vqa.STATED),
            ),
        ),
    },
)
