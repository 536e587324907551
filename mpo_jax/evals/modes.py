"""The answers of a run sorted by benchmark and mode, and what is selected of them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from mpo_jax.evals import voting
from mpo_jax.evals.benchmark import Item
from mpo_jax.evals.lines import Line, Unanswered
from mpo_jax.evals.sheet import Sheet


@dataclasses.dataclass(frozen=True)
class Mode:
    """The answers of one benchmark in one mode, or what was selected of them.

    Attributes:
      name: ``cot``, ``cot@vote`` and the like.
      sheet: the answers.
      unanswered: one entry for each item of which nothing is in the sheet.
      absent: those items, as far as they are known; else None.
      samples: answers per item that were drawn.
      short: items that have fewer.
    """

    name: str
    protocol: str
    sheet: Sheet
    unanswered: tuple[Unanswered, ...]
    absent: tuple[Item | None, ...]
    samples: int = 1
    short: int = 0


Modes = Mapping[str, Mapping[str, Mode]]
"""By benchmark, then by mode."""


def modes(
    lines: Sequence[Line],
    unanswered: Sequence[Unanswered] = (),
    *,
    items: Mapping[str, Sequence[Item]] | None = None,
    same: voting.Same | None = None,
) -> Modes:
    """Sort the lines of a run.

    Where several samples were drawn, a mode ``cot`` is its first samples (what a run
    with one sample gives), beside ``cot@mean``, ``cot@vote``, ``cot@best`` and
    ``cot@any`` (see ``voting``).

    Args:
      items: of each benchmark, whole; where absent they are made of the lines, and a
        metric sees no `fields`.
      same: whether two predictions agree in a vote; None: as texts.

    Raises:
      ValueError: a benchmark stands in the lines under two protocols.
    """
    answered = collections.defaultdict[tuple[str, str], list[Line]](list)
    absent = collections.defaultdict[tuple[str, str], list[Unanswered]](list)
    protocols: dict[str, str] = {}
    for entry in (*lines, *unanswered):
        first = protocols.setdefault(entry.benchmark, entry.protocol)
        if first != entry.protocol:
            raise ValueError(
                f"{entry.benchmark}: protocols {first!r} and {entry.protocol!r} in one "
                "report; scores of two protocols do not compare: make a report of each"
            )
        key = (entry.benchmark, entry.mode)
        if isinstance(entry, Line):
            answered[key].append(entry)
        else:
            absent[key].append(entry)
    known = _known(lines, items or {})
    found: dict[str, dict[str, Mode]] = {}
    for key in dict.fromkeys((*answered, *absent)):
        benchmark, mode = key
        whose = _Whose(mode, protocols[benchmark], known.get(benchmark, {}))
        for each in _of_mode(whose, answered[key], absent[key], same):
            found.setdefault(benchmark, {})[each.name] = each
    return found


def _known(
    lines: Sequence[Line], items: Mapping[str, Sequence[Item]]
) -> dict[str, dict[str, Item]]:
    """Items by benchmark and id: as given, else as some line has them."""
    known = {name: {item.id: item for item in of} for name, of in items.items()}
    for line in lines:
        of = known.setdefault(line.benchmark, {})
        if line.id not in of:
            of[line.id] = line.item
    return known


@dataclasses.dataclass(frozen=True)
class _Whose:
    """Name, protocol and known items of a mode."""

    name: str
    protocol: str
    known: Mapping[str, Item]


def _of_mode(
    whose: _Whose,
    lines: Sequence[Line],
    unanswered: Sequence[Unanswered],
    same: voting.Same | None,
) -> list[Mode]:
    samples = voting.by_item(lines)
    drawn = 1 + max((entry.sample or 0 for entry in (*lines, *unanswered)), default=0)
    firsts = [of[0] for of in samples.values() if of[0].sample == 0]
    rounds = {"": [firsts]}
    if drawn > 1:
        rounds[f"@{voting.MEAN}"] = voting.rounds(samples) or [[]]
        for how in (voting.VOTE, voting.BEST, voting.ANY):
            selected = voting.select(samples, how, same=same)
            if selected is not None:
                rounds[f"@{how}"] = [selected]
    short = sum(len(of) < drawn for of in samples.values())
    return [
        _mode(whose, how, of, unanswered, drawn if how else 1, short if how else 0)
        for how, of in rounds.items()
    ]


def _mode(
    whose: _Whose,
    how: str,
    rounds: Sequence[Sequence[Line]],
    unanswered: Sequence[Unanswered],
    samples: int,
    short: int,
) -> Mode:
    sheet = Sheet.of(rounds, whose.known)
    there = {item.id for item in sheet.items}
    without: dict[str, Unanswered] = {}
    for entry in unanswered:
        if entry.id not in there:
            without.setdefault(entry.id, entry)
    return Mode(
        name=whose.name + how,
        protocol=whose.protocol,
        sheet=sheet,
        unanswered=tuple(without.values()),
        absent=tuple(whose.known.get(id) for id in without),
        samples=samples,
        short=short,
    )
