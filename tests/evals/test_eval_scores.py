"""Scores: what is counted, what is beside a score, several samples, comparisons."""

from __future__ import annotations

import dataclasses

import graded_lines
import numpy as np
import pytest
from graded_lines import grade, line

from mpo_jax.evals import benchmark as benchmark_lib
from mpo_jax.evals import comparing, modes, scores
from mpo_jax.evals.benchmark import Item
from mpo_jax.evals.lines import Unanswered
from mpo_jax.evals.scores import Draws

DRAWS = Draws(resamples=200)
PLAIN = {"sums": graded_lines.benchmark()}


def score(given, unanswered=(), *, known=PLAIN, items=None, mode="direct"):
    found = modes.modes(given, unanswered, items=items)
    return scores.scores(found, known, DRAWS)["sums"][mode]


def absent(id: str, failure: str = "endpoint: 500", **fields) -> Unanswered:
    made = Unanswered("sums", "paper", "direct", id, failure, 0)
    return dataclasses.replace(made, **fields)


def test_what_is_counted():
    given = [
        line("1", tokens=10),
        line("2", "wrong", tokens=20, finish_reason="length"),
        line("3", "undecided", tokens=30),
        line("4", answer=" ", grade=grade("wrong", ""), tokens=1),
        line("5", answer="hm", grade=grade("wrong", "", "nothing"), tokens=None),
    ]
    unanswered = [absent("6"), absent("7", "missing: none"), absent("8", "missing")]
    known = {"sums": graded_lines.benchmark(size=3_040)}
    found = score(given, unanswered, known=known)
    assert found["score"] == 20.0 and found["protocol"] == "paper"
    assert (found["correct"], found["total"], found["items"]) == (1, 5, 8)
    names = ("empty", "truncated", "undecided", "unparsed", "failed", "missing")
    assert [found[name] for name in names] == [1, 1, 1, 1, 1, 2]
    assert found["shares"]["empty"] == 0.2 and found["shares"]["missing"] == 0.25
    assert found["score_missing_as_wrong"] == 12.5
    assert found["mean_tokens"] == 15.25 and found["mean_tokens_right"] == 10
    assert found["subset"] == "8 of 3,040 items: a subset"
    assert found["rules"] == {"number": 4, "nothing": 1}
    low, high = found["interval"]
    assert 0 <= low <= 20 <= high <= 100


@pytest.mark.parametrize(
    "size, said", [(0, ""), (2, ""), (1, "2 of 1 items: more than it is known to have")]
)
def test_a_number_of_items_that_is_not_the_known_one_is_said(size, said):
    known = {"sums": graded_lines.benchmark(size=size)}
    assert score([line("1"), line("2")], known=known)["subset"] == said


def test_points_between_0_and_1_make_the_score_and_verdicts_the_count():
    given = [
        line("1", grade=dataclasses.replace(grade(), points=0.6)),
        line("2", "wrong"),
    ]
    found = score(given)
    assert (found["score"], found["correct"]) == (30.0, 1)


def test_nothing_answered_is_no_score():
    found = score([], [absent("1")])
    assert found["score"] is None and found["interval"] == [None, None]
    assert found["score_missing_as_wrong"] == 0.0 and found["failed"] == 1
    assert found["mean_tokens"] is None and found["shares"]["empty"] is None


def test_categories_have_scores_of_their_own():
    given = [
        line(str(i), "right" if i % 3 else "wrong", categories={"kind": "ab"[i % 2]})
        for i in range(12)
    ]
    found = score(given)["categories"]["kind"]
    assert {value: entry["total"] for value, entry in found.items()} == {"a": 6, "b": 6}
    assert found["a"]["score"] == pytest.approx(66.6667)
    assert found["a"]["interval"][0] < found["a"]["score"]


def test_groups_widen_the_interval():
    def half(grouped: bool):
        return [
            line(str(i), "right" if i < 32 else "wrong", group=f"g{i // 8}" * grouped)
            for i in range(64)
        ]

    low, high = score(half(False))["interval"]
    wide_low, wide_high = score(half(True))["interval"]
    assert wide_high - wide_low > 2 * (high - low)


def test_a_metric_sees_items_and_weights():
    known = {"sums": graded_lines.benchmark(metric=graded_lines.f1)}
    truths = ["yes", "yes", "no", "no"]
    outcomes = ["right", "wrong", "right", "wrong"]
    given = [
        line(str(i), outcome, truth=truth)
        for i, (truth, outcome) in enumerate(zip(truths, outcomes, strict=True))
    ]
    found = score(given, known=known)
    assert found["score"] == 50.0  # one hit, one miss, one false alarm
    assert found["score_missing_as_wrong"] == 50.0
    # An item that is not known: what wrong would mean there nobody knows.
    found = score(given, [absent("9")], known=known)
    assert found["score_missing_as_wrong"] is None
    items = {"sums": [Item("9", "", "yes")]}
    found = score(given, [absent("9")], known=known, items=items)
    assert found["score_missing_as_wrong"] == 40.0
    # Known from another mode.
    other = line("9", mode="cot", truth="yes")
    found = score([*given, other], [absent("9")], known=known)
    assert found["score_missing_as_wrong"] == 40.0


def test_a_metric_gets_whole_items_where_they_are_given():
    def by_field(items, points):
        assert all(item.fields == {"weight": 1} for item in items)
        return benchmark_lib.accuracy(items, points)

    known = {"sums": graded_lines.benchmark(metric=by_field)}
    items = {"sums": [Item("1", "2 + 4?", "6", fields={"weight": 1})]}
    assert score([line("1")], known=known, items=items)["score"] == 100.0


def test_corrected_rule_beside_the_released_one():
    given = [
        line("1", corrected=grade("wrong")),
        line("2", "wrong", corrected=grade("right")),
        line("3", "wrong", corrected=grade("right")),
        line("4", "wrong"),  # empty: the same for both
    ]
    found = score(given)
    assert (found["score"], found["corrected_score"]) == (25.0, 50.0)
    assert (found["corrected_correct"], found["corrected_changed"]) == (2, 3)
    assert "corrected_score" not in score([line("1")])


def judged(*outcomes: tuple[str, str], model: str = "judge-1"):
    return [
        line(str(i), rule, judge=graded_lines.judgement(said, model))
        for i, (rule, said) in enumerate(outcomes)
    ]


def test_judge_beside_the_rule():
    judge = benchmark_lib.Judge("judge-1", lambda i, t: "", lambda i, t: grade())
    known = {"sums": graded_lines.benchmark(judge=judge)}
    pairs = [("right", "wrong"), ("wrong", "right"), ("right", "right")]
    pairs += [("wrong", "undecided"), ("undecided", "right"), ("undecided", "wrong")]
    given = judged(*pairs)
    found = score([*given, line("never judged")], known=known)
    assert (found["judge_model"], found["judged"]) == ("judge-1", 6)
    assert found["judge_score"] == 50.0
    assert found["score"] == pytest.approx(300 / 7, abs=1e-4)
    assert found["judge_undecided"] == 1
    assert found["judge_disagreements"] == {
        "rule_right_judge_wrong": 1,
        "rule_wrong_judge_right": 2,
        "ids": ["0", "1", "4"],
    }
    other = dataclasses.replace(
        given[0], id="9", judge=graded_lines.judgement("right", "judge-2")
    )
    with pytest.raises(ValueError, match="judged by .'judge-1', 'judge-2'."):
        score([*given, other], known=known)


def test_details_are_the_benchmarks_own():
    def details(graded):
        return {"answers": [one.response for one in graded]}

    known = {"sums": graded_lines.benchmark(details=details)}
    assert score([line("1")], known=known)["details"] == {"answers": ["It is 6."]}


def several(id: str, *outcomes: str, **fields):
    return [
        line(id, outcome, mode="cot", sample=number, **fields)
        for number, outcome in enumerate(outcomes)
    ]


def test_several_samples():
    right, wrong = grade("right", "6"), grade("wrong", "5")
    answers = [[wrong, right, right, wrong], [right, right, wrong, right]]
    answers.append([wrong, wrong, wrong, right])
    given = [
        line(str(i), mode="cot", sample=k, grade=g, logprob=-float(k), tokens=1)
        for i, of in enumerate(answers)
        for k, g in enumerate(of)
    ]
    found = scores.scores(modes.modes(given), PLAIN, DRAWS)["sums"]
    assert list(found) == ["cot", "cot@mean", "cot@vote", "cot@best", "cot@any"]
    assert {mode: entry["score"] for mode, entry in found.items()} == {
        "cot": pytest.approx(33.3333),
        "cot@mean": 50.0,
        "cot@vote": pytest.approx(33.3333),
        "cot@best": pytest.approx(33.3333),
        "cot@any": 100.0,
    }
    assert found["cot@mean"]["correct"] == 1.5 and found["cot@mean"]["answers"] == 12
    assert found["cot"]["samples"] == 1 and found["cot@vote"]["samples"] == 4


def test_the_mean_is_of_scores_not_of_points():
    known = {"sums": graded_lines.benchmark(metric=graded_lines.f1)}
    given = several("1", "right", "right", truth="yes")
    given += several("2", "right", "wrong", truth="yes")
    found = scores.scores(modes.modes(given), known, DRAWS)["sums"]
    # F1 of the rounds is 100 and 66.7; of mean points it would be 85.7.
    assert found["cot@mean"]["score"] == pytest.approx((100 + 200 / 3) / 2, abs=1e-3)


def test_samples_that_failed_are_counted():
    given = [*several("1", "right", "right"), line("2", mode="cot", sample=1)]
    unanswered = [
        absent("2", mode="cot"),
        absent("3", mode="cot", sample=0),
        absent("3", mode="cot", sample=1),
    ]
    found = scores.scores(modes.modes(given, unanswered), PLAIN, DRAWS)["sums"]
    assert (found["cot"]["total"], found["cot"]["failed"]) == (1, 2)
    assert (found["cot@vote"]["total"], found["cot@vote"]["failed"]) == (2, 1)
    assert found["cot@mean"]["short_of_samples"] == 1


def test_two_protocols_make_no_report():
    with pytest.raises(ValueError, match="'paper' and 'official' in one report"):
        modes.modes([line("1"), line("2", protocol="official")])


@pytest.mark.parametrize(
    "change, message",
    [({"benchmark": "sumz"}, "benchmark='sumz'"), ({"protocol": "x"}, "protocol='x'")],
)
def test_what_is_not_known_is_named(change, message):
    found = modes.modes([line("1", **change)])
    with pytest.raises(ValueError, match=message):
        scores.scores(found, PLAIN, DRAWS)


def test_direct_beside_cot():
    outcomes = {"direct": "1100000011", "cot": "0111100010"}
    given = [
        line(str(i), "right" if bit == "1" else "wrong", mode=mode)
        for mode, bits in outcomes.items()
        for i, bit in enumerate(bits)
    ]
    given.append(line("only cot", mode="cot"))
    found = comparing.direct_with_cot(modes.modes(given), PLAIN, DRAWS)["sums"]
    assert found["items"] == 10 and found["second_only_answered"] == 1
    assert (found["first_score"], found["second_score"]) == (40.0, 50.0)
    assert found["difference"] == 10.0
    assert found["interval"][0] < 10 < found["interval"][1]
    assert found["mcnemar"] == {
        "both_right": 2,
        "both_wrong": 3,
        "only_first_right": 2,
        "only_second_right": 3,
        "p_value": 1.0,
    }
    assert not found["grouped"]


def test_base_is_compared_on_the_same_items():
    base = [line(str(i), "wrong") for i in range(8)]
    run = [line(str(i)) for i in range(2, 10)]
    run[0] = dataclasses.replace(run[0], question="another?")
    run[1] = dataclasses.replace(run[1], truth="7")
    found = comparing.with_base(modes.modes(base), modes.modes(run), PLAIN, DRAWS)
    entry = found["sums"]["direct"]
    assert (entry["items"], entry["changed_items"]) == (4, 2)
    assert (entry["first_only_answered"], entry["second_only_answered"]) == (2, 2)
    assert entry["difference"] == 100.0 and entry["interval"] == [100.0, 100.0]
    assert entry["mcnemar"]["p_value"] == 0.125


def test_base_order_does_not_matter():
    rng = np.random.default_rng(0)
    outcomes = ["right" if bit else "wrong" for bit in rng.random(40) < 0.5]
    base = [line(str(i), outcome) for i, outcome in enumerate(outcomes)]
    shuffled = [base[i] for i in rng.permutation(40)]
    found = comparing.with_base(modes.modes(shuffled), modes.modes(base), PLAIN, DRAWS)
    entry = found["sums"]["direct"]
    assert entry["difference"] == 0.0 and entry["interval"] == [0.0, 0.0]
    assert entry["mcnemar"]["only_first_right"] == 0


def test_base_under_another_protocol_is_not_compared():
    base = modes.modes([line("1", protocol="official")])
    found = comparing.with_base(base, modes.modes([line("1")]), PLAIN, DRAWS)
    assert found["sums"]["direct"] == {
        "not_compared": "protocols differ: official and paper"
    }


def test_base_is_measured_with_the_items_of_the_run():
    def by_field(items, points):
        assert all(item.fields == {"weight": 1} for item in items)
        return benchmark_lib.accuracy(items, points)

    known = {"sums": graded_lines.benchmark(metric=by_field)}
    items = {"sums": [Item("1", "2 + 4?", "6", fields={"weight": 1})]}
    run = modes.modes([line("1")], items=items)
    base = modes.modes([line("1", "wrong")])  # from a file: no fields
    found = comparing.with_base(base, run, known, DRAWS)["sums"]["direct"]
    assert (found["first_score"], found["second_score"]) == (0.0, 100.0)


def test_means_over_samples_have_no_mcnemar():
    given = modes.modes(several("1", "right", "wrong") + several("2", "right", "right"))
    found = comparing.with_base(given, given, PLAIN, DRAWS)["sums"]
    assert found["cot@mean"]["mcnemar"] is None
    assert found["cot@mean"]["difference"] == 0.0
    assert found["cot@vote"]["mcnemar"] is not None
