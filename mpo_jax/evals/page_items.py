"""What the page shows of each item, as JSON values with fixed names.

Names are fixed, so that none can come from the data: categories are pairs, not names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mpo_jax.evals import benchmark as benchmark_lib
from mpo_jax.evals import report_run, scores, voting
from mpo_jax.evals.benchmark import Grade
from mpo_jax.evals.lines import Line, Unanswered
from mpo_jax.evals.modes import Modes

MAX_TEXT = 20_000
"""Characters of one text that the page shows; what is cut off is counted."""

MAX_PICTURES = 16
"""Pictures of one item that the page shows."""

_Place = tuple[str, str, str]
"""Benchmark, mode and id."""


def entries(
    run: report_run.Run, found: Modes, base: report_run.Run | None
) -> Iterator[dict[str, Any]]:
    """One entry per item, in the order of the lines; unanswered ones last.

    Args:
      found: the run's lines, sorted; says what a vote has picked.
    """
    grouped: dict[tuple[str, str], list[Line | Unanswered]] = {}
    for line in (*run.lines, *run.unanswered):
        grouped.setdefault((line.benchmark, line.id), []).append(line)
    picked = _picked(found)
    theirs = {line.key: line for line in base.lines} if base else {}
    for of in grouped.values():
        first = next((line for line in of if isinstance(line, Line)), of[0])
        answers: dict[str, list[dict[str, Any]]] = {m: [] for m in benchmark_lib.MODES}
        for line in sorted(of, key=lambda line: line.sample or 0):
            if isinstance(line, Unanswered):
                answers[line.mode].append(_unanswered(line))
                continue
            place = (line.benchmark, line.mode, line.id)
            said = _answer(line, picked.get(place, {}).get(line.sample, []))
            if line.key in theirs:
                said["base"] = _base(theirs[line.key])
            answers[line.mode].append(said)
        yield {**_item(first), "answers": answers}


def _item(line: Line | Unanswered) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "benchmark": line.benchmark,
        "protocol": line.protocol,
        "id": line.id,
    }
    if isinstance(line, Unanswered):
        nothing: dict[str, Any] = {"question": "", "options": [], "truth": None}
        return entry | nothing | {"images": [], "categories": [], "group": ""}
    truth = line.truth
    several = isinstance(truth, tuple)
    return entry | {
        "question": _cut(line.question),
        "options": [_cut(option) for option in line.options],
        "truth": [_cut(t) for t in truth] if several else truth and _cut(truth),
        "images": list(line.images[:MAX_PICTURES]),
        "categories": [list(pair) for pair in line.categories.items()],
        "group": line.group,
    }


def _answer(line: Line, picked: list[str]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "sample": line.sample,
        "text": _cut(line.answer),
        **_grade(line.grade),
        "finish": line.finish_reason,
        "tokens": line.tokens,
        "prompt_tokens": line.prompt_tokens,
        "logprob": line.logprob,
        "empty": line.empty,
        "unparsed": line.unparsed,
        "picked": picked,
    }
    if line.corrected is not None:
        said["corrected"] = _grade(line.corrected)
    if line.judge is not None:
        judge = line.judge
        said["judge"] = {
            "model": judge.model,
            "text": _cut(judge.text),
            "differs": scores.rule_and_judge_differ(line),
            **_grade(judge.grade),
        }
    return said


def _base(line: Line) -> dict[str, Any]:
    return {"text": _cut(line.answer), **_grade(line.grade)}


def _unanswered(entry: Unanswered) -> dict[str, Any]:
    return {"sample": entry.sample or 0, "failure": _cut(entry.failure)}


def _grade(grade: Grade) -> dict[str, Any]:
    return {
        "prediction": _cut(grade.prediction),
        "verdict": grade.verdict.outcome,
        "rule": grade.verdict.rule,
        "points": round(grade.points, 4),
    }


def _picked(found: Modes) -> dict[_Place, dict[int, list[str]]]:
    """Which selections have picked a sample, by its number."""
    picked: dict[_Place, dict[int, list[str]]] = {}
    for name, of in found.items():
        for mode in of.values():
            base, _, how = mode.name.partition("@")
            if how in (voting.VOTE, voting.BEST):
                for line in mode.sheet.lines():
                    samples = picked.setdefault((name, base, line.id), {})
                    samples.setdefault(line.sample, []).append(how)
    return picked


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} … {len(text) - MAX_TEXT:,} more characters"
