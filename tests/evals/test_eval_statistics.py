"""Intervals against scipy and known cases, McNemar's test against binomial sums."""

from __future__ import annotations

import math
import time

import graded_lines
import numpy as np
import pytest
from scipy import stats

from mpo_jax.evals import statistics
from mpo_jax.evals.benchmark import Item, accuracy


def points(count: int, share: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(count) < share).astype(float)


def alone(count: int) -> np.ndarray:
    return np.arange(count)


def test_interval_agrees_with_scipy():
    graded = points(250, 0.6)
    ours = statistics.interval(
        accuracy([], graded), alone(250), seed=0, resamples=20_000
    )
    theirs = stats.bootstrap(
        (100 * graded,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.41)
    assert ours.high == pytest.approx(theirs.high, abs=0.41)


def test_paired_interval_agrees_with_scipy():
    before, after = points(250, 0.5), np.maximum(points(250, 0.5), points(250, 0.3, 2))
    gain = statistics.difference(accuracy([], before), accuracy([], after))
    ours = statistics.interval(gain, alone(250), seed=0, resamples=20_000)
    theirs = stats.bootstrap(
        (100 * (after - before),),
        np.mean,
        n_resamples=20_000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.41)
    assert ours.high == pytest.approx(theirs.high, abs=0.41)


def test_an_interval_holds_the_truth_19_times_of_20():
    held = 0
    for seed in range(200):
        graded = points(100, 0.7, seed)
        found = statistics.interval(
            accuracy([], graded), alone(100), seed=seed, resamples=400
        )
        held += found.low <= 70 <= found.high
    assert 0.90 <= held / 200 <= 0.985


def test_repeated_items_of_one_group_say_nothing_new():
    graded = points(80, 0.6)
    once = statistics.interval(accuracy([], graded), alone(80), seed=3)
    five = np.repeat(graded, 5)
    grouped = statistics.interval(accuracy([], five), np.repeat(alone(80), 5), seed=3)
    assert grouped.low == pytest.approx(once.low)
    assert grouped.high == pytest.approx(once.high)
    taken_as_alone = statistics.interval(accuracy([], five), alone(400), seed=3)
    ratio = (once.high - once.low) / (taken_as_alone.high - taken_as_alone.low)
    assert ratio == pytest.approx(math.sqrt(5), rel=0.15)


def test_groups_are_drawn_whole():
    groups = statistics.group_numbers(["a", "", "a", "b", "", "b", "b"])
    assert groups.tolist() == [0, 1, 0, 2, 3, 2, 2]
    rows = list(statistics.weights(groups, seed=0, resamples=50))
    assert len(rows) == 50
    for row in rows:
        assert row[0] == row[2] and row[3] == row[5] == row[6]
        assert row[0] + row[1] + row[3] + row[4] == 4  # as many groups as there are
    assert np.mean(rows) == pytest.approx(1, abs=0.1)


def test_draws_do_not_depend_on_how_many_are_held_at_a_time(monkeypatch):
    groups = np.repeat(alone(30), 2)
    whole = list(statistics.weights(groups, seed=5, resamples=40))
    monkeypatch.setattr(statistics, "_CHUNK", 60 * 7)
    assert np.array_equal(whole, list(statistics.weights(groups, seed=5, resamples=40)))


def test_same_runs_do_not_differ():
    graded = points(50, 0.5)
    gain = statistics.difference(accuracy([], graded), accuracy([], graded))
    assert statistics.interval(gain, alone(50), seed=0) == statistics.Interval(0, 0)
    found = statistics.mcnemar(graded > 0, graded > 0)
    assert (found.first, found.second, found.p_value) == (0, 0, 1.0)
    assert found.both + found.neither == 50


def test_pairing_is_what_makes_a_small_gain_visible():
    before = points(400, 0.5)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:14]] = 1  # 14 items are gained, none lost
    one, other = accuracy([], before), accuracy([], after)
    apart = statistics.interval(one, alone(400), seed=0)
    paired = statistics.interval(statistics.difference(one, other), alone(400), seed=0)
    assert other(np.ones(400)) < apart.high  # apart, nothing could be said
    assert paired.low > 0
    assert statistics.mcnemar(before > 0, after > 0).p_value == 2 * 0.5**14


@pytest.mark.parametrize("first, second", [(0, 5), (3, 11), (10, 10), (40, 25)])
def test_mcnemar_is_the_exact_binomial_test(first, second):
    one = np.array([True] * first + [False] * second + [True] * 7 + [False] * 9)
    other = np.array([False] * first + [True] * second + [True] * 7 + [False] * 9)
    found = statistics.mcnemar(one, other)
    assert (found.both, found.neither) == (7, 9)
    assert (found.first, found.second) == (first, second)
    total = first + second
    tail = sum(math.comb(total, k) for k in range(min(first, second) + 1))
    assert found.p_value == pytest.approx(min(1.0, 2 * tail / 2**total))


def test_resamples_without_a_score_are_left_out():
    items = [Item(str(i), "", "yes" if i < 3 else "no") for i in range(40)]
    graded = np.ones(40)
    found = statistics.interval(
        graded_lines.f1(items, graded), alone(40), seed=0, resamples=500
    )
    assert found == statistics.Interval(100, 100)  # where no "yes" is drawn: NaN


def test_no_interval_where_nothing_can_be_said():
    nothing = statistics.interval(lambda drawn: math.nan, alone(9), seed=0)
    assert math.isnan(nothing.low) and math.isnan(nothing.high)
    for groups in (np.zeros(4, np.int64), np.zeros(0, np.int64)):
        graded = np.ones(len(groups))
        found = statistics.interval(accuracy([], graded), groups, seed=0)
        assert math.isnan(found.low)


def test_average_is_of_the_parts():
    mean = statistics.average([lambda drawn: 1.0, lambda drawn: drawn.sum()])
    assert mean(np.ones(5)) == 3.0


def test_ten_thousand_items_take_seconds():
    graded = points(10_000, 0.6)
    start = time.process_time()
    found = statistics.interval(accuracy([], graded), alone(10_000), seed=0)
    assert time.process_time() - start < 10
    error = 100 * math.sqrt(0.24 / 10_000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
