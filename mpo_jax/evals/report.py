"""The report of a run: JSON, Markdown, plots and the page, from its lines."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mpo_jax.evals import (
    comparing,
    figures,
    markdown,
    page,
    page_items,
    pin,
    report_run,
    scores,
    statistics,
    voting,
)
from mpo_jax.evals import modes as modes_lib
from mpo_jax.evals.benchmark import Benchmark, Item
from mpo_jax.evals.modes import Modes
from mpo_jax.evals.report_run import Run
from mpo_jax.evals.scores import Draws
from mpo_jax.utils import atomic

MARKDOWN = "report.md"
PAGE = "report.html"


def write(
    folder: pathlib.Path,
    run: Run,
    benchmarks: Mapping[str, Benchmark],
    *,
    base: Run | None = None,
    items: Mapping[str, Sequence[Item]] | None = None,
    same: voting.Same | None = None,
    draws: Draws | None = None,
) -> dict[str, Any]:
    """Write ``report.json``, ``report.md``, ``plots/`` and ``report.html``.

    Args:
      folder: the work directory, which the images of the lines lie in.
      benchmarks: by name; all those of the lines.
      base: another run on the same items.
      items: of the benchmarks, whole; see :func:`modes.modes`.
      same: whether two predictions agree in a vote; see there.
      draws: of the intervals; None is the default.

    Returns:
      What ``report.json`` holds.

    Raises:
      ValueError: as :func:`modes.modes` and :func:`scores.scores`.
    """
    found = modes_lib.modes(run.lines, run.unanswered, items=items, same=same)
    report = build(run, found, benchmarks, base=base, same=same, draws=draws)
    _write_text(
        folder / report_run.JSON, json.dumps(report, indent=1, allow_nan=False) + "\n"
    )
    plots = figures.draw(folder, found, report)
    _write_text(folder / MARKDOWN, markdown.render(report, plots))
    entries = page_items.entries(run, found, base)
    page.write(folder / PAGE, entries, report, list(plots))
    return report


def build(
    run: Run,
    found: Modes,
    benchmarks: Mapping[str, Benchmark],
    *,
    base: Run | None = None,
    same: voting.Same | None = None,
    draws: Draws | None = None,
) -> dict[str, Any]:
    """What ``report.json`` holds; JSON values.

    ``scores`` (see :func:`scores.scores`), ``direct_vs_cot``, ``base`` (see
    ``comparing``; None without one), ``benchmarks`` (title, notes, judge), ``pin`` and
    how ``intervals`` are made.

    Args:
      found: the run's lines, sorted.
    """
    draws = draws or Draws()
    return {
        "title": f"Evaluation of {run.name}",
        "pin": run.pin.as_json() if run.pin else None,
        "scores": scores.scores(found, benchmarks, draws),
        "direct_vs_cot": comparing.direct_with_cot(found, benchmarks, draws),
        "base": _base(run, found, benchmarks, base, same, draws),
        "benchmarks": {name: _about(found, benchmarks, name) for name in found},
        "intervals": {
            "kind": "percentiles of a bootstrap",
            "level": statistics.LEVEL,
            "resamples": draws.resamples,
            "seed": draws.seed,
        },
    }


def _base(
    run: Run,
    found: Modes,
    benchmarks: Mapping[str, Benchmark],
    base: Run | None,
    same: voting.Same | None,
    draws: Draws,
) -> dict[str, Any] | None:
    if base is None:
        return None
    theirs = modes_lib.modes(base.lines, base.unanswered, same=same)
    differing = None
    if run.pin and base.pin:
        pairs = pin.differences(base.pin, run.pin)
        differing = {name: list(pair) for name, pair in pairs.items()}
    return {
        "name": base.name,
        "pin_differences": differing,
        "comparisons": comparing.with_base(theirs, found, benchmarks, draws),
    }


def _about(
    found: Modes, benchmarks: Mapping[str, Benchmark], name: str
) -> dict[str, Any]:
    protocol = next(iter(found[name].values())).protocol
    rules = scores.protocol_of(benchmarks, name, protocol)
    return {
        "title": benchmarks[name].title,
        "notes": list(rules.notes),
        "judge": rules.judge.model if rules.judge else None,
    }


def _write_text(path: pathlib.Path, text: str) -> None:
    def write_to(temporary: pathlib.Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    atomic.write_whole(path, write_to)
