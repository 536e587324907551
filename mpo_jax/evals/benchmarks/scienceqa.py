"""ScienceQA: questions of school books; those of the test split that have an image.

Asked and graded as M3CoT by InternVL's one script.
"""

from __future__ import annotations

from collections.abc import Iterator

from mpo_jax.evals import corrected, extract, rows, vlmevalkit
from mpo_jax.evals.benchmark import COT, Ask, Benchmark, Grade, Item, Protocol, Tools
from mpo_jax.evals.benchmarks import m3cot
from mpo_jax.evals.sources import Folder, Source

SOURCE = Source(
    hub="derek-thomas/ScienceQA",
    files=(
        *("data/test-*.parquet", "test-*.parquet", "scienceqa_test_img.jsonl"),
        *("*/scienceqa_test_img.jsonl", "ScienceQA_TEST.tsv"),
    ),
    licence="CC BY-NC-SA 4.0",
    md5={"ScienceQA_TEST.tsv": ("e42e9e00f9c59a80d8a5db35bc32b71f",)},
    notes="InternVL's list is scienceqa_test_img.jsonl of its release",
)


def read(folder: Folder) -> Iterator[Item]:
    """Items with an image; ids are ``id`` or ``index``, else the row's place from 0."""
    for number, (where, row) in enumerate(rows.read(folder, SOURCE)):
        images = rows.images(folder, row)
        if not images:
            continue
        options = rows.options(row, where, "choices")
        yield Item(
            id=rows.optional(row, "id", "index") or str(number),
            question=rows.text(row, where, "question"),
            answer=rows.letter(row.get("answer"), options, where),
            images=images,
            options=options,
            categories={
                axis: str(row[axis])
                for axis in ("subject", "grade")
                if rows.given(row.get(axis))
            },
            fields={"hint": rows.optional(row, "hint")},
        )


def _ask_vlmevalkit(item: Item, mode: str) -> Ask:
    if mode == COT:
        return vlmevalkit.ask(vlmevalkit.mpo(item.question, item.options))
    hint = item.fields["hint"]
    text = vlmevalkit.multiple_choice(item.question, item.options, hint)
    return vlmevalkit.ask(text)


def grade_vlmevalkit(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    """VLMEvalKit's for a question with options, as it is without a judge."""
    del tools
    said = extract.quick(response).strip() if mode == COT else response
    found = vlmevalkit.infer(said, item.options)
    if found in ("", vlmevalkit.NO_OPTION):
        return corrected.unparsed()
    return Grade.of(found, found == item.answer, "vlmevalkit's option")


EXACT_MATCHING = (
    "judge-free: what VLMEvalKit's rule infers no option from is wrong, as its "
    "exact_matching (with a judge it asks a model, and draws at random if that fails)"
)

BENCHMARK = Benchmark(
    name="scienceqa",
    title="ScienceQA",
    source=SOURCE,
    read=read,
    protocols={
        "paper": Protocol(
            *(m3cot.ask, m3cot.grade, corrected.grader()), notes=m3cot.INTERNVL_NOTES
        ),
        "vlmevalkit": Protocol(
            *(_ask_vlmevalkit, grade_vlmevalkit, corrected.grader()),
            notes=(EXACT_MATCHING,),
        ),
    },
    size=2017,
)
