"""Rules that settle an answer without mathematics, from the plainest on.

options → yes and no → the same words → times, dates, ratios → numbers → lists →
equations. What is left goes to mathematics only where both sides could be read by it;
the rest is undecided. The order matters: what mathematics is known to get wrong (times,
percent, ``4 or 5``, bare equations) is settled here.
"""

from __future__ import annotations

import dataclasses
import re

from mpo_jax.verify import lists, numbers, options, times, units, yes_no
from mpo_jax.verify import text as texts
from mpo_jax.verify.policy import DEFAULT, Policy
from mpo_jax.verify.verdict import (
    DATE,
    MATHS,
    NUMBER,
    OPTION,
    RIGHT,
    TEXT,
    TIME,
    UNDECIDED,
    WRONG,
    YES_NO,
    Truth,
    Verdict,
)

LONGEST = 4096
"""Characters of an answer that are looked at; a longer one is undecided."""

_ANY = ""
# x, x_1, f(x), ∠ABC, AB, Area
_NAME = (
    r"(?:(?:\\angle|\\triangle|∠|△|m∠|m\\angle) ?)?"
    r"(?:[^\W\d_](?:_\{?\w+\}?)?(?: ?\([a-z]\))?|\\[a-zA-Z]+|[A-Z]{2,4}"
    r"|[A-Za-z]{3,20}(?: [A-Za-z]{2,20}){0,4})"
)
_ASSIGNED = re.compile(rf"({_NAME}) ?= ?([^=<>≤≥≠]+)")
_LABEL = re.compile(r"\(?[A-H][.)]\s+(\S.*)", re.DOTALL)
_RELATION = re.compile(r"[=<>≤≥≠]|\\(?:lt|gt|equiv|sim|cong)(?![a-zA-Z])")
_UNIT_BEHIND = re.compile(
    r"(.*[\d})\]π∞.])\s*((?:°[CF]?|[^\W\d_°][^\d\\{}()=+*]*)[23]?)"
)


def decide(prediction: str, truth: Truth, policy: Policy = DEFAULT) -> Verdict | None:
    """Judge `prediction`, a final answer, without mathematics.

    Returns:
      A verdict, or None: mathematics should compare the two texts of
      `for_mathematics`.
    """
    if len(prediction) > LONGEST or len(truth.answer) > LONGEST:
        same = prediction.strip() == truth.answer.strip()
        return Verdict(RIGHT, "exact") if same else Verdict(UNDECIDED, "too_long")
    said, gold = _ready(prediction), _ready(truth.answer)
    if not said or not gold:
        return Verdict(UNDECIDED, "empty" if not said else "empty_truth")
    if truth.kind == TEXT:
        return Verdict(RIGHT if texts.same(said, gold) else WRONG, "text")
    if not options.concerns(gold, truth):
        return _judge(said, gold, truth.kind, policy)
    if truth.kind not in (_ANY, OPTION) and options.meant(gold, truth) is None:
        return _judge(said, gold, truth.kind, policy)
    exact = dataclasses.replace(policy, relative=0.0)
    return options.compare(said, gold, truth, lambda s, g: _judge(s, g, _ANY, exact))


def for_mathematics(prediction: str, truth: Truth) -> tuple[str, str]:
    """What mathematics should compare where `decide` gives None: the answer and the
    true one, as LaTeX without sentences, ``x =`` and units around them; of an
    option that is named by its letter, its text."""
    gold = truth.answer
    if options.concerns(_ready(gold), truth):
        gold = options.meant(_ready(gold), truth) or gold
    said, true = _assignments(_ready(prediction), _ready(gold))
    return texts.latex(_without_unit(said)[0]), texts.latex(_without_unit(true)[0])


def _ready(answer: str) -> str:
    """`answer` unified, without wrapping and lead-in."""
    plain = texts.without_lead(texts.unify(texts.unwrap(answer)))
    return texts.unify(texts.unwrap(plain))


def _judge(said: str, gold: str, kind: str, policy: Policy) -> Verdict | None:
    """Compare two unified texts, options aside."""
    if kind in (_ANY, YES_NO, OPTION) and (v := yes_no.compare(said, gold, kind)):
        return v
    if texts.same(said, gold):
        return Verdict(RIGHT, "exact")
    if kind == YES_NO:
        return Verdict(UNDECIDED, "yes_no_unread")
    if kind in (_ANY, OPTION, TIME, DATE) and (v := times.compare(said, gold, kind)):
        return v
    if kind in (TIME, DATE):
        return Verdict(UNDECIDED, f"{kind}_unread")
    return _judge_values(said, gold, kind, policy)


def _judge_values(said: str, gold: str, kind: str, policy: Policy) -> Verdict | None:
    if v := _judge_sentence(said, gold, kind, policy):
        return v
    one, other = numbers.read(said), numbers.read(gold)
    if one is not None and other is not None:
        return numbers.compare(one, other, policy)
    if (one is None) != (other is None) and (v := _ratio_and_number(said, gold)):
        return v
    if len(said) == 1 and said.isalpha() and other is not None:
        return Verdict(UNDECIDED, "letter_against_value")
    if _RELATION.search(said) or _RELATION.search(gold):
        return _judge_relations(said, gold, kind, policy)
    if lists.read(said) is not None or lists.read(gold) is not None:
        inner = kind if kind in (NUMBER, MATHS) else _ANY
        return lists.compare(said, gold, lambda s, g: _judge(s, g, inner, policy))
    return _judge_expressions(said, gold)


def _ratio_and_number(said: str, gold: str) -> Verdict | None:
    for ratio_text, number_text in ((said, gold), (gold, said)):
        ratio, number = times.read_ratio(ratio_text), numbers.read(number_text)
        if ratio is None or number is None:
            continue
        if times.read_clock(ratio_text) or number.unit or number.percent:
            return Verdict(UNDECIDED, "ratio_against_number")
        return times.compare_ratio_with_number(ratio, number.value)
    return None


def _judge_relations(said: str, gold: str, kind: str, policy: Policy) -> Verdict | None:
    """``x = 5`` is judged by what x is; other equations and inequalities only in the
    same words, since mathematics takes unlike ones for equal."""
    inner_said, inner_gold = _assignments(said, gold)
    if (inner_said, inner_gold) == (said, gold):
        return Verdict(UNDECIDED, "relation")
    if _RELATION.search(inner_said) or _RELATION.search(inner_gold):
        return Verdict(UNDECIDED, "relation")
    return _judge(inner_said, inner_gold, kind, policy)


def _assignments(said: str, gold: str) -> tuple[str, str]:
    """Right-hand sides, where the variable is the same or one side names none."""
    said, gold = _solutions(said), _solutions(gold)
    one, other = _ASSIGNED.fullmatch(said), _ASSIGNED.fullmatch(gold)
    if one and other:
        if texts.squeeze(one[1]) == texts.squeeze(other[1]):
            return one[2].strip(), other[2].strip()
    elif one and not _RELATION.search(gold):
        return one[2].strip(), gold
    elif other and not _RELATION.search(said):
        return said, other[2].strip()
    return said, gold


def _solutions(text: str) -> str:
    """``2 or 3`` of ``x = 2 or x = 3``."""
    listing = lists.read(text)
    if listing is None or listing.brackets:
        return text
    assigned = [_ASSIGNED.fullmatch(item) for item in listing.items]
    values = [match[2].strip() for match in assigned if match is not None]
    names = {texts.squeeze(match[1]) for match in assigned if match is not None}
    return (
        " or ".join(values)
        if len(values) == len(assigned) and len(names) == 1
        else text
    )


def _judge_sentence(said: str, gold: str, kind: str, policy: Policy) -> Verdict | None:
    """Judge the value that a sentence ends in, or that an option's label stands
    before, where it is plain; None: there is none."""
    value, true = _end_of_sentence(said), _end_of_sentence(gold)
    if (value, true) == (said, gold) or (value != said and true != gold):
        return None  # two sentences, or labels, may be about different things
    if texts.same(value, true):
        return Verdict(RIGHT, "sentence")
    if not (_is_plain(value) and _is_plain(true)):
        return None
    verdict = _judge(value, true, kind, policy)
    return verdict and dataclasses.replace(verdict, rule=f"sentence_{verdict.rule}")


def _end_of_sentence(text: str) -> str:
    label = _LABEL.fullmatch(text)
    return label[1] if label else texts.predicate(text) or text


def _is_plain(text: str) -> bool:
    return bool(numbers.read(text) or times.read_clock(text) or times.read_dates(text))


def _judge_expressions(said: str, gold: str) -> Verdict | None:
    """None where mathematics could read both sides."""
    (one, unit), (other, other_unit) = _without_unit(said), _without_unit(gold)
    if not (texts.is_maths(one) and texts.is_maths(other)):
        return Verdict(UNDECIDED, "words")
    if ("±" in one) != ("±" in other):
        return Verdict(UNDECIDED, "plus_minus")
    if unit and other_unit and unit != other_unit:
        same = (unit.dimension, unit.scale) == (other_unit.dimension, other_unit.scale)
        if not same:
            return Verdict(UNDECIDED, "unit_of_expression")
    if texts.same(one, other):
        return Verdict(RIGHT, "exact")
    return None


def _without_unit(text: str) -> tuple[str, units.Unit | None]:
    """An expression and the unit of two letters or more behind it."""
    match = _UNIT_BEHIND.fullmatch(text)
    if match is None or numbers.read(text) is not None:
        return text, None
    unit = units.read(match[2].strip())
    if unit is None or unit.letter:
        return text, None
    return match[1].strip(), unit
