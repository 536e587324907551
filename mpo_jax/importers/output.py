"""The folder that an import writes: it appears whole, or not at all.

::

    OUT/
      meta.json              what training reads
      annotations/*.jsonl    MMPR lines
      images/ab/abcd….png    images that came as bytes, by their hash
      ledger.jsonl           records that were left out: file, line, reason
      import.json            inputs, layouts, choices and counts
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import IO, Any

from mpo_jax import ledger
from mpo_jax.importers import messages, pictures
from mpo_jax.importers.inputs import Input
from mpo_jax.importers.pairs import Pair
from mpo_jax.mmpr import records
from mpo_jax.mmpr.meta import Source
from mpo_jax.utils import atomic

MARKER = "import.json"
LEDGER = "ledger.jsonl"


@contextlib.contextmanager
def building(out: pathlib.Path, *, overwrite: bool) -> Iterator[pathlib.Path]:
    """A folder beside `out` that becomes `out` when the block ends without an error.

    What a killed import has left there is removed first.

    Raises:
      FileExistsError: `out` is there and may not be replaced, or another import is
        writing it.
    """
    _check_free(out, overwrite)
    folder = out.with_name(out.name + ".building")
    folder.parent.mkdir(parents=True, exist_ok=True)

    def refuse() -> None:
        raise FileExistsError(
            f"another import is writing {folder}; wait for it or name another --out"
        )

    with atomic.alone(folder.with_name(folder.name + ".lock"), busy=refuse):
        if folder.exists():  # of an import that was killed
            shutil.rmtree(folder)
        folder.mkdir()
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder)
            raise
        _replace(folder, out)


def _check_free(out: pathlib.Path, overwrite: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise FileExistsError(
            f"{out} is there already; name another --out, or add --overwrite"
        )
    if not (out / MARKER).is_file():
        raise FileExistsError(
            f"{out} has no {MARKER}, so no import wrote it and --overwrite does not "
            "replace it; remove it yourself or name another --out"
        )


def _replace(folder: pathlib.Path, out: pathlib.Path) -> None:
    old = out.with_name(out.name + ".old")
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(out, old)
    os.rename(folder, out)
    shutil.rmtree(old, ignore_errors=True)


def line_of(pair: Pair, images: list[str], source: str, number: int) -> dict[str, Any]:
    """A record as MMPR has it; ``import_meta`` says where it came from."""
    line: dict[str, Any] = {}
    if "id" in pair.carried:
        line["id"] = pair.carried["id"]
    if images:
        line["image"] = images[0] if len(images) == 1 else images
    line |= {"question": pair.question, "chosen": pair.chosen}
    if pair.rejected is not None:
        line["rejected"] = pair.rejected
    if "answer_gt" in pair.carried:
        line["answer_gt"] = pair.carried["answer_gt"]
    return line | {"import_meta": {"from": source, "line": number}}


class Writer:
    """Writes annotations, ledger and meta.json into a folder.

    A source whose images lie in more than one kind of place gets an entry for each,
    since an entry has one root.
    """

    def __init__(self, folder: pathlib.Path | None, *, chosen_only: bool):
        """Open the ledger; `folder` None checks lines and writes nothing."""
        self._folder, self._chosen_only = folder, chosen_only
        self._files: dict[str, IO[bytes]] = {}  # of the present source, by place
        self._names: dict[str, str] = {}
        self._meta: dict[str, dict[str, Any]] = {}
        self._ledger: IO[bytes] | None = None
        if folder is not None:
            (folder / "annotations").mkdir()
            (folder / "images").mkdir()
            self._ledger = open(folder / LEDGER, "wb")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: Any) -> None:
        self.end_source()
        if self._ledger is not None:
            _close(self._ledger)

    def write(self, source: Input, place: str, line: Mapping[str, Any]) -> None:
        """Write a line, after the check that the index will make.

        Raises:
          BadRecord: as :func:`mpo_jax.mmpr.records.parse_record`.
        """
        try:
            raw = json.dumps(line, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            before = str(error.object)[max(error.start - 20, 0) : error.start]
            raise messages.bad("text", f"a lone surrogate after {before!r}") from error
        roots = {pictures.BESIDE: source.root, pictures.ANYWHERE: "/"}
        root = roots.get(place, "images")
        records.parse_record(
            raw,
            source=Source(
                name=source.name,
                root=os.path.join("/", root),
                annotation=source.path,
            ),
            line_number=0,
            max_bytes=len(raw),
            chosen_only=self._chosen_only,
        )
        if self._folder is None:
            return
        if place not in self._files:
            self._open(self._folder, source, place, root)
        self._files[place].write(raw + b"\n")
        self._meta[self._names[place]]["length"] += 1

    def leave_out(self, entry: ledger.Entry) -> None:
        if self._ledger is not None:
            # ASCII, so that names of fields that are no Unicode can be shown too.
            self._ledger.write(json.dumps(dataclasses.asdict(entry)).encode() + b"\n")

    def end_source(self) -> None:
        """Put the present source's lines on the disk."""
        for file in self._files.values():
            _close(file)
        self._files, self._names = {}, {}

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write meta.json and import.json."""
        assert self._folder is not None
        _write_json(self._folder / MARKER, report)
        _write_json(self._folder / "meta.json", self._meta)

    def _open(self, folder: pathlib.Path, source: Input, place: str, root: str) -> None:
        # "+" occurs in no source's name, so this is no other source's.
        name = f"{source.name}+{place}" if self._files else source.name
        annotation = f"annotations/{name}.jsonl"
        self._files[place] = open(folder / annotation, "wb")
        self._names[place] = name
        self._meta[name] = {
            "root": root,
            "annotation": annotation,
            "data_augment": False,
            "repeat_time": 1,
            **source.entry,
            "length": 0,
        }


def _close(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _write_json(path: pathlib.Path, value: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
