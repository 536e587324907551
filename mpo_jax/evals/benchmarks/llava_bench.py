"""LLaVA-Bench (in the wild): a judge rates the model's answer and GPT-4's beside it."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from mpo_jax.evals import corrected, judged, prompts, rows, sources, vlmevalkit, vqa
from mpo_jax.evals.benchmark import (
    COT,
    OFFICIAL,
    PAPER,
    REFERENCE,
    VLMEVALKIT,
    Ask,
    Benchmark,
    Grade,
    Item,
    Judge,
    Protocol,
    Weighted,
)

TOP = 10.0
"""Best rating of the judge."""

CAPTION = "caption"
_QUESTIONS = "questions.jsonl"

SOURCE = sources.Source(
    hub="liuhaotian/llava-bench-in-the-wild",
    files=(
        *(_QUESTIONS, f"llava-bench-in-the-wild/{_QUESTIONS}", "LLaVABench.tsv"),
        *("data/train-*.parquet", "train-*.parquet"),
    ),
    licence="Apache-2.0",
    md5={"LLaVABench.tsv": ("d382a093f749a697820d3dadd61c8428",)},
    notes=f"beside {_QUESTIONS}: context.jsonl, answers_gpt4.jsonl and images/",
)


def read(folder: sources.Folder) -> Iterator[Item]:
    """Items; ids are ``question_id``, or a table's index.

    Raises:
      ValueError: a file is missing, or a row is none of this benchmark.
    """
    path = folder.find(*SOURCE.files, source=SOURCE)
    if path.name == _QUESTIONS:
        found = _joined(sources.Folder(path.parent), path)
    else:
        found = rows.read(folder, SOURCE)
    for where, row in found:
        caption = row.get(CAPTION)
        if isinstance(caption, list):
            caption = "\n".join(map(str, caption))
        images = sources.images_of(row)
        yield Item(
            id=rows.text(row, where, "question_id", "index"),
            question=rows.text(row, where, "question", "text"),
            answer=rows.text(row, where, "gpt4_ans", "gpt_answer"),
            images=images,
            categories={"type": rows.text(row, where, "category")},
            group=vqa.group(row, images, "image_id"),
            fields={CAPTION: str(caption or "")},
        )


def _joined(
    folder: sources.Folder, path: pathlib.Path
) -> Iterator[tuple[str, rows.Row]]:
    """The authors' questions with captions by image and answers by question."""
    captions = {
        rows.text(row, where, "image"): row.get(CAPTION)
        for where, row in rows.read(folder, SOURCE, "context.jsonl")
    }
    answers = {
        rows.text(row, where, "question_id"): rows.text(row, where, "text")
        for where, row in rows.read(folder, SOURCE, "answers_gpt4.jsonl")
    }
    for where, row in rows.read(folder, SOURCE, path.name):
        id, image = rows.text(row, where, "question_id"), rows.text(row, where, "image")
        if id not in answers or image not in captions:
            raise ValueError(
                f"{where}: question {id} has no answer in answers_gpt4.jsonl, or its "
                f"picture {image!r} none in context.jsonl"
            )
        yield (
            where,
            {
                **row,
                "image": f"images/{image}",
                "image_id": image,
                CAPTION: captions[image],
                "gpt4_ans": answers[id],
            },
        )


def _message(item: Item, response: str) -> str:
    (reference,) = corrected.answers(item)
    return (
        f"[What the picture shows]\n{item.fields[CAPTION]}\n\n"
        f"[Question]\n{item.question}\n\n"
        f"[Answer 1]\n{reference}\n[End of answer 1]\n\n"
        f"[Answer 2]\n{response}\n[End of answer 2]\n\n"
        "[Task]\nTwo assistants have answered the question about the picture, which is "
        "described above in place of being shown. Rate each answer as a whole: does "
        "it help, does it keep to the question, is it correct, is it detailed? Give "
        "each a number from 1 to 10, the more the better. Write first a line with "
        "these two numbers alone, that of answer 1 first, with a space between them. "
        "Then explain them; be fair, and let the order of the answers not matter."
    )


def _parse(item: Item, text: str) -> Grade:
    del item
    first = text.strip().partition("\n")[0].replace(",", " ").split()
    rated = [judged.points_in(number, 0.0, TOP) for number in first]
    if len(rated) != 2 or rated[0] is None or rated[1] is None:
        return judged.unusable(text)
    reference, own = rated[0] / TOP, rated[1] / TOP
    right = Grade.of(" ".join(first), own >= reference, judged.JUDGE)
    return Grade(right.prediction, right.verdict, own, reference)


def relative(items: Sequence[Item], points: np.ndarray) -> Weighted:
    """Mean rating over the reference's mean rating, in percent.

    Items without a rating of the reference, which the judge said nothing usable of,
    are left out.
    """
    references = np.array([item.fields.get(REFERENCE, np.nan) for item in items])
    rated = np.isfinite(references)

    def ratio(weights: np.ndarray) -> float:
        total = weights[rated] @ references[rated]
        if not total:
            return math.nan
        return float(100 * (weights[rated] @ points[rated]) / total)

    return ratio


def _judge(model: str) -> Judge:
    return Judge(
        model=model,
        prompt=_message,
        parse=_parse,
        metric=relative,
        temperature=0.2,
        max_new_tokens=1024,
    )


def _ask_paper(item: Item, mode: str) -> Ask:
    if mode == COT:
        return Ask(prompts.cot(item.question), prompts.COT_TOKENS)
    return Ask(f"{item.question} Please give a detailed answer.", 1000)


def _ask_vlmevalkit(item: Item, mode: str) -> Ask:
    del mode  # its reasoning prompts leave this benchmark out
    return vlmevalkit.ask(f"{item.question}\nAnswer this question in detail.")


def _ask_official(item: Item, mode: str) -> Ask:
    if mode == COT:
        return Ask(prompts.cot(item.question), prompts.COT_TOKENS)
    return Ask(item.question, 1024)


_NOTES = (
    judged.OWN_WORDS,
    judged.BESIDE,
    "right by the judge: rated at least as high as GPT-4's answer; the score is the "
    "ratio of the mean ratings",
    "what the judge says no two numbers of is left out of the ratio; as released, both "
    "count as -1",
)

BENCHMARK = Benchmark(
    name="llava_bench",
    title="LLaVA-Bench (in the wild)",
    source=SOURCE,
    read=read,
    size=60,
    protocols={
        PAPER: Protocol(
            ask=_ask_paper,
            grade=judged.beside(vqa.whole),
            judge=_judge("gpt-4-0613"),
            notes=(*_NOTES, vqa.PAPER_COT),
        ),
        VLMEVALKIT: Protocol(
            ask=_ask_vlmevalkit,
            grade=judged.beside(vqa.whole),
            judge=_judge("gpt-4-1106-preview"),
            notes=(*_NOTES, "it asks the same in both modes"),
        ),
        OFFICIAL: Protocol(
            ask=_ask_official,
            grade=judged.beside(vqa.whole),
            judge=_judge("gpt-4-0314"),
            notes=(*_NOTES, prompts.OWN_COT),
        ),
    },
)
