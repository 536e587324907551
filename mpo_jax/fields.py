"""Fields of nested dataclasses: names, bounds, JSON; mistakes answered with names.

Generic: knows no field of a run. ``config.py`` declares those, each with its bounds.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_BOUNDS = "bounds"


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Which values of its type a field takes; of a tuple, which elements.

    Attributes:
      required: what to do about an empty value, which is refused; "" takes it.
      choices: the only values.
      each_once: a tuple has at least one element, and none twice.
      within: lowest and highest number, both included.
      half_open: the same without the highest.
      at_least: lowest number; infinity is refused.
      positive: above 0 and finite.
      special: numbers that `at_least` lets through, and what they mean.
    """

    required: str = ""
    choices: tuple[str, ...] = ()
    each_once: bool = False
    within: tuple[float, float] | None = None
    half_open: tuple[float, float] | None = None
    at_least: float | None = None
    positive: bool = False
    special: Mapping[float, str] = dataclasses.field(default_factory=dict)

    def check(self, name: str, value: Any) -> None:
        """Check a value of the right type.

        Raises:
          ValueError: naming field, value and remedy.
        """
        if self.required and not value:
            raise ValueError(f"{name} is empty; {self.required}")
        if self.each_once and (not value or len(set(value)) < len(value)):
            raise ValueError(f"{name}={value!r}: name one or more, each once")
        for item in value if isinstance(value, tuple) else (value,):
            self._check_item(name, item)

    def _check_item(self, name: str, value: Any) -> None:
        if self.choices:
            choice(name, value, self.choices)
        if self.within is not None:
            low, high = self.within
            if not low <= value <= high:
                raise ValueError(f"{name}={value!r} must lie in [{low}, {high}]")
        if self.half_open is not None:
            low, high = self.half_open
            if not low <= value < high:
                raise ValueError(f"{name} must be in [{low}, {high}), got {value!r}")
        if self.positive and not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} must be positive and finite")
        if self.at_least is None or value in self.special:
            return
        if not self.at_least <= value < math.inf:
            others = [f"or {v} for {what}" for v, what in self.special.items()]
            also = " ".join(others) or "and finite"
            raise ValueError(
                f"{name}={value!r} must be at least {self.at_least}, {also}"
            )


def field(default: T, **bounds: Any) -> T:
    """A field of a dataclass with its default and its :class:`Bounds`.

    Typed as its default, as ``dataclasses.field`` is.
    """
    metadata = {_BOUNDS: Bounds(**bounds)}
    found: Any = dataclasses.field(default=default, metadata=metadata)
    return found


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
            raise ValueError(no_field(prefix + name, [prefix + n for n in fields]))
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


def no_field(name: str, known: Sequence[str]) -> str:
    """Message that a field does not exist, with the nearest names."""
    near = nearest(name, known, n=3, cutoff=0.5)
    last = name.rsplit(".", 1)[-1]
    near += [n for n in known if n.rsplit(".", 1)[-1] == last and n not in near]
    return f"config has no field {name!r}{did_you_mean(near)}"


def no_such(what: str, name: str, known: Sequence[str]) -> str:
    """Message that there is no loss (say) of this name, with the nearest and all."""
    hint = did_you_mean(map(repr, nearest(name, known, n=3)))
    return f"unknown {what} {name!r}{hint} (known: {', '.join(known)})"


def nearest(
    name: str,
    known: Iterable[str],
    *,
    n: int = 1,
    cutoff: float = 0.6,
    ignore_case: bool = False,
) -> list[str]:
    """Names most like a misspelt one, the likest first.

    Args:
      n: names at most.
      cutoff: least likeness, from 0 (anything) to 1 (the same).
      ignore_case: of names that differ in case alone, the last one is meant.
    """
    if not ignore_case:
        return difflib.get_close_matches(name, list(known), n=n, cutoff=cutoff)
    by_lower = {item.lower(): item for item in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=n, cutoff=cutoff)
    return [by_lower[item] for item in near]


def did_you_mean(near: Iterable[str]) -> str:
    """``; did you mean A or B?``, or nothing where no name is near."""
    names = " or ".join(near)
    return f"; did you mean {names}?" if names else ""


def check(cfg: Any, prefix: str = "") -> None:
    """Check type and bounds of every field of a dataclass and of those within it.

    The type is that of the field's default; a float may be a whole number, a tuple has
    elements of its default's first one, texts where that is empty. What is no field
    is refused: Python lets anything be set.

    Args:
      prefix: what stands before the names in messages, such as ``optim.``.

    Raises:
      ValueError: naming field, value and remedy.
    """
    for problem in _wrong_types(cfg, type(cfg)(), prefix):
        raise ValueError(problem)
    for problem in _out_of_bounds(cfg, prefix):
        raise ValueError(problem)


def problems(cfg: Any, prefix: str = "") -> list[str]:
    """All that :func:`check` would raise; bounds only where all types are right."""
    found = list(_wrong_types(cfg, type(cfg)(), prefix))
    return found or list(_out_of_bounds(cfg, prefix))


def _wrong_types(cfg: Any, default: Any, prefix: str) -> Iterator[str]:
    known = [item.name for item in dataclasses.fields(default)]
    for name in vars(cfg).keys() - set(known):
        yield no_field(prefix + name, [prefix + one for one in known])
    for item in dataclasses.fields(default):
        name, value = prefix + item.name, getattr(cfg, item.name)
        expected = getattr(default, item.name)
        if dataclasses.is_dataclass(expected):
            if isinstance(value, type(expected)):
                yield from _wrong_types(value, expected, f"{name}.")
            else:
                wanted = type(expected).__name__
                yield f"{name}={value!r}: expected a config.{wanted}"
        elif not _same_type(value, expected):
            wanted = type(expected).__name__
            if isinstance(expected, tuple):
                wanted = f"a tuple of {type(_element(expected)).__name__}"
            yield f"{name}={value!r}: expected {wanted}"


def _out_of_bounds(cfg: Any, prefix: str) -> Iterator[str]:
    for item in dataclasses.fields(cfg):
        name, value = prefix + item.name, getattr(cfg, item.name)
        if dataclasses.is_dataclass(value):
            yield from _out_of_bounds(value, f"{name}.")
        elif _BOUNDS in item.metadata:
            try:
                item.metadata[_BOUNDS].check(name, value)
            except ValueError as error:
                yield str(error)


def _element(default: tuple[Any, ...]) -> Any:
    """What the elements of a tuple are like."""
    return default[0] if default else ""


def _same_type(value: Any, expected: Any) -> bool:
    if isinstance(expected, tuple):
        return isinstance(value, tuple) and all(
            _same_type(item, _element(expected)) for item in value
        )
    if isinstance(value, bool) != isinstance(expected, bool):
        return False
    return isinstance(
        value, (int, float) if type(expected) is float else type(expected)
    )


def choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise where a value is none of the choices; names the nearest."""
    if value not in choices:
        hint = did_you_mean(map(repr, nearest(value, choices)))
        raise ValueError(f"{name}={value!r}: use one of {tuple(choices)}{hint}")
