"""The plots of a report."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from mpo_jax.evals import benchmark as benchmark_lib
from mpo_jax.evals.modes import Mode, Modes
from mpo_jax.utils import score_plots

FOLDER = "plots"

MAX_BARS = 40
"""Values of an axis of categories that a plot shows."""


def draw(
    folder: pathlib.Path, found: Modes, report: Mapping[str, Any]
) -> dict[str, str]:
    """Write the plots.

    Returns:
      Captions by path relative to `folder`.
    """
    plots: dict[str, str] = {}
    series = _by_benchmark(report)
    if series:
        path = _path(plots, "scores")
        plots[path] = "Scores by benchmark"
        score_plots.plot_scores(series, folder / path, title=plots[path])
    for name, of in report["scores"].items():
        for axis in dict.fromkeys(a for e in of.values() for a in e["categories"]):
            series = _by_category(of, axis)
            path = _path(plots, f"{name}_by_{axis}")
            if 1 < max(map(len, series.values()), default=0) <= MAX_BARS:
                plots[path] = f"{name} by {axis}"
                score_plots.plot_scores(series, folder / path, title=plots[path])
        lengths, unit = _lengths(found[name])
        if lengths:
            path = _path(plots, f"{name}_lengths")
            plots[path] = f"{name}: length of answers"
            score_plots.plot_lengths(lengths, folder / path, title=name, unit=unit)
    return plots


def _by_benchmark(report: Mapping[str, Any]) -> dict[str, dict[str, score_plots.Value]]:
    series: dict[str, dict[str, score_plots.Value]] = {}
    for name, of in report["scores"].items():
        for mode in benchmark_lib.MODES:
            if mode in of and of[mode]["score"] is not None:
                series.setdefault(mode, {})[name] = _value(of[mode])
    if report["base"] is not None:
        for name, of in report["base"]["comparisons"].items():
            for mode in benchmark_lib.MODES:
                entry = of.get(mode, {})
                if entry.get("first_score") is not None:
                    ends = entry["first_interval"]
                    value = score_plots.Value(entry["first_score"], *ends)
                    series.setdefault(f"base {mode}", {})[name] = value
    return series


def _by_category(
    of: Mapping[str, Any], axis: str
) -> dict[str, dict[str, score_plots.Value]]:
    return {
        mode: {
            value: _value(entry)
            for value, entry in of[mode]["categories"].get(axis, {}).items()
            if entry["score"] is not None
        }
        for mode in benchmark_lib.MODES
        if mode in of
    }


def _value(entry: Mapping[str, Any]) -> score_plots.Value:
    return score_plots.Value(entry["score"], *entry["interval"])


def _lengths(
    of: Mapping[str, Mode],
) -> tuple[dict[str, dict[str, list[int]]], str]:
    """Lengths by mode and outcome, and their unit: tokens where all are known."""
    lines = {
        mode: list(of[mode].sheet.lines()) for mode in benchmark_lib.MODES if mode in of
    }
    known = all(line.tokens is not None for group in lines.values() for line in group)
    lengths: dict[str, dict[str, list[int]]] = {}
    for mode, group in lines.items():
        for line in group:
            length = line.tokens if known else len(line.answer)
            outcome = "right" if line.grade.verdict.right else "wrong"
            of_mode = lengths.setdefault(mode, {"right": [], "wrong": []})
            of_mode[outcome].append(length or 0)
    return lengths, "tokens" if known else "characters"


def _path(taken: Mapping[str, str], name: str) -> str:
    """A path of its own, with a name that any file system takes."""
    stem = "".join(c if c.isalnum() and c.isascii() else "_" for c in name)[:80]
    path, number = f"{FOLDER}/{stem}.png", 2
    while path in taken:
        path, number = f"{FOLDER}/{stem}_{number}.png", number + 1
    return path
