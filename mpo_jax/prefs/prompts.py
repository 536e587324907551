"""Prompts for answers that are judged: formats, options, instructions, placeholders."""

from __future__ import annotations

import string
from collections.abc import Sequence

from mpo_jax import ledger
from mpo_jax.prefs.questions import Question
from mpo_jax.verify import formats
from mpo_jax.verify.verdict import OPTION, YES_NO

PLACEHOLDER = "<image>"

ASK_SHORT = "Answer the question using a single word or phrase."
ASK_LETTER = "Answer with the option's letter from the given choices directly."
ASK_YES_NO = "Please answer Yes or No."
ASK_BOXED = "Please answer the question and put the final answer within \\boxed{}."
INSTRUCTIONS = (ASK_SHORT, ASK_LETTER, ASK_YES_NO, ASK_BOXED)
"""How data ask for the form of an answer; a format has its own way."""

DIRECT = "direct"

# The paper names these three ways of reasoning, not its words for them.
_BACKGROUND = """\
Your task is to answer the question below. First recall the background knowledge that \
the question rests on, such as facts, definitions, laws and formulas; then apply it \
step by step to what the image and the question give. When you're ready to answer, \
please use the format "Final answer: .."

Question:

{question}"""

_VISUAL = """\
Your task is to answer the question below. First describe what the image shows as far \
as the question needs it: objects, texts, numbers, and how they stand to each other; \
then reason step by step from what you have seen. When you're ready to answer, please \
use the format "Final answer: .."

Question:

{question}"""

_GROUNDED = """\
Your task is to answer the question below. Reason step by step, and tie every step to \
the image: name each object or region that a step rests on and say where in the image \
it is. When you're ready to answer, please use the format "Final answer: .."

Question:

{question}"""

_EN = formats.FORMATS["en"].parser

FORMATS = formats.FORMATS | {
    form.name: form
    for form in (
        formats.Format("background", _BACKGROUND, _EN),
        formats.Format("visual", _VISUAL, _EN),
        formats.Format("grounded", _GROUNDED, _EN),
    )
}
"""All formats by name: those of ``verify.formats``, and the paper's variants of the
chain of thought, whose answers have the form of ``en``."""


def get_format(name: str) -> formats.Format:
    """The format called `name`.

    Raises:
      ValueError: there is none; names those there are.
    """
    if name not in FORMATS:
        raise ValueError(f"format {name!r}: use one of {', '.join(FORMATS)}")
    return FORMATS[name]


def prompt_of(question: Question, form: str) -> str:
    """The text that is sent, as MMPR stores it in ``question``.

    A known instruction at the end is taken off (``direct`` keeps or adds one), options
    are listed unless the text lists them, and placeholders of images go in front,
    unless there are several in the text.

    Raises:
      BadRecord: ``image_count``: placeholders and images differ in number.
      ValueError: there is no such format.
    """
    text, front = _placed(question.text, len(question.images))
    bare = without_instruction(text)
    if not bare:
        detail = f"question={ledger.short(text)}: is an instruction and asks nothing"
        raise ledger.BadRecord("bad_field", detail)
    options = question.truth.options
    asked = bare
    if options and not _lists(bare, options):
        asked += "\n" + "\n".join(
            f"{letter}. {option}"
            for letter, option in zip(string.ascii_uppercase, options, strict=False)
        )
    if form == DIRECT:
        asked += "\n" + (_instruction_of(text) or _instruction_for(question))
    return front + get_format(form).wrap(asked)


def placed(question: Question) -> str:
    """The question's own text as a prompt, with placeholders of its images.

    Raises:
      BadRecord: as :func:`prompt_of`.
    """
    text, front = _placed(question.text, len(question.images))
    return front + text


def check_images(question: Question, prompt: str) -> None:
    """Check that a question's text, or `prompt` where there is one, fits its images.

    Raises:
      BadRecord: ``image_count``.
    """
    _placed(prompt or question.text, len(question.images))


def without_instruction(text: str) -> str:
    """A question without known instructions at its end, and without outer blanks."""
    text = text.strip()
    while found := _instruction_of(text):
        text = text.removesuffix(found).strip()
    return text


def _instruction_of(text: str) -> str:
    """The known instruction that a text ends with, or ""."""
    ended = text.rstrip()
    return next((known for known in INSTRUCTIONS if ended.endswith(known)), "")


def _instruction_for(question: Question) -> str:
    """How to ask for a bare answer."""
    if question.truth.options or question.truth.kind == OPTION:
        return ASK_LETTER
    return ASK_YES_NO if question.truth.kind == YES_NO else ASK_SHORT


def _placed(text: str, images: int) -> tuple[str, str]:
    """The text, and the placeholders that go before the whole prompt."""
    count = text.count(PLACEHOLDER)
    if count == 0:
        return text, f"{PLACEHOLDER}\n" * images
    if count != images:
        raise ledger.BadRecord(
            "image_count",
            f"images: {images} for {count} {PLACEHOLDER!r} in the question; they must "
            "be equal, or none be marked",
        )
    if count == 1:
        return text.replace(PLACEHOLDER, "").strip(), f"{PLACEHOLDER}\n"
    return text, ""


def _lists(text: str, options: Sequence[str]) -> bool:
    """Does a text name every option with its letter?"""
    return all(
        any(f"{mark} {option}" in text or f"{mark}{option}" in text for mark in marks)
        for marks, option in (
            ((f"{letter}.", f"{letter})", f"{letter}:"), option)
            for letter, option in zip(string.ascii_uppercase, options, strict=False)
        )
    )
