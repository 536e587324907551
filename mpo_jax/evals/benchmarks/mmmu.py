"""MMMU, validation: 900 questions of colleges; options, or a short answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from mpo_jax.evals import (
    choices,
    corrected,
    extract,
    mmmu_rules,
    prompts,
    rows,
    vlmevalkit,
)
from mpo_jax.evals.benchmark import COT, Ask, Benchmark, Grade, Item, Protocol, Tools
from mpo_jax.evals.benchmarks import scienceqa
from mpo_jax.evals.sources import Folder, Image, Source
from mpo_jax.verify import verdict

SOURCE = Source(
    hub="MMMU/MMMU",
    files=(
        *("*/validation-*.parquet", "validation-*.parquet", "MMMU_DEV_VAL.tsv"),
        "answer_dict_val.json",
    ),
    licence="Apache-2.0",
    md5={
        "MMMU_DEV_VAL.tsv": (
            "585e8ad75e73f75dcad265dfd0417d64",
            "521afc0f3bf341e6654327792781644d",
        )
    },
    notes="answer_dict_val.json has the answers alone",
)

MULTIPLE_CHOICE = "multiple-choice"
UNKNOWN_LETTERS = choices.LETTERS[:9]
"""Options of a file of answers, which does not say how many there are."""

_DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        *("Basic_Medical_Science", "Clinical_Medicine", "Pharmacy", "Public_Health"),
        "Diagnostics_and_Laboratory_Medicine",
    ),
    "Humanities and Social Science": (
        *("History", "Literature", "Sociology", "Psychology"),
    ),
    "Tech and Engineering": (
        *("Agriculture", "Architecture_and_Engineering", "Computer_Science"),
        *("Electronics", "Energy_and_Power", "Materials", "Mechanical_Engineering"),
    ),
}
_DISCIPLINE = {
    subject: discipline
    for discipline, subjects in _DISCIPLINES.items()
    for subject in subjects
}


def read(folder: Folder) -> Iterator[Item]:
    """Items of the validation split; ids are ``id``."""
    for where, row in rows.read(folder, SOURCE):
        if rows.optional(row, "split") in ("dev", "test"):
            continue
        name = rows.text(row, where, "id", "_key", "index")
        options = rows.options(row, where, "options")
        kind = _kind(row, options)
        answer = rows.literal(row.get("ground_truth", row.get("answer")))
        several = isinstance(answer, list)
        # Else as it is written: a literal makes 0.1 of 0.10.
        text = "" if several else rows.text(row, where, "ground_truth", "answer")
        yield Item(
            id=name,
            question=rows.optional(row, "question"),
            answer=tuple(str(one) for one in answer) if several else text,
            images=_images(folder, row),
            options=options,
            categories=_categories(name, row),
            fields={"kind": kind},
        )


def _kind(row: rows.Row, options: tuple[str, ...]) -> str:
    named = rows.optional(row, "question_type")
    if named:
        return MULTIPLE_CHOICE if named == MULTIPLE_CHOICE else "open"
    return MULTIPLE_CHOICE if options else "open"


def _images(folder: Folder, row: rows.Row) -> tuple[Image, ...]:
    found = rows.images(folder, row)
    return found or tuple(
        image for i in range(1, 8) for image in rows.images(folder, row, f"image_{i}")
    )


def _categories(name: str, row: rows.Row) -> dict[str, str]:
    """Subject, from ids like ``validation_Art_Theory_7``, and discipline."""
    subject = "_".join(name.split("_")[1:-1]) or rows.optional(row, "category")
    subject = subject.replace(" ", "_")
    discipline = _DISCIPLINE.get(subject)
    if discipline is None:
        return {"subject": subject} if subject else {}
    return {"subject": subject, "discipline": discipline}


def _is_choice(item: Item) -> bool:
    return item.fields["kind"] == MULTIPLE_CHOICE


def _question(item: Item) -> str:
    options = [option.strip() for option in item.options]
    lines = (item.question.strip(), choices.listed(options))
    return "\n".join(line for line in lines if line)


def _ask(item: Item, mode: str) -> Ask:
    images = prompts.numbered_images(len(item.images))
    # The script cuts the first image into six tiles, each other one is a tile.
    tiles = 6 + max(0, len(item.images) - 1)
    if mode == COT:
        text = prompts.cot(_question(item))
        return Ask(images + text, prompts.COT_TOKENS, tiles)
    end = choices.ASK_LETTER if _is_choice(item) else choices.ASK_SHORT
    return Ask(f"{images}{_question(item)}\n{end}", 10, tiles)


def _ask_vlmevalkit(item: Item, mode: str) -> Ask:
    if mode == COT:
        text = vlmevalkit.mpo(item.question, item.options)
    else:
        text = vlmevalkit.multiple_choice(item.question, item.options)
    return vlmevalkit.ask(text, len(item.images), tiles=12)


def _said(response: str, mode: str) -> str:
    return extract.quick(response) if mode == COT else response


def _grade_paper(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    del tools
    said = _said(response, mode)
    if not _is_choice(item):
        return _open(item, choices.internvl_mmmu(said, item.options))
    found = choices.internvl_mmmu(said, item.options)
    return Grade.of(found, found in corrected.answers(item), "internvl's option")


def _grade_official(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    del tools
    said = _said(response, mode)
    if not _is_choice(item):
        return _open(item, said)
    letters = choices.letters(item.options) or UNKNOWN_LETTERS
    found = mmmu_rules.option(said, item.options, letters)
    if not found:
        return corrected.unparsed()
    return Grade.of(found, found in corrected.answers(item), "mmmu's option")


def _open(item: Item, said: str) -> Grade:
    found = mmmu_rules.open_answers(said)
    right = mmmu_rules.open_right(found, corrected.answers(item))
    return Grade.of(said.strip(), right, "mmmu's open answer")


def _grade_vlmevalkit(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    """An open question is one of two options there: the answer, or other answers."""
    if _is_choice(item):
        texts = item.options or ("",) * len(UNKNOWN_LETTERS)
        known = dataclasses.replace(item, options=texts)
        return scienceqa.grade_vlmevalkit(known, response, mode, tools)
    found = vlmevalkit.infer(
        _said(response, mode).strip(), (corrected.answers(item)[0], "Other Answers")
    )
    if found in ("", vlmevalkit.NO_OPTION):
        return corrected.unparsed()
    return Grade.of(found, found == "A", "vlmevalkit's option")


def _corrected(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    said = extract.final_answer(response, mode)
    if not said:
        return corrected.unparsed()
    kind = verdict.OPTION if _is_choice(item) else ""
    return corrected.against(item, said, tools, kind)


_RANDOM = (
    "the harness draws an option at random for what it finds none in (seed 42); here "
    "that is wrong"
)
_SUBSTRING = (
    "the released rule takes an open answer for right where a true text is part of it, "
    "'no' of 'not known'; corrected: the answer said last, by verify"
)

BENCHMARK = Benchmark(
    name="mmmu",
    title="MMMU (validation)",
    source=SOURCE,
    read=read,
    protocols={
        "paper": Protocol(
            *(_ask, _grade_paper, _corrected),
            notes=(
                "the script doubles the first image, cuts it into six tiles and puts "
                "the tiles of all images into one place; here images keep their size, "
                "are numbered, and share as many tiles",
                "its chain-of-thought script is not released: asked for in the words "
                "of the others",
                _SUBSTRING,
            ),
        ),
        "vlmevalkit": Protocol(
            *(_ask_vlmevalkit, _grade_vlmevalkit, _corrected),
            notes=(
                scienceqa.EXACT_MATCHING,
                "the harness doubles the first image, which is not done here",
            ),
        ),
        "official": Protocol(
            *(_ask, _grade_official, _corrected),
            notes=(
                "the authors leave the prompt to the model's own; InternVL's is asked",
                *(_RANDOM, _SUBSTRING, prompts.OWN_COT),
            ),
        ),
    },
    size=900,
)
