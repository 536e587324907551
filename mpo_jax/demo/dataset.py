"""Write the drawn pairs to disk in the layout of MMPR.

::

    out_dir/
      demo.json                     what was asked for, and whether it is complete
      meta.json, eval_meta.json     one source per topic
      annotations/count_train.jsonl ...
      images/count/train_000000.png ...
"""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable, Iterator

from mpo_jax.demo import drawings

FORMAT = 1
"""Raised whenever the same arguments give other files."""
MARKER = "demo.json"
_META = {"train": "meta.json", "eval": "eval_meta.json"}
_OWNED = (*_META.values(), "annotations", "images")


def write_dataset(
    out_dir: str | pathlib.Path,
    *,
    num_train: int,
    num_eval: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, pathlib.Path]:
    """Write train and held-out pairs; a no-op where they already lie there.

    Pairs are a function of (seed, split, number), so a larger data set begins with the
    pairs of a smaller one. No image occurs in both splits. Other files in `out_dir`
    are left alone.

    Args:
      out_dir: folder, made if absent.
      num_train: pairs in ``meta.json``, dealt to the topics in turn.
      num_eval: pairs in ``eval_meta.json``.
      seed: seed of both splits.
      progress: called with (pairs written, pairs in all) after each pair.

    Returns:
      Paths: ``meta`` and ``eval_meta``.

    Raises:
      ValueError: fewer pairs than topics, so that a source would be empty.
      FileExistsError: `out_dir` holds files of these names that are not ours.
    """
    if min(num_train, num_eval) < len(drawings.TOPICS):
        raise ValueError(
            f"num_train={num_train} and num_eval={num_eval} must both be at least "
            f"{len(drawings.TOPICS)}, one pair per topic"
        )
    out_dir = pathlib.Path(out_dir)
    paths = {"meta": out_dir / _META["train"], "eval_meta": out_dir / _META["eval"]}
    counts = {"train": num_train, "eval": num_eval}
    wanted = {"format": FORMAT, "seed": seed, **counts}
    if _is_complete(out_dir, wanted):
        return paths
    _clear(out_dir)
    _write_json(out_dir / MARKER, {**wanted, "complete": False})
    done = 0
    for split, count in counts.items():
        for _ in _write_split(out_dir, split=split, count=count, seed=seed):
            done += 1
            if progress is not None:
                progress(done, num_train + num_eval)
    _write_json(out_dir / MARKER, {**wanted, "complete": True})
    return paths


def corpus(meta: str | pathlib.Path) -> Iterator[str]:
    """Yield question, chosen and rejected of every pair: text to train a tokenizer."""
    meta = pathlib.Path(meta)
    for entry in json.loads(meta.read_text("utf-8")).values():
        with open(meta.parent / entry["annotation"], encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                yield from (record[key] for key in ("question", "chosen", "rejected"))


def _write_split(
    out_dir: pathlib.Path, *, split: str, count: int, seed: int
) -> Iterator[None]:
    """Write images, annotations and, last, the meta file; yield after each pair."""
    lines: dict[str, list[str]] = {topic: [] for topic in drawings.TOPICS}
    for topic in drawings.TOPICS:
        (out_dir / "images" / topic).mkdir(parents=True, exist_ok=True)
    (out_dir / "annotations").mkdir(exist_ok=True)
    for index in range(count):
        item = drawings.draw_item(index, seed=seed, split=split)
        image = f"{item.topic}/{split}_{index:06d}.png"
        item.image.save(out_dir / "images" / image)
        record = {
            "image": image,
            "question": item.question,
            "chosen": item.chosen,
            "rejected": item.rejected,
            "answer_gt": str(item.answer),
            "task": item.task,
            "rejected_kind": item.rejected_kind,
        }
        lines[item.topic].append(json.dumps(record, ensure_ascii=False) + "\n")
        yield
    meta = {}
    for topic in drawings.TOPICS:
        annotation = _annotation(topic, split)
        (out_dir / annotation).write_text("".join(lines[topic]), "utf-8")
        meta[f"demo_{topic}"] = {
            "root": "images",
            "annotation": annotation,
            "data_augment": False,
            "repeat_time": 1,
            "length": len(lines[topic]),
            "max_dynamic_patch": 1,
        }
    _write_json(out_dir / _META[split], meta)


def _annotation(topic: str, split: str) -> str:
    return f"annotations/{topic}_{split}.jsonl"


def _is_complete(out_dir: pathlib.Path, wanted: dict) -> bool:
    """Whether the marker says so and no file has gone since."""
    marker = out_dir / MARKER
    if not marker.is_file():
        return False
    try:
        found = json.loads(marker.read_text("utf-8"))
    except json.JSONDecodeError:  # cut off while it was written
        return False
    names = [*_META.values()]
    for topic in drawings.TOPICS:
        names += [_annotation(topic, split) for split in drawings.SPLITS]
    images = sum(1 for _ in (out_dir / "images").glob("*/*.png"))
    return (
        found == {**wanted, "complete": True}
        and all((out_dir / name).is_file() for name in names)
        and images == wanted["train"] + wanted["eval"]
    )


def _clear(out_dir: pathlib.Path) -> None:
    """Remove what an earlier call wrote; refuse to touch anything else."""
    out_dir.mkdir(parents=True, exist_ok=True)
    present = [out_dir / name for name in _OWNED if (out_dir / name).exists()]
    if present and not (out_dir / MARKER).is_file():
        raise FileExistsError(
            f"{present[0]} exists, but {MARKER} does not lie beside it, so it was not "
            "written by write_dataset; choose another out_dir or move it away"
        )
    for path in present:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write_json(path: pathlib.Path, value: object) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, "utf-8")
