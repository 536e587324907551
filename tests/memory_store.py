"""A store in memory, in the place of a bucket: ``memory://bucket/…``."""

from __future__ import annotations

import pathlib

import fsspec


def emptied() -> fsspec.AbstractFileSystem:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    return filesystem


def upload(folder: pathlib.Path, address: str) -> None:
    """Copy all files below a folder, their names as they are."""
    filesystem = fsspec.filesystem("memory")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = f"{address.removeprefix('memory:/')}/{path.relative_to(folder)}"
            filesystem.makedirs(name.rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(name, path.read_bytes())
