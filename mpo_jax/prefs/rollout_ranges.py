"""A file of rollouts cut into ranges that several workers read.

A cut lies between two prompts, wherever lines that are left out stand, so that the
groups of the ranges, one after another, are those of the file.
"""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Iterator
from typing import IO

from mpo_jax import ledger
from mpo_jax.generate import questions
from mpo_jax.prefs import rollouts
from mpo_jax.prefs.rollouts import Range

_BLOCK = 1 << 20


def cut(path: str, *, root: str, size: int) -> Iterator[Range]:
    """Ranges of a file in order; reads it once, and little at a time.

    Args:
      root: what image paths are below, absolute.
      size: bytes of a range at least, but for the last; the rest of a prompt more.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no regular file, or something writes it.
    """
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(
                f"{path} is no regular file, of which ranges could be read; copy it "
                "into one, or build without --beam"
            )
        state = rollouts.state_of(file)
        start, first = 0, 1
        while start < state[0]:
            number = first + _skip(file, size)
            end, number = _next_prompt(file, number, path, root)
            if end == start:
                raise ValueError(
                    f"{path} became shorter while it was read; start again when "
                    "nothing writes it"
                )
            yield Range(path, os.getcwd(), start, end, first, state)
            file.seek(end)
            start, first = end, number


def _skip(file: IO[bytes], size: int) -> int:
    """Go on by some bytes and to the end of the line; the number of lines passed."""
    lines = 0
    while size > 0 and (block := file.read(min(size, _BLOCK))):
        lines += block.count(b"\n")
        size -= len(block)
    while block := file.readline(_BLOCK):
        if block.endswith(b"\n"):
            return lines + 1
    return lines


def _next_prompt(file: IO[bytes], number: int, path: str, root: str) -> tuple[int, int]:
    """Where a line begins another prompt than one that is read here before it.

    Args:
      file: at the beginning of a line.
      number: of that line.

    Returns:
      Place in the file and number of the line; those of its end where there is none.
    """
    key: rollouts.Key | None = None
    source = pathlib.Path(path).stem
    place = file.tell()
    for line in questions.lines_of(file):
        if line is None or line.strip():
            try:
                found = rollouts.parse(line, number, root=root, source=source)
            except ledger.BadRecord:
                found = []
            for own in map(rollouts.key_of, found[:1]):
                if key not in (None, own):
                    return place, number
                key = own
        place, number = file.tell(), number + 1
    return place, number
