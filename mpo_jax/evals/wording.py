"""What harnesses write around a question, and what they read out of a response."""

from __future__ import annotations

import re

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."

COT_TOKENS = 4096
"""Longest answer with reasoning, in every harness here."""

_COT = (
    "Your task is to answer the question below. Give step by step reasoning before "
    "you answer, and when you're ready to answer, please use the format "
    '"Final answer: .."\n\nQuestion:\n\n'
)
_BOXED = (
    "\nAnswer the preceding question. The last line of your response should follow "
    "this format: 'Answer: \\boxed{$FINAL_ANSWER}' (without quotes), where "
    "'FINAL_ANSWER' is your conclusion based on the reasoning provided. If you are "
    "uncertain or the problem is too complex, make a reasoned guess based on the "
    "information provided. Avoid repeating steps indefinitely—provide your best guess "
    "even if unsure. Think step by step logically, considering all relevant "
    "information before answering."
)
_FINAL = re.compile(r"(?:Final answer:|Answer:)\s*(.*)", re.IGNORECASE)


def cot(question: str) -> str:
    """A question as InternVL's scripts and VLMEvalKit's MPO prompt ask to reason."""
    return _COT + question


def boxed_cot(question: str) -> str:
    """A question as VLMEvalKit asks other models of this family to reason."""
    return question + _BOXED


def quick_answer(response: str) -> str:
    """What stands behind the first ``Final answer:`` or ``Answer:`` in its line.

    The whole response where neither occurs.
    """
    found = _FINAL.search(response)
    return (found[1] if found else response).strip()


def last_answer(response: str) -> str:
    """What stands behind the last ``Answer:``; the whole response without one."""
    return response.rpartition("Answer:")[2].strip()
