"""Graded answers of real models: agreement with the stored verdicts.

Every disagreement is listed, with who is right. A verdict that turns from undecided to
one of the others is as it should be where it agrees.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from mpo_jax.run import checking
from mpo_jax.verify.verdict import RIGHT, UNDECIDED, WRONG, Truth, Verdict
from mpo_jax.verify.verifier import Verifier

pytestmark = pytest.mark.slow


class Graded(NamedTuple):
    """An answer with the verdict that was published."""

    id: str
    truth: Truth
    prediction: str
    response: str
    right: bool


def math_cot(shared: pathlib.Path) -> Iterator[Graded]:
    path = shared / "data" / "rollouts" / "math_cot_100.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        answers = zip(record["pred"], record["code"], record["score"], strict=True)
        for k, (prediction, response, score) in enumerate(answers):
            name, truth = f"{record['idx']}/{k}", Truth(record["gt"])
            yield Graded(name, truth, prediction, response, score)


def mathv(shared: pathlib.Path) -> Iterator[Graded]:
    folder = shared / "data" / "pref_mathv_real" / "annotations"
    path = folder / "mathv_testmini_rollouts.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        truth = Truth(record["answer"], tuple(record["options"]))
        for k, said in enumerate(record["rollouts"]):
            yield Graded(
                f"{record['id']}/{k}",
                truth,
                said["model_answer"],
                said["response"],
                said["correct"],
            )


@pytest.fixture(scope="module")
def verifier():
    with Verifier() as made:
        yield made


def judged(
    verifier: Verifier, graded: list[Graded], predictions: list[str | None]
) -> dict[str, Verdict]:
    asked = [(g, p) for g, p in zip(graded, predictions, strict=True) if p is not None]
    verdicts = verifier.check_many([(p, g.truth) for g, p in asked])
    return {g.id: v for (g, _), v in zip(asked, verdicts, strict=True)}


def disagreements(
    graded: list[Graded], verdicts: dict[str, Verdict]
) -> tuple[set[str], set[str], set[str]]:
    """Ids: right against the stored verdict; wrong against it; right ones that are
    undecided or have no answer."""
    none = Verdict(UNDECIDED, "")
    outcome = {g.id: verdicts.get(g.id, none).outcome for g in graded}
    return (
        {g.id for g in graded if not g.right and outcome[g.id] == RIGHT},
        {g.id for g in graded if g.right and outcome[g.id] == WRONG},
        {g.id for g in graded if g.right and outcome[g.id] == UNDECIDED},
    )


@pytest.mark.parametrize("read", ["stored", "parsed"])
def test_math_cot_100(shared, verifier, read):
    graded = list(math_cot(shared))
    assert len(graded) == 800
    predictions: list[str | None] = [g.prediction for g in graded]
    if read == "parsed":
        predictions = [checking.parse_any(g.response).prediction for g in graded]
    verdicts = judged(verifier, graded, predictions)
    accepts, rejects, undecided = disagreements(graded, verdicts)
    # 10{,}000 is 10000: the stored verdict (wrong) is at fault.
    assert accepts == {"72/7"}
    assert rejects == set() and undecided == set()
    left = {g.id for g in graded if verdicts[g.id].outcome == UNDECIDED}
    # The true answer is damaged ("4:30p.."), the stored verdict wrong.
    assert left <= {f"3/{k}" for k in range(8)}


STORED_WRONG = {
    # The option's value where the truth is its letter; right, the stored rule had no
    # options.
    *("270/0", "319/1", "319/2", "748/0", "965/0", "1113/1", "1168/1", "1343/1"),
    *("1512/1", "1546/1", "1727/2", "2565/2"),
    # The letter with the option's text behind it, or in brackets; right.
    *("1222/1", "1355/1", "1547/0", "1564/0", "2757/2", "53/2", "390/1"),
}
DAMAGED = {
    # Stored with two boxes run together ("\frac{1}{2}}.theansweris:…"); undecided.
    *("224/2", "2288/2", "2589/2", "2743/2"),
}


def test_mathv_stored_predictions(shared, verifier):
    graded = list(mathv(shared))
    assert len(graded) == 912
    verdicts = judged(verifier, graded, [g.prediction for g in graded])
    accepts, rejects, undecided = disagreements(graded, verdicts)
    assert accepts <= STORED_WRONG and len(accepts) >= 14
    assert rejects == set()
    assert undecided <= DAMAGED
    left = sum(verdict.outcome == UNDECIDED for verdict in verdicts.values())
    assert left <= 110


def test_mathv_responses(shared, verifier):
    graded = list(mathv(shared))
    parsed = [checking.parse_any(g.response).prediction for g in graded]
    verdicts = judged(verifier, graded, parsed)
    accepts, rejects, undecided = disagreements(graded, verdicts)
    assert accepts <= STORED_WRONG and len(accepts) >= 14
    assert rejects == set() and undecided == set()
