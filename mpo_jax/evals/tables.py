"""Tables of a report, as rows of text: what Markdown and the page show alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mpo_jax.evals import benchmark as benchmark_lib

NONE = "–"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      head: names of the columns; the first one of `rows` is text, as are `texts` more.
      rows: cells.
      texts: further columns of text.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 0


def headline(report: Mapping[str, Any]) -> Table:
    """Scores of both modes and their difference, a row per benchmark."""
    direct, cot = benchmark_lib.MODES
    rows = []
    for name, of in report["scores"].items():
        gained = report["direct_vs_cot"].get(name)
        protocol = next(iter(of.values()))["protocol"]
        cells = [name, protocol, scored(of.get(direct)), scored(of.get(cot))]
        rows.append([*cells, gain(gained)])
    return Table(("benchmark", "protocol", "direct", "CoT", "CoT − direct"), rows, 1)


def selections(report: Mapping[str, Any]) -> Table | None:
    """Scores of what was selected of several samples; None where nothing was."""
    rows = []
    for name, of in report["scores"].items():
        for mode, entry in of.items():
            base, _, how = mode.partition("@")
            if how:
                cells = [name, entry["protocol"], base, how, str(entry["samples"])]
                rows.append([*cells, scored(entry), scored(of.get(base))])
    head = ("benchmark", "protocol", "mode", "selection", "samples", "score")
    return Table((*head, "first sample"), rows, 3) if rows else None


def against_base(report: Mapping[str, Any]) -> Table | None:
    """The run beside its base, a row per benchmark and mode; None without a base."""
    if report.get("base") is None:
        return None
    rows = []
    for name, of in report["base"]["comparisons"].items():
        for mode, entry in of.items():
            protocol = report["scores"][name][mode]["protocol"]
            cells = [name, protocol, mode]
            if "not_compared" in entry:
                rows.append([*cells, NONE, NONE, NONE, entry["not_compared"], NONE])
                continue
            scores = [scored(entry, which) for which in ("first_", "second_")]
            counts, p_value = _mcnemar(entry)
            count = f"{entry['items']:,}"
            rows.append([*cells, count, *scores, gain(entry), counts, p_value])
    head = ("benchmark", "protocol", "mode", "items", "base", "this run", "difference")
    return Table((*head, "only base / only this right", "McNemar p"), rows, 2)


def modes(of: Mapping[str, Mapping[str, Any]]) -> Table:
    """What stands behind the scores of one benchmark, a row per mode."""
    names = ("empty", "truncated", "undecided", "unparsed", "failed", "missing")
    rows = []
    for mode, entry in of.items():
        counts = [_counted(entry[name], entry["shares"][name]) for name in names]
        rows.append(
            [
                mode,
                scored(entry),
                f"{entry['correct']:,} / {entry['total']:,}",
                *counts,
                percent(entry["score_missing_as_wrong"]),
                _plain(entry["mean_tokens"]),
                _plain(entry["mean_characters"]),
            ]
        )
    head = ("mode", "score", "right / answered", *names, "unanswered as wrong")
    return Table((*head, "mean tokens", "mean characters"), rows)


def rules(of: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Released rule, corrected rule and judge beside each other; None if only one."""
    rows = []
    for mode, entry in of.items():
        if "corrected_score" not in entry and "judge_score" not in entry:
            continue
        cells = [mode, scored(entry), scored(entry, "corrected_"), NONE, NONE, NONE]
        if "corrected_score" in entry:
            cells[3] = str(entry["corrected_changed"])
        if "judge_score" in entry:
            differing = entry["judge_disagreements"]
            cells[4] = f"{scored(entry, 'judge_')} ({entry['judge_model']})"
            cells[5] = (
                f"{differing['rule_right_judge_wrong']} / "
                f"{differing['rule_wrong_judge_right']} of {entry['judged']}"
                f", {entry['judge_undecided']} undecided"
            )
        rows.append(cells)
    head = ("mode", "rule as released", "corrected rule", "verdicts that change")
    said = ("judge", "only the rule / only the judge says right")
    return Table((*head, *said), rows) if rows else None


def categories(of: Mapping[str, Mapping[str, Any]], axis: str) -> Table:
    """Scores by the values of an axis, a column per mode."""
    found = {mode: entry["categories"].get(axis, {}) for mode, entry in of.items()}
    values = sorted({value for scores in found.values() for value in scores})
    rows = []
    for value in values:
        counts = [s[value]["total"] for s in found.values() if value in s]
        cells = [scored(scores.get(value)) for scores in found.values()]
        rows.append([value, f"{max(counts):,}", *cells])
    return Table((axis, "items", *found), rows)


def axes(of: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Axes of a benchmark's categories."""
    return list(
        dict.fromkeys(axis for entry in of.values() for axis in entry["categories"])
    )


def scored(entry: Mapping[str, Any] | None, which: str = "") -> str:
    """A score with its interval.

    Args:
      which: ``corrected_``, ``judge_``, or of a comparison ``first_``, ``second_``.
    """
    if entry is None or f"{which}score" not in entry:
        return NONE
    return percent(entry[f"{which}score"]) + _interval(entry[f"{which}interval"])


def percent(value: float | None) -> str:
    """A score as people write it."""
    return NONE if value is None else f"{value:.1f}"


def gain(entry: Mapping[str, Any] | None) -> str:
    """The difference of a comparison with its interval."""
    if entry is None or entry.get("difference") is None:
        return NONE
    return f"{entry['difference']:+.1f}" + _interval(entry["interval"], "+")


def _interval(ends: Sequence[float | None], sign: str = "") -> str:
    low, high = ends
    if low is None or high is None or low == high:  # no width: nobody can say
        return ""
    return f" [{low:{sign}.1f}, {high:{sign}.1f}]"


def _mcnemar(entry: Mapping[str, Any]) -> tuple[str, str]:
    found = entry["mcnemar"]
    if found is None:
        return NONE, NONE
    p_value = found["p_value"]
    text = "< 0.0001" if p_value < 1e-4 else f"{p_value:.4f}"
    if entry["grouped"]:
        text += " (items in groups)"
    return f"{found['only_first_right']} / {found['only_second_right']}", text


def _counted(count: int, share: float | None) -> str:
    return str(count) if not count or share is None else f"{count:,} ({share:.1%})"


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"
