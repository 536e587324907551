"""Drawn questions with true answers, for sampling, for Dropout-NTP, for evaluation.

::

    folder/
      questions.jsonl       {"id", "question", "image", "answer", "source", "task"}
      images/000000.png …

One file serves all: its fields are those of ``scripts/sample_responses.py`` and
``scripts/dropout_ntp.py``, and ``demo.benchmark`` reads it as a benchmark.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from mpo_jax.demo import drawings

FILE, IMAGES = "questions.jsonl", "images"


def write(
    folder: pathlib.Path,
    *,
    count: int,
    seed: int,
    split: str,
    topics: Sequence[str] = drawings.TOPICS,
) -> pathlib.Path:
    """Write questions; the same arguments give the same bytes.

    Args:
      folder: made if absent; files of these names are replaced.
      count: number of questions, each with a drawing of its own.
      seed, split, topics: as for ``drawings.draw_item``.

    Returns:
      The file of questions.
    """
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    with open(folder / FILE, "w", encoding="utf-8") as file:
        for index in range(count):
            item = drawings.draw_item(index, seed=seed, split=split, topics=topics)
            image = f"{IMAGES}/{index:06d}.png"
            item.image.save(folder / image)
            line = {
                "id": index,
                "question": item.asked,
                "image": image,
                "answer": str(item.answer),
                "source": f"demo_{item.topic}",
                "task": item.task,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return folder / FILE


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a file of questions."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]
