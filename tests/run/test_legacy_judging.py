"""Rollouts judged by the released rules, with their processes."""

from __future__ import annotations

import pytest

from mpo_jax.prefs.questions import Question
from mpo_jax.prefs.rollouts import Group, Rollout
from mpo_jax.run import legacy_judging
from mpo_jax.verify.verdict import Truth

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def judge():
    with legacy_judging.open_judge(1, fix=False) as (found, _):
        yield found


def group(source: str, truth: str, *said: str) -> Group:
    question = Question(1, "q", (), Truth(truth), source)
    rollouts = [Rollout(question, "direct", k, text) for k, text in enumerate(said)]
    return Group("q", tuple(rollouts))


def test_latex_is_compared_in_mavis_alone(judge):
    said = (r"\frac{2\pi}{4}}", "9^{9^{9^9}}", "cat")
    mavis, other = judge(
        [group("mavis_x", r"\frac{\pi}{2}", *said), group("x", r"\frac{\pi}{2}", *said)]
    )
    assert [one.role for one in mavis] == ["right", "wrong", "wrong"]
    assert mavis[0].verdict.rule == "latex_score"
    assert [one.role for one in other] == ["wrong"] * 3
