"""The questions of a recipe: joined, without what evaluations ask, dealt to rounds."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mpo_jax import config, ledger
from mpo_jax.evals import asking, benchmark
from mpo_jax.generate import questions as generate_questions
from mpo_jax.generate import results
from mpo_jax.prefs import questions
from mpo_jax.run import eval_tasks, line_files, overlapping
from mpo_jax.utils import atomic

JOINED, KEPT, LEDGER = "joined.jsonl", "questions.jsonl", "ledger.jsonl"
ITEMS, OVERLAP = "items.jsonl", "overlap.json"


@dataclasses.dataclass(frozen=True)
class Files:
    """Files of questions.

    Attributes:
      paths: absolute.
      root: folder of the images; "" is that of each file.
    """

    paths: Sequence[str]
    root: str

    @property
    def images(self) -> str:
        """An absolute folder that holds all images."""
        return os.path.commonpath(
            [questions.root_of(path, self.root) for path in self.paths]
        )

    def read(self) -> Iterator[questions.Question | ledger.Entry]:
        """All questions, in order, their images below :attr:`images`.

        Where there are several files, an id is that of its file with the file's name.

        Raises:
          ValueError: two files have one name.
        """
        stems = [pathlib.Path(path).stem for path in self.paths]
        twice = [stem for stem in stems if stems.count(stem) > 1]
        if twice:
            raise ValueError(
                f"questions.files: two files are called {twice[0]!r}; give them names "
                "that differ: ids and sources are called after them"
            )
        for path, stem in zip(self.paths, stems, strict=True):
            below = os.path.relpath(questions.root_of(path, self.root), self.images)
            for _, found in questions.read(path, root=self.root):
                if isinstance(found, questions.Question):
                    found = _moved(found, below)
                    if len(stems) > 1:
                        found = dataclasses.replace(found, id=f"{stem}:{found.id!r}")
                yield found


def _moved(found: questions.Question, below: str) -> questions.Question:
    images = [os.path.normpath(os.path.join(below, image)) for image in found.images]
    return dataclasses.replace(found, images=tuple(images))


def count(files: Files) -> tuple[int, int]:
    """Questions that can be asked, and lines that are left out."""
    found = [isinstance(one, questions.Question) for one in files.read()]
    return sum(found), len(found) - sum(found)


def join(files: Files, folder: pathlib.Path) -> int:
    """Write all questions as one file, and the ledger of lines that are none.

    Returns:
      Their number.
    """
    left_out: list[ledger.Entry] = []
    number = 0

    def lines() -> Iterator[dict[str, Any]]:
        nonlocal number
        for found in files.read():
            if isinstance(found, ledger.Entry):
                left_out.append(found)
            else:
                number += 1
                yield found.fields()

    line_files.write_all(folder / JOINED, lines())
    results.write_ledger(folder / LEDGER, left_out)
    return number


def leave_out(
    source: pathlib.Path,
    root: str,
    folder: pathlib.Path,
    against: Sequence[pathlib.Path],
) -> dict[str, Any] | None:
    """Write the lines that no evaluation asks to ``questions.jsonl``; without one, all.

    Args:
      source: lines with a question.
      root: absolute folder of their images.
      against: evaluations' items.

    Returns:
      The counts of lines that ``overlapping.find`` gives, or None.
    """
    kept = folder / KEPT
    if not against:
        atomic.write_whole(kept, lambda path: _write(path, _lines(source)))
        return None
    found = overlapping.find(source, root, against, folder / OVERLAP, kept=kept)
    return found["input"]


def write_items(
    cfg: config.EvaluationConfig, folder: pathlib.Path
) -> list[pathlib.Path]:
    """Write all items of an evaluation's benchmarks, limit or not, to compare with.

    Returns:
      Their files.
    """
    found = []
    tasks = eval_tasks.tasks(dataclasses.replace(cfg, limit=0))
    for task in {task.benchmark.name: task for task in tasks}.values():
        place = folder / task.benchmark.name
        place.mkdir(parents=True, exist_ok=True)
        pictures = asking.Pictures(place, task.folder)
        lines = (_item(item, task.benchmark.name, pictures) for item in task.items)
        line_files.write_all(place / ITEMS, lines)
        found.append(place / ITEMS)
    return found


def _item(item: benchmark.Item, name: str, pictures: asking.Pictures) -> dict[str, Any]:
    images = []
    for image in item.images:
        try:
            images.append(pictures.put(image))
        except ledger.BadRecord:
            continue  # compared by its text; whoever asks it names the picture
    line = {"id": item.id, "benchmark": name, "question": item.question}
    return line | ({"images": images} if images else {})


def deal(
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    turn: int,
    number: int,
    seed: int,
) -> int:
    """Write the questions of one round: whole lines, in the order of the file.

    Rounds take `number` each, one after the other, from an order that depends on `seed`
    and on the lines alone; after the last question comes the first again.

    Args:
      turn: of the round, from 0.
      number: of a round; 0, or more than there are, takes all.

    Returns:
      How many are written.
    """
    digests = [_drawn(seed, line) for line in _lines(source)]
    order = sorted(range(len(digests)), key=lambda place: (digests[place], place))
    if number and number < len(order):
        first = turn * number
        chosen = {order[(first + i) % len(order)] for i in range(number)}
    else:
        chosen = set(order)
    kept = (line for place, line in enumerate(_lines(source)) if place in chosen)
    atomic.write_whole(target, lambda path: _write(path, kept))
    return len(chosen)


def _drawn(seed: int, line: bytes) -> bytes:
    return hashlib.sha256(f"{seed}:".encode() + line).digest()[:8]


def _lines(path: pathlib.Path) -> Iterator[bytes]:
    """Lines that are not blank; what is too long to be read is none."""
    with open(path, "rb") as file:
        for line in generate_questions.lines_of(file):
            if line is not None and line.strip():
                yield line.rstrip(b"\r\n") + b"\n"


def _write(path: pathlib.Path, lines: Iterable[bytes]) -> None:
    with open(path, "wb") as file:
        file.writelines(lines)


def total(path: str | pathlib.Path) -> int:
    """Lines of a file that are not blank."""
    return sum(1 for _ in _lines(pathlib.Path(path)))
