"""Records through the ``datasets`` library: hub ids and folders of data sets.

Extra: ``pip install -e '.[import]'``. Rows are streamed and images stay undecoded
bytes, so that pixels come from the bytes that the index will see.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

from mpo_jax.importers import readers


def read(name: str, *, subset: str, split: str) -> Iterator[readers.Item]:
    """The rows of a data set.

    Args:
      name: ``OWNER/NAME`` of the hub, or a folder: one that ``save_to_disk`` wrote, or
        one of files (Parquet, JSON, images with metadata) that ``load_dataset`` reads.
      subset: configuration of the data set, "" for its only one.
      split: such as train; "" where there is only one.

    Raises:
      ValueError: the library is absent, cannot open it, or a choice is missing.
    """
    # Or it tells which frameworks it has found.
    logging.getLogger("datasets").setLevel(logging.WARNING)
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError(
            f"reading {name!r} needs {error.name}: pip install -e '.[import]'"
        ) from error
    datasets.disable_progress_bars()
    try:
        opened = _open(datasets, name, subset)
    except Exception as error:  # the library and its readers raise anything
        here = "" if os.path.isdir(name) else " (it is no file or folder here)"
        problem = f"{name}: datasets cannot open it{here}: {_line(error)}"
        raise ValueError(problem) from error
    if isinstance(opened, dict):
        opened = opened[_choose(name, list(opened), split)]
    number = 0
    try:
        for row in opened.decode(False):
            number += 1
            yield number, row
    except Exception as error:
        problem = f"{name}: datasets stopped after row {number}: {_line(error)}"
        raise ValueError(problem) from error


def _open(datasets: Any, name: str, subset: str) -> Any:
    """An iterable data set, or one for each split."""
    saved = any(
        os.path.isfile(os.path.join(name, marker))
        for marker in ("state.json", "dataset_dict.json")
    )
    if not saved:
        return datasets.load_dataset(name, subset or None, streaming=True)
    loaded = datasets.load_from_disk(name)
    if isinstance(loaded, dict):
        return {key: part.to_iterable_dataset() for key, part in loaded.items()}
    return loaded.to_iterable_dataset()


def _choose(name: str, splits: list[str], split: str) -> str:
    if split in splits:
        return split
    if not split and len(splits) == 1:
        return splits[0]
    wrong = f"has no split {split!r}" if split else "has several splits"
    raise ValueError(f"{name} {wrong}; choose --split from {', '.join(splits)}")


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
