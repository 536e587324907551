"""Writing ArrayRecord shards with TFDS, and with Beam where one machine is too slow.

The first pass reads the annotations alone and numbers lines and image files; the list
it leaves is cut into ranges, which a generator (one process) or Beam workers turn into
records. Order and content do not depend on who does it. Layout and reader:
:mod:`mpo_jax.mmpr.array_records`.

Extras: ``pip install -e '.[shards]'``, and ``'.[beam]'`` for Beam.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import array_record.python.array_record_module as array_record

from mpo_jax.mmpr import (
    array_records,
    index_build,
    records,
    shard_builder,
    shard_images,
    shard_work,
)
from mpo_jax.mmpr import store as store_lib
from mpo_jax.mmpr.array_records import IMAGES, LINES
from mpo_jax.mmpr.meta import MAX_META_BYTES, Source
from mpo_jax.mmpr.shard_work import Work
from mpo_jax.utils import atomic, fetched, located


def write_shards(
    meta_path: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    reroot: str = "",
    max_text_bytes: int = 1_000_000,
    num_shards: int = 0,
    beam_options: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda note: None,
    cache: fetched.LocalCache | None = None,
) -> array_records.ShardStore:
    """Write the shards of a data set, or open them if they are there.

    The folder appears whole or not at all: everything is made beside it and renamed.
    What a killed call has left is removed by the next one; of two calls at once the
    second waits. Shards that are there are given back as long as they hold the images
    as they are now; where images were replaced or have come since, they are written
    anew, unless an image that they hold is gone from the disk.

    Args:
      meta_path, reroot: see :func:`mpo_jax.mmpr.meta.load_meta`.
      directory: folder of the shards; made.
      max_text_bytes: longer annotation lines are cut (and left out by the index).
      num_shards: files of each kind; 0 lets TFDS choose by size.
      beam_options: arguments of Beam's pipeline, such as ``["--runner=DirectRunner"]``;
        None works in this process. Workers must see the same paths.
      progress: called with a few words at every stage.
      cache: keeps what is fetched from addresses; None is the default one.

    Raises:
      ValueError: `directory` holds other shards, nearly all images are missing, or bad
        meta.json.
      OSError: a file system failed.
    """
    if num_shards < 0 or max_text_bytes < 1:
        raise ValueError(
            f"{num_shards=} must not be negative, {max_text_bytes=} be positive"
        )
    target = pathlib.Path(directory).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic.alone(
        target.with_name(target.name + ".building.lock"),
        busy=lambda: progress("waiting for another process that writes them"),
    ):
        opened, sources = store_lib.open_data(meta_path, reroot=reroot, cache=cache)
        if not isinstance(opened, store_lib.LooseStore):
            raise ValueError(f"{str(meta_path)!r} holds shards already")
        listings = target.with_name(target.name + ".listings")
        with opened.listed(sources, listings) as (loose, _):
            made_from = _made_from(loose, sources, max_text_bytes)
            if target.exists() and _are_current(target, made_from, loose, progress):
                return array_records.ShardStore(target)
            with _replacing(target) as building:
                lists = str(building / "lists")
                work = Work(lists, tuple(sources), loose, max_text_bytes)
                made = _write_all(work, building, num_shards, beam_options, progress)
                made |= {"made_from": made_from, "max_text_bytes": max_text_bytes}
                meta = located.head(located.absolute(meta_path), MAX_META_BYTES)
                _write_json(
                    building / "meta.json", json.loads(meta.decode("utf-8-sig"))
                )
                _write_json(building / array_records.MANIFEST, made)
        return array_records.ShardStore(target)


@contextlib.contextmanager
def _replacing(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside `target` that takes its place when the block ends well.

    What an interrupted call has left goes first. After a ``ValueError``, which the next
    call would meet too, nothing is left.
    """
    building, outdated = (
        target.with_name(target.name + end) for end in (".building", ".outdated")
    )
    for leftover in (building, outdated):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir()
    try:
        yield building
    except ValueError:
        shutil.rmtree(building)
        raise
    if target.exists():
        os.rename(target, outdated)
    os.rename(building, target)
    shutil.rmtree(outdated, ignore_errors=True)


def _made_from(
    loose: store_lib.LooseStore,
    sources: Sequence[Source],
    max_text_bytes: int,
) -> str:
    """What the lines of the shards depend on."""
    texts = [[s.name, *s.place, loose.digest(s)] for s in sources]
    return index_build.digest([array_records.FORMAT, max_text_bytes, *texts])


def _are_current(
    target: pathlib.Path,
    made_from: str,
    loose: store_lib.LooseStore,
    progress: Callable[[str], None],
) -> bool:
    """Whether shards hold lines and images as they are now on disk.

    Raises:
      ValueError: the folder holds something else, they are of other annotations, or
        writing them anew would lose images.
    """
    if not any(target.iterdir()):
        return False
    if not (target / array_records.MANIFEST).is_file():
        raise ValueError(
            f"{target} exists and holds something else than shards; name another folder"
        )
    manifest = array_records.read_manifest(target)
    if manifest["made_from"] != made_from:
        raise ValueError(
            f"{target} holds the shards of other annotations or limits; remove it "
            "or name another folder"
        )
    changes = shard_images.compare(array_records.ShardStore(target), loose)
    if changes.gone:
        progress(f"{changes.gone} image files are gone; the shards hold them")
    if not changes.changed:
        return True
    outdated = (
        f"{changes.changed} images are not those that the shards in {target} hold "
        f"(the first: {changes.first})"
    )
    if changes.gone:
        raise ValueError(
            f"{outdated}, and {changes.gone} that they hold are gone from the disk; "
            "put those back, or name another folder for shards without them"
        )
    progress(f"{outdated}; writing them anew")
    return False


def _write_all(
    work: Work,
    building: pathlib.Path,
    num_shards: int,
    beam_options: Sequence[str] | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Write lines and images; returns the manifest but for what it was made from."""
    progress("numbering lines and images")
    lists = pathlib.Path(work.directory)
    lists.mkdir()
    described, images = shard_work.write_lists(work)
    shard_images.write_states(building, images, work.sources, work.store, progress)
    files: dict[str, list[dict[str, Any]]] = {}
    for kind in (LINES, IMAGES):
        files[kind] = []
        if os.path.getsize(work.path(kind)):
            progress(f"writing {kind}")
            paths = shard_builder.build(work, kind, building, num_shards, beam_options)
            files[kind] = [_describe(path, building) for path in paths]
    shutil.rmtree(lists)
    content = [[e["sha256"], e["records"]] for kind in files for e in files[kind]]
    return {
        "format": array_records.FORMAT,
        "fingerprint": index_build.digest([content, described]),
        "sources": described,
        "files": files,
    }


def _write_json(path: pathlib.Path, value: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


def _describe(path: pathlib.Path, building: pathlib.Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    reader = array_record.ArrayRecordReader(str(path))
    count = reader.num_records()
    reader.close()
    return {
        "path": str(path.relative_to(building)),
        "bytes": path.stat().st_size,
        "records": count,
        "sha256": sha256,
        "sample": records.file_digest(str(path), **array_records.SAMPLE),
    }


def verify(
    directory: str | os.PathLike[str], *, cache: fetched.LocalCache | None = None
) -> int:
    """Read every shard whole and compare its hash; returns the number of files.

    Args:
      directory: a folder or an address.
      cache: keeps what is fetched from addresses; None is the default one.

    Raises:
      ValueError: naming the first shard that differs; as ``ShardStore``.
    """
    store = array_records.ShardStore(directory, cache=cache)
    files = store.files()
    for shard, path in files:
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.entry["sha256"]:
                raise ValueError(
                    f"shard {shard.name} is not the one that was written; copy it "
                    "again, or write the shards anew"
                )
    store.close()
    return len(files)
