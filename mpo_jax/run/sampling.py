"""Answers to questions with truths: asked in formats, sampled, joined to rollouts.

The output folder holds what was asked (``questions.jsonl``), what was said
(``answers.jsonl``, of ``run.answering``: resumable, over any number of processes), both
joined (``rollouts.jsonl``), what was left out (``ledger.jsonl``) and what the rollouts
are of (``sampling.json``).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mpo_jax import ledger
from mpo_jax.generate import requests, results
from mpo_jax.prefs import asking, line_fields, questions
from mpo_jax.prefs.asking import Asked
from mpo_jax.prefs.rollouts import Rollout
from mpo_jax.run import answering
from mpo_jax.utils import atomic, progress, runtime

QUESTIONS, ANSWERS = "questions.jsonl", "answers.jsonl"
ROLLOUTS, LEDGER, MANIFEST = "rollouts.jsonl", "ledger.jsonl", "sampling.json"

Asker = Callable[[answering.Lines], requests.Answerer]
"""Makes what answers a file of questions."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is sampled.

    Attributes:
      input: questions with truths, JSON lines.
      root: what their images are below; "" is the input's folder.
      forms: names of formats.
      sampling: how answers are drawn.
    """

    input: str
    root: str
    forms: tuple[str, ...]
    sampling: requests.Sampling

    def __post_init__(self) -> None:
        asking.check_formats(self.forms)

    @property
    def images(self) -> str:
        """The absolute folder that images are below."""
        return questions.root_of(self.input, self.root)

    def asked(self) -> Iterator[Asked | ledger.Entry]:
        """As ``asking.read``."""
        return asking.read(self.input, self.forms, root=self.root)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What sampling asks for at most.

    Attributes:
      prompts: questions times formats.
      samples: answers to each.
      tokens: of each answer at most.
      left_out: lines that cannot be asked.
    """

    prompts: int
    samples: int
    tokens: int
    left_out: int

    def words(self) -> str:
        """For people."""
        answers = self.prompts * self.samples
        told = (
            f"{self.prompts:,} prompts x {self.samples} answers = {answers:,} answers "
            f"of at most {self.tokens:,} tokens: at most {answers * self.tokens:,} "
            "tokens"
        )
        return told + (f"; {self.left_out} lines left out" if self.left_out else "")


def cost(job: Job) -> Cost:
    """Count what a job asks for; reads the input once."""
    kinds = collections.Counter(isinstance(one, Asked) for one in job.asked())
    how = job.sampling
    return Cost(kinds[True], how.n, how.max_new_tokens, kinds[False])


def sample(job: Job, output: pathlib.Path, asker: Asker) -> bool:
    """Sample what is not sampled yet and write the rollouts; on every process.

    Returns:
      Whether every question that can be asked was answered.

    Raises:
      ValueError: the output holds another run's answers.
    """
    if runtime.is_main():
        output.mkdir(parents=True, exist_ok=True)
        _write_questions(job, output)
    runtime.barrier("questions are written")
    lines = answering.Lines(str(output / QUESTIONS), job.images)
    answers = output / ANSWERS
    complete = answering.answer_file(
        asker(lines), lines, str(answers), job.sampling, save_tokens=False
    )
    if complete and runtime.is_main():
        number = join(job, output)
        progress.console().print(f"{number} rollouts: {output / ROLLOUTS}")
    runtime.barrier("rollouts are written")
    return complete


def _write_questions(job: Job, output: pathlib.Path) -> None:
    """Write what is asked, and the ledger of what cannot be."""
    left_out: list[ledger.Entry] = []

    def write(path: pathlib.Path) -> None:
        with open(path, "w", encoding="utf-8") as file:
            for one in job.asked():
                if isinstance(one, Asked):
                    file.write(one.line)
                else:
                    left_out.append(one)

    atomic.write_whole(output / QUESTIONS, write)
    _write_ledger(output / LEDGER, left_out)


def _write_ledger(path: pathlib.Path, entries: Sequence[ledger.Entry]) -> None:
    if not entries:
        path.unlink(missing_ok=True)
        return
    results.write_ledger(path, entries)
    counts = collections.Counter(entry.reason for entry in entries)
    told = ", ".join(f"{number} {reason}" for reason, number in counts.items())
    progress.console().print(f"Questions left out: {told}; see {path}")


def join(job: Job, output: pathlib.Path) -> int:
    """Write rollouts and manifest from questions and answers, both in order.

    Returns:
      Number of rollouts.
    """
    number = 0

    def write(path: pathlib.Path) -> None:
        nonlocal number
        with open(path, "wb") as file:
            for rollout in _joined(job, output / ANSWERS):
                file.write(line_fields.dumps(rollout.line()))
                number += 1

    atomic.write_whole(output / ROLLOUTS, write)
    told = json.loads((output / (ANSWERS + ".run.json")).read_text(encoding="utf-8"))
    manifest: dict[str, Any] = {
        "input": os.path.basename(job.input),
        "root": os.path.relpath(job.images, output.absolute()),
        "formats": list(job.forms),
        "rollouts": number,
        **told,
    }
    results.write_json(output / MANIFEST, manifest)
    return number


def _joined(job: Job, answers: pathlib.Path) -> Iterator[Rollout]:
    """Answers with their questions; some questions have none."""
    asked = (one for one in job.asked() if isinstance(one, Asked))
    one = next(asked, None)
    with open(answers, encoding="utf-8") as file:
        for line in file:
            said = json.loads(line)
            while one is not None and one.id != said["id"]:
                one = next(asked, None)
            if one is None:
                raise ValueError(
                    f"{answers}: id={said['id']!r} is not asked by {job.input}; it has "
                    "changed since. Name another --output"
                )
            yield Rollout(
                question=one.question,
                form=one.form,
                sample=said["sample"],
                response=said["text"],
                finish_reason=said["finish_reason"],
                tokens=said["tokens"],
                logprob=said["logprob"],
            )
