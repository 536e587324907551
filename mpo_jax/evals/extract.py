r"""An answer out of a response: by the released rule, and without its errors.

The released rule takes the *first* ``Final answer:`` or ``Answer:``, up to the end of
its line, and all of a response without one. :func:`final_answer` takes the last that a
response says about its answer, and nothing where it says nothing.
"""

from __future__ import annotations

import re

from mpo_jax.evals import benchmark, latex_text
from mpo_jax.verify import formats

_QUICK = re.compile(r"(Final answer:|Answer:)\s*(.*)", re.IGNORECASE)
_ENDS = re.compile(r"(?:\s*(?:</s>|<\|(?:im_end|end|endoftext|eot_id)\|>))+\s*$")
_STATED = re.compile(
    r"(?:\[answer\]"
    r"|\b(?:answer|correct\s+(?:choice|option))[\s*]*"
    r"(?:(?:(?:to|for|of)(?:\s+[\w'-]+){1,6}?\s+)?"
    r"(?:is|are|(?:should|would|must|will)\s+be)\b|[:：])"
    r"|答案\s*(?:是|为|[:：]))"
    r"[\s*:：]*(?:(?:therefore|thus|definitely|clearly|still|indeed)\b[\s*:,]*)?"
    r"([^\n]+)",
    re.IGNORECASE,
)
_LETTERED = re.compile(r"\(?[A-Z]\s*[).:](?=\s|$)|\(?[A-Z]\)?$")
_SENTENCE = re.compile(r"(?<!^[A-Za-z])(?<![\s(][A-Za-z])[.。]\s")


def quick(text: str) -> str:
    """The released rule of InternVL's scripts and VLMEvalKit's MPO models."""
    match = _QUICK.search(text)
    return match.group(2).strip() if match else text


def final_answer(response: str, mode: str) -> str:
    r"""What a response says its answer is; "" where it does not say.

    After a chain of thought what its format says; else the last ``\boxed{}``; else a
    first line that begins with an option's letter, where a direct answer was asked for
    or there is no other; else the last "answer is …", "Answer: …" or the like; else all
    of a single line, and the first line of a direct answer.
    """
    text = _ENDS.sub("", response).strip()
    if mode == benchmark.COT:
        parsed = formats.FORMATS["en"].parse(text)
        if parsed.prediction is not None:
            return parsed.prediction
    boxed = latex_text.last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    lines = text.splitlines() or [""]
    first = lines[0] if mode == benchmark.DIRECT or len(lines) == 1 else ""
    stated = _STATED.findall(text)
    if stated and not _LETTERED.match(first):
        return _trimmed(stated[-1])
    return _trimmed(first)


def _trimmed(text: str) -> str:
    """The first sentence, without marks around it; ``B. text`` is one."""
    text = _SENTENCE.split(text.strip(), maxsplit=1)[0]
    return text.strip(" \t*\"'`").rstrip(".。").strip(" \t*\"'`")
