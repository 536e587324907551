"""JSON from outside: parsed within bounds, read field by field."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from mpo_jax import fields, ledger
from mpo_jax.serve import errors

T = TypeVar("T")

_OPENING = (b"[", b"{", b",")


def parse(body: bytes, *, max_items: int) -> dict[str, Any]:
    """The JSON object of a request's body.

    Raises:
      Refused: 400, the body is no UTF-8, no JSON, no object, has NaN in it, is nested
        too deeply or has more than `max_items` brackets, braces and commas.
    """
    items = sum(body.count(mark) for mark in _OPENING)
    if items > max_items:
        raise _bad_body(
            f"has {items} brackets, braces and commas; at most {max_items} are read"
        )
    try:
        raw = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _bad_body(f"is no UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise _bad_body("is nested too deeply") from error
    except ValueError as error:  # what is no JSON, and numbers of thousands of digits
        raise _bad_body(f"is no JSON: {str(error)[:200]}") from error
    if not isinstance(raw, dict):
        raise _bad_body("is no JSON object")
    return raw


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _bad_body(what: str) -> errors.Refused:
    return errors.Refused(400, f"the body {what}", code="bad_json")


class Fields:
    """The fields of one JSON object; null is like absent.

    Every reader takes a name and raises ``Refused`` (400) naming field, value and what
    is wanted.
    """

    def __init__(self, raw: Any, where: str, known: Collection[str]):
        """
        Args:
          where: the object's own name, empty for the body.
          known: names that it may have.

        Raises:
          Refused: 400, it is no object, or has another field: names that and the
            nearest.
        """
        if not isinstance(raw, Mapping):
            raise errors.bad(where, f"{ledger.short(raw)} is no object")
        self._prefix = f"{where}." if where else ""
        for name in raw:
            if name not in known:
                near = fields.nearest(name[:80], known, n=2, cutoff=0.5)
                plain = name.isidentifier() and len(name) <= 80
                shown = self._prefix + (name if plain else ledger.short(name))
                raise errors.Refused(
                    400,
                    f"unknown field {shown}{fields.did_you_mean(near)}",
                    param=shown,
                    code="unknown_field",
                )
        self._raw = {name: value for name, value in raw.items() if value is not None}

    def name(self, name: str) -> str:
        """A field's whole name, for messages."""
        return self._prefix + name

    def has(self, name: str) -> bool:
        return name in self._raw

    def value(self, name: str) -> Any:
        """What the field holds; None where it is absent."""
        return self._raw.get(name)

    def bad(self, name: str, wanted: str) -> errors.Refused:
        """The error of a value that is not what is wanted."""
        shown = ledger.short(self._raw.get(name))
        return errors.bad(self.name(name), f"{shown} must be {wanted}")

    def only(self, allowed: Mapping[str, Sequence[Any]]) -> None:
        """Check fields that may have certain values alone."""
        for name, values in allowed.items():
            if name in self._raw and self._raw[name] not in values:
                wanted = " or ".join(json.dumps(value) for value in values)
                raise self.bad(name, f"{wanted}: nothing else is supported")

    def text(self, name: str, default: T) -> str | T:
        value = self._raw.get(name, default)
        if name in self._raw and not isinstance(value, str):
            raise self.bad(name, "a text")
        return value

    def boolean(self, name: str, default: T) -> bool | T:
        value = self._raw.get(name, default)
        if name in self._raw and not isinstance(value, bool):
            raise self.bad(name, "true or false")
        return value

    def integer(self, name: str, default: T, low: int, high: int) -> int | T:
        if name not in self._raw:
            return default
        value = self._raw[name]
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON does not tell 8 from 8.0
        if not is_integer(value) or not low <= value <= high:
            raise self.bad(name, f"a whole number from {low} to {high}")
        return int(value)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._raw.get(name, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or not math.isfinite(value):
            raise self.bad(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def listed(self, name: str, most: int) -> list[Any]:
        """A list of at most so many values; empty where the field is absent."""
        value = self._raw.get(name, [])
        if not isinstance(value, list):
            raise self.bad(name, "a list")
        if len(value) > most:
            message = f"{len(value)} of them, at most {most}"
            raise errors.bad(self.name(name), message)
        return value


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
