"""Overlap of a file of questions with evaluations: found, told, and left out.

The evaluations are held, the questions stream. A line whose image cannot be read is
compared by its text; one that is no question is named in the report and not kept.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

from mpo_jax import ledger
from mpo_jax.generate import questions, requests, results
from mpo_jax.inputs import images as images_lib
from mpo_jax.prefs import image_hash, overlap
from mpo_jax.utils import atomic, progress

MAX_EXAMPLES = 10
"""Of each kind and source in the report."""
MAX_IMAGE_PIXELS = 100_000_000
_SHOWN = 300


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of either side.

    Attributes:
      raw: as it stands there.
      number: from 1.
      id: its own; else its number.
      source: what it says that it is of, else the file's name.
      question: with its images' paths.
    """

    raw: bytes
    number: int
    id: str
    source: str
    question: requests.Question


class Sight:
    """Looks at images, each path once in a row; counts what cannot be read."""

    def __init__(self) -> None:
        self.unreadable: collections.Counter[str] = collections.Counter()

    def looks(self, paths: Sequence[str]) -> list[image_hash.Look | None]:
        """What the readable ones look like; None for one of one colour."""
        found = []
        for path in paths:
            try:
                image = images_lib.open_image(path, max_pixels=MAX_IMAGE_PIXELS)
            except ledger.BadRecord as error:
                self.unreadable[error.reason] += 1
            else:
                found.append(image_hash.look(image))
        return found


def lines(path: pathlib.Path, root: str) -> Iterator[Line | ledger.Entry]:
    """Every line that is not blank, or why it is no question.

    Args:
      root: folder of the images; "" is the file's own.
    """
    base = questions.Base(os.path.abspath(root or path.parent), anywhere=not root)
    with open(path, "rb") as file:
        for number, raw in enumerate(questions.lines_of(file), 1):
            if raw is not None and not raw.strip():
                continue
            try:
                yield _line(raw, number, path.stem, base)
            except ledger.BadRecord as error:
                yield questions.entry(path, number, error)


def _line(raw: bytes | None, number: int, name: str, base: questions.Base) -> Line:
    record = questions.record_of(raw)
    assert raw is not None  # else it is no record
    # items.jsonl of an evaluation has "images", a file of questions "image".
    image = record.get("images", record.get("image"))
    asked = {"id": number, "question": record.get("question"), "image": image}
    source = record.get("benchmark", record.get("source", name))
    return Line(
        raw=raw,
        number=number,
        id=str(record.get("id", number)),
        source=source if isinstance(source, str) else name,
        question=questions.parse(json.dumps(asked).encode(), base),
    )


def evaluation(
    paths: Sequence[pathlib.Path], sight: Sight
) -> tuple[overlap.Evaluation, list[ledger.Entry]]:
    """The evaluations of some files, and the lines that are no questions.

    Raises:
      ValueError: a file has no question at all.
    """
    held, bad = overlap.Evaluation(), []
    with progress.bar() as bar:
        number = bar.add_task("Reading evaluations", total=None)
        for path in paths:
            before = len(held.items)
            for found in lines(path, ""):
                bar.advance(number)
                if isinstance(found, ledger.Entry):
                    bad.append(found)
                    continue
                asked = found.question
                item = overlap.Item(
                    found.source, found.id, asked.question, bool(asked.images)
                )
                held.add(item, sight.looks(asked.images))
            if len(held.items) == before:
                raise ValueError(
                    f"{path} has no question; a line is "
                    '{"id": …, "question": …, "image": …}, as in an evaluation\'s '
                    "items.jsonl"
                )
    return held, bad


def find(
    path: pathlib.Path,
    root: str,
    against: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    kept: pathlib.Path | None,
) -> dict[str, Any]:
    """Compare, write the report and, where `kept` is named, the lines that stay.

    Returns:
      The report, as it is in `output`.

    Raises:
      ValueError: as :func:`evaluation`.
    """
    seen, asked = Sight(), Sight()
    held, bad = evaluation(against, seen)
    report = Report()
    output.parent.mkdir(parents=True, exist_ok=True)
    if kept is None:
        _compare(path, root, held, asked, report, None)
    else:
        kept.parent.mkdir(parents=True, exist_ok=True)

        def write(temporary: pathlib.Path) -> None:
            with open(temporary, "wb") as file:
                _compare(path, root, held, asked, report, file)

        atomic.write_whole(kept, write)
    counted = collections.Counter(item.source for item in held.items)
    told = {
        "evaluations": {
            "items": dict(counted),
            "left_out": dict(collections.Counter(entry.reason for entry in bad)),
            "unreadable_images": dict(seen.unreadable),
            "flat_images": held.flat,
        },
        "input": report.counts | {"unreadable_images": dict(asked.unreadable)},
        "kept_in": kept.name if kept else None,
        "overlap": report.overlap,
        "meaning": overlap.MEANING,
    }
    results.write_json(output, told)
    return told


class Report:
    """Counts and examples, by source of the question, evaluation and kind.

    Attributes:
      counts: of lines.
      overlap: ``{source: {evaluation: {kind: {"count", "examples"}}}}``.
    """

    def __init__(self) -> None:
        self.counts: dict[str, Any] = {
            **{"lines": 0, "kept": 0, "removed": 0},
            "left_out": {},
        }
        self.overlap: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}

    def leave_out(self, entry: ledger.Entry) -> None:
        """Count a line that is no question."""
        by_reason = self.counts["left_out"]
        by_reason[entry.reason] = by_reason.get(entry.reason, 0) + 1

    def take(self, line: Line, found: Sequence[overlap.Found]) -> bool:
        """Count a line; is it kept?"""
        for one in found:
            by_kind = self.overlap.setdefault(line.source, {})
            by_kind = by_kind.setdefault(one.item.source, {})
            place = by_kind.setdefault(one.kind, {"count": 0, "examples": []})
            place["count"] += 1
            if len(place["examples"]) < MAX_EXAMPLES:
                place["examples"].append(_example(line, one.item))
        keeps = not any(one.removes for one in found)
        self.counts["kept" if keeps else "removed"] += 1
        return keeps


def _example(line: Line, item: overlap.Item) -> dict[str, Any]:
    return {
        "line": line.number,
        "id": line.id,
        "question": line.question.question[:_SHOWN],
        "with_id": item.id,
        "with_question": item.question[:_SHOWN],
    }


def _compare(
    path: pathlib.Path,
    root: str,
    held: overlap.Evaluation,
    sight: Sight,
    report: Report,
    kept: IO[bytes] | None,
) -> None:
    with progress.bar() as bar:
        number = bar.add_task("Comparing questions", total=None)
        for line in lines(path, root):
            bar.advance(number)
            report.counts["lines"] += 1
            if isinstance(line, ledger.Entry):
                report.leave_out(line)
                continue
            asked = line.question
            found = held.find(
                asked.question,
                sight.looks(asked.images),
                has_image=bool(asked.images),
            )
            if report.take(line, found) and kept is not None:
                kept.write(line.raw.rstrip(b"\r\n") + b"\n")
