"""GQA (testdev, balanced): questions composed from scene graphs, one word wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mpo_jax.evals import sources, text_scores, vqa
from mpo_jax.evals.benchmark import PAPER, VLMEVALKIT, Benchmark, Item, Protocol

SOURCE = sources.Source(
    hub="lmms-lab/GQA",
    files=(
        "llava_gqa_testdev_balanced_qwen_format.jsonl (InternVL's)",
        "testdev_balanced_questions.json (the authors', pictures in images/)",
        "GQA_TestDev_Balanced.tsv (VLMEvalKit)",
        "testdev_balanced_instructions/ and testdev_balanced_images/ (hub)",
    ),
    licence="CC BY 4.0",
    md5={"GQA_TestDev_Balanced.tsv": ("99b62f22e224d9b2f32dcbe41359d1c9",)},
)
_HUB = "testdev_balanced_instructions/*.parquet"
_HUB_IMAGES = "testdev_balanced_images/*.parquet"


def read(folder: sources.Folder) -> Iterator[Item]:
    """Items; ids are the questions' own, or a table's index where it has none.

    Raises:
      ValueError: a file is missing, or a row is none of this benchmark.
    """
    path = folder.find(
        "llava_gqa_testdev_balanced_qwen_format.jsonl",
        "testdev_balanced_questions.json",
        "GQA_TestDev_Balanced.tsv",
        _HUB,
        source=SOURCE,
    )
    pictures: dict[str, sources.Image] = {}
    shards = [path]
    if path.suffix == ".parquet":
        shards = folder.find_all(_HUB)
        pictures = _pictures(folder)
    for shard in shards:
        for row in sources.read_rows(shard, SOURCE):
            yield _item(row, pictures)


def _pictures(folder: sources.Folder) -> dict[str, sources.Image]:
    """Pictures by id; there are 398 of them."""
    folder.find(_HUB_IMAGES, source=SOURCE)
    return {
        vqa.text(row, "id"): sources.images_of(row)[0]
        for shard in folder.find_all(_HUB_IMAGES)
        for row in sources.read_rows(shard)
    }


def _item(row: dict[str, Any], pictures: Mapping[str, sources.Image]) -> Item:
    images = sources.images_of(row)
    name = str(row.get("imageId") or "")
    if not images and name:
        if pictures and name not in pictures:
            raise ValueError(f"imageId={name!r}: none of the pictures has this id")
        images = (pictures.get(name, f"images/{name}.jpg"),)
    if not name and images and isinstance(images[0], str):
        name = images[0]
    kinds = row.get("types")
    kinds = kinds if isinstance(kinds, dict) else {}
    return Item(
        id=vqa.text(row, "_key", "question_id", "id", "index"),
        question=vqa.text(row, "question"),
        answer=vqa.answers_of(vqa.field(row, "answer")),
        images=images,
        categories={
            axis: str(kinds[axis])
            for axis in ("structural", "semantic")
            if kinds.get(axis)
        },
        group=name,
    )


# As InternVL turns its answers into the official scorer's form: closing periods go.
OFFICIAL_EXACT = vqa.any_of(lambda found, truth: found.rstrip(".").lower() == truth)
EXACT = vqa.any_of(text_scores.exact)

BENCHMARK = Benchmark(
    name="gqa",
    title="GQA (testdev balanced)",
    source=SOURCE,
    read=read,
    size=12_578,
    protocols={
        PAPER: Protocol(
            ask=vqa.paper_asks(max_tiles=6, tokens=10),
            grade=vqa.grades(OFFICIAL_EXACT, "exact"),
            notes=(vqa.NO_COT,),
        ),
        VLMEVALKIT: Protocol(
            ask=vqa.vlmevalkit_asks(max_tiles=6),
            grade=vqa.grades(EXACT, "exact", whole=True),
            corrected=vqa.grades(EXACT, "exact"),
            notes=(vqa.WHOLE,),
        ),
    },
)
