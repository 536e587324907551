"""GQA (testdev, balanced): questions composed from scene graphs, one word wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mpo_jax.evals import extract, rows, sources, text_scores, vqa
from mpo_jax.evals.benchmark import PAPER, VLMEVALKIT, Benchmark, Item, Protocol

_LINES = "llava_gqa_testdev_balanced_qwen_format.jsonl"
_HUB_IMAGES = "testdev_balanced_images/*.parquet"

SOURCE = sources.Source(
    hub="lmms-lab/GQA",
    files=(
        *(_LINES, f"gqa/{_LINES}", "testdev_balanced_questions.json"),
        "GQA_TestDev_Balanced.tsv",
        "testdev_balanced_instructions/*.parquet",
    ),
    licence="CC BY 4.0",
    md5={"GQA_TestDev_Balanced.tsv": ("99b62f22e224d9b2f32dcbe41359d1c9",)},
    notes=(
        f"{_LINES} is InternVL's; testdev_balanced_questions.json the authors', with "
        f"images/; the hub's needs {_HUB_IMAGES} too"
    ),
)


def read(folder: sources.Folder) -> Iterator[Item]:
    """Items; ids are the questions' own, or a table's index where it has none.

    Raises:
      ValueError: a file is missing, or a row is none of this benchmark.
    """
    path = folder.find(*SOURCE.files, source=SOURCE)
    pictures: dict[str, sources.Image] | None = None
    if path.suffix == ".parquet":
        pictures = {
            rows.text(row, where, "id"): sources.images_of(row)[0]
            for where, row in rows.read(folder, SOURCE, _HUB_IMAGES)  # 398
        }
    for where, row in rows.read(folder, SOURCE):
        images = sources.images_of(row) or _by_id(row, where, pictures)
        kinds = row.get("types")
        kinds = kinds if isinstance(kinds, dict) else {}
        yield Item(
            id=rows.text(row, where, "_key", "question_id", "id", "index"),
            question=rows.text(row, where, "question"),
            answer=vqa.answers(row, where, "answer"),
            images=images,
            categories={
                axis: str(kinds[axis])
                for axis in ("structural", "semantic")
                if rows.given(kinds.get(axis))
            },
            group=vqa.group(row, images, "imageId"),
            fields=vqa.fields(row),
        )


def _by_id(
    row: rows.Row, where: str, pictures: Mapping[str, sources.Image] | None
) -> tuple[sources.Image, ...]:
    """The picture that a row names: among those of the hub, else in ``images/``."""
    name = rows.text(row, where, "imageId")
    if pictures is None:
        return (f"images/{name}.jpg",)
    if name not in pictures:
        raise ValueError(f"{where}: {_HUB_IMAGES} has no picture with id {name!r}")
    return (pictures[name],)


# As InternVL turns its answers into the official scorer's form: closing periods go.
OFFICIAL = vqa.any_of(lambda found, truth: found.rstrip(".").lower() == truth)
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
            grade=vqa.grades(OFFICIAL, "exact", vqa.quick),
            corrected=vqa.grades(EXACT, "exact", extract.final_answer),
            notes=(vqa.PAPER_COT, vqa.STATED),
        ),
        VLMEVALKIT: Protocol(
            ask=vqa.vlmevalkit_asks(max_tiles=6),
            grade=vqa.grades(EXACT, "exact", vqa.whole),
            corrected=vqa.grades(EXACT, "exact", extract.final_answer),
            notes=(vqa.WHOLE, vqa.STATED),
        ),
    },
)
