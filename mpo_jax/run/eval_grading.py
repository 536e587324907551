"""Answers to lines of ``items.jsonl``: responses found, graded, and what is missing."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpo_jax import config, ledger
from mpo_jax.evals import asking, benchmark, grading, lines, responses
from mpo_jax.run import eval_tasks

THREADS = 8
"""That wait for the processes which judge mathematics."""

Answered = Mapping[responses.Key, responses.Response]


def answers_of(part: asking.Part, workdir: pathlib.Path) -> pathlib.Path:
    """File of a part's answers."""
    return workdir / "answers" / f"{part.name}.jsonl"


def own(
    workdir: pathlib.Path,
) -> tuple[dict[responses.Place, dict[responses.Key, responses.Response]], Failures]:
    """The model's answers to all parts, and why others are missing.

    Returns:
      Answers by place; failures by place and id.
    """
    found: dict[responses.Place, dict[responses.Key, responses.Response]] = {}
    failed: Failures = {}
    for part in asking.parts(workdir):
        place = (part.benchmark, part.mode)
        path = answers_of(part, workdir)
        found.setdefault(place, {}).update(responses.own(path))
        entries = path.with_name(path.name + ".ledger.jsonl")
        if entries.exists():
            ids = _ids(asking.path_of(part, workdir))
            for entry in ledger.read(entries):
                reason = f"{entry.reason}: {entry.detail}"
                failed.setdefault(place, {})[ids[entry.line]] = reason
    return found, failed


Failures = dict[responses.Place, dict[str, str]]
"""Why items have no answer, by place and id."""


def _ids(questions: pathlib.Path) -> dict[int, str]:
    """Id of the question in every line, from 1."""
    with open(questions, encoding="utf-8") as file:
        return {number: json.loads(line)["id"] for number, line in enumerate(file, 1)}


def said_by(workdir: pathlib.Path) -> dict[str, Any]:
    """What the answers of all parts depend on beside the questions; JSON values."""
    found: dict[str, Any] = {}
    for part in asking.parts(workdir):
        path = answers_of(part, workdir)
        job = json.loads(path.with_name(path.name + ".run.json").read_text("utf-8"))
        found[part.name] = {name: job[name] for name in ("answerer", "sampling")}
    return found


def unanswered(
    task: eval_tasks.Task,
    answered: Answered,
    failures: Mapping[str, str],
    *,
    samples: int,
) -> list[lines.Unanswered]:
    """The items and samples of a task that have no answer, in order."""
    name, mode = task.place

    def entry(item: benchmark.Item, sample: int | None) -> lines.Unanswered:
        why = failures.get(item.id, lines.MISSING)
        return lines.Unanswered(name, task.protocol_name, mode, item.id, why, sample)

    found = []
    for item in task.items:
        absent = [k for k in range(samples) if (item.id, k) not in answered]
        if len(absent) == samples:
            found.append(entry(item, None))
        else:
            found += [entry(item, k) for k in absent]
    return found


def graded(
    task: eval_tasks.Task,
    answered: Answered,
    tools: benchmark.Tools,
    images: Mapping[str, Sequence[str]],
    *,
    samples: int,
    done: Callable[[], None],
) -> list[lines.Line]:
    """The lines of a task, in the order of its items and their samples.

    Args:
      images: paths of an item's pictures below the work directory.
      samples: of an item at most.
      done: called after each.
    """
    said = [
        grading.Said(item, sample, answered[item.id, sample].text)
        for item in task.items
        for sample in range(samples)
        if (item.id, sample) in answered
    ]
    found = grading.grades(
        said, task.protocol, task.mode, tools, threads=THREADS, done=done
    )
    return [
        _line(task, one, graded, answered[one.item.id, one.sample], images)
        for one, graded in found
    ]


def _line(
    task: eval_tasks.Task,
    said: grading.Said,
    graded: benchmark.Graded,
    response: responses.Response,
    images: Mapping[str, Sequence[str]],
) -> lines.Line:
    item = said.item
    return lines.Line(
        benchmark=task.benchmark.name,
        protocol=task.protocol_name,
        mode=task.mode,
        id=item.id,
        answer=response.text,
        grade=graded.grade,
        sample=said.sample,
        group=item.group,
        categories=item.categories,
        question=item.question,
        options=item.options,
        truth=item.answer,
        images=tuple(images.get(item.id, ())),
        corrected=graded.corrected,
        finish_reason=response.finish_reason,
        tokens=response.tokens,
        prompt_tokens=response.prompt_tokens,
        logprob=response.logprob,
    )


def samples_of(cfg: config.EvaluationConfig, answered: Answered) -> int:
    """Answers to an item at most."""
    return max([cfg.n, *(sample + 1 for _, sample in answered)])
