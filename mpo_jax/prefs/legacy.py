r"""The released rules of InternVL's pipeline, errors included, for comparison.

Reimplemented from their description. Known errors, each absent from the default rules:
``5.9`` is right for ``5`` (an option's letter and a full stop, it thinks), ``0.5`` for
``0``; edit *distance* is taken for likeness, so that near misses are wrong and quite
other words right; what normalises to nothing wipes out what mathematics had found; 5 %
are granted on geometry; a final answer counts only behind two line feeds; a response
without a box is its own answer; a positive ``no`` is "entailed" by a missing answer,
whose text is ``None``.

On demand wrong answers that hold the right one are rewritten to it (:func:`fixed`), and
trained against.

Not reproduced: the order and draw of pairs, which depend there on the process.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

from mpo_jax.prefs import prompts
from mpo_jax.verify import formats
from mpo_jax.verify.formats import Parsed
from mpo_jax.verify.verdict import RIGHT, WRONG, Verdict

RELAXED, ANLS, VQA, MC, MATHS, LATEX, MATH_VERIFY = (
    *("relaxed_accuracy", "anls", "vqa_score", "mc_score", "math_score"),
    *("latex_score", "math_verify_score"),
)
EQUAL, NO_RULE = "equal", "no_rule"

_MODES = (
    (("chartqa",), (RELAXED,)),
    (("docvqa", "infographics"), (ANLS,)),
    (
        ("SROIE", "CLEVR_math", "geos", "geometry"),
        (MATH_VERIFY, VQA, RELAXED, MC),
    ),
    (("mavis",), (MATH_VERIFY, VQA, MC, MATHS, LATEX)),
    (("",), (MATH_VERIFY, VQA, MC, MATHS)),
)
_THRESHOLD = 0.9
MANY_ROLLOUTS, FEW_PAIRS = 500_000, 3
"""Prompts of a source with more rollouts than the first make no more pairs than the
second."""
_TRIGGERS = ("Final answer:", "Final Answer:", "答案:")
_SHORTEST = 20
_UNITS = ("degrees", "degree", "\\angle", "°", "%", "cm")
_BOXED = ("en_v2", "zh_v2")
_THOUGHT = ("en_r1", "zh_r1")
_FRACTION = re.compile(r"\d+/\d+")
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*")


@dataclasses.dataclass(frozen=True)
class Tools:
    """What the rules are made with.

    Attributes:
      normalise: EvalAI's normalisation of a text.
      distance: Levenshtein's, of two texts.
      same_maths: do a prediction and a truth denote the same?
      same_latex: does sympy's parser make the same of them?
    """

    normalise: Callable[[str], str]
    distance: Callable[[str, str], int]
    same_maths: Callable[[str, str], bool]
    same_latex: Callable[[str, str], bool]


def modes_of(source: str) -> tuple[str, ...]:
    """Rules for the file that a source is called after, in the order they are tried."""
    return next(
        modes for names, modes in _MODES if any(name in source for name in names)
    )


def parse(response: str, form: str) -> Parsed:
    """The final answer of a response, or that it has a wrong form."""
    if form == prompts.DIRECT or not form:
        return Parsed(response.strip())
    if form in _BOXED:
        if len(response) <= _SHORTEST:
            return Parsed(None, formats.NO_ANSWER)
        boxed = formats.FORMATS["en_v2"].parse(response)
        return boxed if boxed.prediction is not None else Parsed(response)
    if form in _THOUGHT:
        thought, _, _ = response.rpartition("</think>")
        if len(thought.rpartition("<think>")[2].strip()) <= _SHORTEST:
            return Parsed(None, formats.NO_THOUGHT)
        return formats.FORMATS["en_r1"].parse(response)
    return _parse_triggered(response)


def _parse_triggered(response: str) -> Parsed:
    trigger = next((t for t in _TRIGGERS if t in response), _TRIGGERS[-1])
    rationale, found, answer = response.rpartition(trigger)
    answer = answer.strip()
    good = (
        found
        and response.count(trigger) <= 2
        and response.count("\n") >= 2
        and rationale.strip()
        and "\n" not in answer
    )
    return Parsed(answer) if good else Parsed(None, formats.NO_ANSWER)


def fixed(response: str, prediction: str, truth: str) -> str | None:
    """A response that ends in the true answer where its own holds that.

    The verdict is of the prediction before, so that a wrong ``15`` becomes a rejected
    response with the right answer ``5``.

    Returns:
      None for a response of one line, on which the released code fails.
    """
    if "\n" not in response:
        return None
    said = _letter(prediction) if re.fullmatch("[A-N]", truth) else prediction
    held = said is not None and (
        truth.lower() in said.lower() or _bare(truth) in _bare(said)
    )
    if held and prediction and prediction in response:
        head, _, tail = response.rpartition(prediction)
        if prediction.startswith("**"):
            head = head.rstrip(" ")
        response = (head + truth + tail).removesuffix("**")
    head, _, last = response.rpartition("\n")
    if last.startswith("**Final"):
        last = last[2:]
    return f"{head}\n{last}"


def _letter(prediction: str) -> str | None:
    """The letter of an option, or None."""
    found = re.match(r"[*\s(]*([A-N])(?![A-Za-z])", prediction)
    return found[1] if found else None


def _bare(text: str) -> str:
    return text.lower().replace(".", "").replace(",", "")


def check(prediction: str, truth: str, modes: tuple[str, ...], tools: Tools) -> Verdict:
    """Judge an answer: right or wrong, by the rule that gave the highest score."""
    if prediction.lower() == truth.lower():
        return Verdict(RIGHT, EQUAL)
    score, rule = 0.0, NO_RULE
    for mode in modes:
        if mode == VQA:
            left, right = tools.normalise(prediction), tools.normalise(truth)
            if not left or not right:
                score, rule = 0.0, NO_RULE  # the released error
                continue
            found = float(left == right)
        else:
            found = _SCORES[mode](prediction, truth, tools)
        if found > score:
            score, rule = found, mode
    return Verdict(RIGHT if score > _THRESHOLD else WRONG, rule)


def _relaxed(prediction: str, truth: str, tools: Tools) -> float:
    del tools
    prediction, truth = prediction.strip("%"), truth.strip("%")
    if len(truth) == 4 and truth.startswith("20"):
        return float(prediction == truth)
    found, wanted = _number(prediction), _number(truth)
    if found is not None and wanted:
        return float(abs(found - wanted) <= 0.05 * abs(wanted))
    return float(prediction.lower() == truth.lower())


def _anls(prediction: str, truth: str, tools: Tools) -> float:
    left, right = (" ".join(text.lower().split()) for text in (prediction, truth))
    longer = max(len(left), len(right))
    return tools.distance(left, right) / longer if longer else 1.0


def _mc(prediction: str, truth: str, tools: Tools) -> float:
    del tools
    if prediction[1:2] == ".":
        prediction = prediction[0]
    elif prediction[:1] == "(" and prediction[2:3] == ")":
        prediction = prediction[1]
    return float(prediction.lower() == truth.lower())


def _maths(prediction: str, truth: str, tools: Tools) -> float:
    del tools
    for unit in _UNITS:
        prediction, truth = prediction.replace(unit, ""), truth.replace(unit, "")
    found, wanted = _number(prediction), _number(truth)
    if found is None or not wanted:
        return float(prediction.strip() == truth.strip())
    return float(abs(found - wanted) <= 1e-3 * abs(wanted))


def _math_verify(prediction: str, truth: str, tools: Tools) -> float:
    return float(tools.same_maths(prediction, truth))


def _latex(prediction: str, truth: str, tools: Tools) -> float:
    return float(is_latex(prediction, truth) and tools.same_latex(prediction, truth))


def is_latex(prediction: str, truth: str) -> bool:
    """Has either a command of LaTeX, or a fraction of integers?"""
    return any("\\" in text or _FRACTION.search(text) for text in (prediction, truth))


_SCORES = {
    RELAXED: _relaxed,
    ANLS: _anls,
    MC: _mc,
    MATHS: _maths,
    LATEX: _latex,
    MATH_VERIFY: _math_verify,
}


def _number(text: str) -> float | None:
    """A finite number, or None; longer texts than any number are none."""
    if len(text) > 100 or not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None
