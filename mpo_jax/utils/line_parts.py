"""A file of lines that grows, kept behind an address as numbered parts.

A store cannot append. So what is new goes into an object of its own,
``GENERATION-PART.jsonl``; part 0 of a generation holds all lines that were there when
it began, and replaces the generations before. Whoever reads takes the highest one that
has a part 0: whatever is killed when, that is a beginning of the file.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import re

from absl import logging

from mpo_jax.utils import remote

_NAME = re.compile(r"(\d{5})-(\d{5})\.jsonl")
_MOST = 100
"""Parts of a generation: a reader asks once for each."""
_TRIES = 3


class LineParts:
    """Writes the parts of one file; one process does it.

    Args:
      path: of the file, which is appended to, and written anew before :meth:`begin`.
      folder: of its parts.
    """

    def __init__(self, path: pathlib.Path, folder: remote.Folder):
        self._path, self._folder = path, folder
        self._generation = self._part = self._size = 0

    def begin(self) -> None:
        """Replace what is there by the file as it stands."""
        before = _generations(self._folder)
        self._generation, self._part, self._size = max(before, default=-1) + 1, 0, 0
        self._put(self._new_lines())
        for names in before.values():
            for name in names.values():
                self._folder.delete(name)

    def push(self) -> None:
        """Write what the file has more than its parts."""
        found = self._new_lines()
        if found and self._part >= _MOST:
            self.begin()
        elif found:
            self._put(found)

    def _new_lines(self) -> bytes:
        with open(self._path, "rb") as file:
            file.seek(self._size)
            lines, end, _ = file.read().rpartition(b"\n")  # the last may be half there
        return lines + end

    def _put(self, lines: bytes) -> None:
        self._folder.write(f"{self._generation:05d}-{self._part:05d}.jsonl", lines)
        self._part += 1
        self._size += len(lines)


def read(folder: remote.Folder) -> tuple[bytes, float]:
    """The lines of all parts, and when the last was written (``Stored.modified``).

    None where nothing was ever written: ``(b"", 0.0)``.

    Raises:
      FileNotFoundError: parts vanish faster than they can be read.
    """
    for _ in range(_TRIES - 1):
        with contextlib.suppress(FileNotFoundError):  # a new generation replaced it
            return _read(folder)
    return _read(folder)


def _read(folder: remote.Folder) -> tuple[bytes, float]:
    found = _generations(folder)
    whole = [generation for generation, names in found.items() if 0 in names]
    if not whole:
        return b"", 0.0
    names = found[max(whole)]
    first_missing = next(part for part in itertools.count() if part not in names)
    if first_missing < len(names):
        logging.warning(
            "%s: part %d of generation %d is missing; what comes after it is not read",
            folder.address,
            first_missing,
            max(whole),
        )
    there = [names[part] for part in range(first_missing)]
    last = folder.stored(there[-1])
    lines = b"".join(map(folder.read, there))
    return lines, 0.0 if last is None else last.modified


def _generations(folder: remote.Folder) -> dict[int, dict[int, str]]:
    """Names of all parts, by generation and number."""
    found: dict[int, dict[int, str]] = {}
    for name in folder.sizes():
        match = _NAME.fullmatch(name)
        if match:
            found.setdefault(int(match[1]), {})[int(match[2])] = name
    return found
