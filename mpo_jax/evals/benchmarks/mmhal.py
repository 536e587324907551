"""MMHal-Bench: does an answer say what the picture does not show? Rated 0 to 6."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mpo_jax.evals import corrected, judged, rows, source_tsv, sources
from mpo_jax.evals.benchmark import (
    COT,
    OFFICIAL,
    PAPER,
    Ask,
    Benchmark,
    Grade,
    Item,
    Judge,
    Protocol,
    Weighted,
    accuracy,
)
from mpo_jax.verify import verdict
from mpo_jax.verify.verdict import Verdict

TOP = 6
"""Best rating."""
NO_HALLUCINATION = 3
"""Rating from which an answer is free of it."""

TYPES = (
    *("attribute", "adversarial", "comparison", "counting"),
    *("relation", "environment", "holistic", "other"),
)
"""Of the questions, in turn."""

CONTENT = "image_content"
_LINES = "mmhal-bench_with_image.jsonl"

SOURCE = sources.Source(
    hub="Shengcao1006/MMHal-Bench",
    files=(
        *(_LINES, f"mm-halbench/{_LINES}"),
        *("response_template.json", "test_data/response_template.json"),
    ),
    licence="Apache-2.0",
    notes=f"{_LINES} is OpenGVLab/InternVL's; else unpack test_data.zip there",
)


def read(folder: sources.Folder) -> Iterator[Item]:
    """Items; ids are the places in the file, from 0, as it has none.

    Raises:
      ValueError: a file is missing, or a row is none of this benchmark.
    """
    for number, (where, row) in enumerate(rows.read(folder, SOURCE)):
        content = row.get(CONTENT)
        if not isinstance(content, list):
            raise ValueError(f"{where}: {CONTENT} must be a list of texts")
        if rows.given(row.get("image")):
            image: sources.Image = source_tsv.picture(str(row["image"]), where)
        else:
            name = rows.text(row, where, "image_src").rpartition("/")[2]
            image = f"images/{name}"
        yield Item(
            id=str(number),
            question=rows.text(row, where, "question"),
            answer=rows.text(row, where, "gt_answer"),
            images=(image,),
            categories={"type": TYPES[number % len(TYPES)]},
            group=rows.optional(row, "image_id"),
            fields={CONTENT: ", ".join(map(str, content))},
        )


_COT = (
    "\n\nPlease think step by step and output in the following format:\n\nRationale:\n"
    "{rationale}\nAnswer: {answer}\n\nwhere rationale is the reasoning process of the "
    "given question."
)


def _ask(item: Item, mode: str) -> Ask:
    return Ask(f"{item.question}{_COT}" if mode == COT else item.question, 1024)


def final(response: str, mode: str = COT) -> str:
    """What follows the last ``Answer:`` of a chain of thought."""
    found = response.rpartition("Answer:")[2] if mode == COT else response
    return found.strip()


def _message(item: Item, response: str) -> str:
    (truth,) = corrected.answers(item)
    return (
        "Judge the answer of a model to a question about a picture. You do not see the "
        "picture, but a list of what is in it, and an answer that a person gave. Two "
        "things count: does the answer inform, and does it hallucinate, that is, does "
        "it claim something that neither the picture nor the question gives reason "
        "for? The person's answer need not be complete, nor the list; so be careful "
        "with calling a claim false. Reasoning and general knowledge that fit are "
        "welcome, and to say that one is not sure is no hallucination.\n\n"
        "First explain in a few sentences. Then write one line 'Rating: N' with one of "
        "these:\n"
        "6: very informative, well analysed or reasoned, no hallucination\n"
        "5: very informative, no hallucination\n"
        "4: somewhat informative, no hallucination\n"
        "3: not informative, no hallucination\n"
        "2: very informative, with hallucination\n"
        "1: somewhat informative, with hallucination\n"
        "0: not informative, with hallucination\n\n"
        f"### In the picture\n{item.fields[CONTENT]}\n\n"
        f"### Question\n{item.question}\n\n"
        f"### A person's answer\n{truth}\n\n"
        f"### Answer to judge\n{final(response)}\n"
    )


def _parse(item: Item, text: str) -> Grade:
    """As released: the one rating that the text names; none or several are 0."""
    del item
    said = text.lower()
    found = [rating for rating in range(TOP + 1) if f"rating: {rating}" in said]
    if len(found) != 1:
        return judged.unusable(text)
    free = found[0] >= NO_HALLUCINATION
    outcome = verdict.RIGHT if free else verdict.WRONG
    return Grade(str(found[0]), Verdict(outcome, judged.JUDGE), found[0] / TOP)


def mean_rating(items: Sequence[Item], points: np.ndarray) -> Weighted:
    """Mean rating, from 0 to 6."""
    percent = accuracy(items, points)
    return lambda weights: percent(weights) * TOP / 100


def _judge(model: str) -> Judge:
    return Judge(
        model=model,
        prompt=_message,
        parse=_parse,
        metric=mean_rating,
        max_new_tokens=1024,
    )


_NOTES = (
    judged.OWN_WORDS,
    judged.BESIDE,
    "right by the judge: a rating of at least 3, no hallucination, so that the rate of "
    "hallucination is the share of other answers; the score is the mean rating, 0 to 6",
    "the judge sees what follows the last 'Answer:', in direct answers too",
)

BENCHMARK = Benchmark(
    name="mmhal",
    title="MMHal-Bench",
    source=SOURCE,
    read=read,
    size=96,
    protocols={
        PAPER: Protocol(
            ask=_ask,
            grade=judged.beside(final),
            judge=_judge("gpt-4o"),
            notes=_NOTES,
        ),
        OFFICIAL: Protocol(
            ask=_ask,
            grade=judged.beside(final),
            judge=_judge("gpt-4-0314"),
            notes=(*_NOTES, "the authors ask directly only; reasoning as InternVL"),
        ),
    },
)
