"""TextVQA (val): ten people's answers, soft accuracy of the VQA challenge."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from mpo_jax import ledger
from mpo_jax.evals import extract, rows, sources, text_scores, vqa
from mpo_jax.evals.benchmark import PAPER, VLMEVALKIT, Benchmark, Item, Protocol

PEOPLE = 10
_LINES = "textvqa_val.jsonl"
_ANNOTATIONS = "textvqa_val_annotations.json"

SOURCE = sources.Source(
    hub="lmms-lab/textvqa",
    files=(
        *(_LINES, f"textvqa/{_LINES}", "TextVQA_0.5.1_val.json", "TextVQA_VAL.tsv"),
        *("data/validation-*.parquet", "validation-*.parquet"),
    ),
    licence="CC BY 4.0",
    md5={"TextVQA_VAL.tsv": ("b233b31f551bbf4056f2f955da3a92cd",)},
    notes=(
        f"{_LINES} with {_ANNOTATIONS} is InternVL's; TextVQA_0.5.1_val.json the "
        "authors', with train_images/"
    ),
)


def read(folder: sources.Folder) -> Iterator[Item]:
    """Items; ids are ``question_id``, or a table's index where it has none.

    Raises:
      ValueError: a file is missing, or a row is none of this benchmark.
    """
    path = folder.find(*SOURCE.files, source=SOURCE)
    people: dict[str, list[str]] = {}
    if path.suffix == ".jsonl":
        people = _annotations(sources.Folder(path.parent))
    for where, row in vqa.read(folder, SOURCE):
        yield _item(row, where, people)


def _annotations(folder: sources.Folder) -> dict[str, list[str]]:
    """People's answers by question, from the file of the VQA challenge's form."""
    found: dict[str, list[str]] = {}
    for where, whole in rows.read(folder, SOURCE, _ANNOTATIONS):
        for row in whole.get("annotations") or ():
            id = rows.text(row, where, "question_id")
            found[id] = [rows.text(a, where, "answer") for a in row["answers"]]
    return found


def _item(row: rows.Row, where: str, people: dict[str, list[str]]) -> Item:
    id = rows.text(row, where, "question_id", "index")
    said = {**row, "answers": people[id]} if id in people else row
    answers = vqa.answers(said, where, "answers", "answer")
    if len(answers) != PEOPLE:
        raise ValueError(
            f"{where}: question {id!r} has {len(answers)} answers, not those of "
            f"{PEOPLE} people: {ledger.short(answers, 200)}"
        )
    images = sources.images_of(row)
    if not images:
        images = (f"train_images/{rows.text(row, where, 'image_id')}.jpg",)
    return Item(
        id=id,
        question=rows.text(row, where, "question"),
        answer=answers,
        images=images,
        group=vqa.group(row, images, "image_id"),
        fields=vqa.fields(row),
    )


def _soft(found: str, truths: Sequence[str], *, commas: bool) -> float:
    normal = functools.partial(text_scores.evalai, commas=commas)
    return text_scores.soft_accuracy(normal(found), [normal(t) for t in truths])


SOFT = functools.partial(_soft, commas=True)
VLMEVALKIT_SOFT = functools.partial(_soft, commas=False)
_NAME = "vqa soft accuracy"
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
            grade=vqa.grades(SOFT, _NAME, vqa.quick),
            corrected=vqa.grades(SOFT, _NAME, extract.final_answer),
            notes=(_PART, vqa.PAPER_COT, vqa.STATED),
        ),
        VLMEVALKIT: Protocol(
            ask=vqa.vlmevalkit_asks(max_tiles=6),
            grade=vqa.grades(VLMEVALKIT_SOFT, _NAME, vqa.whole),
            corrected=vqa.grades(SOFT, _NAME, extract.final_answer),
            notes=(
                _PART,
                "its normaliser keeps commas and 's that the challenge's drops; the "
                "corrected rule has the challenge's",
                *(vqa.WHOLE, vqa.STATED),
            ),
        ),
    },
)
