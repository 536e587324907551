"""What DocVQA and InfographicVQA share: files of one form, and ANLS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mpo_jax.evals import sources, text_scores, vqa
from mpo_jax.evals.benchmark import PAPER, VLMEVALKIT, Item, Protocol


def read(
    folder: sources.Folder, source: sources.Source, patterns: tuple[str, ...]
) -> Iterator[Item]:
    """Items; ids are ``questionId``, or a table's index where it has none.

    Args:
      patterns: of files, the first that is there is read, all its shards if parquet.

    Raises:
      ValueError: a file is missing, or a row is none of this benchmark.
    """
    path = folder.find(*patterns, source=source)
    shards = [path]
    if path.suffix == ".parquet":
        pattern = next(name for name in patterns if folder.find_all(name))
        shards = folder.find_all(pattern)
    for shard in shards:
        for row in vqa.unpacked(sources.read_rows(shard, source)):
            yield _item(row)


def _item(row: dict[str, Any]) -> Item:
    images = sources.images_of(row, "image", "image_path", "image_local_name")
    page = row.get("image_local_name") or row.get("docId")
    if not page and images and isinstance(images[0], str):
        page = images[0]
    kinds = row.get("question_types")
    kind = ", ".join(kinds) if isinstance(kinds, list) else str(kinds or "")
    return Item(
        id=vqa.text(row, "questionId", "question_id", "index"),
        question=vqa.text(row, "question"),
        answer=vqa.answers_of(vqa.field(row, "answers", "answer")),
        images=images,
        categories={"type": kind} if kind else {},
        group=str(page or ""),
    )


def protocols(*, max_tiles: int) -> dict[str, Protocol]:
    """Of both benchmarks; they differ in the tiles."""
    rule = vqa.any_of(lambda text, truth: text_scores.anls(text, [truth]))
    name = "anls_0.5"
    part = (
        f"an answer counts as right from {vqa.HALF} points, which is ANLS's own "
        "threshold; the score is the mean of the points"
    )
    return {
        PAPER: Protocol(
            ask=vqa.paper_asks(max_tiles=max_tiles, tokens=100),
            grade=vqa.grades(rule, name),
            notes=(part, vqa.NO_COT),
        ),
        VLMEVALKIT: Protocol(
            ask=vqa.vlmevalkit_asks(max_tiles=max_tiles),
            grade=vqa.grades(rule, name, whole=True),
            corrected=vqa.grades(rule, name),
            notes=(part, vqa.WHOLE),
        ),
    }
