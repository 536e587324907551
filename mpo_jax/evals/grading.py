"""Grades of responses, by the released rule and, where there is one, the corrected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures

from mpo_jax.evals import benchmark

EMPTY = "empty"
"""Rule: nothing was said."""


@dataclasses.dataclass(frozen=True)
class Said:
    """An item with one response to it, and what the caller knows it by."""

    item: benchmark.Item
    sample: int
    text: str


def grade(
    said: Said, protocol: benchmark.Protocol, mode: str, tools: benchmark.Tools
) -> benchmark.Graded:
    """Grade one response. One that says nothing is wrong under every rule."""

    def by(rule: benchmark.Grader) -> benchmark.Grade:
        if not said.text.strip():
            return benchmark.Grade.of("", False, EMPTY)
        return rule(said.item, said.text, mode, tools)

    corrected = None if protocol.corrected is None else by(protocol.corrected)
    return benchmark.Graded(said.item, said.text, by(protocol.grade), corrected)


def grades(
    said: Iterable[Said],
    protocol: benchmark.Protocol,
    mode: str,
    tools: benchmark.Tools,
    *,
    threads: int,
    done: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Said, benchmark.Graded]]:
    """Grade responses, in order.

    Args:
      threads: that wait for the workers of ``verify``.
      done: called after each.
    """
    said = list(said)
    with futures.ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda one: grade(one, protocol, mode, tools), said)
        for one, graded in zip(said, found, strict=True):
            done()
            yield one, graded
