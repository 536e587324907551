"""JSON lines from outside: one object per line, each field checked by name and kind."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mpo_jax.utils import file_kinds

MAX_LINE_BYTES = 16 << 20
"""Longest line that is read."""

MAX_LIST = 10_000
"""Options, images, true answers or categories of one line at most."""


def objects(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a file; blank lines are passed over."""
    with open(path, "rb") as file:
        kind = file_kinds.of_text(file.read(1 << 16))
        if kind is not None:
            raise ValueError(f"{path} is {kind.name}; {kind.remedy}")
        file.seek(0)
        number = 0
        while text := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(text) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{path}:{number}: longer than {MAX_LINE_BYTES:,} bytes; is this a "
                    "file of evaluated items, with one object per line?"
                )
            if text.strip():
                yield number, _object(text, f"{path}:{number}")


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: not JSON ({error}); remove the line and evaluate again"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {str(value)[:80]!r}")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclasses.dataclass(frozen=True)
class Fields:
    """An object with checks of its fields; `where` begins messages."""

    value: Mapping[str, Any]
    where: str

    def bad(self, name: str, wanted: str) -> ValueError:
        """What is wrong with a field."""
        got = repr(self.value.get(name))[:80]
        return ValueError(f"{self.where}: {name}={got}: expected {wanted}")

    def text(self, name: str, default: str | None = None) -> str:
        """A text; without `default` it must be there."""
        value = self.value.get(name, default)
        if not isinstance(value, str):
            raise self.bad(name, "a text")
        return value

    def choice(
        self, name: str, choices: tuple[str, ...], default: str | None = None
    ) -> str:
        """One of some texts."""
        value = self.text(name, default)
        if value not in choices:
            raise self.bad(name, f"one of {choices}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; absent: none."""
        value = self.value.get(name, [])
        good = isinstance(value, list) and all(isinstance(text, str) for text in value)
        if not good or len(value) > MAX_LIST:
            raise self.bad(name, f"a list of at most {MAX_LIST:,} texts")
        return tuple(value)

    def count(self, name: str) -> int | None:
        """A whole number from 0, or None."""
        value = self.value.get(name)
        if value is None:
            return None
        is_int = isinstance(value, int) and not isinstance(value, bool)
        if not is_int or not 0 <= value < 2**31:
            raise self.bad(name, "a whole number from 0")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number, or None."""
        value = self.value.get(name)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise self.bad(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def inner(self, name: str) -> Fields | None:
        """Fields of an object within, or None."""
        value = self.value.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.bad(name, "an object")
        return Fields(value, f"{self.where}: {name}")

    def categories(self) -> dict[str, str]:
        """An object of texts; absent: none."""
        value = self.value.get("categories", {})
        good = isinstance(value, dict) and all(
            isinstance(v, str) for v in value.values()
        )
        if not good or len(value) > MAX_LIST:
            raise self.bad("categories", "an object of texts")
        return value

    def images(self) -> tuple[str, ...]:
        """Paths below the work directory; absent: none."""
        paths = self.texts("images")
        for path in paths:
            # A page shows them: none may lead out of the work directory or to a host.
            parts = path.replace("\\", "/").split("/")
            if not path or parts[0] == "" or ".." in parts or _SCHEME.match(path):
                raise self.bad("images", "paths below the work directory")
        return paths
