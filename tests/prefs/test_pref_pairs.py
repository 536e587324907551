"""Pairs of one prompt: which, how many, and what they depend on."""

from __future__ import annotations

import collections
import random

import pytest

from mpo_jax.prefs import pairs
from mpo_jax.prefs.questions import Question
from mpo_jax.prefs.rollouts import Group, Rollout
from mpo_jax.verify import formats
from mpo_jax.verify.verdict import Truth, Verdict

QUESTION = Question(7, "How many?", (), Truth("5"), "s")

# Outcome, prediction, finish reason
RIGHT = ("right", "5", "stop")
WRONG = ("wrong", "8", "stop")
UNDECIDED = ("undecided", "x", "stop")
FORMAT = ("undecided", None, "stop")
CUT = ("undecided", None, "length")


def judged(*said, texts=(), question=QUESTION):
    """A group and its judged rollouts."""
    found = []
    for sample, (outcome, prediction, ended) in enumerate(said):
        text = texts[sample] if texts else f"{sample} so {prediction}"
        rollout = Rollout(question, "en", sample, text, ended)
        problem = "" if prediction is not None else "no_answer"
        parsed = formats.Parsed(prediction, problem)
        verdict = Verdict(outcome, "rule")
        found.append(pairs.Judged(rollout, parsed, verdict, cut=rollout.truncated))
    return Group("prompt", tuple(one.rollout for one in found)), found


def made(*said, texts=(), question=QUESTION, **rules):
    return pairs.make(
        *judged(*said, texts=texts, question=question), pairs.Rules(**rules)
    )


def numbers(found, reason=None):
    return [
        (pair.chosen.rollout.sample, pair.rejected.rollout.sample)
        for pair in found.pairs
        if reason in (None, pair.reason)
    ]


@pytest.mark.parametrize(
    "said, role",
    [
        (RIGHT, "right"),
        (WRONG, "wrong"),
        (UNDECIDED, "undecided"),
        (FORMAT, "format"),
        (CUT, "truncated"),
        (("wrong", "8", "length"), "truncated"),
        (("right", "5", "length"), "undecided"),
        (("undecided", "x", "length"), "undecided"),
        (("right", "5", ""), "right"),
    ],
)
def test_roles(said, role):
    _, (one,) = judged(said)
    assert one.role == role


def test_right_against_wrong_and_undecided_on_neither_side():
    found = made(RIGHT, WRONG, UNDECIDED, RIGHT, WRONG)
    assert numbers(found) == [(0, 1), (0, 4), (3, 1), (3, 4)]
    assert {pair.reason for pair in found.pairs} == {"wrong"}
    assert found.accuracy == 0.5
    for nothing in ([RIGHT, UNDECIDED], [WRONG, UNDECIDED], [UNDECIDED]):
        assert made(*nothing).pairs == ()
    assert made(UNDECIDED).accuracy is None


def test_other_negatives_stand_apart_or_mixed_or_nowhere():
    said = (RIGHT, WRONG, FORMAT, CUT)
    apart = made(*said)
    assert numbers(apart, "wrong") == [(0, 1)]
    assert numbers(apart, "format") == [(0, 2)]
    assert numbers(apart, "truncated") == [(0, 3)]
    mixed = made(*said, format_negatives="mixed", truncated_negatives="mixed")
    assert numbers(mixed, "wrong") == numbers(mixed) == [(0, 1), (0, 2), (0, 3)]
    none = made(*said, format_negatives="none", truncated_negatives="none")
    assert numbers(none) == [(0, 1)]
    half = made(*said, format_negatives="none")
    assert {pair.reason for pair in half.pairs} == {"wrong", "truncated"}


def test_the_limit_is_of_each_reason():
    found = made(*[RIGHT] * 4, *[WRONG] * 5, *[FORMAT] * 5, max_pairs=15)
    count = collections.Counter(pair.reason for pair in found.pairs)
    assert count == {"wrong": 15, "format": 15}
    assert len(set(numbers(found))) == 30


@pytest.mark.parametrize("seed", range(60))
def test_any_group_keeps_the_rules(seed):
    draw = random.Random(seed)
    said = draw.choices([RIGHT, WRONG, UNDECIDED, FORMAT, CUT], k=draw.randint(1, 40))
    texts = [f"{draw.randint(0, 30)} so {prediction}" for _, prediction, _ in said]
    limit = draw.randint(1, 20)
    found = made(*said, texts=texts, max_pairs=limit, seed=seed)
    positive = {t for t, one in zip(texts, said, strict=True) if one == RIGHT}
    negative = {t for t, one in zip(texts, said, strict=True) if one == WRONG}
    drawn = [
        (pair.chosen.rollout.response, pair.rejected.rollout.response)
        for pair in found.pairs
        if pair.reason == "wrong"
    ]
    assert len(drawn) == len(set(drawn)) == min(limit, len(positive) * len(negative))
    assert {c for c, _ in drawn} <= positive and {r for _, r in drawn} <= negative
    for pair in found.pairs:
        assert pair.chosen.role == "right" and pair.rejected.role == pair.reason
    # Every answer is used as often as any other, give or take one round.
    for side, texts_of_side in ((0, positive), (1, negative)):
        used = collections.Counter(pair[side] for pair in drawn)
        times = [used[text] for text in texts_of_side]
        if drawn:
            assert max(times) - min(times) <= 1
    assert numbers(found, "wrong") == sorted(numbers(found, "wrong"))


def test_draws_depend_on_seed_and_question_alone():
    said = [RIGHT] * 6 + [WRONG] * 6
    first = numbers(made(*said))
    assert numbers(made(*said)) == first
    assert numbers(made(*said, seed=1)) != first
    other = Question("7", "How many?", (), Truth("5"), "s")
    assert numbers(made(*said, question=other)) != first
    renamed = Question(7, "How many?", (), Truth("5"), "other source")
    assert numbers(made(*said, question=renamed)) == first
    # Format negatives beside them change nothing.
    assert numbers(made(*said, FORMAT), "wrong") == first
    # The draw itself, so that it stays the same over versions and processes.
    assert numbers(made(*said, max_pairs=4)) == [(0, 8), (2, 6), (3, 7), (5, 11)]


def test_every_pair_once_and_evenly():
    left, right = list("abcd"), list("uvwxyz")
    found = list(pairs.even(left, right))
    assert sorted(found) == sorted((a, b) for a in left for b in right)
    for n in range(1, 25):
        for side, items in ((0, left), (1, right)):
            used = collections.Counter(pair[side] for pair in found[:n])
            times = [used[item] for item in items]
            assert max(times) - min(times) <= 1
    assert list(pairs.even([], right)) == []


def test_equal_texts_are_one():
    said = (RIGHT, RIGHT, RIGHT, WRONG, WRONG)
    found = made(*said, texts=("a", " a\n", "b", "c", "c "))
    assert numbers(found) == [(0, 3), (2, 3)]
    # A format negative may have the words of a right answer.
    same = made(RIGHT, FORMAT, texts=("5", "5"))
    assert same.pairs == () and same.skipped == {"same_text": 1}
    assert made(RIGHT, FORMAT, texts=("5", " ")).pairs == ()


@pytest.mark.parametrize(
    "positive, negative, held",
    [
        ("5", "5 or 6", True),
        ("5", "15", False),
        ("5", "5.9", False),
        ("5", "1.5", False),
        ("5", "4, 5", True),
        ("5", "5.", True),
        ("No", "north", False),
        ("no", "No idea", True),
        ("B", "A and b", True),
        ("B", "Bob", False),
        ("三", "三角形", True),
        ("", "x", False),
        ("(a+b)", "2(a+b)", False),
        ("(a+b)", "x (a+b)", True),
    ],
)
def test_entailment(positive, negative, held):
    assert pairs.entailed(positive, negative) == held
    found = made(("right", positive, "stop"), ("wrong", negative, "stop"))
    assert (found.skipped == {"entailed": 1}) == held
    assert bool(found.pairs) != held


def test_length_ratio():
    texts = ("a" * 10, "b" * 21, "c" * 20, "d" * 4, "e" * 5)
    said = (RIGHT, WRONG, WRONG, WRONG, WRONG)
    found = made(*said, texts=texts, max_length_ratio=2.0)
    assert numbers(found) == [(0, 2), (0, 4)]
    assert found.skipped == {"length_ratio": 2}
    assert len(made(*said, texts=texts).pairs) == 4


@pytest.mark.parametrize(
    "right, wrong, kept", [(1, 9, False), (2, 8, True), (8, 2, True), (9, 1, False)]
)
def test_accuracy_filter(right, wrong, kept):
    said = [RIGHT] * right + [WRONG] * wrong
    found = made(*said, UNDECIDED, min_accuracy=0.2, max_accuracy=0.8)
    assert bool(found.pairs) == kept and found.filtered != kept
    assert found.accuracy == right / 10
    assert not made(*said).filtered


@pytest.mark.parametrize("source, wanted", [("s", 2), ("t", 4)])
def test_a_source_may_have_its_own_limit(source, wanted):
    said = [*[RIGHT] * 3, *[WRONG] * 3, *[FORMAT] * 3]
    found = made(*said, max_pairs=4, max_pairs_of={source: 2})
    assert len(numbers(found, "wrong")) == len(numbers(found, "format")) == wanted


@pytest.mark.parametrize(
    "rules, said",
    [
        ({"max_pairs": 0}, "max_pairs=0: must be"),
        ({"max_pairs_of": {"s": 0}}, r"max_pairs_of\['s'\]=0: must be"),
        ({"min_accuracy": 0.9, "max_accuracy": 0.1}, "min_accuracy=0.9"),
        ({"max_accuracy": float("nan")}, "max_accuracy=nan"),
        ({"format_negatives": "all"}, "format_negatives='all': use one of none"),
        ({"max_length_ratio": 0.5}, "max_length_ratio=0.5: must be"),
        ({"max_length_ratio": float("inf")}, "max_length_ratio=inf"),
    ],
)
def test_rules_have_bounds(rules, said):
    with pytest.raises(ValueError, match=said):
        pairs.Rules(**rules)
