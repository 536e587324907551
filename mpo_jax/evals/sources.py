"""Files of benchmarks: where they lie, their rows, their pictures.

JSON, JSON lines, VLMEvalKit's TSV and parquet as on the hub; a file's kind is its
name's. What cannot be read is a ``ValueError`` that names file, row and reason: a
benchmark with a row left out is another benchmark.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging
from PIL import Image as PilImage

from mpo_jax import ledger
from mpo_jax.evals import source_rows, source_tsv
from mpo_jax.inputs import images as images_lib
from mpo_jax.mmpr import image_paths

Image = str | bytes
"""A path below the data folder, or an encoded picture."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a benchmark's files come from.

    Attributes:
      hub: id of the data set on the hub, or an address.
      files: names that are looked for, by what they are.
      licence: of the data.
      md5: of VLMEvalKit's TSV files by name.
      notes: what else must be known.
    """

    hub: str
    files: tuple[str, ...]
    licence: str
    md5: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    notes: str = ""


class MissingSource(ValueError):
    """None of the files that a benchmark can be read from is there."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """The files of one benchmark.

    Attributes:
      path: folder that they lie in.
    """

    path: pathlib.Path

    def find(self, *patterns: str, source: Source | None = None) -> pathlib.Path:
        """The first file, in the order of names, of the first pattern that has one.

        Args:
          patterns: as of ``Path.glob``, relative to the folder.
          source: says in the error where the files come from.

        Raises:
          MissingSource: no pattern has a file; names the folder and all patterns.
        """
        for pattern in patterns:
            found = self.find_all(pattern)
            if found:
                return found[0]
        there = "holds" if self.path.is_dir() else "does not exist, so it holds"
        remedy = "; put it there, or name another data folder"
        if source is not None:
            remedy = f"; {_fetch(source, self.path)}"
        raise MissingSource(
            f"{self.path} {there} none of: {', '.join(patterns)}{remedy}"
        )

    def find_all(self, pattern: str) -> list[pathlib.Path]:
        """All files of a pattern, such as the shards of a parquet file, by name."""
        return sorted(path for path in self.path.glob(pattern) if path.is_file())


def _fetch(source: Source, path: pathlib.Path) -> str:
    """What to do to have a benchmark's files in a folder."""
    notes = f" ({source.notes})" if source.notes else ""
    if "://" in source.hub or " " in source.hub:
        return f"fetch them from {source.hub}{notes}"
    return (
        f"fetch them with `hf download {source.hub} --repo-type dataset "
        f"--local-dir {path}`{notes}"
    )


def folder_of(data_dir: str | os.PathLike[str], name: str) -> Folder:
    """Where a benchmark's files lie: ``DIR/NAME`` where that is a folder, else DIR."""
    path = pathlib.Path(data_dir)
    own = path / name
    return Folder(own if own.is_dir() else path)


def read_rows(
    path: str | os.PathLike[str], source: Source | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of a file one by one, in its order.

    Pictures are bytes, wherever the file holds them. ``.jsonl`` and ``.json`` (a list
    of objects, objects by key, which becomes ``_key``, or lines after all) give what
    JSON has; ``.parquet`` what its columns have; ``.tsv`` texts only, see
    ``source_tsv.rows``.

    Args:
      source: a TSV file whose md5 it does not know is warned of (:func:`check_md5`).

    Raises:
      ValueError: the suffix is another, or the file cannot be read; names file, row
        and reason.
    """
    path = pathlib.Path(path)
    readers = {
        ".jsonl": source_rows.json_lines,
        ".json": source_rows.json_objects,
        ".parquet": source_rows.parquet,
        ".tsv": source_tsv.rows,
    }
    read = readers.get(path.suffix.lower())
    if read is None:
        raise ValueError(f"{path}: its name must end in one of {', '.join(readers)}")
    if source is not None and read is source_tsv.rows:
        check_md5(path, source)
    yield from read(path)


def check_md5(path: str | os.PathLike[str], source: Source) -> str:
    """The md5 of a file, hexadecimal; warns where it should be another.

    VLMEvalKit changes its files without changing their names, and people keep old ones:
    such a file is read, and what is known of it said. A name that the source gives no
    md5 for is not warned of.

    Raises:
      ValueError: the file is no table; names file, row and reason.
    """
    path = pathlib.Path(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(
            file, lambda: hashlib.md5(usedforsecurity=False)
        ).hexdigest()
    known = source.md5.get(path.name, ())
    if known and digest not in known:
        columns, count = source_tsv.shape(path)
        missing = source_tsv.missing_columns(columns)
        logging.warning(
            "%s has md5 %s, not %s: another version than the one that scores are known "
            "of. It has %d rows and the columns %s%s",
            path,
            digest,
            " or ".join(known),
            count,
            ", ".join(columns),
            f"; it lacks {', '.join(missing)}" if missing else "",
        )
    return digest


def images_of(row: Mapping[str, Any], *names: str) -> tuple[Image, ...]:
    """The pictures of a row, in order.

    Args:
      names: of its fields, the first that holds any counts; ``image`` and
        ``image_path`` where none are given.

    Raises:
      ValueError: a field holds something else than bytes, paths or a list of them.
    """
    for name in names or ("image", "image_path"):
        value = row.get(name)
        if value is None or value in ("", b"", []):
            continue
        found = value if isinstance(value, list) else [value]
        if not all(isinstance(image, str | bytes) and image for image in found):
            raise ValueError(
                f"{name}={ledger.short(value)}: must be a path, a picture or a list "
                "of them"
            )
        return tuple(found)
    return ()


def image_bytes(image: Image, folder: Folder) -> bytes:
    """A picture as it is encoded.

    Raises:
      BadRecord: ``image_missing`` for a path that leads out of the folder or to no
        file, ``bad_field`` for a text that is no path, or as
        ``inputs.images.read_file``.
      OSError: the file system failed.
    """
    if isinstance(image, bytes):
        return image
    problem = image_paths.no_path(image)
    if problem is not None:
        raise ledger.BadRecord("bad_field", f"image {problem}")
    path = os.path.normpath(image)
    if os.path.isabs(path) or "://" in image or path.split("/")[0] in ("..", "."):
        raise ledger.BadRecord(
            "image_missing",
            f"image {ledger.short(image, 300)} is no path below {str(folder.path)!r}; "
            "put the pictures there and write paths relative to it",
        )
    return images_lib.read_file(folder.path / path)


def open_image(image: Image, folder: Folder, *, max_pixels: int) -> PilImage.Image:
    """A picture in RGB, see ``inputs.images.open_image``.

    Raises:
      BadRecord: as :func:`image_bytes`, or the picture cannot be decoded.
      OSError: the file system failed.
    """
    data = image_bytes(image, folder)
    name = "of a row" if isinstance(image, bytes) else image
    return images_lib.open_image(name, max_pixels=max_pixels, read=lambda _: data)
