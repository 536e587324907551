"""What DocVQA and InfographicVQA share: files of one form, and ANLS."""

from __future__ import annotations

from collections.abc import Iterator

from mpo_jax.evals import extract, rows, sources, text_scores, vqa
from mpo_jax.evals.benchmark import PAPER, VLMEVALKIT, Item, Protocol


def read(folder: sources.Folder, source: sources.Source) -> Iterator[Item]:
    """Items; ids are ``questionId``, or a table's index where it has none.

    Raises:
      ValueError: a file is missing, or a row is none of this benchmark.
    """
    for where, row in vqa.read(folder, source):
        images = sources.images_of(row, "image", "image_path", "image_local_name")
        kinds = row.get("question_types")
        kind = ", ".join(map(str, kinds)) if isinstance(kinds, list) else kinds
        yield Item(
            id=rows.text(row, where, "questionId", "question_id", "index"),
            question=rows.text(row, where, "question"),
            answer=vqa.answers(row, where, "answers", "answer"),
            images=images,
            categories={"type": str(kind)} if kind else {},
            group=vqa.group(row, images, "image_local_name", "docId"),
            fields=vqa.fields(row),
        )


def protocols(*, max_tiles: int) -> dict[str, Protocol]:
    """Of both benchmarks; they differ in the tiles."""
    rule, name = vqa.any_of(text_scores.likeness), "anls 0.5"
    part = (
        f"an answer counts as right from {vqa.HALF} points, which is ANLS's own "
        "threshold; the score is the mean of the points"
    )
    return {
        PAPER: Protocol(
            ask=vqa.paper_asks(max_tiles=max_tiles, tokens=100),
            grade=vqa.grades(rule, name, vqa.quick),
            corrected=vqa.grades(rule, name, extract.final_answer),
            notes=(part, vqa.PAPER_COT, vqa.STATED),
        ),
        VLMEVALKIT: Protocol(
            ask=vqa.vlmevalkit_asks(max_tiles=max_tiles),
            grade=vqa.grades(rule, name, vqa.whole),
            corrected=vqa.grades(rule, name, extract.final_answer),
            notes=(part, vqa.WHOLE, vqa.STATED),
        ),
    }
