"""Fields of nested dataclasses: names, types, JSON; mistakes answered with names.

Generic: knows no field of a run. ``config.py`` declares those.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any


def from_dict(cls: type, raw: Any, prefix: str) -> Any:
    """A dataclass from nested mappings; lists (from JSON) become tuples.

    Raises:
      ValueError: on unknown fields, with the nearest name, and on what is no mapping.
    """
    if not isinstance(raw, Mapping):
        name = prefix.rstrip(".") or "config"
        raise ValueError(f"{name}={raw!r}: expected an object with its fields")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    default = cls()
    values = {}
    for name, value in raw.items():
        if name not in fields:
            raise ValueError(unknown(prefix + name, [prefix + n for n in fields]))
        current = getattr(default, name)
        if dataclasses.is_dataclass(current):
            value = from_dict(type(current), value, f"{prefix}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    return cls(**values)


def names(cfg: Any, prefix: str = "") -> list[str]:
    """Dotted names of all fields, groups left out."""
    found = []
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            found += names(value, f"{prefix}{field.name}.")
        else:
            found.append(prefix + field.name)
    return found


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config dict with dotted names; lists (from JSON) become tuples."""
    result: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = tuple(value) if isinstance(value, list) else value
    return result


def unknown(name: str, known: Sequence[str]) -> str:
    """Message that a field does not exist, with the nearest names."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    last = name.rsplit(".", 1)[-1]
    near += [n for n in known if n.rsplit(".", 1)[-1] == last and n not in near]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"config has no field {name!r}{hint}"


def get(cfg: Any, name: str) -> Any:
    """Value of a field by its dotted name."""
    for part in name.split("."):
        cfg = getattr(cfg, part)
    return cfg


def check_types(cfg: Any, default: Any, prefix: str = "") -> None:
    """Raise where a value is of another type than the field's default."""
    for field in dataclasses.fields(default):
        name, value = prefix + field.name, getattr(cfg, field.name)
        expected = getattr(default, field.name)
        if dataclasses.is_dataclass(expected):
            if not isinstance(value, type(expected)):
                wanted = type(expected).__name__
                raise ValueError(f"{name}={value!r}: expected a config.{wanted}")
            check_types(value, expected, f"{name}.")
            continue
        if not _same_type(value, expected):
            wanted = type(expected).__name__
            if isinstance(expected, tuple):
                wanted = f"a tuple of {type(expected[0]).__name__}"
            raise ValueError(f"{name}={value!r}: expected {wanted}")


def _same_type(value: Any, expected: Any) -> bool:
    if isinstance(expected, tuple):
        return isinstance(value, tuple) and all(
            _same_type(item, expected[0]) for item in value
        )
    if isinstance(value, bool) != isinstance(expected, bool):
        return False
    return isinstance(
        value, (int, float) if type(expected) is float else type(expected)
    )


def choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise where a value is none of the choices; names the nearest."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}={value!r}: use one of {tuple(choices)}{hint}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Raise where a number lies outside ``[low, high]`` or is NaN."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value!r} must lie in [{low}, {high}]")


def at_least(name: str, value: float, low: float) -> None:
    """Raise where a number is below `low`, infinite or NaN."""
    if not low <= value < math.inf:
        raise ValueError(f"{name}={value!r} must be at least {low}, and finite")
