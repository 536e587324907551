"""Where checkpoints lie, as we and as Orbax name it."""

from __future__ import annotations

import glob
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from etils import epath
from etils.epath import gpath

from mpo_jax.utils import lease, remote

_NO_NAMES = frozenset("#?*[]")
"""Orbax takes an address for a URL, whose path these end: all that lies behind them
would be one place."""


@epath.register_path_cls
class _Directory(gpath.PosixGPath):
    """A directory as Orbax must have it.

    Its own name is never taken for a pattern. Orbax finds the files of each process by
    ``glob``, whose pattern would hold the directory's name: in one such as
    ``lr[1e-5]`` it found none, and saved nothing.

    Folders are made, and a save is committed, which is a rename, only where this run
    still holds the work directory: in the place of one that was unmounted during a save
    a checkpoint would appear, since TensorStore makes folders as well.
    """

    def glob(self, pattern: str) -> Iterator[_Directory]:  # type: ignore[override]
        for name in glob.iglob(pattern, root_dir=str(self)):
            yield self / name

    def mkdir(self, *args: Any, **options: Any) -> None:
        lease.check()
        super().mkdir(*args, **options)

    def rename(self, target: Any) -> Any:
        lease.check()
        return super().rename(target)


def check_place(path: Any) -> None:
    """Check that checkpoints can be written to a directory, or address, of this name.

    Raises:
      ValueError: as :func:`check_name`; if it is an address for which nothing is
        installed.
    """
    check_name(path)
    if remote.is_remote(path):
        remote.Folder(str(path))  # names what is not installed


def check_name(path: Any) -> None:
    """The same by the name alone: for another machine, and without asking a store.

    Raises:
      ValueError: if it holds a backslash, which TensorStore takes for a separator; if
        it is an address that Orbax cannot write to, or would read more or less than a
        name out of.
    """
    name = str(path)
    if "\\" in name:
        raise ValueError(
            f"{path}: checkpoints cannot be written to a path with a backslash; name "
            "another one"
        )
    if not remote.is_remote(path):
        return
    if not name.startswith("gs://"):
        raise ValueError(
            f"{path}: Orbax checkpoints are read from and written to directories and "
            "gs://. Data and models may be at other addresses, a work directory may not"
        )
    if not name.removeprefix("gs://").strip("/"):
        raise ValueError(f"{path}: names no bucket: write gs://BUCKET/FOLDER")
    if odd := sorted(_NO_NAMES & set(name)):
        raise ValueError(
            f"{path}: holds {' '.join(odd)}, at which Orbax would end the address or "
            "see a pattern; name another one"
        )


def absolute(path: Any) -> Any:
    """A path, absolute; an address as Orbax's own kind, since pathlib would fold it."""
    check_place(path)
    if not remote.is_remote(path):
        return pathlib.Path(os.path.expanduser(path)).absolute()
    return epath.Path(str(path))


def steps_in(path: Any) -> list[int]:
    """Steps of the checkpoints in a directory, whole or not, in order."""
    place = absolute(path)
    if not place.is_dir():
        return []
    return sorted(
        int(found.name) for found in place.iterdir() if found.name.isdecimal()
    )


def for_orbax(path: Any) -> Any:
    """The same as Orbax should see it."""
    place = absolute(path)
    return _Directory(place) if isinstance(place, pathlib.Path) else place
