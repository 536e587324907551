"""MM-Vet: six capabilities and their combinations, graded by a judge in tenths."""

from __future__ import annotations

from collections.abc import Iterator

from mpo_jax.evals import (
    corrected,
    judged,
    prompts,
    rows,
    sources,
    text_scores,
    vlmevalkit,
    vqa,
)
from mpo_jax.evals.benchmark import (
    COT,
    OFFICIAL,
    PAPER,
    VLMEVALKIT,
    Ask,
    Benchmark,
    Grade,
    Item,
    Judge,
    Protocol,
    Tools,
)
from mpo_jax.verify import formats

AND, OR = "<AND>", "<OR>"
_SHORT = 5  # words of a true answer that must stand in a response as they are

SOURCE = sources.Source(
    hub="lmms-lab/MMVet",
    files=(
        *("mm-vet.json", "mm-vet/mm-vet.json", "MMVet.tsv"),
        *("data/test-*.parquet", "test-*.parquet"),
    ),
    licence="unclear",
    md5={"MMVet.tsv": ("748aa6d4aa9d4de798306a63718455e3",)},
    notes="mm-vet.json is the authors' (version 1), with images/",
)


def read(folder: sources.Folder) -> Iterator[Item]:
    """Items; ids are the authors' (``v1_0`` and so on), or a table's index.

    Raises:
      ValueError: a file is missing, or a row is none of this benchmark.
    """
    for where, row in rows.read(folder, SOURCE):
        images = sources.images_of(row)
        if not images:
            images = (f"images/{rows.text(row, where, 'imagename')}",)
        named = row.get("capability") or rows.text(row, where, "category")
        listed = named if isinstance(named, list) else str(named).split(",")
        capabilities = sorted(str(one).strip() for one in listed)
        yield Item(
            id=rows.text(row, where, "_key", "question_id", "index"),
            question=rows.text(row, where, "question"),
            answer=rows.text(row, where, "answer"),
            images=images,
            categories={
                "capabilities": " ".join(capabilities),
                **{name: "needed" for name in capabilities},
            },
            group=vqa.group(row, images, "imagename"),
        )


_EXAMPLES = (
    ("Which numbers solve the equation?", "2 <AND> -7", "x = 4", "0.0"),
    ("Which numbers solve the equation?", "2 <AND> -7", "x is 2 or 7.", "0.5"),
    ("Which numbers solve the equation?", "2 <AND> -7", "They are 2 and -7.", "1.0"),
    ("What fruit is it?", "clementine <OR> mandarin", "A mandarin.", "1.0"),
    (
        "Why is the sign funny?",
        "It forbids signs and is one itself, so that it breaks its own rule.",
        "The sign is funny because it stands alone in the desert, though it says that "
        "signs are not allowed.",
        "0.4",
    ),
)


def _message(item: Item, response: str) -> str:
    (truth,) = corrected.answers(item)
    for word in (AND, OR):
        truth = f" {word} ".join(part.strip() for part in truth.split(word))
    table = [("Question", "True answer", "Answer of the model", "Points"), ("---",) * 4]
    lines = [" | ".join(row) for row in (*table, *_EXAMPLES)]
    return (
        "A model was asked about a picture. Compare its answer with the true answer, "
        "and give points from 0.0 (nothing is right) to 1.0 (all is right) in steps of "
        f"0.1. Where the true answer has {AND}, each part has its share of the points; "
        f"where it has {OR}, any one part is the whole answer. End the last line of "
        "this table with the points, and write nothing else.\n\n"
        + "\n".join(lines)
        + f"\n{item.question} | {truth} | {response} | "
    )


def _parse(item: Item, text: str) -> Grade:
    del item
    points = judged.points_in(text, 0.0, 1.0)
    if points is None:
        return judged.unusable(text)
    return vqa.in_parts(text.strip(), points, judged.JUDGE)


def grade(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    """Without a judge: for each part, is it there, or what has it in common with it?"""
    del mode, tools
    found = response.strip()
    (truth,) = corrected.answers(item)
    points = max(
        sum(_share(found, part) for part in one.split(AND)) / len(one.split(AND))
        for one in truth.split(OR)
    )
    return vqa.in_parts(found, points, "parts of the true answer found")


def _share(response: str, part: str) -> float:
    if text_scores.contains_words(response, part):
        return 1.0
    if len(text_scores.words_of(part)) <= _SHORT:
        return 0.0
    return judged.likeness(response, part)


def _judge(model: str) -> Judge:
    return Judge(model=model, prompt=_message, parse=_parse, max_new_tokens=3)


def _ask_paper(item: Item, mode: str) -> Ask:
    if mode == COT:
        return Ask(prompts.cot(item.question), prompts.COT_TOKENS)
    return Ask(f"{item.question} ", 1000)  # an empty prompt follows the space


def _ask_vlmevalkit(item: Item, mode: str) -> Ask:
    if mode == COT:  # not the MPO models' own, for this benchmark
        return vlmevalkit.ask(formats.get_format("en_v2").wrap(item.question))
    return vlmevalkit.ask(item.question)


def _ask_official(item: Item, mode: str) -> Ask:
    if mode == COT:
        return Ask(prompts.cot(item.question), prompts.COT_TOKENS)
    return Ask(item.question, 1024)


_NOTES = (
    judged.OWN_WORDS,
    "without a judge: shares of the true answer that stand in the response, for long "
    "ones F1 of words in common; a rule of ours that takes any mention for an answer",
)

BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet (version 1)",
    source=SOURCE,
    read=read,
    size=218,
    protocols={
        PAPER: Protocol(
            ask=_ask_paper,
            grade=grade,
            judge=_judge("gpt-4-0613"),
            notes=(
                *_NOTES,
                "InternVL sends its answers to the authors' server, whose scores are "
                "clearly higher than VLMEvalKit's",
                vqa.PAPER_COT,
            ),
        ),
        VLMEVALKIT: Protocol(
            ask=_ask_vlmevalkit,
            grade=grade,
            judge=_judge("gpt-4-1106-preview"),
            notes=(
                *_NOTES,
                "an unusable judgement is undecided; VLMEvalKit asks up to five times "
                "with a rising temperature",
            ),
        ),
        OFFICIAL: Protocol(
            ask=_ask_official,
            grade=grade,
            judge=_judge("gpt-4-0613"),
            notes=(
                *_NOTES,
                "judged once; the authors take the mean of five times",
                prompts.OWN_COT,
            ),
        ),
    },
)
