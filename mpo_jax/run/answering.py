"""Answers to a file of questions: resumable, over any number of processes, in order.

Every process holds the model on its own devices and answers every n-th question; what
it has said lies in its part of the output (``generate.results``). The first process
merges the parts when all have ended.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from mpo_jax import ledger
from mpo_jax.generate import capacity, local, prompts, questions, requests, results
from mpo_jax.run import answerer as answerer_lib
from mpo_jax.utils import atomic, mirror, progress, runtime, watchdog


class Lines:
    """The questions of a file, dealt out to processes by their order.

    Attributes:
      path: of the file.
      bad: entries of this process's lines that are no questions.
    """

    def __init__(self, path: str, root: str):
        self.path, self._root = path, root
        self.bad: list[ledger.Entry] = []
        self._numbers: dict[str | int, int] = {}

    def all(self) -> Iterator[tuple[int, requests.Question]]:
        """Every question with its line."""
        for number, found in questions.read(self.path, root=self._root):
            if isinstance(found, requests.Question):
                yield number, found

    def mine(self) -> Iterator[requests.Question]:
        """Those of this process."""
        self.bad = []
        process, processes = jax.process_index(), jax.process_count()
        for place, (number, found) in enumerate(
            questions.read(self.path, root=self._root)
        ):
            if place % processes != process:
                continue
            if isinstance(found, ledger.Entry):
                self.bad.append(found)
            else:
                self._numbers[found.id] = number
                yield found

    def entry(self, failure: requests.Failure) -> ledger.Entry:
        """A failure in the ledger's terms."""
        which = "" if failure.sample is None else f"sample {failure.sample}: "
        return ledger.Entry(
            "questions",
            self.path,
            self._numbers[failure.id],
            failure.reason,
            f"id={failure.id!r}: {which}{failure.detail}",
        )


def buckets(
    lines: Lines, model: answerer_lib.Model, *, max_prompt_tokens: int
) -> list[int]:
    """Prompt lengths on the ladder that a file needs, over all processes, ascending.

    Args:
      max_prompt_tokens: longer prompts are left out later; 0 takes all that the model
        can read.
    """
    limit = (
        max_prompt_tokens or model.speaker.model.cfg.language.max_position_embeddings
    )
    ladder = capacity.rungs(limit)
    used = np.zeros(len(ladder), np.int32)
    with progress.bar() as bar:
        task = bar.add_task("Measuring prompts", total=None)
        for question in lines.mine():
            bar.advance(task)
            try:
                length = prompts.length_of(
                    question, tokenizer=model.tokenizer, policy=model.policy
                )
            except ledger.BadRecord:
                continue  # named when its turn comes
            if length <= limit:
                used[ladder.index(capacity.rung(max(length - 1, 1)))] = 1
    used = runtime.largest(used)
    return [rung for rung, is_used in zip(ladder, used, strict=True) if is_used]


def local_answerer(
    model: answerer_lib.Model,
    lines: Lines,
    sampling: requests.Sampling,
    *,
    slots: int,
    max_prompt_tokens: int,
) -> local.Local:
    """The model as it answers this file.

    Raises:
      ValueError: no question can be asked, or nothing fits in memory.
    """
    needed = buckets(lines, model, max_prompt_tokens=max_prompt_tokens)
    needed = needed or [capacity.rung(1)]  # then there is nothing but a ledger
    found = model.local_for([rung + 1 for rung in needed], sampling, slots=slots)
    if max_prompt_tokens:  # programs are compiled for rounder lengths
        engine = found.engine
        engine.max_prompt_tokens = min(engine.max_prompt_tokens, max_prompt_tokens)
    progress.console().print(answerer_lib.words(model, found.engine.geometry))
    return found


def answer_file(
    answerer: requests.Answerer,
    lines: Lines,
    output: str,
    sampling: requests.Sampling,
    *,
    save_tokens: bool,
) -> bool:
    """Answer what is not answered yet and write the output.

    Returns:
      Whether every question that can be asked was answered.

    Raises:
      ValueError: the parts that are there belong to another run.
    """
    parts = results.Parts(os.path.expanduser(output))
    job: dict[str, Any] = {
        "questions": _content(lines.path),
        "sampling": dataclasses.asdict(sampling),
        "save_tokens": save_tokens,
        "answerer": answerer.describe(),
    }
    parts.output.parent.mkdir(parents=True, exist_ok=True)
    finished = runtime.is_main() and _begin(parts, job)
    mirror.publish(parts.folder)  # before others add to it
    if runtime.agreed(np.array([finished]))[0]:
        return True
    parts.folder.mkdir(parents=True, exist_ok=True)
    mirror.fetch(parts.folder)
    parts.load()
    left_out, failed = _answer(answerer, lines, parts, sampling, save_tokens)
    process = jax.process_index()
    entries = [*lines.bad, *left_out]  # put in order when all are merged
    results.write_ledger(parts.folder / f"ledger-{process:05d}.jsonl", entries)
    failures = parts.folder / f"failed-{process:05d}"
    failures.write_text(str(failed), encoding="utf-8")
    mirror.barrier("answers end", parts.folder)
    complete = True
    if runtime.is_main():
        complete = _finish(parts, lines, sampling, job)
    return bool(runtime.agreed(np.array([complete]))[0])


def _begin(parts: results.Parts, job: dict[str, Any]) -> bool:
    """Begin or go on; True where the output is there already.

    Raises:
      ValueError: what is there belongs to another run.
    """
    atomic.clean(parts.output.parent)  # what a kill during the merge has left
    beside = parts.output.with_name(parts.output.name + ".run.json")
    if parts.output.exists() and not parts.folder.exists():
        if not beside.exists():
            raise ValueError(
                f"{parts.output} exists, and no {beside.name} says what it is of; name "
                "another --output or move it away"
            )
        stored = json.loads(beside.read_text(encoding="utf-8"))
        stored = {name: stored[name] for name in job if name in stored}
        differing = results.differences(stored, job)
        if differing:
            raise ValueError(
                f"{parts.output} exists and holds answers of another run: "
                f"{'; '.join(differing)}. Name another --output or move it away"
            )
        progress.console().print(f"Every question is answered in {parts.output}.")
        return True
    parts.begin(job)
    return False


def _answer(
    answerer: requests.Answerer,
    lines: Lines,
    parts: results.Parts,
    sampling: requests.Sampling,
    save_tokens: bool,
) -> tuple[list[ledger.Entry], int]:
    """Ask this process's questions.

    Returns:
      What was left out, and how many answers may be asked for again.
    """
    left_out, failed, tokens = [], 0, 0
    start = time.perf_counter()
    known = sum(1 for _ in lines.mine()) * sampling.n
    extra = "{task.fields[rate]}"
    with (
        parts.writer(jax.process_index()) as writer,
        progress.bar(extra=extra) as bar,
    ):
        done = sum(parts.has(q.id, k) for q in lines.mine() for k in range(sampling.n))
        task = bar.add_task("Answers", total=known, completed=done, rate="")
        number = 0
        for result in answerer.answers(lines.mine(), sampling, skip=parts.has):
            if isinstance(result, requests.Answer):
                writer.write(results.line_of(result, save_tokens=save_tokens))
                tokens += result.tokens
            else:
                left_out.append(lines.entry(result))
                failed += result.retry
            number += sampling.n if _whole(result) else 1
            spent = time.perf_counter() - start
            rate = f"{number / spent:.2f} answers/s, {tokens / spent:.1f} tokens/s"
            watchdog.beat(f"answer {done + number + 1}")
            bar.update(task, completed=done + number, rate=rate)
    return left_out, failed


def _whole(result: Any) -> bool:
    """Does a result speak for all samples of its question?"""
    return isinstance(result, requests.Failure) and result.sample is None


def _finish(
    parts: results.Parts,
    lines: Lines,
    sampling: requests.Sampling,
    job: dict[str, Any],
) -> bool:
    """Merge, unless something is to be asked again."""
    console = progress.console()
    entries = [
        entry
        for file in sorted(parts.folder.glob("ledger-*.jsonl"))
        for entry in ledger.read(file)
    ]
    entries.sort(key=lambda entry: entry.line)
    again = sum(
        int(file.read_text(encoding="utf-8"))
        for file in sorted(parts.folder.glob("failed-*"))
    )
    reasons = collections.Counter(entry.reason for entry in entries)
    beside = parts.output.with_name(parts.output.name + ".ledger.jsonl")
    if entries:
        results.write_ledger(beside, entries)
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        console.print(f"Left out: {told}; see {beside}")
    elif beside.exists():
        beside.unlink()
    if again:
        console.print(
            f"{again} answers failed and can be asked again: repeat the command; what "
            f"was answered is kept in {parts.folder}"
        )
        return False
    keys = ((q.id, k) for _, q in lines.all() for k in range(sampling.n))
    number = parts.merge(keys)
    manifest = {**job, "answers": number, "left_out": dict(reasons)}
    results.write_json(
        parts.output.with_name(f"{parts.output.name}.run.json"), manifest
    )
    parts.remove()
    console.print(f"{number} answers: {parts.output}")
    return True


def _content(path: str) -> str:
    """sha256 of the questions: answers are of this file and no other."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
