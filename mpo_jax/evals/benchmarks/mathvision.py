r"""MATH-Vision: 3,040 problems of competitions with pictures, options or free answers.

The authors' rule finds an answer by a chain of replacements and compares it with the
true letter and with the text of its option: as texts, else by value to two decimals.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from mpo_jax.evals import (
    arithmetic,
    choices,
    corrected,
    extract,
    extractor,
    latex_text,
    prompts,
    rows,
    vlmevalkit,
)
from mpo_jax.evals.benchmark import COT, Ask, Benchmark, Grade, Item, Protocol, Tools
from mpo_jax.evals.sources import Folder, Source

SOURCE = Source(
    hub="MathLLMs/MathVision",
    files=(
        *("data/test-*.parquet", "test-*.parquet", "test.jsonl", "data/test.jsonl"),
        "MathVision.tsv",
    ),
    licence="MIT",
    md5={
        "MathVision.tsv": ("93f6de14f7916e598aa1b7165589831e",),
        "MathVision_MINI.tsv": ("060fe4fa5d868987ce179307bd5f8a33",),
    },
    notes="images.zip of the same repository where the questions are test.jsonl",
)


def read(folder: Folder, source: Source = SOURCE) -> Iterator[Item]:
    """Items; ids are ``id``."""
    for where, row in rows.read(folder, source):
        asked = rows.text(row, where, "question")
        options = rows.options(row, where, "options", "choices")
        answer = rows.text(row, where, "answer")
        yield Item(
            id=rows.text(row, where, "id", "index"),
            # VLMEvalKit's question is with hint and choices.
            question=bare(asked) if "index" in row else asked,
            answer=rows.letter(answer, options, where) if options else answer,
            images=rows.images(folder, row, "decoded_image", "image", "image_path"),
            options=options,
            categories={
                "subject": rows.text(row, where, "subject", "category"),
                "level": rows.optional(row, "level") or "unknown",
            },
            fields={"query": asked if "index" in row else ""},
        )


def bare(question: str) -> str:
    """A question of VLMEvalKit's table without its hint and choices."""
    question = question.split("Question:", 1)[-1]
    return question.split("\nChoices:", 1)[0].strip()


def query(item: Item) -> str:
    """VLMEvalKit's question, from its table or made like it."""
    if item.fields["query"]:
        return item.fields["query"]
    end = "and provide the final answer at the end."
    if item.options:
        end = "and provide the correct option letter, e.g., A, B, C, D, at the end."
    text = f"Hint: Please answer the question {end}\nQuestion: {item.question}"
    if item.options:
        text += "\nChoices:\n" + choices.listed(item.options, "({}) {}")
    return text


def _ask_vlmevalkit(item: Item, mode: str) -> Ask:
    if mode == COT:
        lines = [item.question]
        if item.options:
            lines.append(choices.listed(item.options, "({}) {}"))
        return vlmevalkit.ask(vlmevalkit.mpo("\n".join(lines)))
    return vlmevalkit.ask(query(item))


def _ask_official(item: Item, mode: str) -> Ask:
    options = ""
    if item.options and "".join(item.options) != choices.letters(item.options):
        options = choices.listed(item.options, "({}) {}") + "\n"
    text = f"{item.question}\n{options}"
    if mode == COT:
        return Ask(
            "Please solve the problem step by step and put your answer in one "
            '"\\boxed{}". If it is a multiple choice question, only one letter is '
            f'allowed in the "\\boxed{{}}".\n{text}',
            prompts.COT_TOKENS,
        )
    return Ask(f"{text}\n{choices.ASK_SHORT}", prompts.COT_TOKENS)


_FLAGS = tuple(
    the + flag
    for flag in (
        "final answer is",
        "answer is",
        "correct answer is",
        "answer should be",
    )
    for the in ("the ", "The ")
)
_UNITS = tuple(
    (unit, "") for unit in ("{m}^3", "m^3", "{units}", "units", "{km}", "km")
)
_CLEANED = (
    *((" ", ""), ("\\,", ""), ("∞", "\\infty"), ("+\\infty", "\\infty")),
    *(("\\\\", "\\"), ("\n", ""), ("\\text", ""), ("\\mbox", "")),
    *(("bmatrix", "pmatrix"), ("\\left", ""), ("\\right", "")),
    *(("^{\\circ}", ""), ("^\\circ", ""), *_UNITS),
    *(("\\$", ""), ("$", "")),
)
_LETTERED = tuple(
    (form.format(letter), letter) for form in ("({})", "{{{}}}") for letter in "abcde"
)
_BOXED = re.compile(r"oxed\{(.*)\}", re.DOTALL)


def extracted(response: str) -> str:
    """The authors' answer of a response, lower case and without spaces."""
    text = response.strip()
    for letter in choices.LETTERS[:5]:
        heads = (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        if text.endswith((f" {letter}.", f" ({letter}).")) or text.startswith(heads):
            text = letter
    after_is = text.split("is ")[-1].rstrip(".")
    if _is_number(after_is):
        text = after_is
    if "oxed{" not in text:
        for flag in _FLAGS:
            if flag in text:
                text = text.split(flag)[-1].strip().split("\n")[0].split(". ")[0]
    elif text.count("oxed{") > 1:
        text = "\\boxed{" + text.split("oxed{")[-1]
    text = latex_text.replaced(_cleaned(text), _LETTERED)
    return text.rstrip(".").lstrip(":").strip()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cleaned(text: str) -> str:
    text = text.lower().replace("{}", "")
    boxed = _BOXED.findall(text)
    text = boxed[-1] if boxed else text
    opening, closing = text.find("{"), text.find("}")
    if closing >= 0 and not 0 <= opening < closing:
        text = text[:closing]
    text = text.split("=")[-1].split("\\approx")[-1]
    text = latex_text.plain(latex_text.replaced(text, _CLEANED))
    text = latex_text.right_side(text, "\\approx").replace(" ", "")
    if "sqrt" in text:
        text = latex_text.braced_fractions(latex_text.braced_roots(text))
    return latex_text.fraction_of_slash(text)


def equal(said: str, true: str) -> bool:
    """Are two answers the same to the authors: as texts, or to two decimals?"""
    said, true = said.lower(), true.lower()
    if not said.strip() or not true.strip():
        return False
    if said.strip() == true.strip():
        return True
    said, true = _tuple_evaluated(said), _tuple_evaluated(true)
    if said == true:
        return True
    values = arithmetic.value(said), arithmetic.value(true)
    if values[0] is None or values[1] is None:
        return False
    return round(values[0], 2) == round(values[1], 2)


def _tuple_evaluated(text: str) -> str:
    """``(1/2, 3)`` as ``(0.5,3.0)``; the same where something in it is no number."""
    elements = text[1:-1].split(",")
    if text[0] + text[-1] not in ("()", "[]") or len(elements) < 2:
        return text
    found = []
    for element in elements:
        if "infty" in element or element in ("a", "-a"):
            found.append(element)
            continue
        number = arithmetic.value(element)
        if number is None:
            return text
        found.append(str(round(number, 2)))
    return text[0] + ",".join(found) + text[-1]


def _grade_official(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    del mode, tools
    said = extracted(response)
    if not said:
        return corrected.unparsed()
    true = str(item.answer)
    right = equal(said, true)
    if not right and item.options:
        right = equal(said, item.options[choices.LETTERS.index(true)])
    return Grade.of(said, right, "text, or value to two decimals")


_FIRST_BOX = re.compile(r"\\boxed\{([^}]*)\}")


def _matched(item: Item, said: str) -> Grade:
    """VLMEvalKit's comparison: the first box, options inferred, values to 1e-6."""
    boxed = _FIRST_BOX.search(said)
    said = boxed.group(1) if boxed else said
    if item.options:
        said = vlmevalkit.infer(said, item.options)
        if said in ("", vlmevalkit.NO_OPTION):
            return corrected.unparsed()
    one, other = said.lower().strip(), str(item.answer).lower().strip()
    right = one == other
    values = arithmetic.value(one), arithmetic.value(other)
    if not right and values[0] is not None and values[1] is not None:
        right = abs(values[0] - values[1]) < 1e-6
    return Grade.of(said, right, "text, option or value")


def _grade_vlmevalkit(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    del mode, tools
    return _matched(item, extract.quick(response))


PROTOCOLS = {
    "vlmevalkit": Protocol(
        *(_ask_vlmevalkit, _grade_vlmevalkit, corrected.grader()),
        judge=extractor.judge("gpt-4o-mini", query, _matched, 128),
        notes=(
            "judge-free: the harness's own comparison of what follows the first "
            "'Answer:', else of all; it lets a model extract the answer, which the "
            "judge does",
            "expressions are evaluated by a parser of our own, not run as a program",
            extractor.OWN_PROMPT,
        ),
    ),
    "official": Protocol(
        *(_ask_official, _grade_official, corrected.grader()),
        notes=(
            "the authors' rule takes 1/12 and 1/13 for the same (two decimals) and a "
            "clock time for a quotient; corrected: the answer said last, by verify",
            "expressions are evaluated by a parser of our own, not run as a program",
        ),
    ),
}

BENCHMARK = Benchmark(
    name="mathvision",
    title="MATH-Vision",
    source=SOURCE,
    read=read,
    protocols=PROTOCOLS,
    size=3040,
)


def part(name: str, title: str, files: tuple[str, ...], size: int) -> Benchmark:
    """A part of it that has files of its own."""
    source = dataclasses.replace(SOURCE, files=files)
    return Benchmark(
        name, title, source, lambda folder: read(folder, source), PROTOCOLS, size=size
    )
