"""MathVista testmini: mathematics in pictures, options or numbers.

The authors let a model extract the answer, then compare it as a text: an option by its
letter or else the one nearest in spelling, numbers rounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mpo_jax import ledger
from mpo_jax.evals import (
    choices,
    corrected,
    edit_distance,
    extract,
    extractor,
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
)
from mpo_jax.evals.sources import Folder, Source
from mpo_jax.verify import verdict

SOURCE = Source(
    hub="AI4Math/MathVista",
    files=(
        *("data/testmini-*.parquet", "testmini-*.parquet"),
        *("testmini.json", "data/testmini.json", "MathVista_MINI.tsv"),
    ),
    licence="CC BY-SA 4.0",
    md5={"MathVista_MINI.tsv": ("f199b98e178e5a2a20e7048f5dcb0464",)},
    notes="labels of the test split are not public",
)

MULTI_CHOICE = "multi_choice"
TYPES = ("question_type", "answer_type")
METADATA = ("language", "source", "category", "task", "context", "grade")
_KINDS = {"integer": verdict.NUMBER, "float": verdict.NUMBER, "list": verdict.LIST}


def read(folder: Folder) -> Iterator[Item]:
    """Items; ids are ``pid``."""
    for where, row in rows.read(folder, SOURCE):
        about = {**row, **(row.get("metadata") or {})}
        skills = rows.literal(about.get("skills") or ())
        # VLMEvalKit's question is the query: hint, question, choices.
        queried = rows.optional(row, "query") or ("index" in row and row["question"])
        options = rows.options(row, where, "choices")
        yield Item(
            id=rows.text(row, where, "pid", "index"),
            question=rows.text(row, where, "question"),
            answer=_answer(row, options, where),
            images=rows.images(folder, row, "decoded_image", "image", "image_path"),
            options=options,
            categories={
                **{axis: rows.text(row, where, axis) for axis in TYPES},
                **{a: str(about[a]) for a in METADATA if rows.given(about.get(a))},
            },
            fields={
                "query": queried or query(row, options),
                "precision": int(float(row.get("precision") or 0)),
                "skills": (skills,) if isinstance(skills, str) else tuple(skills),
            },
        )


def _answer(row: rows.Row, options: tuple[str, ...], where: str) -> str:
    """The true number or text; of options always the text of one."""
    answer = rows.text(row, where, "answer")
    if row.get("question_type") != MULTI_CHOICE or answer in options:
        return answer
    letter = rows.optional(row, "answer_option")
    if letter and letter in choices.letters(options):
        return options[choices.LETTERS.index(letter)]
    raise ValueError(f"{where}: answer={ledger.short(answer)} is none of the choices")


_HINTS = {
    "text": "and provide the correct option letter, e.g., A, B, C, D,",
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, "
    "3,",
    "float1": "requiring a floating-point number with one decimal place and provide "
    "the final value, e.g., 1.2, 1.3, 1.4,",
    "float2": "requiring a floating-point number with two decimal places and provide "
    "the final value, e.g., 1.23, 1.34, 1.45,",
    "list": "requiring a Python list as an answer and provide the final list, e.g., "
    "[1, 2, 3], [1.2, 1.3, 1.4],",
}


def query(row: rows.Row, options: Sequence[str]) -> str:
    """The message that the authors' files call ``query``, where a file has none."""
    kind = str(row["answer_type"])
    if kind == "float":
        kind += str(int(float(row.get("precision") or 1)))
    text = f"Hint: Please answer the question {_HINTS[kind]} at the end.\n"
    text += f"Question: {row['question']}"
    if rows.given(row.get("unit")):
        text += f" (Unit: {row['unit']})"
    if options:
        text += "\nChoices:\n" + choices.listed(options, "({}) {}")
    return text.strip()


def _query(item: Item) -> str:
    return item.fields["query"]


def _ask(item: Item, mode: str) -> Ask:
    text = prompts.cot(_query(item)) if mode == COT else _query(item)
    return Ask(text, prompts.COT_TOKENS)


def _ask_vlmevalkit(item: Item, mode: str) -> Ask:
    text = vlmevalkit.mpo(_query(item)) if mode == COT else _query(item)
    return vlmevalkit.ask(text)


_LETTER = re.compile(r"\(([a-zA-Z])\)")


def normalised(extraction: str, item: Item) -> str | None:
    """An extracted answer in the form of the true ones; None where it has none.

    Of options always one: the first ``(X)`` or a letter, else the nearest in spelling.
    """
    if item.categories["question_type"] == MULTI_CHOICE:
        letters = _LETTER.findall(extraction)
        said = letters[0].upper() if letters else extraction.strip()
        known = choices.letters(item.options)
        if len(said) == 1 and said in known:
            return item.options[known.index(said)]
        return item.options[edit_distance.nearest(said, item.options)]
    kind = item.categories["answer_type"]
    if kind == "list":
        return extraction
    try:
        number = float(extraction)
        if kind == "integer":
            return str(int(number))
        return str(round(number, item.fields["precision"]))
    except (ValueError, OverflowError):
        return None


def _grade_extracted(item: Item, extraction: str) -> Grade:
    found = normalised(extraction, item)
    if found is None:
        return corrected.unparsed()
    return Grade.of(found, found == item.answer, "normalised text")


_QUOTED = re.compile(r'The answer is "(.*)"\.')


def _grade_official(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    del tools
    quoted = _QUOTED.search(response)
    said = quoted.group(1) if quoted else response
    return _grade_extracted(item, extract.quick(said) if mode == COT else said)


def _grade_paper(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    del mode, tools
    whole = response in item.options
    return _grade_extracted(item, response if whole else extract.quick(response))


def _grade_vlmevalkit(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    del mode, tools
    return _matched(item, extract.quick(response))


def _matched(item: Item, said: str) -> Grade:
    """VLMEvalKit's comparison: options inferred, numbers as they are, lists never."""
    if item.categories["question_type"] == MULTI_CHOICE:
        found = vlmevalkit.infer(said, item.options)
        if found in ("", vlmevalkit.NO_OPTION):
            return corrected.unparsed()
        known = choices.letters(item.options)
        right = known.index(found) == item.options.index(str(item.answer))
        return Grade.of(found, right, "vlmevalkit's option")
    kind = {"integer": int, "float": float}.get(item.categories["answer_type"])
    if kind is None:
        return Grade.of(said, False, "vlmevalkit compares no lists")
    try:
        number = kind(said)
    except ValueError:
        return corrected.unparsed()
    return Grade.of(said, number == kind(str(item.answer)), "number")


def _corrected(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    said = extract.final_answer(response, mode)
    if not said:
        return corrected.unparsed()
    kind = _KINDS.get(item.categories["answer_type"], "")
    grade = corrected.against(item, said, tools, kind)
    if grade.verdict.right or item.categories["answer_type"] != "float":
        return grade
    try:
        rounded = str(round(float(said), item.fields["precision"]))
    except (ValueError, OverflowError):
        return grade
    again = corrected.against(item, rounded, tools, kind)
    return Grade.judged(said, again.verdict)


def details(graded: Sequence[Graded]) -> Mapping[str, Any]:
    """Right answers and items by every label of the authors' table, skills too."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for one in graded:
        labels = [*one.item.categories.items()]
        labels += [("skills", skill) for skill in one.item.fields["skills"]]
        for axis, value in labels:
            counts = found.setdefault(axis, {}).setdefault(
                value, {"correct": 0, "total": 0}
            )
            counts["correct"] += one.grade.verdict.right
            counts["total"] += 1
    return found


_NEAREST = (
    "the authors' rule makes an option of anything (the nearest in spelling), 3 of 3.7 "
    "and rounds; corrected: the answer said last, wrong where there is none"
)
_JUDGE_FREE = (
    "judge-free: {}; the harness lets a model extract the answer, which the judge does"
)

BENCHMARK = Benchmark(
    name="mathvista",
    title="MathVista testmini",
    source=SOURCE,
    read=read,
    protocols={
        "paper": Protocol(
            *(_ask, _grade_paper, _corrected),
            details=details,
            judge=extractor.judge("gpt-3.5-turbo", _query, _grade_extracted, 256),
            notes=(
                _JUDGE_FREE.format(
                    "the chain of thought's rule, the first 'Answer:', in both modes "
                    "(the harness has it for the chain of thought alone)"
                ),
                *(_NEAREST, extractor.OWN_PROMPT),
            ),
        ),
        "vlmevalkit": Protocol(
            *(_ask_vlmevalkit, _grade_vlmevalkit, _corrected),
            details=details,
            judge=extractor.judge("gpt-4o-mini", _query, _matched, 128),
            notes=(
                _JUDGE_FREE.format(
                    "the harness's own comparison of what follows the first 'Answer:'"
                ),
                "the harness never finds a list right",
                extractor.OWN_PROMPT,
            ),
        ),
        "official": Protocol(
            *(_ask, _grade_official, _corrected),
            details=details,
            judge=extractor.judge("gpt-4-0613", _query, _grade_extracted, 256),
            notes=(
                _JUDGE_FREE.format(
                    "quick_extract, 'The answer is \"…\".', else all of the response"
                ),
                *(_NEAREST, extractor.OWN_PROMPT, prompts.OWN_COT),
            ),
        ),
    },
    size=1000,
)
