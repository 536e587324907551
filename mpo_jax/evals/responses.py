"""What models said to items: our own answers, and stored ones of any system."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mpo_jax import fields, ledger
from mpo_jax.generate import questions

MAX_LINE_BYTES = 16_000_000
MAX_SAMPLES = 4096
_READ = ("id", "answer", "mode", "benchmark", "sample")


@dataclasses.dataclass(frozen=True)
class Response:
    """A model's text to an item.

    Attributes:
      text: as it came.
      finish_reason: ``stop``, ``length``, or "" where it is not known.
      tokens, prompt_tokens: how many; None where it is not known.
      logprob: sum over the answer's tokens, nats; None where it is not known.
    """

    text: str
    finish_reason: str = ""
    tokens: int | None = None
    prompt_tokens: int | None = None
    logprob: float | None = None


Key = tuple[str, int]
"""Id of an item, number of the sample."""
Place = tuple[str, str]
"""Name of a benchmark, mode."""


def own(path: pathlib.Path) -> Iterator[tuple[Key, Response]]:
    """Answers of ``scripts/generate.py``."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            found = json.loads(line)
            response = Response(
                found["text"],
                found["finish_reason"],
                found["tokens"],
                found["prompt_tokens"],
                found["logprob"],
            )
            yield (found["id"], found["sample"]), response


def stored(
    path: pathlib.Path, places: Mapping[Place, Collection[str]]
) -> tuple[dict[Place, dict[Key, Response]], list[ledger.Entry]]:
    """Answers of a file: ``{"id", "answer", "mode"?, "benchmark"?, "sample"?}``.

    Args:
      places: the ids that each has; a line need not name what can only be one of them.

    Returns:
      Answers by place, and the lines that cannot be used.

    Raises:
      ValueError: not one line can be used.
    """
    found: dict[Place, dict[Key, Response]] = {place: {} for place in places}
    lines: dict[tuple[Place, Key], int] = {}
    bad: list[ledger.Entry] = []
    with open(path, "rb") as file:
        for number, raw in enumerate(_lines(file), 1):
            if not raw.strip():
                continue
            try:
                place, key, response = _parsed(raw, places)
                if key[0] not in places[place]:
                    detail = f"{place[0]} has no item id={ledger.short(key[0])}"
                    raise ledger.BadRecord("unknown_id", detail)
                before = lines.setdefault((place, key), number)
                if before != number:
                    raise ledger.BadRecord(
                        "bad_field",
                        f"id={key[0]!r} sample={key[1]} is answered in line {before} "
                        "too; that answer counts",
                    )
                found[place][key] = response
            except ledger.BadRecord as error:
                entry = ledger.Entry(
                    "answers", str(path), number, error.reason, error.detail
                )
                bad.append(entry)
    if not lines:
        first = f"; line {bad[0].line}: {bad[0].detail}" if bad else ""
        raise ValueError(
            f"{path} holds no answer. A line is "
            '{"id": …, "answer": "…", "mode": "direct"|"cot"}' + first
        )
    return found, bad


def _lines(file: Any) -> Iterator[bytes]:
    """Lines, each cut behind the longest that is taken."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
        yield line


def _parsed(raw: bytes, places: Collection[Place]) -> tuple[Place, Key, Response]:
    whole = raw if len(raw) <= MAX_LINE_BYTES else None
    record = questions.record_of(whole, most=MAX_LINE_BYTES)
    for name in record:
        near = fields.nearest(name, [n for n in _READ if n not in record])
        if name not in _READ and near:
            detail = f"{ledger.short(name)} is not read; did you mean {near[0]}?"
            raise ledger.BadRecord("bad_field", detail)
    return _place(record, places), _key(record), Response(_answer(record))


def _answer(record: dict[str, Any]) -> str:
    value = record.get("answer")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        detail = f"answer={ledger.short(value)}: must be a text"
        raise ledger.BadRecord("bad_field", detail)
    return str(value)


def _key(record: dict[str, Any]) -> Key:
    name, sample = record.get("id"), record.get("sample", 0)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        detail = f"id={ledger.short(name)}: must be a text or an integer"
        raise ledger.BadRecord("bad_field", detail)
    is_int = isinstance(sample, int) and not isinstance(sample, bool)
    if not is_int or not 0 <= sample < MAX_SAMPLES:
        detail = f"sample={ledger.short(sample)}: must be from 0 to {MAX_SAMPLES - 1}"
        raise ledger.BadRecord("bad_field", detail)
    return str(name), sample


def _place(record: dict[str, Any], places: Collection[Place]) -> Place:
    """The one place that a line can mean."""
    fitting = [
        place
        for place in places
        if record.get("benchmark", place[0]) == place[0]
        and record.get("mode", place[1]) == place[1]
    ]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(f"{name} {mode}" for name, mode in sorted(places))
    if not fitting:
        said = {k: record[k] for k in ("benchmark", "mode") if k in record}
        raise ledger.BadRecord("bad_field", f"{said}: not scored here ({known})")
    if len({name for name, _ in fitting}) > 1:
        detail = f'no "benchmark", and several are scored ({known})'
        raise ledger.BadRecord("bad_field", detail)
    # Answers without a mode are what a system said when it was simply asked.
    return min(fitting, key=lambda place: place[1] != "direct")
