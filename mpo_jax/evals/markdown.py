"""``report.md``: the scores, what stands behind each, and what they are worth."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mpo_jax.evals import tables, voting
from mpo_jax.evals.tables import Table

MAX_RULES = 12
"""Rules that are listed per mode; further ones are counted together."""

MAX_CELL = 300
"""Characters of a cell."""


def render(report: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    """The whole text.

    Args:
      report: as ``report.build`` makes it.
      plots: captions by path relative to the file.
    """
    parts = [f"# {_text(report['title'])}", *_pin(report), "## Scores"]
    parts += [table(tables.headline(report)), *_legend(report)]
    chosen = tables.selections(report)
    if chosen:
        parts += ["## Several samples per item", table(chosen)]
        parts += [f"- `{how}`: {meaning}." for how, meaning in voting.MEANING.items()]
    parts += _base(report)
    for path, caption in plots.items():
        parts.append(f"![{_text(caption)}]({path})")
    for name in report["scores"]:
        parts += _benchmark(report, name)
    text = "\n\n".join(parts) + "\n"
    # Half a surrogate pair has no place in UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")


def table(found: Table) -> str:
    """A table in Markdown; texts to the left, numbers to the right."""
    marks = [":--" if i <= found.texts else "--:" for i in range(len(found.head))]
    lines = [found.head, marks, *found.rows]
    return "\n".join(
        "| " + " | ".join(c if line is marks else _text(c) for c in line) + " |"
        for line in lines
    )


def _pin(report: Mapping[str, Any]) -> Iterator[str]:
    if report["pin"] is not None:
        pinned = ", ".join(f"{k} `{v}`" for k, v in report["pin"]["parts"].items())
        yield f"Pin `{report['pin']['id']}`: {pinned}."


def _legend(report: Mapping[str, Any]) -> Iterator[str]:
    made = report["intervals"]
    yield (
        f"In brackets: interval of {made['level']:.0%}, {made['kind']} of "
        f"{made['resamples']:,} resamples (seed {made['seed']}) of groups of items "
        "that belong together; there is none where all items were graded alike, of "
        "which a bootstrap can say nothing. A score is over the answered items; an "
        "empty answer, or one in which nothing was found, is wrong. Scores of "
        "different protocols do not compare."
    )
    for name, of in report["scores"].items():
        subsets = dict.fromkeys(entry["subset"] for entry in of.values())
        for subset in subsets:
            if subset:
                yield f"**{_text(name)}: {subset}.**"


def _base(report: Mapping[str, Any]) -> Iterator[str]:
    compared = tables.against_base(report)
    if compared is None:
        return
    base = report["base"]
    yield f"## Against {_text(base['name'])}"
    yield table(compared)
    yield (
        "Paired: the same items, drawn together. McNemar's test (exact, two-sided) "
        "counts items that one run alone has right; it takes items as independent, so "
        "where they come in groups the interval is the one to read."
    )
    differing = base["pin_differences"]
    if differing is None:
        yield "What pinned one of the two runs is not known."
    elif differing:
        names = ", ".join(f"`{name}`" for name in differing)
        yield f"The pins differ in: {names}."
    for name, of in base["comparisons"].items():
        for mode, entry in of.items():
            left = {
                "answered by the base alone": entry.get("first_only_answered"),
                "answered by this run alone": entry.get("second_only_answered"),
                "with another question or truth": entry.get("changed_items"),
            }
            said = ", ".join(f"{count} {what}" for what, count in left.items() if count)
            if said:
                yield f"{_text(name)}, {mode}: items not compared: {said}."


def _benchmark(report: Mapping[str, Any], name: str) -> Iterator[str]:
    of = report["scores"][name]
    about = report["benchmarks"][name]
    protocol = next(iter(of.values()))["protocol"]
    yield f"## {_text(about['title'])} ({_text(name)}, protocol {_text(protocol)})"
    for note in about["notes"]:
        yield f"- {_text(note)}"
    yield table(tables.modes(of))
    for mode, entry in of.items():
        if entry["short_of_samples"]:
            count = entry["short_of_samples"]
            yield f"{mode}: {count} items have fewer than {entry['samples']} samples."
    beside = tables.rules(of)
    if beside:
        yield "### Rules and judge"
        yield table(beside)
    elif about["judge"]:
        yield (
            f"The authors grade by a judge ({_text(about['judge'])}); none was asked. "
            "The score is by a rule."
        )
    for axis in tables.axes(of):
        yield f"### By {_text(axis)}"
        yield table(tables.categories(of, axis))
    yield from _judge_ids(of)
    yield from _details(of)
    yield "### What decided"
    yield table(_decided(of))


def _judge_ids(of: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for mode, entry in of.items():
        ids = entry.get("judge_disagreements", {}).get("ids", [])
        if ids:
            named = ", ".join(_text(id) for id in ids)
            yield f"{mode}: rule and judge differ on {named}."


def _details(of: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for mode, entry in of.items():
        if entry.get("details"):
            text = json.dumps(entry["details"], ensure_ascii=False, indent=1)
            # Backticks in JSON's notation: none can close the fence.
            text = text.replace("`", r"\u0060")
            yield f"Details, {mode}:\n\n```json\n{text}\n```"


def _decided(of: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for mode, entry in of.items():
        found = list(entry["rules"].items())
        rows += [[mode, rule, f"{count:,}"] for rule, count in found[:MAX_RULES]]
        rest = found[MAX_RULES:]
        if rest:
            count = sum(count for _, count in rest)
            rows.append([mode, f"{len(rest)} further rules", f"{count:,}"])
    return Table(("mode", "rule", "answers"), rows, 1)


def _text(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    flat = " ".join(text.split())
    if len(flat) > MAX_CELL:
        flat = flat[:MAX_CELL] + " …"
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", flat)
