"""The mixture that a tiny model learns to see and to speak from, as MMPR records.

Three kinds of records, each of a drawing of its own (the trainer's ``mode=sft`` reads
``chosen`` alone):

- ``direct``: the question with the instruction for a bare answer, and the number;
- ``cot``: the question in the format ``en``, and a chain of thought. A share of the
  chains is wrong, as chains that are collected from models are: a value is misread, or
  read right and computed wrong, or the rest is made up;
- ``blind``: the same without the image, and a chain on values that are made up. Without
  them a model has never seen such a prompt, and what it continues without the image
  (Dropout-NTP) is no language.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from mpo_jax.demo import drawings
from mpo_jax.prefs import prompts

META, ANNOTATION, IMAGES = "meta.json", "sft.jsonl", "images"


@dataclasses.dataclass(frozen=True)
class Shares:
    """What the mixture is made of.

    Attributes:
      direct: share of records with a bare answer.
      blind: share of records without an image; all others are chains of thought.
      wrong: share of the chains that are wrong.
    """

    direct: float = 0.47
    blind: float = 0.06
    wrong: float = 0.1


def write(
    folder: pathlib.Path,
    *,
    count: int,
    seed: int,
    shares: Shares,
    topics: Sequence[str] = drawings.TOPICS,
) -> pathlib.Path:
    """Write the mixture; the same arguments give the same bytes.

    Args:
      folder: made if absent; files of these names are replaced.
      count: number of records.
      seed: of the drawings (split ``train``) and of the kinds.

    Returns:
      The meta file.
    """
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    with open(folder / ANNOTATION, "w", encoding="utf-8") as file:
        for index in range(count):
            item = drawings.draw_item(index, seed=seed, split="train", topics=topics)
            record = _record(item, np.random.default_rng([seed, index, 2]), shares)
            if "image" in record:
                record["image"] = f"{index:06d}.png"
                item.image.save(folder / IMAGES / record["image"])
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    meta = {
        "drawings": {
            "root": IMAGES,
            "annotation": ANNOTATION,
            "data_augment": False,
            "repeat_time": 1,
            "length": count,
            "max_dynamic_patch": 1,
        }
    }
    text = json.dumps(meta, indent=2) + "\n"
    (folder / META).write_text(text, encoding="utf-8")
    return folder / META


def corpus(meta: pathlib.Path) -> Iterator[str]:
    """Yield every text of a mixture, to train a tokenizer."""
    with open(meta.parent / ANNOTATION, encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            yield from (record["question"], record["chosen"])


def _record(
    item: drawings.Item, rng: np.random.Generator, shares: Shares
) -> dict[str, str]:
    kind, wrong = rng.random(2)
    record = {"task": item.task, "answer_gt": str(item.answer)}
    front = f"{prompts.PLACEHOLDER}\n"
    if kind < shares.direct:
        asked = f"{front}{item.asked}\n{prompts.ASK_SHORT}"
        return record | {"image": "", "question": asked, "chosen": str(item.answer)}
    if kind < shares.direct + shares.blind:
        asked = item.question.removeprefix(front)
        return record | {"question": asked, "chosen": item.imagined}
    said = item.rejected if wrong < shares.wrong else item.chosen
    return record | {"image": "", "question": item.question, "chosen": said}
