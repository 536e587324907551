"""How MMMU's authors find the answer of a response and compare it.

One difference: of a response in which their rule finds no option they draw one at
random; here that is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mpo_jax.evals import choices

_EDGES = ",.!?;:'"
_LONG = 5
"""Words; only longer responses are searched for texts of options."""


def option(response: str, options: Sequence[str], letters: str) -> str:
    """The letter of the option that a response means last, "" where it means none.

    ``(A)``, else a letter between spaces, else, in a response of more than five words,
    the text of an option.

    Args:
      options: texts, or none if they are not known.
      letters: of the options.
    """
    for mark in _EDGES:
        response = response.strip(mark)
    response = f" {response} "
    bracketed = [letter for letter in letters if f"({letter})" in response]
    if bracketed:
        return max(bracketed, key=lambda letter: response.rfind(f"({letter})"))
    spaced = [letter for letter in letters if f" {letter} " in response]
    if spaced:
        return max(spaced, key=lambda letter: response.rfind(f" {letter} "))
    if len(response.split()) <= _LONG:
        return ""
    lowered = response.lower()
    texts = {
        letter: text.lower()
        for letter, text in zip(choices.LETTERS, options, strict=False)
        if text.lower() in lowered
    }
    return max(texts, key=lambda letter: lowered.rfind(texts[letter]), default="")


_CUES = (
    *("could be ", "so ", "is ", "thus ", "therefore ", "final "),
    *("answer ", "result "),
)
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def open_answers(response: str) -> set[str | float]:
    """Everything in a response that may be its answer: ends of lines, numbers."""
    keys = _keys(response)
    found = [*keys, *(number for key in keys for number in _numbers(key))]
    return {form for text in found for form in normalised(text)}


def _keys(response: str) -> list[str]:
    """What follows the last cue of a line, the shortest for each line."""
    response = response.strip().strip(".").lower()
    # Upstream also means to split sentences, at a capital that lower() has taken away.
    lines = response.split("\n")
    keys = []
    for number, line in enumerate(lines, 1):
        cues = (*_CUES, "=") if number == len(lines) else _CUES
        shortest = ""  # one that is empty gives way to the next
        for end in (line.split(cue)[-1].strip() for cue in cues if cue in line):
            if not shortest or len(end) < len(shortest):
                shortest = end
        if shortest and shortest not in tuple(_EDGES):
            keys.append(shortest)
    return keys or [response]


def _numbers(text: str) -> list[str]:
    return [number for form in _NUMBERS for number in form.findall(text)]


def normalised(text: str) -> list[str | float]:
    """A number to two decimals, else lower case; a single letter with a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def open_right(found: set[str | float], answers: Sequence[str]) -> bool:
    """Is a number equal to a true one, or a true text part of a text?"""
    true = [form for answer in answers for form in normalised(answer)]
    texts = [form for form in true if isinstance(form, str)]
    return any(
        any(text in one for text in texts) if isinstance(one, str) else one in true
        for one in found
    )
