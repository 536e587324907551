"""One answer of several: votes, likelihood, ties, answers without a prediction."""

from __future__ import annotations

import graded_lines
import pytest

from mpo_jax.evals import voting


def samples(*predictions: str, right: str = "6", **fields):
    return [
        graded_lines.line(
            mode="cot",
            sample=number,
            grade=graded_lines.grade("right" if p == right else "wrong", p),
            **{name: values[number] for name, values in fields.items()},
        )
        for number, p in enumerate(predictions)
    ]


@pytest.mark.parametrize(
    "predictions, winner",
    [
        (("5", "6", "6"), 1),
        (("5", "6", "6", "5"), 0),  # a tie: the earliest
        (("6", "5", "5", "6"), 0),
        (("", "", "", "6"), 3),  # no prediction, no vote
        (("", " ", ""), 0),
        (("7", "Six  Apples", "six apples", "7 "), 0),
        (("7", "８", "8"), 1),  # full width
    ],
)
def test_vote(predictions, winner):
    assert voting.vote(samples(*predictions)).sample == winner


def test_vote_by_what_predictions_mean():
    def same(one: str, other: str, line) -> bool:
        return float(one) == float(other)

    given = samples("5", "5.0", "6", "6.00", "6.0")
    assert voting.vote(given).sample == 0
    assert voting.vote(given, same=same).sample == 2


def test_best_is_by_log_probability_per_token():
    given = samples("1", "2", "3", logprob=[-4.0, -6.0, -3.0], tokens=[4, 12, 2])
    (best,) = voting.select({"1": given}, voting.BEST) or []
    assert best.sample == 1 and best.mode == "cot@best"


def test_no_best_where_a_sample_does_not_say():
    given = samples("1", "2", logprob=[-4.0, None], tokens=[4, 4])
    assert voting.select({"1": given}, voting.BEST) is None
    given = samples("1", "2", logprob=[-4.0, -1.0], tokens=[4, None])
    assert voting.select({"1": given}, voting.BEST) is None


def test_any_takes_the_first_that_is_right():
    (found,) = voting.select({"1": samples("1", "6", "6")}, voting.ANY) or []
    assert found.sample == 1 and found.grade.verdict.right
    (found,) = voting.select({"1": samples("1", "2")}, voting.ANY) or []
    assert found.sample == 0


def test_rounds_hold_each_item_once():
    lines = [graded_lines.line("b", sample=1), *samples("1", "2", "3")]
    lines.append(graded_lines.line("b", sample=0))
    grouped = voting.by_item(lines)
    assert {id: [line.sample for line in of] for id, of in grouped.items()} == {
        "b": [0, 1],
        "1": [0, 1, 2],
    }
    assert [[line.id for line in of] for of in voting.rounds(grouped)] == [
        ["b", "1"],
        ["b", "1"],
        ["1"],
    ]
