"""Answers in a file judged against the truth: streamed, in order, bad lines named."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

from mpo_jax import ledger
from mpo_jax.generate import questions
from mpo_jax.prefs import line_fields
from mpo_jax.utils import atomic, progress
from mpo_jax.verify import formats
from mpo_jax.verify.verdict import UNDECIDED, Truth, Verdict
from mpo_jax.verify.verifier import Verifier

AUTO = "auto"
READ = ("answer_gt", "response", "prediction", "question", "options", "kind")

_STATED = re.compile(r"\banswer\**\s{0,3}(?:is|:)\**\s?:?|答案[是为：]", re.IGNORECASE)
_CHUNK_LINES = 2048
_CHUNK_BYTES = 32 << 20


@dataclasses.dataclass(frozen=True)
class Answer:
    """One line that can be judged.

    Attributes:
      record: the line as it was read.
      question: empty where the line has none.
      parsed: the final answer, or why there is none.
    """

    record: dict[str, Any]
    question: str
    truth: Truth
    parsed: formats.Parsed


@dataclasses.dataclass
class Summary:
    """What came of a file.

    Attributes:
      verdicts: numbers of answers by outcome and rule.
      left_out: numbers of lines by the ledger's reasons.
      seconds: that it took.
    """

    verdicts: collections.Counter[Verdict]
    left_out: collections.Counter[str]
    seconds: float = 0.0


def check_file(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    verifier: Verifier,
    *,
    form: str = AUTO,
) -> Summary:
    """Judge every line of a file; `output` appears whole when all are judged.

    Lines that cannot be judged are named in ``OUTPUT.ledger.jsonl``, written just
    before; where there are none, it is removed.

    Args:
      source, output: JSON lines.
      form: how a final answer is read from a response, a key of ``formats.FORMATS`` or
        :data:`AUTO`.

    Raises:
      OSError: a file cannot be read or written.
      ValueError: the output is the input.
    """
    source, output = pathlib.Path(source), pathlib.Path(output)
    if output.exists() and os.path.samefile(source, output):
        raise ValueError(f"output={output} is the input; name another file")
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(output.name + ".ledger.jsonl")
    summary = Summary(collections.Counter(), collections.Counter())
    start = time.perf_counter()

    def write(answers: pathlib.Path) -> None:
        def write_both(entries: pathlib.Path) -> None:
            with (
                open(answers, "wb") as out,
                open(entries, "w", encoding="utf-8") as bad,
            ):
                _check(source, verifier, form, out, bad, summary)

        atomic.write_whole(beside, write_both)

    atomic.write_whole(output, write)
    if not summary.left_out:
        beside.unlink()
    summary.seconds = time.perf_counter() - start
    return summary


def _check(
    source: pathlib.Path,
    verifier: Verifier,
    form: str,
    out: IO[bytes],
    bad: IO[str],
    summary: Summary,
) -> None:
    with progress.bar() as bar:
        task = bar.add_task("Checking", total=None)
        for chunk in _chunks(source, form):
            answers = [found for found in chunk if isinstance(found, Answer)]
            for answer, verdict in zip(
                answers, _verdicts(answers, verifier), strict=True
            ):
                out.write(_line_of(answer, verdict))
                summary.verdicts[verdict] += 1
            for found in chunk:
                if isinstance(found, ledger.Entry):
                    entry = json.dumps(dataclasses.asdict(found))
                    bad.write(entry + "\n")
                    summary.left_out[found.reason] += 1
            bar.advance(task, len(chunk))


def _chunks(source: pathlib.Path, form: str) -> Iterator[list[Answer | ledger.Entry]]:
    """Lines that are not blank, some at a time; memory does not grow with the file."""
    chunk: list[Answer | ledger.Entry] = []
    size = 0
    with open(source, "rb") as file:
        for number, line in enumerate(questions.lines_of(file), 1):
            if line is not None and not line.strip():
                continue
            try:
                found: Answer | ledger.Entry = parse(line, form)
            except ledger.BadRecord as error:
                found = ledger.Entry(
                    "answers", str(source), number, error.reason, error.detail
                )
            chunk.append(found)
            size += len(line or b"")
            if len(chunk) >= _CHUNK_LINES or size >= _CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def _verdicts(answers: list[Answer], verifier: Verifier) -> list[Verdict]:
    """Verdicts in order; without a final answer there is nothing to compare."""
    said = [answer for answer in answers if answer.parsed.prediction is not None]
    found = iter(
        verifier.check_many(
            [(str(answer.parsed.prediction), answer.truth) for answer in said],
            [answer.question for answer in said],
        )
    )
    return [
        Verdict(UNDECIDED, answer.parsed.problem)
        if answer.parsed.prediction is None
        else next(found)
        for answer in answers
    ]


def _line_of(answer: Answer, verdict: Verdict) -> bytes:
    record = answer.record | {
        "prediction": answer.parsed.prediction,
        "verdict": verdict.outcome,
        "rule": verdict.rule,
    }
    return line_fields.dumps(record)


def parse(line: bytes | None, form: str = AUTO) -> Answer:
    """An answer of one line.

    Raises:
      BadRecord: it is none; names field and value.
    """
    record = line_fields.load(line)
    question = record.get("question")
    if question is not None and not isinstance(question, str):
        raise line_fields.bad("question", question, "a text")
    truth = Truth(
        line_fields.value(record, "answer_gt"),
        line_fields.options(record),
        line_fields.kind(record),
    )
    return Answer(record, question or "", truth, _parsed(record, question or "", form))


def _parsed(record: Mapping[str, Any], question: str, form: str) -> formats.Parsed:
    """The final answer: as the line gives it, else as the response does."""
    if record.get("prediction") is not None:
        return formats.Parsed(line_fields.value(record, "prediction"))
    response = record.get("response")
    if response is None:
        wanted = "a text; the line has no prediction either"
        raise line_fields.bad("response", response, wanted)
    if not isinstance(response, str):
        raise line_fields.bad("response", response, "a text")
    if form == AUTO:
        return parse_any(response, question)
    return formats.get_format(form).parse(response)


def parse_any(response: str, question: str = "") -> formats.Parsed:
    """The final answer of a response to an unknown prompt.

    Where the question is one of our prompts, its parser reads the response. Else the
    last box counts, else what follows ``Final answer:`` or ``答案:``, else what follows
    the last ``answer is``, else all of it. What comes before the end of a thought
    never does.
    """
    for name, found in formats.FORMATS.items():
        head, tail = found.template.split("{question}")
        if name != "direct" and question.startswith(head) and question.endswith(tail):
            return found.parse(response)
    _, end, behind = response.rpartition("</think>")
    if not end and "<think>" in response:
        return formats.Parsed(None, formats.NO_THOUGHT)
    for name in ("en_v2", "en"):
        parsed = formats.FORMATS[name].parse(behind)
        if parsed.problem != formats.NO_ANSWER:
            return parsed
    stated = [match.end() for match in _STATED.finditer(behind)]
    rest = behind[stated[-1] :].strip() if stated else ""
    line = rest.partition("\n")[0].rstrip(" .。")
    return formats.FORMATS["direct"].parse(line or behind)
