"""A judge's grades beside the rules', where a benchmark's authors grade by a model."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from mpo_jax.evals import grading, judging, lines
from mpo_jax.generate import text_endpoint
from mpo_jax.run import eval_tasks, evaluating
from mpo_jax.utils import progress

KEPT = "judgements.jsonl"
"""Below the work directory: what a judge said, so that none is asked twice."""


def judged(
    tasks: evaluating.Tasks,
    outcome: evaluating.Outcome,
    endpoint: text_endpoint.TextEndpoint,
    workdir: pathlib.Path,
) -> evaluating.Outcome:
    """The outcome with the judge's grades, of benchmarks that have a judge.

    Raises:
      EndpointError: the server refuses every request.
      Incomplete: some answers could not be judged; what was judged is kept.
    """
    by_task = {task.place: task for task in tasks if task.protocol.judge}
    wanted = [line for line in outcome.lines if _place(line) in by_task]
    grades: dict[lines.Key, lines.Judgement] = {}
    again, refused = 0, []
    with progress.bar() as bar:
        number = bar.add_task("Judging", total=len(wanted))
        for place, task in by_task.items():
            those = [line for line in wanted if _place(line) == place]
            found = _ask(task, those, endpoint, workdir / KEPT)
            for (name, _), failure in found.failures.items():
                again += failure.retry
                if not failure.retry:
                    refused.append(f"{place[0]} {name}: {failure.detail}")
            for line in those:
                judgement = found.judgements.get((line.id, line.sample))
                if judgement is not None:
                    grades[line.key] = judgement
            bar.advance(number, len(those))
    if again:
        raise evaluating.Incomplete(
            f"{again} answers could not be judged; start the same command again: what "
            f"{endpoint.model} said of the others is kept in {workdir / KEPT}"
        )
    if refused:
        progress.console().print(
            f"{len(refused)} answers are not judged, and have the rule's grade alone; "
            f"the first: {refused[0]}",
            markup=False,
        )
    graded = [
        dataclasses.replace(line, judge=grades.get(line.key)) for line in outcome.lines
    ]
    return dataclasses.replace(outcome, lines=graded)


def _place(line: lines.Line) -> tuple[str, str]:
    return line.benchmark, line.mode


def _ask(
    task: eval_tasks.Task,
    those: Sequence[lines.Line],
    endpoint: text_endpoint.TextEndpoint,
    cache: pathlib.Path,
) -> judging.Judged:
    assert task.protocol.judge is not None
    items = {item.id: item for item in task.items}
    said = [grading.Said(items[line.id], line.sample, line.answer) for line in those]
    return judging.judge(said, task.protocol.judge, endpoint, cache)
