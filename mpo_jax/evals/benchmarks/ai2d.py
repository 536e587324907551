"""AI2D (test): school diagrams, options A to D."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mpo_jax.evals import (
    choices,
    corrected,
    prompts,
    rows,
    sources,
    text_scores,
    vlmevalkit,
    vqa,
)
from mpo_jax.evals.benchmark import (
    COT,
    PAPER,
    VLMEVALKIT,
    Ask,
    Benchmark,
    Item,
    Protocol,
)
from mpo_jax.evals.benchmarks import scienceqa

_LINES = "test_vlmevalkit.jsonl"
_OPTION = re.compile(r"([A-Z])\. (.*)")

SOURCE = sources.Source(
    hub="lmms-lab/ai2d",
    files=(
        *(_LINES, f"ai2diagram/{_LINES}", f"ai2d_{_LINES}"),
        *("AI2D_TEST.tsv", "AI2D_TEST_NO_MASK.tsv"),
        *("data/test-*.parquet", "test-*.parquet"),
    ),
    licence="unclear",
    md5={
        "AI2D_TEST.tsv": ("0f593e0d1c7df9a3d69bf1f947e71975",),
        "AI2D_TEST_NO_MASK.tsv": ("fd8f463634d4fe9fbd23b876e8eea5be",),
    },
    notes=f"{_LINES} is ai2d_{_LINES} of OpenGVLab/InternVL, with its AI2D_TEST.zip",
)


def read(folder: sources.Folder) -> Iterator[Item]:
    """Items; ids are ``question_id`` or ``index``, else the row's place from 0.

    Raises:
      ValueError: a file is missing, or a row is none of this benchmark.
    """
    for number, (where, row) in enumerate(rows.read(folder, SOURCE)):
        question = rows.text(row, where, "question")
        options = rows.options(row, where, "options")
        if not options:
            question, options = _parted(question, where)
        images = sources.images_of(row)
        yield Item(
            id=rows.optional(row, "question_id", "index") or str(number),
            question=question,
            answer=rows.letter(row.get("answer"), options, where),
            images=images,
            options=options,
            group=vqa.group(row, images),
            fields=vqa.fields(row),
        )


def _parted(text: str, where: str) -> tuple[str, tuple[str, ...]]:
    """Question and options of a prompt as InternVL's file has it.

    Raises:
      ValueError: it has no options in order, or other words than the usual behind them.
    """
    lines = text.strip().splitlines()
    if lines[-1] == choices.ASK_LETTER:
        del lines[-1]
    options: list[str] = []
    while lines and (found := _OPTION.fullmatch(lines[-1])):
        options.insert(0, found[0])
        del lines[-1]
    question = "\n".join(lines)
    texts = tuple(option[3:] for option in options)
    if not texts or choices.listed(texts) != "\n".join(options):
        raise ValueError(
            f"{where}: the question must end in the lines 'A. …', 'B. …' and so on, "
            f"then {choices.ASK_LETTER!r}"
        )
    return question, texts


def _ask_paper(item: Item, mode: str) -> Ask:
    """What stands in InternVL's file; reasoning as in its scripts for options."""
    text = f"{item.question}\n{choices.listed(item.options)}"
    if mode == COT:
        return Ask(prompts.cot(text), prompts.COT_TOKENS)
    return Ask(f"{text}\n{choices.ASK_LETTER}", 10)


def _ask_vlmevalkit(item: Item, mode: str) -> Ask:
    if mode == COT:
        return vlmevalkit.ask(vlmevalkit.mpo(item.question, item.options))
    return vlmevalkit.ask(vlmevalkit.multiple_choice(item.question, item.options))


BENCHMARK = Benchmark(
    name="ai2d",
    title="AI2D (test)",
    source=SOURCE,
    read=read,
    size=3088,
    protocols={
        PAPER: Protocol(
            ask=_ask_paper,
            grade=vqa.grades(
                vqa.any_of(text_scores.exact), "the letter alone", vqa.quick
            ),
            corrected=corrected.grader(),
            notes=(
                "as released, only the letter alone is right: 'B.' and the option's "
                "text are wrong",
                vqa.PAPER_COT,
            ),
        ),
        VLMEVALKIT: Protocol(
            ask=_ask_vlmevalkit,
            grade=scienceqa.grade_vlmevalkit,
            corrected=corrected.grader(),
            notes=(scienceqa.EXACT_MATCHING,),
        ),
    },
)
