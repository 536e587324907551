"""What a benchmark is: items, and protocols that ask about and grade them.

A *protocol* is how one harness does it, as released: ``paper`` (InternVL's own
scripts), ``vlmevalkit`` and ``official`` (the benchmark's authors). Scores of one model
differ between protocols by as much as models do, so each is named beside its score.
Everything here is a function of its arguments; files are read in ``sources``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mpo_jax import config
from mpo_jax.evals import sources
from mpo_jax.verify import verdict as verdict_lib
from mpo_jax.verify.verdict import Truth, Verdict

DIRECT, COT = MODES = config.EVALUATION_MODES
PAPER, VLMEVALKIT, OFFICIAL = PROTOCOLS = config.EVALUATION_PROTOCOLS


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of a benchmark, as its files have it.

    Attributes:
      id: the benchmark's own; unique in it.
      question: text without prompt or options; "" where a file of answers to grade by
        has none: such an item can be graded, not asked.
      answer: the true one, or several that are all true; None where there is none (a
        judge grades).
      images: paths below the data folder, or encoded bytes.
      options: texts in order (A, B, …).
      categories: value by axis, e.g. ``{"subject": "algebra"}``; scores are given for
        each.
      group: items of one group are not independent (questions on one image, one
        question with its options turned round); "" is a group of its own.
      fields: what else the benchmark's prompts and rules need.
    """

    id: str
    question: str
    answer: str | tuple[str, ...] | None
    images: tuple[sources.Image, ...] = ()
    options: tuple[str, ...] = ()
    categories: Mapping[str, str] = dataclasses.field(default_factory=dict)
    group: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ask:
    """What a model is asked.

    Attributes:
      text: the user's message; a single image without ``<image>`` comes first.
      max_new_tokens: longest answer.
      max_tiles: of the images of the item together.
      system: None is the model's own.
    """

    text: str
    max_new_tokens: int
    max_tiles: int = 6
    system: str | None = None


@dataclasses.dataclass(frozen=True)
class Grade:
    """How an answer was graded.

    Attributes:
      prediction: what was taken for the answer; "" where nothing was found.
      verdict: with the rule that decided. An answer without a prediction is wrong.
      points: from 0 to 1 (what a metric averages).
      reference: points of the answer that it is measured by, where a judge rates that
        one beside it; None elsewhere.
    """

    prediction: str
    verdict: Verdict
    points: float
    reference: float | None = None

    @classmethod
    def of(cls, prediction: str, right: bool, rule: str) -> Grade:
        """Of a rule that says yes or no."""
        outcome = verdict_lib.RIGHT if right else verdict_lib.WRONG
        return cls(prediction, Verdict(outcome, rule), float(right))

    @classmethod
    def judged(cls, prediction: str, verdict: Verdict) -> Grade:
        """Of a verdict of ``verify``; undecided answers have no points."""
        return cls(prediction, verdict, float(verdict.right))


Check = Callable[[str, Truth], Verdict]
"""``verify``: a prediction against the truth."""


@dataclasses.dataclass(frozen=True)
class Tools:
    """What grading may use beside the answer.

    Attributes:
      check: see :data:`Check`.
    """

    check: Check


Grader = Callable[[Item, str, str, Tools], Grade]
"""Of an item, a response (never blank: that is wrong everywhere) and a mode."""


@dataclasses.dataclass(frozen=True)
class Graded:
    """An item with a response and its grades.

    Attributes:
      item: what was asked.
      response: the model's text.
      grade: by the protocol's rule as released.
      corrected: by the rule without the known errors of the released one, where there
        is one.
    """

    item: Item
    response: str
    grade: Grade
    corrected: Grade | None = None


Weighted = Callable[[np.ndarray], float]
Metric = Callable[[Sequence[Item], np.ndarray], Weighted]
"""Of items and their points (float64 ``[N]``) makes a function of weights ``[N]``.

The weights say how often an item counts (1 for all: the score; other numbers in a
bootstrap), so that what does not depend on them is computed once. NaN where a score is
not defined for them.
"""


def accuracy(items: Sequence[Item], points: np.ndarray) -> Weighted:
    """Mean of the points in percent."""
    del items

    def mean(weights: np.ndarray) -> float:
        total = weights.sum()
        return float(100 * (weights @ points) / total) if total else float("nan")

    return mean


REFERENCE = "reference_points"
"""Field of an item in which a metric finds ``Grade.reference``, see `weighted`."""


def weighted(
    metric: Metric, items: Sequence[Item], grades: Sequence[Grade]
) -> Weighted:
    """A metric of grades, those of a judge with the references that it rated."""
    seen = [
        item
        if grade.reference is None
        else dataclasses.replace(
            item, fields={**item.fields, REFERENCE: grade.reference}
        )
        for item, grade in zip(items, grades, strict=True)
    ]
    return metric(seen, np.array([grade.points for grade in grades], np.float64))


Details = Callable[[Sequence[Graded]], Mapping[str, Any]]
"""Further figures of a benchmark for its report (counts of POPE, say); JSON values."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """Grading by a model, where the authors grade so.

    Attributes:
      model: name of the one they use; pinned, part of what a score is called.
      prompt: the message about an item and a response.
      parse: the grade from the judge's text; verdict ``undecided`` where it says
        nothing usable.
      metric: of the judge's points.
      temperature: of the judge.
      max_new_tokens: of the judge.
    """

    model: str
    prompt: Callable[[Item, str], str]
    parse: Callable[[Item, str], Grade]
    metric: Metric = accuracy
    temperature: float = 0.0
    max_new_tokens: int = 256


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a harness asks about and grades the items of a benchmark.

    Attributes:
      ask: of an item and a mode.
      grade: as released.
      corrected: without the released rule's known errors.
      metric: of the points.
      details: see :data:`Details`.
      judge: where the harness grades by a model; `grade` then is the rule that stands
        beside it, and says so.
      notes: what is not as in the harness, and what of its rules is known to be wrong;
        printed in reports.
    """

    ask: Callable[[Item, str], Ask]
    grade: Grader
    corrected: Grader | None = None
    metric: Metric = accuracy
    details: Details | None = None
    judge: Judge | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
      name: in commands and reports.
      title: for people.
      source: where its files come from.
      read: the items, from a folder of files.
      protocols: by name; those in which it was released.
      modes: that it is asked in.
      size: number of items when complete; another number is said in reports.
    """

    name: str
    title: str
    source: sources.Source
    read: Callable[[sources.Folder], Iterator[Item]]
    protocols: Mapping[str, Protocol]
    modes: tuple[str, ...] = MODES
    size: int = 0
