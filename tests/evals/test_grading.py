"""A response that says nothing is wrong, whatever a released rule makes of it."""

from __future__ import annotations

import pytest

from mpo_jax.evals import benchmark, grading, registry
from mpo_jax.evals.benchmark import Item


def no_check(prediction, truth):
    raise AssertionError("nothing was said, so there is nothing to compare")


@pytest.mark.parametrize("text", ["", " \n", "\u3000"])
@pytest.mark.parametrize("mode", benchmark.MODES)
def test_a_blank_answer_is_wrong_under_every_rule(text, mode):
    # POPE's rule takes whatever holds no "no" for a yes.
    item = Item("1", "Is there a dog?", "yes", categories={"category": "random"})
    protocol = registry.get("pope").protocols["paper"]
    tools = benchmark.Tools(no_check)
    found = grading.grade(grading.Said(item, 0, text), protocol, mode, tools)
    assert found.grade == found.corrected == benchmark.Grade.of("", False, "empty")
