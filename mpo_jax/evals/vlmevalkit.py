"""What VLMEvalKit asks InternVL, and how it finds the option that an answer means."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mpo_jax.evals import choices, prompts
from mpo_jax.evals.benchmark import Ask

MAX_NEW_TOKENS = 4096
ALL_IMAGES = 64
"""Tiles of the images of a prompt together, thumbnails aside."""

_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
NO_OPTION = "Z"
_CHINESE = re.compile("[\u4e00-\u9fff]")


def ask(text: str, images: int = 1, tiles: int = 6) -> Ask:
    """A message about images, several of them numbered in front.

    Args:
      tiles: of one image.
    """
    count = max(images, 1)
    each = max(1, min(tiles, ALL_IMAGES // count))
    return Ask(prompts.numbered_images(images) + text, MAX_NEW_TOKENS, each * count)


def multiple_choice(question: str, options: Sequence[str], hint: str = "") -> str:
    """The direct question of a set of type MCQ."""
    lines = [line for line in (hint, question, choices.listed(options)) if line]
    text = "\n".join(lines)
    chinese = bool(_CHINESE.search(text))
    if options:
        end = "请直接回答选项字母。" if chinese else choices.ASK_LETTER
    else:
        end = "请直接回答问题。" if chinese else "Answer the question directly."
    return f"{text}\n{end}"


def mpo(question: str, options: Sequence[str] = ()) -> str:
    """The chain-of-thought question of the MPO models; hints are dropped."""
    lines = [question, choices.listed(options)] if options else [question]
    return prompts.cot("\n".join(lines)).strip()


def infer(answer: str, options: Sequence[str]) -> str:
    """The option that an answer means: its letter, ``Z`` for none, "" if not inferred.

    One letter alone, among the last five words; else the one text of an option that
    the answer holds, if it is not much longer than all of them. Where this infers
    nothing the harness asks a model.
    """
    return _infer_letter(answer, options) or _infer_text(answer, options)


def _infer_letter(answer: str, options: Sequence[str]) -> str:
    if any(refusal in answer for refusal in _REFUSALS):
        return NO_OPTION
    words = answer.translate(_MARKS).split()
    found = [letter for letter in choices.letters(options) if letter in words]
    if len(found) == 1:
        near_end = words.index(found[0]) > len(words) - 5
        return found[0] if near_end else ""
    return NO_OPTION if not found and NO_OPTION in words else ""


def _infer_text(answer: str, options: Sequence[str]) -> str:
    if len(answer) > 2 * sum(map(len, options)):
        return ""
    answer = answer.lower()
    found = [
        letter
        for letter, text in zip(choices.LETTERS, options, strict=False)
        if text.lower() in answer
    ]
    return found[0] if len(found) == 1 else ""
