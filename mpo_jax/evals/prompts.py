"""Prompts that several benchmarks share."""

from __future__ import annotations

from mpo_jax.verify import formats

COT_TOKENS = 4096
"""Longest answer of a chain of thought, in every script."""

OWN_COT = (
    "the harness asks directly only; a chain of thought is asked for in the words of "
    "the paper's scripts and its answer taken by their rule"
)


def cot(question: str) -> str:
    """The paper's instruction to reason first; the answer follows ``Final answer:``."""
    return formats.FORMATS["en"].wrap(question)


def numbered_images(count: int) -> str:
    """Where several images stand: ``Image-1: <image>`` and so on, in front."""
    if count < 2:
        return ""
    return "".join(f"Image-{i}: <image>\n" for i in range(1, count + 1))
