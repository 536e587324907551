"""Files of JSON lines that a pipeline writes, asks and reads back, a line at a time."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from mpo_jax.generate import requests
from mpo_jax.utils import atomic


class Answers:
    """Answers in the order of their questions, of which some have none."""

    def __init__(self, path: pathlib.Path):
        self._lines = read(path) if path.exists() else iter(())
        self._next = next(self._lines, None)

    def take(self, id: str) -> requests.Answer | None:
        """The answer to the next question."""
        if self._next is None or self._next["id"] != id:
            return None
        found, self._next = self._next, next(self._lines, None)
        for name in ("token_ids", "token_logprobs"):
            found[name] = None if found[name] is None else tuple(found[name])
        return requests.Answer(**found)


def digest(path: pathlib.Path) -> str:
    """sha256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, in order."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def write_all(path: pathlib.Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write objects, whole or not at all."""

    def write(temporary: pathlib.Path) -> None:
        with open(temporary, "w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    atomic.write_whole(path, write)
