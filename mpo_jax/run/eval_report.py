"""What an evaluation writes: every item with its grade, what pins it, the reports."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from mpo_jax import config
from mpo_jax.evals import benchmark, exports, lines, pin, report, report_run
from mpo_jax.run import eval_tasks, evaluating
from mpo_jax.verify import verdict

EXPORTS = "exports"
"""Folder of the answers as other harnesses read them."""


def write(
    name: str,
    workdir: pathlib.Path,
    cfg: config.EvaluationConfig,
    tasks: evaluating.Tasks,
    outcome: evaluating.Outcome,
    *,
    scorer: Any,
    check: benchmark.Check,
    base: str = "",
) -> dict[str, Any]:
    """Write ``items.jsonl``, the reports, and answers for other harnesses.

    Args:
      name: of the model, in tables.
      scorer: JSON-able; versions of what grades.
      check: says whether two predictions agree in a vote.
      base: work directory of an evaluation to compare with; "" compares with none.

    Returns:
      What ``report.json`` holds.

    Raises:
      OSError, ValueError: `base` is no evaluation, or a damaged one.
    """
    lines.write(workdir / report_run.ITEMS, outcome.lines)
    lines.write_unanswered(workdir / report_run.UNANSWERED, outcome.unanswered)
    for task in tasks:
        _export(task, outcome.lines, workdir / EXPORTS)

    def same(one: str, other: str, line: lines.Line) -> bool:
        return check(one, verdict.Truth(other, line.options)).right

    run = report_run.Run(
        name, outcome.lines, outcome.unanswered, _pin(cfg, tasks, outcome, scorer)
    )
    return report.write(
        workdir,
        run,
        {task.benchmark.name: task.benchmark for task in tasks},
        base=report_run.Run.read(base) if base else None,
        items={task.benchmark.name: task.items for task in tasks},
        same=same,
    )


def _export(
    task: eval_tasks.Task, found: Sequence[lines.Line], folder: pathlib.Path
) -> None:
    """Write a task's answers as VLMEvalKit and lmms-eval have them."""
    folder.mkdir(exist_ok=True)
    those = [line for line in found if (line.benchmark, line.mode) == task.place]
    name = f"{task.benchmark.name}_{task.mode}"
    exports.vlmevalkit_table(folder / f"{name}.tsv", task.items, those)

    def ask(item: benchmark.Item) -> benchmark.Ask:
        return task.protocol.ask(item, task.mode)

    path = folder / f"{name}_samples.jsonl"
    exports.lmms_eval_samples(path, task.items, those, ask)


def _pin(
    cfg: config.EvaluationConfig,
    tasks: evaluating.Tasks,
    outcome: evaluating.Outcome,
    scorer: Any,
) -> pin.Pin:
    decoding = {
        field: getattr(cfg, field) for field in ("n", "temperature", "top_p", "seed")
    }
    parts = pin.of_run(
        decoding=decoding, scorer=scorer, weights=pin.digest(dict(outcome.answers))
    )
    by_name: dict[str, list[eval_tasks.Task]] = {}
    for task in tasks:
        by_name.setdefault(task.benchmark.name, []).append(task)
    for name, those in by_name.items():
        asked = _asked(cfg, those, outcome)
        # Pictures are called by their hash.
        parts |= pin.of_benchmark(
            name, those[0].protocol_name, asked, image=lambda path: str(path).encode()
        )
    return pin.Pin(parts)


def _asked(
    cfg: config.EvaluationConfig,
    tasks: Sequence[eval_tasks.Task],
    outcome: evaluating.Outcome,
) -> Iterator[pin.Asked]:
    for task in tasks:
        images = outcome.images.get(task.benchmark.name, {})
        for item in task.items:
            pictures = tuple(images.get(item.id, ()))
            ask = task.protocol.ask(item, task.mode)
            ask = dataclasses.replace(
                ask,
                max_tiles=cfg.max_tiles or ask.max_tiles,
                max_new_tokens=cfg.max_new_tokens or ask.max_new_tokens,
            )
            item = dataclasses.replace(item, images=pictures)
            yield pin.Asked(task.mode, item, ask)


def table(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Rows for a terminal: benchmark, mode, protocol, score, interval, items."""
    for name, of in found["scores"].items():
        for mode, score in of.items():
            low, high = score["interval"] or (None, None)
            yield (
                name,
                mode,
                score["protocol"],
                _number(score["score"]),
                f"{_number(low)} to {_number(high)}",
                str(score["total"]),
                _number(score.get("corrected_score")),
                str(score["unparsed"] + score["empty"]),
                str(score["failed"] + score["missing"]),
            )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


COLUMNS = (
    *("benchmark", "mode", "protocol", "score", "95 %", "items", "corrected"),
    *("no answer found", "not answered"),
)
