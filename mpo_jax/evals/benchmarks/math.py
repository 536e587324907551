r"""MATH: problems of competitions, without images, from a file of the user's own.

The data set was taken off the hub after a notice of its rights' holder (January 2025),
so no address is given or followed. A file with lines ``{"problem", "solution"}`` as it
had, or with ``answer``, is read; ``level`` and ``type`` are categories.
"""

from __future__ import annotations

from collections.abc import Iterator

from mpo_jax.evals import corrected, latex_text, prompts, rows
from mpo_jax.evals.benchmark import COT, Ask, Benchmark, Grade, Item, Protocol, Tools
from mpo_jax.evals.sources import Folder, Source

SOURCE = Source(
    hub="a file of your own",
    files=("math.jsonl", "math.json", "MATH*.jsonl", "test.jsonl", "*.parquet"),
    licence="disputed",
    notes=(
        "hendrycks/competition_math is gone from the hub after a notice of the rights' "
        "holder; lines have problem and solution or answer"
    ),
)


def read(folder: Folder) -> Iterator[Item]:
    r"""Items; the true answer is ``answer``, else the solution's last ``\boxed``."""
    for number, (where, row) in enumerate(rows.read(folder, SOURCE)):
        answer = rows.optional(row, "answer")
        if not answer:
            boxed = latex_text.last_boxed(rows.text(row, where, "solution"))
            if boxed is None:
                raise ValueError(
                    f"{where}: solution has no \\boxed{{}}; give an answer"
                )
            answer = boxed
        yield Item(
            id=rows.optional(row, "unique_id", "id") or str(number),
            question=rows.text(row, where, "problem", "question"),
            answer=answer,
            categories={
                axis: rows.text(row, where, *names)
                for axis, names in (
                    ("level", ("level",)),
                    ("subject", ("type", "subject")),
                )
                if rows.optional(row, *names)
            },
        )


def _ask(item: Item, mode: str) -> Ask:
    if mode == COT:
        return Ask(
            f"{item.question}\nPlease reason step by step, and put your final answer "
            "within \\boxed{}.",
            prompts.COT_TOKENS,
        )
    return Ask(f"{item.question}\nPut the answer within \\boxed{{}}, no words.", 100)


def alike(text: str) -> str:
    """An answer as the authors' comparison of texts sees it."""
    text = latex_text.plain(text)
    left, sign, right = text.partition("=")
    if sign and len(left) <= 2 and "=" not in right:
        text = right
    text = latex_text.braced_roots(text).replace(" ", "")
    return latex_text.fraction_of_slash(latex_text.braced_fractions(text))


def _grade(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    del mode, tools
    said = latex_text.last_boxed(response)
    if not said or not said.strip():
        return corrected.unparsed()
    return Grade.of(said, alike(said) == alike(str(item.answer)), "same text")


BENCHMARK = Benchmark(
    name="math",
    title="MATH",
    source=SOURCE,
    read=read,
    protocols={
        "official": Protocol(
            *(_ask, _grade, corrected.grader()),
            notes=(
                "the authors prompt with examples; the words that ask for a box are "
                "our own",
                "the authors' rule compares texts: 2/4 is not 1/2; corrected: verify",
            ),
        ),
    },
)
