"""Questions with their true answers, from a file of JSON lines.

``{"id"?, "question", "image"?: "a.png" | [...], "answer_gt" | "answer", "options"?,
"kind"?, "source"?}``; without an id, the number of the line is it.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from mpo_jax import ledger
from mpo_jax.generate import questions
from mpo_jax.prefs import line_fields
from mpo_jax.verify.verdict import Truth

READ = ("id", "question", "image", "answer_gt", "answer", "options", "kind", "source")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question whose answers can be judged.

    Attributes:
      id: given, or the line's number.
      text: as the data have it, before a prompt is made of it.
      images: paths below the root of the data.
      truth: its true answer, with options and kind.
      source: name of the data that it comes from.
    """

    id: str | int
    text: str
    images: tuple[str, ...]
    truth: Truth
    source: str

    def fields(self) -> dict[str, Any]:
        """As fields of a rollout."""
        found: dict[str, Any] = {"id": self.id, "question": self.text}
        if self.images:
            one = len(self.images) == 1
            found["image"] = self.images[0] if one else list(self.images)
        found["answer_gt"] = self.truth.answer
        if self.truth.options:
            found["options"] = list(self.truth.options)
        if self.truth.kind:
            found["kind"] = self.truth.kind
        return found | {"source": self.source}


def root_of(path: str | pathlib.Path, root: str) -> str:
    """What images are below: `root`, or the folder of the file where it is ""."""
    return os.path.abspath(os.path.expanduser(root) or pathlib.Path(path).parent)


def read(
    path: str | pathlib.Path, *, root: str = ""
) -> Iterator[tuple[int, Question | ledger.Entry]]:
    """The questions of a file in order.

    Args:
      root: what image paths are below; "" is the folder of the file.

    Yields:
      Line number from 1, and the question, or why it is left out.
    """
    path = pathlib.Path(path)
    root = root_of(path, root)
    seen: dict[str | int, int] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(questions.lines_of(file), 1):
            if line is not None and not line.strip():
                continue
            try:
                found = parse(line, number, root=root, source=path.stem)
                if found.id in seen:
                    detail = f"id={found.id!r} is that of line {seen[found.id]} too"
                    raise ledger.BadRecord("bad_field", f"{detail}; ids must differ")
            except ledger.BadRecord as error:
                yield number, entry(path, number, error)
            else:
                seen[found.id] = number
                yield number, found


def entry(path: str | pathlib.Path, line: int, error: ledger.BadRecord) -> ledger.Entry:
    """The ledger's entry of a line."""
    return ledger.Entry("questions", str(path), line, error.reason, error.detail)


def parse(line: bytes | None, number: int, *, root: str, source: str) -> Question:
    """A question of one line.

    Args:
      number: of the line; the id where it has none.
      root: absolute.
      source: where the line names none.

    Raises:
      BadRecord: it is none; names field and value.
    """
    record = line_fields.load(line)
    line_fields.check_names(record, READ)
    return of_record(record, number, root=root, source=source)


def of_record(
    record: dict[str, Any], default_id: str | int, *, root: str, source: str
) -> Question:
    """A question of a line's fields.

    Raises:
      BadRecord: a field is missing or wrong.
    """
    return Question(
        id=line_fields.ident(record, default_id),
        text=line_fields.text(record, "question"),
        images=line_fields.images(record, root),
        truth=line_fields.truth(record),
        source=line_fields.source(record, source),
    )
