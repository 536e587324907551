"""Stored answers through a benchmark's protocol, as its report will have them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mpo_jax.evals import registry
from mpo_jax.evals.benchmark import Graded, Item, Tools
from mpo_jax.evals.sources import Folder
from mpo_jax.verify import ladder
from mpo_jax.verify.verdict import UNDECIDED, WRONG, Truth, Verdict


def check(prediction: str, truth: Truth) -> Verdict:
    """The ladder without mathematics."""
    found = ladder.decide(prediction, truth)
    return found if found is not None else Verdict(UNDECIDED, "mathematics")


TOOLS = Tools(check)


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def published(shared: pathlib.Path, name: str) -> pathlib.Path:
    """Folder of a benchmark's gold and of stored answers to it."""
    path = shared / "data" / "benchmarks" / name
    if not path.is_dir():
        pytest.skip(f"no published outputs ({path} is absent)")
    return path


def read(name: str, folder: pathlib.Path) -> list[Item]:
    return list(registry.get(name).read(Folder(folder)))


class Scored:
    """Answers by id, graded; blank ones must not be among them."""

    def __init__(
        self,
        name: str,
        protocol: str,
        folder: pathlib.Path,
        answers: Mapping[str, str],
        mode: str = "direct",
        *,
        corrected: bool = False,
    ):
        chosen = registry.get(name).protocols[protocol]
        grade = chosen.corrected if corrected else chosen.grade
        assert grade is not None
        items = [item for item in read(name, folder) if item.id in answers]
        assert len(items) == len(answers), "an answer has no item"
        self.graded = [
            Graded(item, answers[item.id], grade(item, answers[item.id], mode, TOOLS))
            for item in items
        ]
        points = np.asarray([one.grade.points for one in self.graded])
        self.score = chosen.metric(items, points)(np.ones(len(items)))
        self.right = sum(one.grade.verdict.right for one in self.graded)
        self.undecided = sum(
            one.grade.verdict.outcome == UNDECIDED for one in self.graded
        )
        self.wrong = sum(one.grade.verdict.outcome == WRONG for one in self.graded)
        self.details = chosen.details(self.graded) if chosen.details else {}

    def by(self, *axes: str) -> dict[tuple[str, ...], tuple[int, int]]:
        """Right answers and all, by values of categories."""
        found: dict[tuple[str, ...], tuple[int, int]] = {}
        for one in self.graded:
            key = tuple(one.item.categories[axis] for axis in axes)
            right, total = found.get(key, (0, 0))
            found[key] = (right + one.grade.verdict.right, total + 1)
        return found
