"""Writing ArrayRecord shards with TFDS, and with Beam where one machine is too slow.

The first pass reads the annotations alone and numbers lines and image files; the list
it leaves is cut into ranges, which a generator (one process) or Beam workers turn into
records. Order and content do not depend on who does it. TFDS writes, names and
describes the shards, so that ``tfds.builder_from_directory`` opens them as well; no
TensorFlow is needed. Layout and reader: :mod:`mpo_jax.mmpr.array_records`.

Extras: ``pip install 'mpo-jax[shards]'``, and ``'mpo-jax[beam]'`` for Beam.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import array_record.python.array_record_module as array_record
import numpy as np
import tensorflow_datasets as tfds

from mpo_jax import ledger
from mpo_jax.inputs import images
from mpo_jax.mmpr import array_records, index_build, records, shard_images
from mpo_jax.mmpr import store as store_lib
from mpo_jax.mmpr.array_records import IMAGES, LINES
from mpo_jax.mmpr.meta import Source
from mpo_jax.utils import atomic

_SPLIT = "train"
_RANGE = 256  # entries of the list per unit of work


@dataclasses.dataclass(frozen=True)
class Work:
    """The numbered list of what is to be written; picklable.

    Attributes:
      directory: of the lists, ``lines.jsonl`` and ``images.jsonl``.
      sources: where the lines are read from.
      max_text_bytes: longer lines are cut, see :func:`records.iter_lines`.
    """

    directory: str
    sources: tuple[Source, ...]
    max_text_bytes: int

    def path(self, kind: str) -> pathlib.Path:
        return pathlib.Path(self.directory) / f"{kind}.jsonl"

    def ranges(self, kind: str) -> list[tuple[int, int]]:
        """Byte ranges of a list, :data:`_RANGE` entries each."""
        starts, position = [], 0
        with open(self.path(kind), "rb") as file:
            for number, line in enumerate(file):
                if number % _RANGE == 0:
                    starts.append(position)
                position += len(line)
        return list(zip(starts, [*starts[1:], position], strict=True))

    def examples(
        self, kind: str, part: tuple[int, int]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """The (number, fields) of a range of a list."""
        with open(self.path(kind), "rb") as file:
            file.seek(part[0])
            entries = file.read(part[1] - part[0]).splitlines()
        make = self._line if kind == LINES else _image
        for entry in entries:
            number, *rest = json.loads(entry)
            yield number, {"number": number, **make(*rest)}

    def _line(
        self, position: int, offset: int, numbers: Sequence[int]
    ) -> dict[str, Any]:
        source = self.sources[position]
        with open(source.annotation, "rb", buffering=0) as file:
            text = records.read_line(
                file.fileno(), offset, max_bytes=self.max_text_bytes
            )
        return {"text": text, "images": np.asarray(numbers, np.int64)}


def _image(path: str) -> dict[str, Any]:
    found = {"path": path, "data": b"", "reason": "", "detail": ""}
    try:
        return found | {"data": images.read_file(path)}
    except ledger.BadRecord as bad:  # the index will leave the record out, and say why
        return found | {"reason": bad.reason, "detail": bad.detail}


class Mmpr(tfds.core.GeneratorBasedBuilder):
    """One kind of record (``lines`` or ``images``) as a TFDS data set, in order."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=LINES, description="Lines of annotations."),
        tfds.core.BuilderConfig(name=IMAGES, description="Image files as they are."),
    ]

    def __init__(self, *, work: Work, use_beam: bool, **options: Any):
        self._work, self._use_beam = work, use_beam
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        kind: Any = self.builder_config
        text = tfds.features.Text()
        fields: dict[str, Any] = {"number": np.int64}
        if kind.name == LINES:
            fields |= {"text": text, "images": tfds.features.Sequence(np.int64)}
        else:
            # As bytes, not as an Image feature: it takes fewer formats than we do,
            # and pixels must come from the bytes that the index has seen.
            fields |= dict.fromkeys(("path", "data", "reason", "detail"), text)
        return tfds.core.DatasetInfo(
            builder=self,
            description="MMPR preference pairs: one record per annotation line.",
            features=tfds.features.FeaturesDict(fields),
            disable_shuffling=True,  # record n is line n
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Any:
        kind: Any = self.builder_config
        ranges = self._work.ranges(kind.name)
        make = functools.partial(self._work.examples, kind.name)
        if not self._use_beam:
            return (example for part in ranges for example in make(part))
        import apache_beam as beam  # pyright: ignore[reportMissingImports]

        # Reshuffled: without it Beam fuses the steps, and one worker does all.
        return beam.Create(ranges) | beam.Reshuffle() | beam.FlatMap(make)


def write_shards(
    meta_path: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    reroot: str = "",
    max_text_bytes: int = 1_000_000,
    num_shards: int = 0,
    beam_options: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda note: None,
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
        loose, sources = store_lib.open_data(meta_path, reroot=reroot)
        if not isinstance(loose, store_lib.LooseStore):
            raise ValueError(f"{str(meta_path)!r} holds shards already")
        made_from = _made_from(loose, sources, max_text_bytes)
        if target.exists() and _are_current(target, made_from, progress):
            return array_records.ShardStore(target)
        building, outdated = (
            target.with_name(target.name + end) for end in (".building", ".outdated")
        )
        for leftover in (building, outdated):  # of a call that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        building.mkdir()
        work = Work(str(building / "lists"), tuple(sources), max_text_bytes)
        try:
            manifest = _write_all(work, building, num_shards, beam_options, progress)
        except ValueError:
            shutil.rmtree(building)
            raise
        manifest |= {"made_from": made_from, "max_text_bytes": max_text_bytes}
        path = pathlib.Path(meta_path).expanduser()
        meta = json.loads(path.read_text(encoding="utf-8-sig"))
        _write_json(building / "meta.json", meta)
        _write_json(building / array_records.MANIFEST, manifest)
        if target.exists():
            os.rename(target, outdated)
        os.rename(building, target)
        shutil.rmtree(outdated, ignore_errors=True)
        return array_records.ShardStore(target)


def _made_from(
    loose: store_lib.LooseStore,
    sources: Sequence[Source],
    max_text_bytes: int,
) -> str:
    """What the lines of the shards depend on."""
    texts = [[s.name, *s.place, loose.digest(s)] for s in sources]
    return index_build.digest([array_records.FORMAT, max_text_bytes, *texts])


def _are_current(
    target: pathlib.Path, made_from: str, progress: Callable[[str], None]
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
    changes = shard_images.compare(array_records.ShardStore(target))
    if changes.gone:
        progress(f"{changes.gone} image files are gone; the shards hold them")
    if not changes.changed:
        return True
    found = (
        f"{changes.changed} images are not those that the shards in {target} hold "
        f"(the first: {changes.first})"
    )
    if changes.gone:
        raise ValueError(
            f"{found}, and {changes.gone} that they hold are gone from the disk; put "
            "those back, or name another folder for shards without them"
        )
    progress(f"{found}; writing them anew")
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
    described, paths = _write_lists(work)
    shard_images.write_states(building, paths, work.sources, progress)
    files: dict[str, list[dict[str, Any]]] = {}
    for kind in (LINES, IMAGES):
        files[kind] = []
        if os.path.getsize(work.path(kind)):
            progress(f"writing {kind}")
            for path in _build(work, kind, building, num_shards, beam_options):
                files[kind].append(_describe(path, building))
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


def _write_lists(work: Work) -> tuple[list[dict[str, Any]], list[str]]:
    """Number all lines and image files.

    Returns:
      The sources for the manifest, and the paths of the images in order.
    """
    described, numbers, number = [], dict[str, int](), 0
    with (
        open(work.path(LINES), "w", encoding="utf-8") as lines,
        open(work.path(IMAGES), "w", encoding="utf-8") as files,
    ):
        for position, source in enumerate(work.sources):
            first = number
            for offset, _, line in records.iter_lines(
                source.annotation, max_bytes=work.max_text_bytes
            ):
                used = []
                for path in records.image_paths(
                    line, source, max_bytes=work.max_text_bytes
                ):
                    if path not in numbers:
                        numbers[path] = len(numbers)
                        files.write(json.dumps([numbers[path], path]) + "\n")
                    used.append(numbers[path])
                lines.write(json.dumps([number, position, offset, used]) + "\n")
                number += 1
            described.append(
                {
                    "name": source.name,
                    **source.place._asdict(),
                    "first": first,
                    "lines": number - first,
                    "bytes": os.path.getsize(source.annotation),
                }
            )
    return described, list(numbers)


def _build(
    work: Work,
    kind: str,
    building: pathlib.Path,
    num_shards: int,
    beam_options: Sequence[str] | None,
) -> list[pathlib.Path]:
    """Let TFDS write one kind; returns its shards in order."""
    builder = Mmpr(
        work=work,
        use_beam=beam_options is not None,
        data_dir=str(building),
        config=kind,
        file_format="array_record",
    )
    options: dict[str, Any] = {"num_shards": num_shards or None}
    if beam_options is not None:
        from apache_beam.options import (  # pyright: ignore[reportMissingImports]
            pipeline_options,
        )

        options["beam_options"] = pipeline_options.PipelineOptions(list(beam_options))
    with contextlib.redirect_stdout(sys.stderr):  # where TFDS tells its progress
        builder.download_and_prepare(
            download_dir=work.directory,  # nothing is downloaded, but it is made
            download_config=tfds.download.DownloadConfig(**options),
        )
    paths = builder.info.splits[_SPLIT].filepaths
    return [pathlib.Path(os.fspath(path)) for path in paths]


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


def verify(directory: str | os.PathLike[str]) -> int:
    """Read every shard whole and compare its hash; returns the number of files.

    Raises:
      ValueError: naming the first shard that differs; as ``ShardStore``.
    """
    store = array_records.ShardStore(directory)
    manifest = array_records.read_manifest(store.directory)
    entries = [entry for kind in manifest["files"].values() for entry in kind]
    for entry in entries:
        path = store.directory / entry["path"]
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                raise ValueError(
                    f"shard {path} is not the one that was written; copy it again, or "
                    "write the shards anew"
                )
    return len(entries)
