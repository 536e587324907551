"""CRPE, relations: who does what to whom, as options turned round four times.

A question counts where all its four turns are right. ``crpe_exist`` shares the code.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mpo_jax.evals import (
    choices,
    corrected,
    extract,
    prompts,
    rows,
    vlmevalkit,
)
from mpo_jax.evals.benchmark import (
    COT,
    Ask,
    Benchmark,
    Grade,
    Graded,
    Item,
    Protocol,
    Tools,
    Weighted,
)
from mpo_jax.evals.sources import Folder, Image, Source

TURNS = 4
_MD5 = {
    "CRPE_EXIST.tsv": ("315584e23ac1ff7f8719ed3b7ad90f08",),
    "CRPE_RELATION.tsv": ("bad7094cde0b572288f4b119c2d0c656",),
}


def read(folder: Folder, source: Source) -> Iterator[Item]:
    """Items; ids are ``question_id``. Four turns of a question follow each other.

    Raises:
      ValueError: they do not.
    """
    turns: dict[str, list[Item]] = collections.defaultdict(list)
    place: collections.Counter[str] = collections.Counter()
    for where, row in rows.read(folder, source):
        category = rows.text(row, where, "category")
        images = rows.images(folder, row, roots=("", "images"))
        item = _item(row, where, images, f"{category} {place[category] // TURNS}")
        place[category] += 1
        turns[category].append(item)
        if len(turns[category]) == TURNS:
            yield from _checked(turns.pop(category), where)
    if turns:
        raise ValueError(
            f"{folder.path}: the questions of {', '.join(turns)} are no multiple of "
            f"{TURNS}; take the file with all turns, not its *_meta form"
        )


def _item(row: rows.Row, where: str, images: tuple[Image, ...], group: str) -> Item:
    text = rows.text(row, where, "text", "question")
    question, options = _split(text)
    answer = rows.text(row, where, "correct_option", "answer")
    return Item(
        id=rows.text(row, where, "question_id", "index"),
        question=question,
        answer=rows.letter(answer.strip().lstrip("(")[:1], options, where),
        images=images,
        options=options,
        categories={"category": str(row["category"])},
        group=group,
        fields={"text": text, "truth": answer},
    )


_OPTION = re.compile(r"^\(?([A-D])[.)]\s*(.*)$", re.MULTILINE)


def _split(text: str) -> tuple[str, tuple[str, ...]]:
    """The question and the options of a text that has both."""
    found = _OPTION.findall(text)
    if "".join(letter for letter, _ in found) != choices.LETTERS[: len(found)]:
        return text.strip(), ()
    head = text[: match.start()] if (match := _OPTION.search(text)) else text
    return head.strip(), tuple(option.strip() for _, option in found)


def _checked(turns: list[Item], where: str) -> list[Item]:
    if len({(item.images, *sorted(item.options)) for item in turns}) > 1:
        raise ValueError(
            f"{where}: the last {TURNS} questions of category "
            f"{turns[0].categories['category']!r} are no turns of one; is a row "
            "missing? Fetch the file again"
        )
    return turns


def _ask_official(item: Item, mode: str) -> Ask:
    if mode == COT:
        return _ask_vlmevalkit(item, mode)
    return Ask(item.fields["text"], 100)


def _ask_vlmevalkit(item: Item, mode: str) -> Ask:
    if mode == COT:
        text = item.fields["text"].replace(choices.ASK_LETTER, "").strip()
        return vlmevalkit.ask(vlmevalkit.mpo(text))
    return vlmevalkit.ask(item.fields["text"])


def _grade_official(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    del tools
    said = extract.quick(response) if mode == COT else response
    if len(said) != 1:
        return corrected.unparsed()
    return Grade.of(said, said == item.answer, "one letter")


def _grade_vlmevalkit(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    del tools
    said = (extract.quick(response) if mode == COT else response).strip()
    truth = item.fields["truth"]
    if len(said) == 1 or said[:1] in choices.LETTERS[:TURNS]:
        return Grade.of(said[:1], said[:1] == truth[0], "letter in front")
    # Without the text behind the letter, upstream finds "" in whatever is said.
    known = dict(zip(choices.LETTERS, item.options, strict=False))
    text = truth[4:] or known.get(str(item.answer), "")
    if not text:
        return corrected.unparsed()
    return Grade.of(said, text.lower() in said.lower(), "text of the option")


def all_turns(items: Sequence[Item], points: np.ndarray) -> Weighted:
    """Share of questions, in percent, with all turns right; others are left out."""
    groups = _complete(items)
    right = np.asarray([points[at].min() for at in groups])

    def share(weights: np.ndarray) -> float:
        of_groups = np.asarray([weights[at].mean() for at in groups])
        total = of_groups.sum()
        return float(100 * (of_groups @ right) / total) if total else float("nan")

    return share


def _complete(items: Sequence[Item]) -> list[np.ndarray]:
    found = collections.defaultdict(list)
    for i, item in enumerate(items):
        found[item.group].append(i)
    return [np.asarray(at) for at in found.values() if len(at) == TURNS]


def details(graded: Sequence[Graded]) -> Mapping[str, Any]:
    """By category and in total: questions, those all right, share of turns right."""
    by_category = collections.defaultdict(list)
    for one in graded:
        for name in (one.item.categories["category"], "total"):
            by_category[name].append(one)
    return {name: _figures(some) for name, some in by_category.items()}


def _figures(graded: Sequence[Graded]) -> dict[str, Any]:
    points = np.asarray([one.grade.points for one in graded])
    groups = _complete([one.item for one in graded])
    return {
        "questions": len(groups),
        "all_turns_right": sum(bool(points[at].all()) for at in groups),
        "turns": len(graded),
        "turns_right": int(points.sum()),
    }


def benchmark(name: str, title: str, file: str) -> Benchmark:
    """Relations or existence.

    Args:
      file: of VLMEvalKit, without suffix; the authors' in lower case.
    """
    own = f"{file.lower()}.jsonl"
    source = Source(
        hub="OpenGVLab/CRPE",
        files=(own, f"*/{own}", f"{file}.tsv"),
        licence="Apache-2.0",
        md5=_MD5,
        notes="images are COCO val2014 and abnormal_images of the same repository",
    )
    return Benchmark(
        name=name,
        title=title,
        source=source,
        read=lambda folder: read(folder, source),
        protocols={
            "vlmevalkit": Protocol(
                *(_ask_vlmevalkit, _grade_vlmevalkit, corrected.grader()),
                *(all_turns, details),
                notes=(
                    "the score is of questions with all four turns right; the share "
                    "of turns stands among the details",
                    "the released rule takes 'A man' for option A; corrected: the "
                    "answer said last, as one option",
                ),
            ),
            "official": Protocol(
                *(_ask_official, _grade_official, corrected.grader()),
                *(all_turns, details),
                notes=(
                    "the authors take the likeliest option's letter; anything but one "
                    "letter is wrong",
                    prompts.OWN_COT,
                ),
            ),
        },
    )


BENCHMARK = benchmark("crpe_relation", "CRPE (relation)", "CRPE_RELATION")
