"""Models behind an address: their small files fetched, a new one written whole or not.

A bucket cannot rename a directory. A model there is written under a marker, which names
the job; it goes when all is there, with ``config.json`` put last. What still has the
marker is refused by readers, and taken up again by the same job.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from mpo_jax.convert import files
from mpo_jax.utils import remote

MARKER = ".unfinished.json"
"""Object that stands in a model's folder as long as it is being written."""

SUBFOLDERS = (files.KEPT,)
"""Folders of a model directory that are carried along with its own files."""

_MAX_FILE_BYTES = 256 * 2**20


def cache_directory() -> pathlib.Path:
    """Where small files of remote models are kept: ``$XDG_CACHE_HOME/mpo_jax``."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "mpo_jax"


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def check_finished(address: str) -> dict[str, int]:
    """Sizes of the objects behind an address, by name.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if the marker says that it is not finished.
    """
    folder = remote.Folder(address)
    sizes = folder.sizes()
    if MARKER in sizes:
        raise ValueError(
            f"{address} is not finished ({MARKER} stands there): run the command that "
            "writes it again, and it goes on"
        )
    if not sizes and not folder.folders():
        raise FileNotFoundError(f"{address} holds nothing; check the address")
    return sizes


def mirror(address: str) -> pathlib.Path:
    """Local copy of a model's configuration, tokenizer and texts, without weights.

    Kept under :func:`cache_directory`, by address and content; another content gets
    another copy.

    Raises:
      FileNotFoundError, ValueError: as :func:`check_finished`, or if a file is larger
        than any of these; names it.
    """
    check_finished(address)
    wanted: dict[str, int] = {}
    state = []
    for sub in ("", *SUBFOLDERS):
        folder = remote.Folder(f"{address.rstrip('/')}/{sub}".rstrip("/"))
        entries = [
            entry
            for entry in folder.state()
            # The record of dtypes goes with a checkpoint's files.
            if files.is_carried(entry[0]) or entry[0] == files.DTYPES
        ]
        state.append([sub, entries])
        wanted |= {f"{sub}/{name}".lstrip("/"): size for name, size, _ in entries}
    for name, size in wanted.items():
        if size > _MAX_FILE_BYTES:
            raise ValueError(
                f"{address}/{name}: {size} bytes beside the weights; at most "
                f"{_MAX_FILE_BYTES} are fetched, move it elsewhere"
            )
    target = cache_directory() / "files" / _digest(address.rstrip("/"), state)
    if target.is_dir():
        return target
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    folder = remote.Folder(address)
    for name in wanted:
        (partial / name).parent.mkdir(exist_ok=True)
        folder.download(name, partial / name)
    try:
        partial.rename(target)
    except OSError:  # another process was first: the same content
        shutil.rmtree(partial)
        if not target.is_dir():
            raise
    return target


@contextlib.contextmanager
def new_model(
    address: str, *, job: Mapping[str, Any], overwrite: bool = False
) -> Iterator[tuple[pathlib.Path, files.Progress, remote.Folder]]:
    """Write a model behind an address.

    Yields a local directory for small files, which are uploaded at the end,
    ``config.json`` after all others; the record of a job that goes on; and the folder,
    for what is uploaded in between. A ``ValueError`` clears the folder, since the same
    job would fail again; after a kill it goes on.

    Two processes that write to one address at once are not noticed.

    Raises:
      FileExistsError: as ``files.new_directory``, or if another job is unfinished
        there and `overwrite` is False.
    """
    folder = remote.Folder(address)
    description = json.dumps(dict(job), sort_keys=True, indent=1)
    names = folder.sizes().keys() | folder.folders()
    going_on = MARKER in names and folder.read(MARKER).decode() == description
    if not going_on:
        if MARKER in names and not overwrite:
            raise FileExistsError(
                f"{address} holds what another job has not finished; finish that, "
                "give another address, or allow overwriting"
            )
        if MARKER not in names:
            files.check_names(address, set(names), overwrite=overwrite)
        folder.write(MARKER, description.encode())
        folder.clear(keep=MARKER)
    staging = cache_directory() / "writing" / _digest(folder.address)
    note, steps = staging / ".job.json", staging / ".progress"
    resumed = going_on and note.is_file() and note.read_text() == description
    if not resumed:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        note.write_text(description, encoding="utf-8")
    try:
        yield staging, files.Progress(steps, resumed=resumed), folder
        _upload(staging, folder)
        folder.delete(MARKER)
    except ValueError:
        folder.clear()
        shutil.rmtree(staging)
        raise
    shutil.rmtree(staging)


def _upload(staging: pathlib.Path, folder: remote.Folder) -> None:
    """Everything but hidden files; the index and then ``config.json`` come last."""
    last = [files.INDEX, "config.json"]
    names = [
        str(path.relative_to(staging))
        for path in sorted(staging.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    for name in sorted(names, key=lambda n: last.index(n) if n in last else -1):
        folder.upload(staging / name, name)
