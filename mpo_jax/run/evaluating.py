"""Scores of a model on benchmarks: ask, grade, report; every answer is kept.

The work directory holds what was asked (``questions/``, ``images/``), what was said
(``answers/``), every item with its grade (``items.jsonl``) and the reports. Answers are
those of ``run.answering``: resumable, over any number of processes. The first process
grades and reports; that is a function of the files, and is done anew at every start.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpo_jax import config, ledger
from mpo_jax.evals import asking, benchmark, lines, responses
from mpo_jax.generate import requests, results
from mpo_jax.run import answering, eval_grading, eval_tasks
from mpo_jax.utils import atomic, mirror, progress, runtime

Asker = Callable[[answering.Lines, requests.Sampling, int], requests.Answerer]
"""Makes what answers a file of questions, with at most so many tiles each."""
Tasks = Sequence[eval_tasks.Task]
Images = Mapping[str, Mapping[str, Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an evaluation found.

    Attributes:
      lines: graded answers, in the order of tasks, items and samples.
      unanswered: what has no answer, and why.
      images: paths of an item's pictures below the work directory, by benchmark and id.
      answers: what the answers depend on, as JSON values.
    """

    lines: Sequence[lines.Line]
    unanswered: Sequence[lines.Unanswered]
    images: Images
    answers: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What was written before anything is asked.

    Attributes:
      images: as of :class:`Outcome`.
      left_out: why items cannot be asked, by place and id.
    """

    images: Images
    left_out: eval_grading.Failures


def answered_by_model(
    tasks: Tasks,
    cfg: config.EvaluationConfig,
    workdir: pathlib.Path,
    asker: Asker,
    check: benchmark.Check,
) -> Outcome | None:
    """Ask a model, on every process, and grade, on the first.

    Returns:
      None on other processes than the first.

    Raises:
      Incomplete: some requests failed for a reason that may pass.
    """
    prepared = None
    if runtime.is_main():
        workdir.mkdir(parents=True, exist_ok=True)
        prepared = prepare(tasks, cfg, workdir)
    mirror.barrier("questions are written", workdir)
    if not ask(asker, cfg, workdir):
        raise Incomplete("some answers are missing; start the same command again")
    if prepared is None:
        return None
    answered, failures = eval_grading.own(workdir)
    for place, why in prepared.left_out.items():
        failures.setdefault(place, {}).update(why)
    found, unanswered = grade(tasks, cfg, answered, failures, prepared.images, check)
    return Outcome(found, unanswered, prepared.images, eval_grading.said_by(workdir))


class Incomplete(ValueError):
    """Answers are missing that a later start asks for again."""


def answered_by_file(
    tasks: Tasks,
    cfg: config.EvaluationConfig,
    workdir: pathlib.Path,
    path: pathlib.Path,
    check: benchmark.Check,
) -> Outcome:
    """Grade the answers of a file, on one process."""
    workdir.mkdir(parents=True, exist_ok=True)
    answered, bad = responses.stored(path, {task.place: task.ids for task in tasks})
    _tell(bad, workdir)
    images = {task.benchmark.name: _pictures(task, workdir) for task in tasks}
    found, unanswered = grade(tasks, cfg, answered, {}, images, check)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Outcome(found, unanswered, images, {"file": path.name, "sha256": digest})


def _tell(bad: Sequence[ledger.Entry], workdir: pathlib.Path) -> None:
    """Name the lines that cannot be used."""
    place = workdir / "ledger.jsonl"
    if not bad:
        place.unlink(missing_ok=True)
        return
    results.write_ledger(place, bad)
    counts = ledger.count(bad)
    told = ", ".join(f"{number} {reason}" for (_, reason), number in counts.items())
    progress.console().print(f"Lines left out: {told}; see {place}")


def _pictures(
    task: eval_tasks.Task, workdir: pathlib.Path
) -> dict[str, tuple[str, ...]]:
    """Pictures of a task's items for the report, those that are there."""
    pictures = asking.Pictures(workdir, task.folder)
    found = {}
    for item in task.items:
        try:
            found[item.id] = tuple(pictures.put(image) for image in item.images)
        except ledger.BadRecord:
            continue  # nobody is asked about it; the page shows the item without
    return found


def prepare(
    tasks: Tasks, cfg: config.EvaluationConfig, workdir: pathlib.Path
) -> Prepared:
    """Write the questions of all tasks; one process does it."""
    for folder in (workdir, workdir / asking.QUESTIONS, workdir / asking.IMAGES):
        if folder.is_dir():
            atomic.clean(folder)  # what a killed process has left
    found: list[asking.Question] = []
    left_out = {}
    images: dict[str, dict[str, Sequence[str]]] = {}
    with progress.bar() as bar:
        number = bar.add_task("Questions", total=sum(len(task.items) for task in tasks))
        for task in tasks:
            asked, left_out[task.place] = eval_tasks.questions(
                task, cfg, workdir, done=lambda: bar.advance(number)
            )
            found += asked
            named = images.setdefault(task.benchmark.name, {})
            named |= {question.id: question.images for question in asked}
    asking.write(found, workdir)
    return Prepared(images, left_out)


def ask(asker: Asker, cfg: config.EvaluationConfig, workdir: pathlib.Path) -> bool:
    """Answer the questions that were written; on every process.

    Returns:
      Whether every question that can be asked was answered.
    """
    complete = True
    for part in asking.parts(workdir):
        questions = answering.Lines(str(asking.path_of(part, workdir)), str(workdir))
        sampling = requests.Sampling(
            n=cfg.n,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            seed=cfg.seed,
            max_new_tokens=part.max_new_tokens,
        )
        progress.console().print(f"{part.benchmark}, {part.mode} ({part.protocol})")
        output = eval_grading.answers_of(part, workdir)
        answerer = asker(questions, sampling, part.max_tiles)
        complete &= answering.answer_file(
            answerer, questions, str(output), sampling, save_tokens=False
        )
        del answerer  # its cache makes room for the next one's
    return complete


def grade(
    tasks: Tasks,
    cfg: config.EvaluationConfig,
    answered: Mapping[responses.Place, eval_grading.Answered],
    failures: eval_grading.Failures,
    images: Images,
    check: benchmark.Check,
) -> tuple[list[lines.Line], list[lines.Unanswered]]:
    """Grade all answers; the lines, and what has no answer."""
    found: list[lines.Line] = []
    unanswered: list[lines.Unanswered] = []
    tools = benchmark.Tools(check)
    total = sum(len(one) for one in answered.values())
    with progress.bar() as bar:
        number = bar.add_task("Grading", total=total)
        for task in tasks:
            given = answered.get(task.place, {})
            samples = eval_grading.samples_of(cfg, given)
            found += eval_grading.graded(
                task,
                given,
                tools,
                images.get(task.benchmark.name, {}),
                samples=samples,
                done=lambda: bar.advance(number),
            )
            unanswered += eval_grading.unanswered(
                task, given, failures.get(task.place, {}), samples=samples
            )
    return found, unanswered
