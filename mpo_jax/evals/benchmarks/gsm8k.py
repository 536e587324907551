"""GSM8K: word problems of a school, without images; the answer is a number."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mpo_jax.evals import corrected, prompts, rows
from mpo_jax.evals.benchmark import COT, Ask, Benchmark, Grade, Item, Protocol, Tools
from mpo_jax.evals.sources import Folder, Source
from mpo_jax.verify import verdict

SOURCE = Source(
    hub="openai/gsm8k",
    files=("main/test-*.parquet", "test-*.parquet", "test.jsonl"),
    licence="MIT",
)

_MARKED = re.compile(r"#### (-?[0-9.,]+)")


def read(folder: Folder) -> Iterator[Item]:
    """Items of the test split; ids are places of rows from 0."""
    for number, (where, row) in enumerate(rows.read(folder, SOURCE)):
        solution = rows.text(row, where, "answer")
        answer = _marked(solution)
        if not answer:
            raise ValueError(f"{where}: answer has no '#### ' with a number behind it")
        yield Item(
            id=rows.optional(row, "id") or str(number),
            question=rows.text(row, where, "question"),
            answer=answer,
        )


def _marked(text: str) -> str:
    """The number behind the first ``####``, or ""."""
    match = _MARKED.search(text)
    return match.group(1).strip().replace(",", "") if match else ""


def _ask(item: Item, mode: str) -> Ask:
    if mode == COT:
        return Ask(
            f"{item.question}\nThink step by step, then write the number that is the "
            'answer on a last line of its own, in the form "#### 42".',
            prompts.COT_TOKENS,
        )
    return Ask(
        f'{item.question}\nWrite the number that is the answer in the form "#### 42", '
        "and nothing else.",
        100,
    )


def _grade(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    del mode, tools
    found = _marked(response)
    if not found:
        return corrected.unparsed()
    return Grade.of(found, found == item.answer, "number behind ####")


def _corrected(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    _, marked, last = response.rpartition("####")
    if not marked:
        return corrected.grader(verdict.NUMBER)(item, response, mode, tools)
    lines = last.strip().splitlines()
    if not lines:
        return corrected.unparsed()
    return corrected.against(item, lines[0], tools, verdict.NUMBER)


BENCHMARK = Benchmark(
    name="gsm8k",
    title="GSM8K",
    source=SOURCE,
    read=read,
    protocols={
        "official": Protocol(
            *(_ask, _grade, _corrected),
            notes=(
                "the authors fine-tune on answers that end in '#### 42'; the words "
                "that ask for this form are our own",
                "the authors' rule compares texts, 18.00 is not 18; corrected: as "
                "numbers, the answer said last also where it is not marked",
            ),
        ),
    },
    size=1319,
)
