"""``items.jsonl``: every answer with its grades, one line each.

It is all that reports are made of, and what two runs are compared by. A second list has
what was to be answered and was not.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from mpo_jax.evals import benchmark as benchmark_lib
from mpo_jax.evals import line_fields
from mpo_jax.evals.benchmark import Grade, Item
from mpo_jax.evals.line_fields import Fields
from mpo_jax.utils import atomic
from mpo_jax.verify import verdict as verdict_lib
from mpo_jax.verify.verdict import Verdict

MAX_LOGPROB = 1e12
"""Of an answer, either way; more is no measurement."""

LENGTH = "length"
"""Finish reason of an answer that was cut off."""
FINISH_REASONS = ("stop", LENGTH, "")

MISSING = "missing"
"""Reason of an item for which a file of answers has none."""

Key = tuple[str, str, str, str, int]
"""Benchmark, protocol, mode, id and sample: what a line is found by."""


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a judge said of an answer.

    Attributes:
      model: its pinned name.
      text: as it came.
      grade: made of the text.
    """

    model: str
    text: str
    grade: Grade


@dataclasses.dataclass(frozen=True)
class Line:
    """An answer with its grades, and enough of its item to look at.

    Attributes:
      benchmark, protocol: names.
      mode: ``direct`` or ``cot``; what was selected of several samples has the mode
        ``cot@vote`` and the like (see ``voting``) and is never in a file.
      id: of the item.
      answer: the model's text, whole.
      grade: by the protocol's rule.
      sample: number of the answer among those to this question, from 0.
      group, categories, question, options: the item's.
      truth: the true answer, several that are all true, or None where a judge grades.
      images: paths relative to the work directory.
      corrected: grade by the corrected rule, where there is one.
      judge: where a judge was asked.
      finish_reason: ``stop``, ``length``, or "" where nobody says.
      tokens, prompt_tokens: None where nobody says.
      logprob: sum over the answer's tokens, nats; None where nobody says.
    """

    benchmark: str
    protocol: str
    mode: str
    id: str
    answer: str
    grade: Grade
    sample: int = 0
    group: str = ""
    categories: Mapping[str, str] = dataclasses.field(default_factory=dict)
    question: str = ""
    options: tuple[str, ...] = ()
    truth: str | tuple[str, ...] | None = None
    images: tuple[str, ...] = ()
    corrected: Grade | None = None
    judge: Judgement | None = None
    finish_reason: str = ""
    tokens: int | None = None
    prompt_tokens: int | None = None
    logprob: float | None = None

    @property
    def key(self) -> Key:
        """What the line is found by."""
        return (self.benchmark, self.protocol, self.mode, self.id, self.sample)

    @property
    def empty(self) -> bool:
        """Is there no answer but white space?"""
        return not self.answer.strip()

    @property
    def unparsed(self) -> bool:
        """Was something said in which no answer was found?"""
        return not self.empty and not self.grade.prediction

    @property
    def truncated(self) -> bool:
        """Was the answer cut off?"""
        return self.finish_reason == LENGTH

    @property
    def undecided(self) -> bool:
        """Could the rule not tell?"""
        return self.grade.verdict.outcome == verdict_lib.UNDECIDED

    @property
    def item(self) -> Item:
        """The item as far as a line holds it: without `fields`."""
        return Item(
            id=self.id,
            question=self.question,
            answer=self.truth,
            images=self.images,
            options=self.options,
            categories=self.categories,
            group=self.group,
        )


@dataclasses.dataclass(frozen=True)
class Unanswered:
    """An item, or one sample of it, that was to be answered and was not.

    Attributes:
      sample: None where the item itself could not be asked.
      failure: ``reason: detail``; the reason is ``missing`` where a file has no answer.
    """

    benchmark: str
    protocol: str
    mode: str
    id: str
    failure: str
    sample: int | None = None

    @property
    def missing(self) -> bool:
        """Was it not tried at all?"""
        return self.failure.partition(":")[0].strip() == MISSING


def write(path: pathlib.Path, lines: Iterable[Line]) -> None:
    """Write ``items.jsonl``, whole or not at all."""
    _write(path, (as_json(line) for line in lines))


def read(path: str | pathlib.Path) -> list[Line]:
    """Read ``items.jsonl``; fields that are not known are left alone.

    Raises:
      ValueError: a line is no answer, or an answer stands twice; names file and line.
    """
    found, seen = [], dict[Key, int]()
    for number, value in line_fields.objects(pathlib.Path(path)):
        where = f"{path}:{number}"
        line = _line(Fields(value, where))
        if line.key in seen:
            raise ValueError(
                f"{where}: {line.benchmark} {line.mode} id={line.id!r} sample="
                f"{line.sample} stands in line {seen[line.key]} too; remove one of them"
            )
        seen[line.key] = number
        found.append(line)
    return found


def write_unanswered(path: pathlib.Path, entries: Iterable[Unanswered]) -> None:
    """Write the second list, whole or not at all."""
    _write(path, (dataclasses.asdict(entry) for entry in entries))


def read_unanswered(path: str | pathlib.Path) -> list[Unanswered]:
    """Read the second list.

    Raises:
      ValueError: a line is bad; names file and line.
    """
    found = []
    for number, value in line_fields.objects(pathlib.Path(path)):
        got = Fields(value, f"{path}:{number}")
        names = ("benchmark", "protocol", "mode", "id", "failure")
        texts = {name: got.text(name) for name in names}
        found.append(Unanswered(**texts, sample=got.count("sample")))
    return found


def as_json(line: Line) -> dict[str, Any]:
    """A line as the file has it; without ``corrected`` and ``judge`` if None."""
    value = {
        "benchmark": line.benchmark,
        "protocol": line.protocol,
        "mode": line.mode,
        "id": line.id,
        "sample": line.sample,
        "group": line.group,
        "categories": dict(line.categories),
        "question": line.question,
        "options": list(line.options),
        "truth": list(line.truth) if isinstance(line.truth, tuple) else line.truth,
        "images": list(line.images),
        "answer": line.answer,
        **_grade_json(line.grade),
        "finish_reason": line.finish_reason,
        "tokens": line.tokens,
        "prompt_tokens": line.prompt_tokens,
        "logprob": line.logprob,
    }
    if line.corrected is not None:
        value["corrected"] = _grade_json(line.corrected)
    if line.judge is not None:
        judge = line.judge
        said = _grade_json(judge.grade)
        value["judge"] = {"model": judge.model, "text": judge.text, **said}
    return value


def dumps(value: Any) -> str:
    """JSON on one line that UTF-8 can hold, and without NaN.

    Line ends that only some programs know (U+0085, U+2028, U+2029) are written in
    JSON's notation, so that a line is one line to all of them. A text may hold half a
    surrogate pair, for which UTF-8 has no place; then all beyond ASCII is so written.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for end in "\x85\u2028\u2029":
        text = text.replace(end, f"\\u{ord(end):04x}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)
    return text


def _write(path: pathlib.Path, values: Iterable[Mapping[str, Any]]) -> None:
    def write_to(temporary: pathlib.Path) -> None:
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(dumps(value) + "\n" for value in values)

    atomic.write_whole(path, write_to)


def _grade_json(grade: Grade) -> dict[str, Any]:
    value = {
        "prediction": grade.prediction,
        "verdict": grade.verdict.outcome,
        "rule": grade.verdict.rule,
        "points": grade.points,
    }
    if grade.reference is not None:
        value["reference"] = grade.reference
    return value


def _line(got: Fields) -> Line:
    truth = got.value.get("truth")
    if isinstance(truth, list):
        truth = got.texts("truth")
    elif truth is not None:
        truth = got.text("truth")
    corrected = got.inner("corrected")
    judge = got.inner("judge")
    return Line(
        benchmark=got.text("benchmark"),
        protocol=got.text("protocol"),
        mode=got.choice("mode", benchmark_lib.MODES),
        id=got.text("id"),
        answer=got.text("answer"),
        grade=_grade(got),
        sample=got.count("sample") or 0,
        group=got.text("group", ""),
        categories=got.categories(),
        question=got.text("question", ""),
        options=got.texts("options"),
        truth=truth,
        images=got.images(),
        corrected=None if corrected is None else _grade(corrected),
        judge=None
        if judge is None
        else Judgement(judge.text("model"), judge.text("text"), _grade(judge)),
        finish_reason=got.choice("finish_reason", FINISH_REASONS, ""),
        tokens=got.count("tokens"),
        prompt_tokens=got.count("prompt_tokens"),
        logprob=got.number("logprob", -MAX_LOGPROB, MAX_LOGPROB),
    )


def _grade(got: Fields) -> Grade:
    outcome = got.choice("verdict", verdict_lib.OUTCOMES)
    points = got.number("points", 0.0, 1.0)
    if points is None:
        raise got.bad("points", "a number from 0 to 1")
    return Grade(
        got.text("prediction"),
        Verdict(outcome, got.text("rule")),
        points,
        got.number("reference", 0.0, 1.0),
    )
