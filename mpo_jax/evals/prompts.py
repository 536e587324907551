"""Prompts that several benchmarks share."""

from __future__ import annotations

COT_TOKENS = 4096
"""Longest answer of a chain of thought, in every script."""

_COT = (
    "Your task is to answer the question below. Give step by step reasoning before you "
    "answer, and when you're ready to answer, please use the format "
    '"Final answer: .."\n\nQuestion:\n\n{question}'
)

OWN_COT = (
    "the harness asks directly only; a chain of thought is asked for in the words of "
    "the paper's scripts and its answer taken by their rule"
)


def cot(question: str) -> str:
    """The paper's instruction to reason first; the answer follows ``Final answer:``."""
    return _COT.format(question=question)


def numbered_images(count: int) -> str:
    """Where several images stand: ``Image-1: <image>`` and so on, in front."""
    if count < 2:
        return ""
    return "".join(f"Image-{i}: <image>\n" for i in range(1, count + 1))
