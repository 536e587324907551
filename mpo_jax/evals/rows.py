"""From the rows of files to items: fields by several names, options, letters."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mpo_jax import ledger
from mpo_jax.evals import choices, sources

Row = Mapping[str, Any]
MAX_LITERAL = 1 << 16
"""Characters of a list that is written as a Python literal."""


def read(
    folder: sources.Folder, source: sources.Source, *patterns: str
) -> Iterator[tuple[str, Row]]:
    """Rows of all files of the first pattern that has any, with where each stands.

    Args:
      patterns: the source's own names where none are given.

    Raises:
      MissingSource: there is no file.
      ValueError: a file cannot be read.
    """
    patterns = patterns or source.files
    for pattern in patterns:
        files = folder.find_all(pattern)
        for path in files:
            for number, row in enumerate(sources.read_rows(path, source), 1):
                yield f"{path}, row {number}", row
        if files:
            return
    folder.find(*patterns, source=source)


def given(value: Any) -> bool:
    """Does a field hold something?"""
    return value is not None and value != "" and value == value  # no NaN


def text(row: Row, where: str, *names: str) -> str:
    """The first of several fields that is given, as text.

    Raises:
      ValueError: none is.
    """
    for name in names:
        if given(row.get(name)):
            return str(row[name])
    raise ValueError(
        f"{where}: has no {' or '.join(names)} (it has {', '.join(row)}); is it a file "
        "of this benchmark?"
    )


def optional(row: Row, *names: str) -> str:
    """The same, or ""."""
    return next((str(row[name]) for name in names if given(row.get(name))), "")


def options(row: Row, where: str, *names: str) -> tuple[str, ...]:
    """Texts of options: a list in one of `names`, else columns ``A``, ``B``, ….

    A list may be written as a Python literal.

    Raises:
      ValueError: the field is something else.
    """
    for name in names:
        if given(row.get(name)):
            return tuple(str(option) for option in _list(row[name], where, name))
    found: list[str] = []
    for letter in choices.LETTERS:
        if not given(row.get(letter)):
            break
        found.append(str(row[letter]))
    return tuple(found)


def images(
    folder: sources.Folder, row: Row, *names: str, roots: Sequence[str] = ("",)
) -> tuple[sources.Image, ...]:
    """Pictures of a row, paths as they lie below the folder.

    Harnesses write paths from where they are run, ``data/M3CoT/images/1.png``: folders
    in front that are not there are left out. A path that leads to no file stays.

    Args:
      names: as of ``sources.images_of``.
      roots: folders that paths may be below.
    """
    found = sources.images_of(row, *names)
    return tuple(
        image if isinstance(image, bytes) else _placed(folder.path, image, roots)
        for image in found
    )


def _placed(folder: pathlib.Path, image: str, roots: Sequence[str]) -> str:
    parts = pathlib.PurePosixPath(image).parts
    for start in range(len(parts)):
        for root in roots:
            path = pathlib.PurePosixPath(root, *parts[start:])
            if (folder / path).is_file():
                return str(path)
    return image


def literal(value: Any) -> Any:
    """A value, or what a text says as a Python literal; the text if it says nothing."""
    if not isinstance(value, str) or len(value) > MAX_LITERAL:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _list(value: Any, where: str, name: str) -> list[Any]:
    found = literal(value)
    if not isinstance(found, list | tuple):
        raise ValueError(f"{where}: {name}={ledger.short(value)} is no list of options")
    return list(found)


def letter(value: Any, options: tuple[str, ...], where: str) -> str:
    """The letter of the true option, from a letter or an index from 0.

    Raises:
      ValueError: it is no option's.
    """
    if isinstance(value, str) and len(value.strip()) == 1 and value.strip().isalpha():
        found = value.strip().upper()
    elif str(value).isdecimal() and int(value) < len(choices.LETTERS):
        found = choices.LETTERS[int(value)]
    else:
        raise ValueError(f"{where}: answer={ledger.short(value)} is no letter or index")
    if options and found not in choices.letters(options):
        raise ValueError(
            f"{where}: answer={ledger.short(value)}, but there are only "
            f"{len(options)} options"
        )
    return found
