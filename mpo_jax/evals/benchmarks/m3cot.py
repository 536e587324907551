"""M3CoT: science, commonsense and mathematics in several steps; options A to E."""

from __future__ import annotations

from collections.abc import Iterator

from mpo_jax.evals import choices, corrected, extract, prompts, rows
from mpo_jax.evals.benchmark import COT, Ask, Benchmark, Grade, Item, Protocol, Tools
from mpo_jax.evals.sources import Folder, Source

SOURCE = Source(
    hub="LightChen2333/M3CoT",
    files=(
        *("data/test-*.parquet", "test-*.parquet", "M3CoT/test.jsonl", "test.jsonl"),
        "gold.json",
    ),
    licence="CC BY-SA 4.0",
    notes="InternVL's form of it is Weiyun1025/M3CoT-ScienceQA-Format",
)


def read(folder: Folder) -> Iterator[Item]:
    """Items of the test split; ids are ``id``."""
    for number, (where, row) in enumerate(rows.read(folder, SOURCE)):
        options = rows.options(row, where, "choices")
        yield Item(
            id=rows.optional(row, "id") or str(number),
            question=rows.optional(row, "question"),
            answer=rows.letter(row.get("answer"), options, where),
            images=rows.images(folder, row),
            options=options,
            categories={
                axis: rows.text(row, where, axis)
                for axis in ("domain", "topic")
                if rows.given(row.get(axis))
            },
            fields={"hint": rows.optional(row, "context", "hint")},
        )


def question(item: Item) -> str:
    """Hint, question and options, as InternVL's script for this set and ScienceQA."""
    lines = (item.fields["hint"], item.question, choices.listed(item.options))
    return "\n".join(line for line in lines if line)


def ask(item: Item, mode: str) -> Ask:
    """InternVL's."""
    if mode == COT:
        return Ask(prompts.cot(question(item).strip()), prompts.COT_TOKENS)
    return Ask(f"{question(item)}\n{choices.ASK_LETTER}".strip(), 100)


def grade(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    """InternVL's."""
    del tools
    said = extract.quick(response).strip() if mode == COT else response
    found = choices.internvl(said, item.options)
    return Grade.of(found, found == item.answer, "internvl's option")


def _ask_official(item: Item, mode: str) -> Ask:
    hint = item.fields["hint"]
    text = f"[Context]\n{hint}\n\n" if hint else ""
    text += f"[Question]\n{item.question}\n[Choices]\n"
    text += choices.listed(item.options, "({}) {}") + "\n"
    if mode == COT:
        return Ask(f"{text}\nLet's think step-by-step!", prompts.COT_TOKENS)
    return Ask(text, 100)


def _grade_official(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    del mode, tools
    found = choices.m3cot(response, item.options)
    if not found:
        return corrected.unparsed()
    return Grade.of(found, found == item.answer, "m3cot's option")


INTERNVL_NOTES = (
    "the released rule takes the first 'Answer:', 'A man' for option A, and the first "
    "option whose text occurs; corrected: the answer said last, as one option",
)

BENCHMARK = Benchmark(
    name="m3cot",
    title="M3CoT",
    source=SOURCE,
    read=read,
    protocols={
        "paper": Protocol(ask, grade, corrected.grader(), notes=INTERNVL_NOTES),
        "official": Protocol(
            *(_ask_official, _grade_official, corrected.grader()),
            notes=(
                "the authors' chain of thought is followed by a second message that "
                "asks for one option; here the reasoning itself is graded",
                "the authors' rule takes the last (X) or text of an option, the end "
                "token of a stored answer for a part of its word (B</s> is no B), and "
                "a lone 'a' for option A; corrected: the answer said last",
            ),
        ),
    },
    size=2318,
)
