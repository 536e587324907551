"""The ladder alone on real answers, against the verdicts that were stored with them."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator

import pytest

from mpo_jax.verify import ladder
from mpo_jax.verify.bounds import guard
from mpo_jax.verify.formats import FORMATS
from mpo_jax.verify.verdict import Truth

# Stored as wrong; the answer is right.
MATHS_STORED_WRONG = {72: "10000 is 10{,}000"}
OPTIONS_STORED_WRONG = {
    ("270", "1080"): "B is 1080 degrees",
    ("319", "1.8\\mathrm{~m}"): "E is 1.8 m",
    ("319", "1.8"): "E is 1.8 m",
    ("748", "45\\mathrm{~cm}^2"): "B is 45 cm^2",
    ("965", "\\frac{1}{12}"): "D is 1/12 turn",
    ("1113", "60"): "C is 60 degrees",
    ("1168", "20\\mathrm{~cm}^2"): "B is 20 cm^2",
    ("1222", "e2,3and5"): "E is 2, 3 and 5: the letter before its own text",
    ("1343", "26"): "C is 26 cm^2",
    ("1512", "15"): "B is 15 degrees",
    ("1546", "40"): "D is 40 degrees",
    ("1727", "9"): "A is 9 litres",
    ("2565", "{march}"): "B is March",
    ("2757", "(b)"): "B is the letter B",
}

Judged = tuple[str, str, bool]  # id, prediction, stored as right?


def _outcome(prediction: str, truth: Truth) -> str:
    verdict = ladder.decide(prediction, truth)
    return "maths" if verdict is None else verdict.outcome


def _maths(shared) -> Iterator[tuple[int, str, Truth, bool]]:
    path = shared / "data/rollouts/math_cot_100.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for prediction, stored in zip(row["pred"], row["score"], strict=True):
            yield row["idx"], prediction, Truth(row["answer"]), stored


def _options(shared) -> Iterator[tuple[dict, dict, Truth]]:
    path = shared / "data/pref_mathv_real/annotations/mathv_testmini_rollouts.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        truth = Truth(row["answer"], tuple(row["options"]))
        for rollout in row["rollouts"]:
            yield row, rollout, truth


def test_mathematics(shared):
    counts = collections.Counter()
    for number, prediction, truth, stored in _maths(shared):
        outcome = _outcome(prediction, truth)
        counts[outcome, stored] += 1
        if outcome == "right" and not stored:
            assert number in MATHS_STORED_WRONG, (number, prediction)
    # 4:30 against 4:30 p.m. eight times; one sum of roots is left to mathematics.
    assert counts == {
        ("right", True): 728,
        ("right", False): len(MATHS_STORED_WRONG),
        ("wrong", False): 62,
        ("undecided", False): 8,
        ("maths", False): 1,
    }


def test_options(shared):
    counts = collections.Counter()
    found = set()
    for row, rollout, truth in _options(shared):
        prediction, stored = rollout["model_answer"], rollout["correct"]
        outcome = _outcome(prediction, truth)
        counts[outcome, stored] += 1
        assert (outcome, stored) != ("wrong", True), (row["id"], prediction)
        if outcome == "right" and not stored:
            found.add((row["id"], prediction))
    assert found == set(OPTIONS_STORED_WRONG)
    settled = sum(n for (outcome, _), n in counts.items() if outcome != "maths")
    # Four answers that were cut badly when they were stored are not read.
    assert counts["undecided", True] == 4
    assert settled == 912 - counts["maths", False] >= 890
    assert counts["right", True] + counts["wrong", False] >= 790


# As above, read from the responses' own boxes. 270 boxes nothing; in 1564 the letter
# and its text were lost when the answer was stored.
BOXES_STORED_WRONG = {number for number, _ in OPTIONS_STORED_WRONG} - {"270"} | {"1564"}


def test_boxes_of_the_responses(shared):
    """Parser and ladder together; what was stored may have been cut otherwise."""
    parsed, right, found = 0, 0, set()
    for row, rollout, truth in _options(shared):
        prediction = FORMATS["en_v2"].parse(rollout["response"]).prediction
        if prediction is None:
            continue
        parsed += 1
        outcome = _outcome(prediction, truth)
        right += outcome == "right" and rollout["correct"]
        assert outcome != "wrong" or not rollout["correct"], (row["id"], prediction)
        if outcome == "right" and not rollout["correct"]:
            found.add(row["id"])
    assert parsed > 650
    assert right > 80
    assert found == BOXES_STORED_WRONG


def test_nothing_real_is_kept_from_mathematics(shared):
    for _, prediction, truth, _ in _maths(shared):
        assert guard(*ladder.for_mathematics(prediction, truth)) is None
    kept = {
        (reason, prediction)
        for _, rollout, truth in _options(shared)
        if ladder.decide(prediction := rollout["model_answer"], truth) is None
        and (reason := guard(*ladder.for_mathematics(prediction, truth)))
    }
    assert kept == {("sum_or_limit", "18\\choose3")}


@pytest.mark.parametrize(
    "said, gold",
    [
        *(("2,3", "2.3"), ("10:30", "10:45"), ("4 or 5", "5"), ("4 and 5", "5")),
        *(("5, not 4", "4"), ("1/2004!", "1/2006!"), ("1/2^99", "1/2^98")),
        *(("3x+4y+14=0", "3x-y+13=0"), ("50%", "0.5"), ("50 %", "0.5")),
    ],
)
def test_what_mathematics_takes_for_the_same(said, gold):
    """Section G's false accepts: settled before, or kept from mathematics."""
    for one, other in ((said, gold), (gold, said)):
        truth = Truth(other)
        verdict = ladder.decide(one, truth)
        if verdict is None:
            assert guard(*ladder.for_mathematics(one, truth))
        else:
            assert not verdict.right


@pytest.mark.parametrize(
    "said, gold",
    [
        *(("B", "B"), ("(B)", "B"), ("B. cat", "B"), ("Yes", "yes"), ("cat", "Cat")),
        *(("\\frac12", "\\frac{1}{2}"), ("1e3", "1000"), ("\u22125", "-5")),
        *(("{1,2}", "{2,1}"), ("1/2", "\\frac12")),
    ],
)
def test_what_mathematics_misses(said, gold):
    assert _outcome(said, Truth(gold)) == "right"
