"""What the image files were when shards were made from them, and what they are now."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mpo_jax import ledger
from mpo_jax.mmpr import array_records, file_states
from mpo_jax.mmpr.meta import Source
from mpo_jax.mmpr.store import LooseStore
from mpo_jax.utils import located, objects

STATES = "image_files.parquet"
"""Beside the shards: path, size and times of every image file, by number."""

MAX_MISSING = 0.9
"""Shards of which a larger share of the images is missing are not written."""

_COLUMNS = ("size", "time", "any_time")


@dataclasses.dataclass(frozen=True)
class Changes:
    """How image files differ from what shards hold.

    Attributes:
      changed: files that hold other bytes, or were missing and are there now.
      gone: files that the shards hold and the disk does not.
      first: path of the first one that changed, "" if none has.
    """

    changed: int
    gone: int
    first: str


def write_states(
    directory: pathlib.Path,
    paths: Sequence[str],
    sources: Sequence[Source],
    store: LooseStore,
    progress: Callable[[str], None],
) -> None:
    """Look at all image files before they are read, and note what they are.

    Raises:
      ValueError: nearly all of them are missing.
    """
    states = _look_all(store, paths)
    (missing,) = np.nonzero(states[:, 0] == file_states.ABSENT)
    if len(missing):
        note = (
            f"{len(missing)} of {len(paths)} image files are missing (the first: "
            f"{paths[missing[0]]})"
        )
        if len(missing) > MAX_MISSING * len(paths):
            raise ValueError(
                f"{note}; unpack the images, or correct root in meta.json or reroot: "
                f"{_roots(sources)}"
            )
        progress(f"{note}; the same command writes them too once they are there")
    table = pa.table(
        {
            "path": pa.array(list(paths), pa.string()),
            **{name: states[:, i] for i, name in enumerate(_COLUMNS)},
        }
    )
    pq.write_table(table, directory / STATES)


def _roots(sources: Sequence[Source]) -> str:
    return ", ".join(
        f"{source.name!r} has root {source.root}"
        + ("" if located.is_folder(source.root) else " (no folder)")
        for source in sources[:8]
    )


def _look_all(store: LooseStore, paths: Sequence[str]) -> np.ndarray:
    """As :func:`file_states.look_all`, addresses by their listings."""
    if any(map(objects.is_store, paths)):
        return store.look_at(paths)
    return file_states.look_all(paths)


def compare(store: array_records.ShardStore, loose: LooseStore) -> Changes:
    """Compare shards with the image files that they were made from.

    Only files of another size or time are read.

    Args:
      store: the shards.
      loose: looks at the files, and reads them.

    Raises:
      ValueError: the shards do not say what the files were.
      OSError: a file system failed.
    """
    place = pathlib.Path(store.directory) / STATES
    if not place.is_file():
        raise ValueError(
            f"{place} is absent, so it cannot be told whether the shards hold the "
            "images as they are; remove the folder or name another one"
        )
    table = pq.read_table(place)
    paths = table["path"].to_pylist()
    before = np.stack([table[name].to_numpy() for name in _COLUMNS], axis=1)
    now = _look_all(loose, paths)
    changed, gone, first = 0, 0, ""
    for number in np.flatnonzero((before != now).any(axis=1)).tolist():
        stored, there = store.image(number), _bytes_of(loose, paths[number])
        if there is None:
            gone += stored is not None
        elif there != stored:
            changed += 1
            first = first or paths[number]
    return Changes(changed, gone, first)


def _bytes_of(loose: LooseStore, path: str) -> bytes | None:
    try:
        return loose.image(path)
    except ledger.BadRecord:
        return None
