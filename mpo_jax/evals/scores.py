"""Scores of a run: per benchmark, mode and category, with what stands behind them."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpo_jax.evals import benchmark as benchmark_lib
from mpo_jax.evals import sheet as sheet_lib
from mpo_jax.evals import statistics
from mpo_jax.evals.benchmark import Benchmark, Graded, Item, Metric, Protocol
from mpo_jax.evals.lines import Line
from mpo_jax.evals.modes import Mode, Modes
from mpo_jax.evals.sheet import Sheet
from mpo_jax.verify import verdict as verdict_lib

DIGITS = 4
"""Of scores and shares behind the comma."""

MAX_NAMED = 50
"""Items that are named where rule and judge differ; further ones are counted."""


@dataclasses.dataclass(frozen=True)
class Draws:
    """How intervals are made.

    Attributes:
      resamples: of the bootstrap.
      seed: of its draws.
    """

    resamples: int = statistics.RESAMPLES
    seed: int = 0


def scores(
    found: Modes, benchmarks: Mapping[str, Benchmark], draws: Draws
) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores by benchmark and mode; JSON values.

    Of each: ``score`` over the answered items with its ``interval``, ``correct`` of
    ``total``, the ``protocol``; counts of answers that are ``empty``, ``truncated``,
    ``undecided`` (by the rule) or ``unparsed``, of items that ``failed`` or are
    ``missing``, and the same as ``shares``; ``score_missing_as_wrong``; lengths; scores
    by ``categories``; the benchmark's own ``details``; and where there are such
    grades ``corrected_score`` and ``judge_score`` with theirs. A score that is not
    defined is None.

    Raises:
      ValueError: a benchmark or protocol is not known, or two judges graded one mode.
    """
    return {
        name: {
            mode.name: _score(mode, _known(benchmarks, name, mode.protocol), draws)
            for mode in of.values()
        }
        for name, of in found.items()
    }


def protocol_of(
    benchmarks: Mapping[str, Benchmark], name: str, protocol: str
) -> Protocol:
    """Protocol of a benchmark.

    Raises:
      ValueError: it has no such protocol, or there is no such benchmark.
    """
    return _known(benchmarks, name, protocol)[1]


def _known(
    benchmarks: Mapping[str, Benchmark], name: str, protocol: str
) -> tuple[Benchmark, Protocol]:
    if name not in benchmarks:
        raise ValueError(f"benchmark={name!r}: known are {sorted(benchmarks)}")
    benchmark = benchmarks[name]
    if protocol not in benchmark.protocols:
        raise ValueError(
            f"{name}: protocol={protocol!r}: it has {sorted(benchmark.protocols)}"
        )
    return benchmark, benchmark.protocols[protocol]


def _score(
    mode: Mode, known: tuple[Benchmark, Protocol], draws: Draws
) -> dict[str, Any]:
    benchmark, protocol = known
    sheet, metric = mode.sheet, protocol.metric
    items = len(sheet.items) + len(mode.unanswered)
    found = {
        "protocol": mode.protocol,
        **_measured(sheet, metric, draws),
        "items": items,
        "size": benchmark.size,
        "subset": _subset(items, benchmark.size),
        "samples": mode.samples,
        "short_of_samples": mode.short,
        **_counts(mode),
        "score_missing_as_wrong": _missing_as_wrong(mode, metric),
        **_lengths(sheet),
        "categories": _categories(sheet, metric, draws),
        "rules": dict(
            collections.Counter(
                line.grade.verdict.rule for line in sheet.lines()
            ).most_common()
        ),
    }
    lines = list(sheet.lines())
    if any(line.corrected for line in lines):
        found |= _corrected(sheet, metric, draws)
    if protocol.judge and any(line.judge for line in lines):
        found |= _judged(sheet, protocol.judge.metric, draws)
    if protocol.details and len(sheet.rounds) == 1:
        found["details"] = dict(protocol.details(_graded(sheet)))
    return found


def _measured(sheet: Sheet, metric: Metric, draws: Draws) -> dict[str, Any]:
    weighted = sheet.weighted(metric)
    return {
        "score": number(weighted(np.ones(len(sheet.items)))),
        "interval": bounds(weighted, sheet, draws),
        "correct": _correct(sheet, sheet_lib.released),
        "total": len(sheet.items),
    }


def _correct(sheet: Sheet, grading: sheet_lib.Grading) -> int | float:
    """Items that are right; over several rounds, on average."""
    grades = [grading(line) for line in sheet.lines()]
    right = sum(grade is not None and grade.verdict.right for grade in grades)
    rounds = len(sheet.rounds)
    return right if rounds == 1 else round(right / rounds, DIGITS)


def bounds(
    weighted: benchmark_lib.Weighted, sheet: Sheet, draws: Draws
) -> list[float | None]:
    """Interval as JSON has it."""
    found = statistics.interval(
        weighted, sheet.groups(), seed=draws.seed, resamples=draws.resamples
    )
    return [number(found.low), number(found.high)]


def number(value: float) -> float | None:
    """Rounded; None for NaN, which JSON has no word for."""
    return round(value, DIGITS) if math.isfinite(value) else None


def _subset(items: int, size: int) -> str:
    """What is to be said where a benchmark is not complete; else ""."""
    if not size or items == size:
        return ""
    kind = "a subset" if items < size else "more than it is known to have"
    return f"{items:,} of {size:,} items: {kind}"


def _counts(mode: Mode) -> dict[str, Any]:
    lines = list(mode.sheet.lines())
    missing = sum(entry.missing for entry in mode.unanswered)
    of_answers = {
        "empty": sum(line.empty for line in lines),
        "truncated": sum(line.truncated for line in lines),
        "undecided": sum(line.undecided for line in lines),
        "unparsed": sum(line.unparsed for line in lines),
    }
    of_items = {"failed": len(mode.unanswered) - missing, "missing": missing}
    items = len(mode.sheet.items) + len(mode.unanswered)
    shares = {name: _share(count, len(lines)) for name, count in of_answers.items()}
    shares |= {name: _share(count, items) for name, count in of_items.items()}
    return {"answers": len(lines), **of_answers, **of_items, "shares": shares}


def _share(count: int, total: int) -> float | None:
    return round(count / total, DIGITS) if total else None


def _missing_as_wrong(mode: Mode, metric: Metric) -> float | None:
    """The score if what is unanswered counts as wrong.

    None where a metric looks at the items (F1: at whether the truth is yes) and an
    unanswered one is not known.
    """
    if metric is benchmark_lib.accuracy:  # looks at points alone
        absent = [Item(entry.id, "", None) for entry in mode.unanswered]
    else:
        absent = [item for item in mode.absent if item is not None]
    items = [*mode.sheet.items, *absent]
    if len(absent) < len(mode.unanswered) or not items:
        return None
    values = []
    for of in mode.sheet.rounds:
        points = np.zeros(len(items))
        for position, line in of.items():
            points[position] = line.grade.points
        values.append(metric(items, points)(np.ones(len(items))))
    return number(sum(values) / len(values))


def _lengths(sheet: Sheet) -> dict[str, Any]:
    lines = list(sheet.lines())

    def mean(values: list[int]) -> float | None:
        return round(sum(values) / len(values), 2) if values else None

    counted = [line for line in lines if line.tokens is not None]
    return {
        "mean_tokens": mean([line.tokens or 0 for line in counted]),
        "mean_tokens_right": mean(
            [line.tokens or 0 for line in counted if line.grade.verdict.right]
        ),
        "mean_tokens_wrong": mean(
            [line.tokens or 0 for line in counted if not line.grade.verdict.right]
        ),
        "mean_characters": mean([len(line.answer) for line in lines]),
    }


def _categories(
    sheet: Sheet, metric: Metric, draws: Draws
) -> dict[str, dict[str, dict[str, Any]]]:
    ids: dict[str, dict[str, list[str]]] = {}
    for item in sheet.items:
        for axis, value in item.categories.items():
            ids.setdefault(axis, {}).setdefault(value, []).append(item.id)
    return {
        axis: {
            value: _measured(sheet.only(of), metric, draws)
            for value, of in sorted(values.items())
        }
        for axis, values in ids.items()
    }


def _corrected(sheet: Sheet, metric: Metric, draws: Draws) -> dict[str, Any]:
    weighted = sheet.weighted(metric, sheet_lib.corrected)
    changed = [
        line
        for line in sheet.lines()
        if line.corrected and line.corrected.verdict.right != line.grade.verdict.right
    ]
    return {
        "corrected_score": number(weighted(np.ones(len(sheet.items)))),
        "corrected_interval": bounds(weighted, sheet, draws),
        "corrected_correct": _correct(sheet, sheet_lib.corrected),
        "corrected_changed": len(changed),
    }


def _judged(sheet: Sheet, metric: Metric, draws: Draws) -> dict[str, Any]:
    judged = [line for line in sheet.lines() if line.judge]
    models = sorted({line.judge.model for line in judged if line.judge})
    if len(models) > 1:
        raise ValueError(
            f"{judged[0].benchmark} {judged[0].mode}: judged by {models}; scores of "
            "two judges do not compare: make a report of each"
        )
    weighted = sheet.weighted(metric, sheet_lib.judged)
    outcomes = collections.Counter(
        (line.grade.verdict.right, line.judge.grade.verdict.outcome)
        for line in judged
        if line.judge
    )
    differing = [line.id for line in judged if rule_and_judge_differ(line)]
    return {
        "judge_model": models[0],
        "judge_score": number(weighted(np.ones(len(sheet.items)))),
        "judge_interval": bounds(weighted, sheet, draws),
        "judged": len(judged),
        "judge_undecided": sum(
            count
            for (_, outcome), count in outcomes.items()
            if outcome == verdict_lib.UNDECIDED
        ),
        "judge_disagreements": {
            "rule_right_judge_wrong": outcomes[True, verdict_lib.WRONG],
            "rule_wrong_judge_right": outcomes[False, verdict_lib.RIGHT],
            "ids": differing[:MAX_NAMED],
        },
    }


def rule_and_judge_differ(line: Line) -> bool:
    """Does the judge, who decided, say something else than the rule?"""
    if line.judge is None or line.judge.grade.verdict.outcome == verdict_lib.UNDECIDED:
        return False
    return line.judge.grade.verdict.right != line.grade.verdict.right


def _graded(sheet: Sheet) -> list[Graded]:
    (only,) = sheet.rounds
    return [
        Graded(sheet.items[number], line.answer, line.grade, line.corrected)
        for number, line in only.items()
    ]
