"""The draw of a token: against transformers' processors, exact softmax and NumPy."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from mpo_jax.generate import sampling

V = 24
quick = settings(max_examples=60, deadline=None)


def rules(lead: tuple[int, int], **values) -> sampling.Rules:
    """Rules of all slots; values broadcast to them."""
    plain = {
        **{"seed": np.uint32(0), "sample": 0, "temperature": 1.0, "top_p": 1.0},
        **{"top_k": 0, "penalty": 1.0, "min_new": 0, "stop_ids": -1},
    }
    shapes = sampling.no_rules(*lead, 3)
    return sampling.Rules(
        **{
            name: np.broadcast_to(value, getattr(shapes, name).shape).astype(
                getattr(shapes, name).dtype
            )
            for name, value in {**plain, **values}.items()
        }
    )


def warped(logits: np.ndarray, seen=(), **how) -> np.ndarray:
    """What transformers makes of logits ``[V]``, in its order of processors."""
    processors = transformers.LogitsProcessorList()
    ids = torch.tensor([list(seen) or [0]])
    if seen:
        penalty = how.get("penalty", 1.0)
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(penalty))
    if "min_new" in how:
        processors.append(
            transformers.MinNewTokensLengthLogitsProcessor(
                ids.shape[1], how["min_new"], list(how["stop_ids"])
            )
        )
    processors.append(transformers.TemperatureLogitsWarper(how["temperature"]))
    if how.get("top_k"):
        processors.append(transformers.TopKLogitsWarper(how["top_k"]))
    if how.get("top_p", 1.0) < 1:
        processors.append(transformers.TopPLogitsWarper(how["top_p"]))
    return processors(ids, torch.from_numpy(logits)[None].clone())[0].numpy()


LOGITS = (2.0 * np.random.default_rng(0).normal(size=V)).astype(np.float32)
SEEN = (1, 4, 5, 17)
CASES = (
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_k": 10**6},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "top_p": 0.3},
    {"temperature": 2.0, "top_k": 9, "top_p": 0.7},
    {"temperature": 1.0, "penalty": 1.7},
    {"temperature": 1.0, "penalty": 0.6, "top_k": 6},
    {"temperature": 1.5, "min_new": 2, "stop_ids": (3, 9, 9)},
)


def test_draws_follow_the_exact_softmax():
    """Chi-square; every case draws beside the others, from numbers of its own."""
    draws = 4_000
    lead = (len(CASES), draws)

    def column(name: str, default, width: int = 0):
        rows = [case.get(name, default) for case in CASES]
        return np.asarray(rows).reshape(len(CASES), 1, *[width] * bool(width))

    seed = np.stack([np.zeros(len(CASES)), np.arange(len(CASES)) + 5], axis=-1)
    how = rules(
        lead,
        seed=seed[:, None].astype(np.uint32),
        sample=np.arange(draws)[None],
        stop_ids=column("stop_ids", (-1, -1, -1), 3),
        **{name: column(name, 1.0) for name in ("temperature", "top_p", "penalty")},
        **{name: column(name, 0) for name in ("top_k", "min_new")},
    )
    seen = np.isin(np.arange(V), SEEN)
    logits = jnp.broadcast_to(LOGITS, (*lead, V))
    whole = jnp.broadcast_to(seen, logits.shape)
    count = jnp.ones(lead, jnp.int32)
    found, logps = jax.jit(functools.partial(sampling.draw, seen=lambda: whole))(
        logits, how, count
    )
    own = np.asarray(jax.nn.log_softmax(LOGITS))
    np.testing.assert_allclose(logps, own[np.asarray(found)], rtol=1e-5, atol=1e-6)
    for case, tokens in zip(CASES, np.asarray(found), strict=True):
        expected = torch.softmax(
            torch.from_numpy(warped(LOGITS, SEEN, **case)).double(), -1
        ).numpy()
        observed = np.bincount(tokens, minlength=V)
        possible = expected > 0
        assert not observed[~possible].any(), case
        if possible.sum() > 1:
            # Rare tokens together, as the test's law is of large counts.
            rare = expected * draws < 10
            both = [
                np.append(x[possible & ~rare], x[possible & rare].sum())
                for x in (observed, expected * draws)
            ]
            both = [x[: len(x) - (not (possible & rare).any())] for x in both]
            assert stats.chisquare(both[0], both[1]).pvalue > 1e-4, case


def test_the_rule_of_randomness():
    """Token t of sample k is drawn with fold_in(fold_in(key(seed), k), t)."""
    for seed in (0, 1, 2**31 + 7, 2**40 + 3, -1, -(2**63)):
        wide = seed & (2**64 - 1)
        halves = np.array([wide >> 32, wide & (2**32 - 1)], np.uint32)
        with jax.enable_x64(True):
            key = jax.random.key(seed)
        for sample, count in ((0, 0), (3, 0), (0, 3), (4095, 100_000)):
            folded = jax.random.fold_in(jax.random.fold_in(key, sample), count)
            found = sampling.uniform(
                jnp.asarray(halves)[None, None],
                jnp.full((1, 1), sample, jnp.int32),
                jnp.full((1, 1), count, jnp.int32),
            )
            assert found[0, 0] == jax.random.uniform(folded, dtype=jnp.float32)


weights_of = functools.partial(
    hnp.arrays,
    np.float32,
    elements=st.one_of(st.just(0.0), st.floats(0, 1, width=32)),
)


@jax.jit
def threshold(weights, mass, wanted):
    return sampling._threshold(weights[None, None], mass[None, None], wanted[None])


@quick
@given(weights_of(V), st.integers(1, V))
def test_the_threshold_of_a_count_is_a_sorted_one(weights, count):
    mass = np.ones(V, np.float32)
    found = threshold(weights, mass, np.array([count], np.float32))[0, 0]
    assert found == np.sort(weights)[-count]


@quick
@given(weights_of(V), st.floats(0.01, 0.99))
def test_the_threshold_of_a_mass(weights, share):
    """No token with a higher weight alone would be enough, and from it on it is."""
    assume(weights.max() > 1e-3)
    wanted = np.float32(share * weights.sum(dtype=np.float64))
    found = np.asarray(threshold(weights, weights, wanted[None]))[0, 0]
    each = weights.astype(np.float64)
    room = 1e-5 * each.sum()
    assert each[weights >= found].sum() >= wanted - room
    assert each[weights > found].sum() < wanted + room
    assert found in weights


@jax.jit
def kept(logits, top_k, top_p):
    weights = jnp.exp(logits - jnp.max(logits))[None, None]
    weights = sampling.kept_top_k(weights, top_k[None, None])
    return sampling.kept_top_p(weights, top_p[None, None])[0, 0] > 0


distinct = st.lists(st.integers(-4000, 4000), min_size=V, max_size=V, unique=True).map(
    lambda whole: np.array(whole, np.float32) / 400
)


@quick
@given(distinct, st.integers(1, 2 * V), st.floats(1e-6, 0.999))
@example(np.arange(V, dtype=np.float32), 2 * V, 1e-6)  # more than there are; one
@example(np.arange(V, dtype=np.float32), 1, 0.999)
def test_what_is_kept_is_what_transformers_keeps(logits, top_k, top_p):
    some = warped(logits, temperature=1.0, top_k=top_k).astype(np.float64)
    shares = np.exp(some - some.max())
    sums = np.cumsum(np.sort(shares)[::-1]) / shares.sum()
    assume(np.abs(sums - top_p).min() > 1e-5)  # no matter of rounding
    expected = warped(logits, temperature=1.0, top_k=top_k, top_p=top_p)
    found = kept(logits, np.int32(top_k), np.float32(top_p))
    np.testing.assert_array_equal(found, np.isfinite(expected))


def test_tied_tokens_stay_together():
    logits = np.array([3.0, 2.0, 2.0, 2.0, 1.0] + [0.0] * (V - 5), np.float32)
    for top_k in (2, 3, 4):
        found = kept(logits, np.int32(top_k), np.float32(1))
        assert np.flatnonzero(found).tolist() == [0, 1, 2, 3]
    assert kept(logits, np.int32(1), np.float32(1)).sum() == 1
    assert kept(logits, np.int32(5), np.float32(1)).sum() == 5
    assert kept(logits, np.int32(6), np.float32(1)).sum() == V
    found = kept(logits, np.int32(0), np.float32(0.6))
    assert np.flatnonzero(found).tolist() == [0, 1, 2, 3]


def test_a_share_of_all_keeps_what_no_sum_shows():
    """Beside a slot that cuts, one that does not keeps tokens too rare for float32."""
    weights = np.full((1, 2, V), 1e-9, np.float32)
    weights[..., 3] = 1.0
    found = sampling.kept_top_p(weights, np.array([[1.0, 0.9]], np.float32))
    assert (np.asarray(found) > 0).sum(-1).tolist() == [[V, 1]]


@jax.jit
def picked(weights, number):
    return sampling.pick(weights[None, None], number[None, None])[0, 0]


@pytest.mark.parametrize("vocab", [V, 512, 1300])
def test_pick_is_the_inverse_of_the_distribution(vocab):
    """Against float64; next to a boundary either neighbour is right."""

    @settings(max_examples=80, deadline=None)
    @given(weights_of(vocab), st.floats(0, 1, width=32, exclude_max=True))
    @example(np.eye(1, vocab, vocab - 1, dtype=np.float32)[0], 0.0)
    @example(np.eye(1, vocab, 0, dtype=np.float32)[0], float(np.float32(1 - 2**-24)))
    @example(np.ones(vocab, np.float32), float(np.float32(1 - 2**-24)))
    def check(weights, number):
        assume(weights.max() > 1e-3)
        token = int(picked(weights, np.float32(number)))
        assert 0 <= token < vocab and weights[token] > 0
        ends = np.cumsum(weights, dtype=np.float64)
        room, target = 1e-5 * ends[-1], number * ends[-1]
        assert ends[token] - weights[token] - room <= target <= ends[token] + room

    check()


def test_a_token_without_weight_is_never_picked():
    """Numbers at the very ends of the shares, whatever the sums there round to."""
    rng = np.random.default_rng(0)
    vocab, last = 1024, np.float32(1 - 2**-24)
    for _ in range(3):
        weights = rng.random(vocab, np.float32) ** 4
        weights[rng.random(vocab) < 0.7] = 0.0
        ends = np.cumsum(weights, dtype=np.float64)
        numbers = [(ends / ends[-1]).astype(np.float32)]
        for side in (0, 1):
            for _ in range(6):
                numbers.append(np.nextafter(numbers[-1], np.float32(side)))
            numbers.append(numbers[0])
        number = np.concatenate(numbers).clip(max=last)
        wide = np.broadcast_to(weights, (1, len(number), vocab))
        tokens = np.asarray(jax.jit(sampling.pick)(wide, number[None]))[0]
        assert weights[tokens].min() > 0


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-30, 1e-38, 1e-45])
def test_the_coldest_temperatures_are_greedy(temperature):
    """Dividing by them must not overflow into a token that nobody meant."""
    lead = (1, 64)
    logits = np.broadcast_to(30 * LOGITS, (*lead, V))
    how = rules(lead, temperature=temperature, sample=np.arange(64)[None])
    found, _ = sampling.draw(
        logits, how, jnp.zeros(lead, jnp.int32), lambda: jnp.zeros(logits.shape, bool)
    )
    assert np.unique(found).tolist() == [int(LOGITS.argmax())]


def test_slots_draw_by_their_own_rules():
    """Greedy, penalty, suppressed stop tokens and sampling side by side."""
    lead = (1, 5)
    best, second, third = (int(i) for i in np.argsort(-LOGITS)[:3])
    how = rules(
        lead,
        temperature=np.array([[0, 0, 0, 0, 1.0]]),
        top_k=np.array([[0, 0, 0, 0, 1]]),
        penalty=np.array([[1, 10.0, 1, 1, 1]]),
        min_new=np.array([[0, 0, 3, 2, 0]]),
        stop_ids=np.array([[[best, -1, -1]] * 2 + [[best, second, -1]] * 3]),
    )
    seen = np.zeros((*lead, V), bool)
    seen[..., best] = True
    logits = jnp.broadcast_to(LOGITS, seen.shape)
    found, _ = sampling.draw(
        logits, how, jnp.full(lead, 2, jnp.int32), lambda: jnp.asarray(seen)
    )
    assert LOGITS[second] > LOGITS[best] / 10 > 0
    assert found.tolist() == [[best, second, third, best, best]]
    assert sampling.is_stop(found, how).tolist() == [[True, False, False, True, True]]


def test_a_penalty_divides_what_is_likely_and_multiplies_what_is_not():
    logits = np.array([[[4.0, -4.0, 0.0, 2.0]]], np.float32)
    seen = np.array([[[True, True, True, False]]])
    found = sampling.penalised(logits, seen, np.full((1, 1), 2.0, np.float32))
    assert found.tolist() == [[[2.0, -8.0, 0.0, 2.0]]]


def test_log_probs_are_those_of_the_model():
    """Whatever bends the distribution that tokens are drawn from."""
    logits = np.random.default_rng(3).normal(size=(2, 3, V)).astype(np.float32)
    how = rules(
        (2, 3),
        temperature=np.array([[0, 1, 0.5], [2, 1, 0]]),
        penalty=np.array([[1, 5.0, 1], [1, 1, 3]]),
        top_k=np.array([[0, 0, 2], [0, 3, 0]]),
    )
    seen = jnp.asarray(np.random.default_rng(4).random((2, 3, V)) < 0.5)
    tokens, logps = sampling.draw(
        logits, how, jnp.zeros((2, 3), jnp.int32), lambda: seen
    )
    expected = np.asarray(jax.nn.log_softmax(logits))
    picked = np.take_along_axis(expected, np.asarray(tokens)[..., None], -1)[..., 0]
    np.testing.assert_allclose(logps, picked, rtol=1e-5)


def test_without_leaves_what_is_no_token():
    logits = np.zeros((1, 1, 4), np.float32)
    found = sampling.without(logits, np.array([[[1, -1, 9]]]))
    assert np.isneginf(found).tolist() == [[[False, True, False, False]]]


def test_every_rule_has_a_shape():
    found = sampling.no_rules(2, 3, 4)
    assert found.stop_ids.shape == (2, 3, 4) and found.seed.shape == (2, 3, 2)
    for field in dataclasses.fields(found):
        assert getattr(found, field.name).shape[:2] == (2, 3)
