"""POPE: is there such an object in the image? Yes or no, scored by F1.

InternVL's and LLaVA's questions are ``llava_pope_test.jsonl``; their labels stand in
three other files and are joined by position, so that another edition of a label file
shifts all that follows. Here image and text must agree row by row.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mpo_jax.evals import choices, corrected, extract, prompts, rows, vlmevalkit
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
from mpo_jax.evals.sources import Folder, Source, read_rows
from mpo_jax.verify import verdict

QUESTIONS = "llava_pope_test.jsonl"
YES, NO = "yes", "no"
CATEGORY = "category"

SOURCE = Source(
    hub="lmms-lab/POPE",
    files=(
        *(QUESTIONS, f"*/{QUESTIONS}"),
        *("POPE.tsv", "test-*.parquet", "data/test-*.parquet"),
    ),
    licence="MIT",
    md5={"POPE.tsv": ("c12f5acb142f2ef1f85a26ba2fbe41d5",)},
    notes=(
        "the paper's: llava_pope_test.jsonl as in InternVL's release with "
        "coco_pope_{adversarial,popular,random}.json of AoiDragon/POPE at e3e3926 "
        "(2,910 random questions; later editions have 3,000) and COCO val2014"
    ),
)


def read(folder: Folder) -> Iterator[Item]:
    """Items; ids are ``question_id``."""
    labels: dict[str, Iterator[str]] = {}
    seen: list[rows.Row] = []
    if folder.find(*SOURCE.files, source=SOURCE).name == QUESTIONS:
        seen = [row for _, row in rows.read(folder, SOURCE)]
        labels = _labels(folder, seen)
    for where, row in rows.read(folder, SOURCE):
        category = rows.text(row, where, CATEGORY)
        if labels:
            label = next(labels[category])
        else:
            label = rows.text(row, where, "answer", "label").strip().lower()
        if label not in (YES, NO):
            raise ValueError(f"{where}: the label {label!r} is neither yes nor no")
        question = rows.text(row, where, "text", "question")
        images = rows.images(folder, row, roots=("", "val2014", "coco/val2014"))
        yield Item(
            # The hub's question_id begins anew in each category, its id does not.
            id=rows.text(row, where, "id", "question_id", "index"),
            question=question.removesuffix(choices.ASK_SHORT).strip(),
            answer=label,
            images=images,
            categories={CATEGORY: category},
            group=_group(row, images),
        )


def _group(row: rows.Row, images: Sequence[str | bytes]) -> str:
    named = rows.optional(row, "image_source", "image_path")
    return named or next((image for image in images if isinstance(image, str)), "")


def _labels(folder: Folder, questions: list[rows.Row]) -> dict[str, Iterator[str]]:
    """Labels by category in the order of its questions, agreement checked."""
    by_category = collections.defaultdict(list)
    for row in questions:
        by_category[row[CATEGORY]].append(row)
    return {
        name: iter(_checked(folder, name, own)) for name, own in by_category.items()
    }


def _checked(folder: Folder, category: str, questions: list[rows.Row]) -> list[str]:
    name = f"coco_pope_{category}.json"
    path = folder.find(name, f"coco/{name}", f"*/{name}", source=SOURCE)
    labels = list(read_rows(path))
    if len(labels) != len(questions):
        raise ValueError(
            f"{path}: has {len(labels)} labels for {len(questions)} questions of "
            f"category {category!r}; take the edition of the questions (AoiDragon/POPE "
            "at e3e3926 has 3,000, 3,000 and 2,910)"
        )
    for number, (row, label) in enumerate(zip(questions, labels, strict=True), 1):
        asked = str(row["text"]).removesuffix(choices.ASK_SHORT).strip()
        if (row["image"], asked) != (label["image"], label["text"].strip()):
            raise ValueError(
                f"{path}, row {number}: is about {label['image']}, {label['text']!r}, "
                f"the question about {row['image']}, {asked!r}; take the edition of "
                "the questions (AoiDragon/POPE at e3e3926)"
            )
    return [str(label["label"]).lower() for label in labels]


def _ask(item: Item, mode: str) -> Ask:
    if mode == COT:
        return Ask(prompts.cot(item.question), prompts.COT_TOKENS)
    return Ask(f"{item.question}\n{choices.ASK_SHORT}", 100)


def _ask_vlmevalkit(item: Item, mode: str) -> Ask:
    if mode == COT:
        return vlmevalkit.ask(vlmevalkit.mpo(item.question))
    return vlmevalkit.ask(item.question)


def _ask_official(item: Item, mode: str) -> Ask:
    if mode == COT:
        return _ask(item, mode)
    return Ask(item.question, 100)


def first_sentence(response: str) -> str:
    """The released rule: "no" where a first sentence has No, not or no, else "yes"."""
    words = response.split(".")[0].replace(",", "").split(" ")
    return NO if {"No", "not", "no"} & set(words) else YES


def _grade(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    del tools
    said = extract.quick(response) if mode == COT else response
    found = first_sentence(said)
    return Grade.of(found, found == item.answer, "first sentence has a no")


_MARKS = str.maketrans(dict.fromkeys(';/[]"{}()=+\\_-><@`,?!.', " "))


def _grade_vlmevalkit(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    del tools
    said = extract.quick(response) if mode == COT else response
    words = set(said.lower().translate(_MARKS).split()) & {YES, NO}
    if len(words) != 1:
        return corrected.unparsed()
    found = words.pop()
    return Grade.of(found, found == item.answer, "the one of yes and no")


def _counts(yes: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """TP, FP, TN, FN by the truths; a wrong answer says the other thing."""
    good = weights * right
    bad = weights - good
    return np.asarray([x.sum() for x in (good[yes], bad[~yes], good[~yes], bad[yes])])


def _truths(items: Sequence[Item]) -> np.ndarray:
    return np.asarray([item.answer == YES for item in items], bool)


def _f1(counts: np.ndarray) -> float:
    tp, fp, _, fn = counts
    return float(200 * tp / (2 * tp + fp + fn)) if tp else 0.0


def _categories(item: Item) -> list[str]:
    """VLMEvalKit's table has a question once for several categories."""
    return item.categories[CATEGORY].split(",")


def _by_category(items: Sequence[Item]) -> dict[str, np.ndarray]:
    found = collections.defaultdict(list)
    for i, item in enumerate(items):
        for category in _categories(item):
            found[category].append(i)
    return {name: np.asarray(found[name]) for name in sorted(found)}


def mean_f1(items: Sequence[Item], points: np.ndarray) -> Weighted:
    """Mean over categories of F1 in percent."""
    groups = _by_category(items)
    yes = _truths(items)

    def mean(weights: np.ndarray) -> float:
        scores = [
            _f1(_counts(yes[at], points[at], weights[at]))
            for at in groups.values()
            if weights[at].any()
        ]
        return float(np.mean(scores)) if scores else float("nan")

    return mean


def pooled_f1(items: Sequence[Item], points: np.ndarray) -> Weighted:
    """F1 in percent over all, a question once for each of its categories."""
    yes = _truths(items)
    times = np.asarray([len(_categories(item)) for item in items], np.float64)

    def pooled(weights: np.ndarray) -> float:
        if not weights.any():
            return float("nan")
        return _f1(_counts(yes, points, weights * times))

    return pooled


def details(graded: Sequence[Graded]) -> Mapping[str, Any]:
    """The released script's figures of each category."""
    items = [one.item for one in graded]
    right = np.asarray([one.grade.verdict.right for one in graded], np.float64)
    yes, found = _truths(items), {}
    for name, at in _by_category(items).items():
        counts = _counts(yes[at], right[at], np.ones(len(at)))
        found[name] = _figures([int(count) for count in counts])
    return found


def _figures(counts: list[int]) -> dict[str, Any]:
    tp, fp, tn, fn = counts
    total = tp + fp + tn + fn
    return {
        **{"TP": tp, "FP": fp, "TN": tn, "FN": fn, "total": total},
        "accuracy": (tp + tn) / total,
        "precision": tp / (tp + fp) if tp + fp else 0.0,
        "recall": tp / (tp + fn) if tp + fn else 0.0,
        "f1": _f1(np.asarray(counts)) / 100,
        "yes_ratio": (tp + fp) / total,
    }


_YES_TO_ALL = (
    "the released rule takes anything without No, not or no in its first sentence for "
    "yes, and 'not' anywhere for no; corrected: the answer said last, and what is "
    "neither yes nor no is wrong"
)
_CORRECTED = corrected.grader(verdict.YES_NO)

BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    source=SOURCE,
    read=read,
    protocols={
        "paper": Protocol(
            *(_ask, _grade, _CORRECTED, mean_f1, details), notes=(_YES_TO_ALL,)
        ),
        "vlmevalkit": Protocol(
            *(_ask_vlmevalkit, _grade_vlmevalkit, _CORRECTED, pooled_f1, details),
            notes=(
                "F1 is of all questions together; an answer with both or neither of "
                "yes and no counts as an error (the harness asks a model, and without "
                "one counts it as no)",
            ),
        ),
        "official": Protocol(
            *(_ask_official, _grade, _CORRECTED, mean_f1, details),
            notes=(_YES_TO_ALL, prompts.OWN_COT),
        ),
    },
    size=8910,
)
