"""Options of a question: as text, and which of them an answer means.

Each rule here is a released one and keeps its errors; ``corrected`` has none of them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

LETTERS = string.ascii_uppercase
ASK_LETTER = "Answer with the option's letter from the given choices directly."
ASK_SHORT = "Answer the question using a single word or phrase."


def listed(options: Sequence[str], form: str = "{}. {}") -> str:
    """Lines ``A. text``, or of another form."""
    return "\n".join(form.format(*pair) for pair in zip(LETTERS, options, strict=False))


def letters(options: Sequence[str]) -> str:
    """The letters of options, in order."""
    return LETTERS[: len(options)]


def internvl(answer: str, options: Sequence[str]) -> str:
    """InternVL's rule for M3CoT and ScienceQA (MMMU: :func:`internvl_mmmu`).

    A letter in front is an option, ``A man`` too; then the first option whose text the
    answer holds; then ``X.`` and ``(X)``.
    """
    answer = internvl_mmmu(answer, options)
    if len(answer) > 1 and answer[1] == ".":
        return answer[0]
    # Upstream fails on two characters, of which the first is a bracket.
    if len(answer) > 2 and answer[0] == "(" and answer[2] == ")":
        return answer[1]
    return answer


def internvl_mmmu(answer: str, options: Sequence[str]) -> str:
    """The beginning of InternVL's rule; the answer itself where no option is found."""
    answer = answer.strip()
    if len(answer) <= 1:
        return answer
    if answer[0] in letters(options):
        return answer[0]
    for letter, text in zip(LETTERS, options, strict=False):
        if text in answer:
            return letter
    return answer


_BRACKETED = re.compile(r"\(([A-Za-z])\)")
_MARKS = re.compile(r"[\n.,!?]")


def m3cot(answer: str, options: Sequence[str]) -> str:
    """M3CoT's own rule; "" where it finds nothing."""
    if "[Answer]" in answer:
        answer = answer.split("[Answer]")[-1].split("[Rationale]")[0]
        answer = answer.split("[Context]")[0]
    bracketed = _BRACKETED.findall(answer)
    if bracketed:
        return bracketed[-1].upper()
    lowered = answer.lower()
    pieces = set(_MARKS.sub(" ", answer).split(" "))
    known = list(zip(LETTERS, options, strict=False))
    for found in (
        [letter for letter, text in known if text.lower() in lowered],
        [letter for letter, _ in known if letter in pieces],
        [letter for letter, _ in known if letter.lower() in pieces],
    ):
        if found:
            return found[-1]
    return ""
