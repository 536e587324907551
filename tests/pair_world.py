"""Finished folders of pairs with known numbers, and hostile ones."""

from __future__ import annotations

import json
import pathlib
import random
from typing import Any

import speaking
from PIL import Image

WRONG, FORMAT = "_pairs_vqa_correctness_rules", "_pairs_vqa_format_rules"


def pair(id: Any, chosen: str, rejected: str, **fields: Any) -> dict[str, Any]:
    return {
        **{"id": id, "question": f"<image>\nHow many {id}?", "image": "a.png"},
        **{"chosen": chosen, "rejected": rejected},
        **fields,
    }


def judged(prediction: str | None, verdict: str, rule: str, tokens: int | None = None):
    told = {"sample": 0, "prediction": prediction, "role": verdict}
    return told | {"verdict": verdict, "rule": rule, "tokens": tokens}


def write(
    folder: pathlib.Path,
    files: dict[str, list[Any]],
    manifest: dict[str, Any] | None = None,
) -> pathlib.Path:
    """Annotations by name, with their meta.json."""
    (folder / "annotations").mkdir(parents=True)
    meta = {}
    for name, lines in files.items():
        place = folder / "annotations" / f"{name}.jsonl"
        speaking.write_lines(place, lines)
        meta[name] = {
            **{"root": "images", "annotation": f"annotations/{name}.jsonl"},
            **{"data_augment": False, "repeat_time": 1, "length": len(lines)},
        }
    (folder / "images").mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "images" / "a.png")
    (folder / "meta.json").write_text(json.dumps(meta))
    if manifest is not None:
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def drawn(number: int, *, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Pairs with random lengths and answers; "7" is chosen more often than rejected."""
    rng = random.Random(seed)
    files: dict[str, list[dict[str, Any]]] = {
        f"{source}{suffix}": [] for source in ("a", "b") for suffix in (WRONG, FORMAT)
    }
    for i in range(number):
        formless = rng.random() < 0.2
        chosen = rng.choice(["7", "7", "3", "(B)", f"x{i}"])
        rejected = rng.choice(["7", "3", "3", "b", f"y{i}"])
        sizes = [rng.randrange(1, 9), rng.randrange(1, 8)]
        texts = [f"{side}{i} " + "w" * n for side, n in zip("cr", sizes, strict=True)]
        files[rng.choice("ab") + (FORMAT if formless else WRONG)].append(
            pair(
                *(i // 4, *texts),
                chosen_meta=judged(chosen, "right", "number", sizes[0]),
                rejected_meta=judged(
                    None if formless else rejected,
                    "undecided" if formless else "wrong",
                    "no_answer" if formless else "number",
                    None if i % 7 == 0 else sizes[1],
                ),
            )
        )
    return files
