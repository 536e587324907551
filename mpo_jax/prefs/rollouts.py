"""Rollouts: a model's answers to questions with truths, a line for each.

``{"id", "sample", "format", "question", "image", "answer_gt", "options", "kind",
"source", "response", "finish_reason", "tokens", "logprob"}``, rollouts of a question
side by side. Lines of InternVL's pipeline are read too (``question`` is the prompt,
``question_orig`` what it was made of, ``prompt_version`` the format), and lines with
all ``responses`` to a question.
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from mpo_jax import ledger
from mpo_jax.generate import questions as lines_lib
from mpo_jax.generate import requests
from mpo_jax.prefs import line_fields, prompts, questions
from mpo_jax.prefs.questions import Question

READ = (
    *("id", "sample", "format", "question", "image", "answer_gt", "answer"),
    *("options", "kind", "source", "response", "finish_reason", "tokens", "logprob"),
    *("responses", "question_orig", "prompt_version"),
)
MAX_SAMPLES = requests.MAX_SAMPLES
"""Rollouts of a question in one format at most."""
FINISH_REASONS = (requests.STOP, requests.LENGTH, "")
MAX_SOURCES = 1000
"""A file is written for each."""

Key = tuple[str, str | int, str]
"""Type and value of a question's id, and the format."""


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One answer.

    Attributes:
      question: what it answers.
      form: name of the format; "" where it is not known and `question.text` is the
        prompt as it was sent.
      prompt: as it was sent; "" is made of question and format anew.
      sample: its number among the answers to the prompt.
      response: the text.
      finish_reason: ``stop``, ``length`` (cut off), or "" where it is not known.
      tokens: of the response; None where not known.
      logprob: of the response, nats; None where not known.
    """

    question: Question
    form: str
    sample: int
    response: str
    finish_reason: str = ""
    tokens: int | None = None
    logprob: float | None = None
    prompt: str = ""

    @property
    def truncated(self) -> bool:
        """Was it cut off?"""
        return self.finish_reason == requests.LENGTH

    def line(self) -> dict[str, Any]:
        """As a line of a file of rollouts."""
        asked = self.question.fields()
        found = {"id": asked.pop("id"), "sample": self.sample}
        if self.form:
            found["format"] = self.form
        if self.prompt:
            found["question_orig"] = asked["question"]
            asked["question"] = self.prompt
        return (
            found
            | asked
            | {
                "response": self.response,
                "finish_reason": self.finish_reason,
                "tokens": self.tokens,
                "logprob": self.logprob,
            }
        )


@dataclasses.dataclass(frozen=True)
class Group:
    """The rollouts of one prompt, by sample.

    Attributes:
      prompt: that they answer, as MMPR stores it.
      rollouts: at least one, of one question and format, samples ascending.
    """

    prompt: str
    rollouts: tuple[Rollout, ...]

    @property
    def question(self) -> Question:
        return self.rollouts[0].question

    @property
    def key(self) -> str:
        """Names the prompt among all; draws depend on it."""
        found = self.rollouts[0]
        kind = type(found.question.id).__name__
        return f"{kind}:{found.question.id}:{found.form}"


@dataclasses.dataclass(frozen=True)
class Range:
    """Whole lines of a file, or all of it; a worker elsewhere may read them.

    Attributes:
      path: as it was named; the ledger has it.
      folder: what a relative path is below; "" is the working directory.
      start, end: bytes; None is the end of the file.
      first: number of the first line, from 1.
      state: of the file when the range was made; None is any.
    """

    path: str
    folder: str = ""
    start: int = 0
    end: int | None = None
    first: int = 1
    state: tuple[int, int] | None = None


def state_of(file: IO[bytes]) -> tuple[int, int]:
    """Bytes of an open file, and when it was last written, ns."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def read(path: str | os.PathLike[str], *, root: str) -> Iterator[Group | ledger.Entry]:
    """Groups of a file as they stand in it; lines that are left out come before theirs.

    Holds one group at a time, and eight bytes of every group.

    Args:
      path: of the rollouts.
      root: what image paths are below, absolute.

    Raises:
      ValueError: the rollouts of a prompt do not stand together.
    """
    digests = array.array("Q")
    yield from read_range(Range(str(path)), digests, root=root)
    check_together(path, np.frombuffer(digests, np.uint64))


def read_range(
    lines: Range, digests: array.array[int], *, root: str
) -> Iterator[Group | ledger.Entry]:
    """As :func:`read`, of some lines.

    Args:
      digests: a digest of every group's key is added to it, for `check_together`.

    Raises:
      ValueError: the file has changed since the range was made.
    """
    collected: list[Rollout] = []
    key: Key | None = None
    for number, found in _rollouts(lines, root):
        if isinstance(found, ledger.Entry):
            yield found
            continue
        own = key_of(found)
        if own != key:
            if collected:
                yield _group(collected)
            collected, key = [], own
            digests.append(_digest(own))
        try:
            collected.append(_joined(collected, found))
        except ledger.BadRecord as error:
            yield _entry(lines.path, number, error)
    if collected:
        yield _group(collected)


def key_of(rollout: Rollout) -> Key:
    """What rollouts of one prompt have in common, and no others of the file."""
    return type(rollout.question.id).__name__, rollout.question.id, rollout.form


def check_together(path: str | os.PathLike[str], digests: np.ndarray) -> None:
    """Refuse a file in which a prompt comes twice.

    Args:
      digests: uint64 ``[n]``, of every group in order.
    """
    order = np.argsort(digests, kind="stable")
    (again,) = np.nonzero(digests[order][1:] == digests[order][:-1])
    if len(again):
        first, second = order[again[0]] + 1, order[again[0] + 1] + 1
        raise ValueError(
            f"{path}: the rollouts of {len(again)} prompts do not stand together; the "
            f"first of them are the file's prompts number {first} and {second}. Sort "
            "the file by id and format, and give different questions different ids"
        )


def _digest(key: Key) -> int:
    digest = hashlib.blake2b(repr(key).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _entry(path: str, line: int, error: ledger.BadRecord) -> ledger.Entry:
    return ledger.Entry("rollouts", path, line, error.reason, error.detail)


def _group(collected: list[Rollout]) -> Group:
    ordered = tuple(sorted(collected, key=lambda rollout: rollout.sample))
    first = ordered[0]
    prompt = first.prompt
    if not prompt and first.form:
        prompt = prompts.prompt_of(first.question, first.form)
    return Group(prompt or prompts.placed(first.question), ordered)


def _joined(collected: list[Rollout], found: Rollout) -> Rollout:
    """A rollout that fits those before it; without a number it gets the next one.

    Raises:
      BadRecord: it says otherwise what the question is, or repeats a sample.
    """
    numbers = {other.sample for other in collected}
    if found.sample < 0:
        found = dataclasses.replace(found, sample=max(numbers, default=-1) + 1)
    if found.sample in numbers:
        detail = f"sample={found.sample}: is there already for id={found.question.id!r}"
        raise ledger.BadRecord("bad_field", detail)
    if collected and (found.question, found.prompt) != (
        collected[0].question,
        collected[0].prompt,
    ):
        raise ledger.BadRecord(
            "bad_field",
            f"id={found.question.id!r}: question, image, answer_gt, options, kind or "
            "source is not that of the lines before; ids must differ between questions",
        )
    if len(collected) >= MAX_SAMPLES:
        detail = f"sample={found.sample}: at most {MAX_SAMPLES} of a question are read"
        raise ledger.BadRecord("bad_field", detail)
    return found


def _rollouts(lines: Range, root: str) -> Iterator[tuple[int, Rollout | ledger.Entry]]:
    """Every rollout with its line."""
    source = pathlib.Path(lines.path).stem
    for number, line in _numbered(lines):
        if line is not None and not line.strip():
            continue
        try:
            for found in parse(line, number, root=root, source=source):
                yield number, found
        except ledger.BadRecord as error:
            yield number, _entry(lines.path, number, error)


def _numbered(lines: Range) -> Iterator[tuple[int, bytes | None]]:
    """Numbers and lines of a range; None for one that is too long."""
    with open(os.path.join(lines.folder, lines.path), "rb") as file:
        if lines.state not in (None, state_of(file)):
            raise ValueError(
                f"{lines.path} has changed since it was cut into ranges; start again "
                "when nothing writes it"
            )
        if lines.start:  # a pipe is read from its beginning
            file.seek(lines.start)
        for numbered in enumerate(lines_lib.lines_of(file), lines.first):
            yield numbered
            if lines.end is not None and file.tell() >= lines.end:
                return


def parse(line: bytes | None, number: int, *, root: str, source: str) -> list[Rollout]:
    """The rollouts of one line; those without a sample's number have -1.

    Args:
      number: of the line; the id of one with ``responses`` that has none.
      root: absolute.
      source: where the line names none.

    Raises:
      BadRecord: they are none; names field and value.
    """
    record = line_fields.load(line)
    line_fields.check_names(record, READ)
    prompt = ""
    if "question_orig" in record:
        prompt = line_fields.text(record, "question")
        record = record | {"question": record["question_orig"]}
    several = "responses" in record
    default = number if several else _id_of(record)
    question = questions.of_record(record, default, root=root, source=source)
    form = _form(record)
    prompts.check_images(question, prompt)
    if form and not prompt:
        prompts.prompt_of(question, form)
    if not several:
        return [_rollout(record, question, form, prompt)]
    responses = record["responses"]
    if not isinstance(responses, list) or not 0 < len(responses) <= MAX_SAMPLES:
        wanted = f"a list of 1 to {MAX_SAMPLES} texts or objects with a response"
        raise line_fields.bad("responses", responses, wanted)
    return [
        _rollout(
            one if isinstance(one, dict) else {"response": one}, question, form, prompt
        )
        for one in responses
    ]


def _id_of(record: Mapping[str, Any]) -> str:
    """An id for a line that has none: other questions have other ones."""
    parts = [record.get(name) for name in ("image", "question", "answer_gt", "answer")]
    return hashlib.sha256(repr(parts).encode("utf-8", "replace")).hexdigest()[:16]


def _form(record: Mapping[str, Any]) -> str:
    name = "format" if "format" in record else "prompt_version"
    found = record.get(name) or ""
    if found and found not in prompts.FORMATS:
        wanted = f"one of {', '.join(prompts.FORMATS)}, or absent"
        raise line_fields.bad(name, found, wanted)
    return found


def _rollout(
    record: Mapping[str, Any], question: Question, form: str, prompt: str
) -> Rollout:
    response = record.get("response")
    if not isinstance(response, str):
        raise line_fields.bad("response", response, "a text")
    reason = record.get("finish_reason") or ""
    if reason not in FINISH_REASONS:
        raise line_fields.bad("finish_reason", reason, "stop, length or absent")
    logprob = record.get("logprob")
    if isinstance(logprob, int) and not isinstance(logprob, bool):
        logprob = float(logprob)
    if logprob is not None and not (
        isinstance(logprob, float) and math.isfinite(logprob)
    ):
        raise line_fields.bad("logprob", logprob, "a number or absent")
    return Rollout(
        question=question,
        form=form,
        sample=_count(record, "sample", default=-1),
        response=response,
        finish_reason=reason,
        tokens=_count(record, "tokens", default=None),
        logprob=logprob,
        prompt=prompt,
    )


def _count(record: Mapping[str, Any], name: str, *, default: Any) -> Any:
    found = record.get(name)
    if found is None:
        return default
    if type(found) is not int or not 0 <= found < 2**31:
        raise line_fields.bad(name, found, "a whole number from 0, or absent")
    return found
