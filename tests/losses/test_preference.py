"""Pair losses: parity with the reference trainer, float64 oracles, extremes, masks."""

from __future__ import annotations

import functools
import json
import math
import pathlib

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpo_jax import loss_terms
from mpo_jax.losses import preference, reward_shift

GOLDEN = pathlib.Path("goldens") / "losses" / "preference_losses.json"
NAMES = sorted(preference.LOSSES)
INPUTS = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
SMOOTHING = {"exo_pair": 0.1, "robust": 0.1, "aot": 0.1, "aot_pair": 0.1}


def _log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def _oracle(name, pc, pr, rc, rr, *, beta, eps, delta):
    """The published formulas in float64 NumPy, written apart from the code."""
    x = beta * ((pc - pr) - (rc - rr))
    hc, hr = beta * (pc - rc), beta * (pr - rr)
    sig = 1 / (1 + np.exp(-x))
    cdpo = lambda z: -(1 - eps) * _log_sigmoid(z) - eps * _log_sigmoid(-z)  # noqa: E731
    formulas = {
        "sigmoid": lambda: cdpo(x),
        "hinge": lambda: np.maximum(0, 1 - x),
        "ipo": lambda: (x / beta - 1 / (2 * beta)) ** 2,
        "bco_pair": lambda: -_log_sigmoid(hc - delta) - _log_sigmoid(delta - hr),
        "sppo_hard": lambda: ((hc - 0.5) ** 2 + (hr + 0.5) ** 2) / beta**2,
        "nca_pair": lambda: (
            -_log_sigmoid(hc) - _log_sigmoid(-hc) / 2 - _log_sigmoid(-hr) / 2
        ),
        "robust": lambda: (
            (-(1 - eps) * _log_sigmoid(x) + eps * _log_sigmoid(-x)) / (1 - 2 * eps)
        ),
        "aot": lambda: cdpo(beta * (np.sort(pc - pr) - np.sort(rc - rr))),
        "aot_pair": lambda: cdpo(np.sort(hc) - np.sort(hr)),
        "exo_pair": lambda: (
            sig * (np.log(sig) - np.log(1 - eps))
            + (1 - sig) * (np.log(1 - sig) - np.log(eps))
        ),
    }
    return formulas[name]()


def _random_logps(seed, n=6, spread=8.0):
    rng = np.random.default_rng(seed)
    reference = rng.uniform(-170, -60, (2, n))
    policy = reference + rng.normal(0, spread, (2, n))
    return [jnp.asarray(x, jnp.float32) for x in (*policy, *reference)]


def _losses(name, logps, **kwargs):
    kwargs.setdefault("beta", 0.1)
    kwargs.setdefault("label_smoothing", SMOOTHING.get(name, 0.0))
    return preference.pair_loss(name, *logps, **kwargs)[0]


def _policy_grads(name, logps, **kwargs):
    def mean(pc, pr):
        return jnp.mean(_losses(name, [pc, pr, *logps[2:]], **kwargs))

    return jax.grad(mean, argnums=(0, 1))(*logps[:2])


def _padded(logps, mask, filler):
    """Spread the pairs of `logps` over the True positions of `mask`."""
    out = []
    for x in logps:
        full = np.full(mask.shape, filler, np.float32)
        full[mask] = np.asarray(x)
        out.append(jnp.asarray(full))
    return out


def _case_loss(case, policy, reference, mask, shift):
    """Mean loss of a golden step; aux: losses, both rewards, and the new shift."""
    options = {key: case[key] for key in ("beta", "label_smoothing")}
    options["mask"] = mask
    out = preference.pair_loss(case["loss_type"], *policy, *reference, **options)
    if case["loss_type"] == "bco_pair":
        # The trainer counts a call once, whatever its number of pairs.
        mean = (jnp.sum(out[1]) + jnp.sum(out[2])) / (2 * mask.sum())
        options["delta"], shift = reward_shift.delta_for(
            "cumulative", shift, mean, jnp.asarray(1), decay=0.0
        )
        out = preference.pair_loss("bco_pair", *policy, *reference, **options)
    return jnp.sum(out[0]) / mask.sum(), (out, shift)


def test_matches_reference_trainer(shared):
    """All cases: losses, rewards, gradients of the batch mean, running delta.

    Tolerance 1e-5, relative and absolute: both sides are float32 with inputs near
    -150, of which one ulp is 1.5e-5, times beta.
    """
    cases = json.loads((shared / GOLDEN).read_text())["cases"]
    assert len(cases) == 30
    assert {case["loss_type"] for case in cases} == set(preference.LOSSES)
    rows = max(len(step["losses"]) for case in cases for step in case["steps"])
    for case in cases:
        name, shift = case["loss_type"], reward_shift.init()
        assert len(case["steps"]) == 4
        gradient = jax.grad(functools.partial(_case_loss, case), has_aux=True)
        for step in case["steps"]:
            # One padded shape for all steps: each operation compiles once.
            mask = np.arange(rows) < len(step["losses"])
            logps = _padded([step[key] for key in INPUTS], mask, np.nan)
            grads, (out, shift) = gradient(
                logps[:2], logps[2:], jnp.asarray(mask), shift
            )
            keys = ("losses", "chosen_rewards", "rejected_rewards")
            got = dict(zip(keys, out, strict=True))
            got["grad_chosen"], got["grad_rejected"] = grads
            if name == "bco_pair":
                assert step["running_count"] == shift.count
                np.testing.assert_allclose(
                    shift.mean, step["running_mean"], rtol=1e-5, atol=1e-5
                )
            for key, value in got.items():
                np.testing.assert_allclose(
                    np.asarray(value)[mask],
                    step[key],
                    rtol=1e-5,
                    atol=1e-5,
                    err_msg=f"{name} beta {case['beta']} {key}",
                )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_values_and_gradients_match_float64(name, beta):
    """Values, and gradients against float64 central differences.

    float32 gradients carry about 1e-6 relative error, the differences (step 1e-4)
    about 1e-7; 1e-4 leaves room for sums near zero.
    """
    logps = _random_logps(3)
    eps = SMOOTHING.get(name, 0.0)
    oracle_args = {"beta": beta, "eps": eps, "delta": 0.3}
    exact = [np.asarray(x, np.float64) for x in logps]
    np.testing.assert_allclose(
        _losses(name, logps, beta=beta, delta=0.3),
        _oracle(name, *exact, **oracle_args),
        rtol=1e-5,
        atol=1e-6,
    )
    grads = _policy_grads(name, logps, beta=beta, delta=0.3)
    for side in (0, 1):
        for i in range(exact[0].size):
            values = []
            for step in (1e-4, -1e-4):
                moved = [x.copy() for x in exact]
                moved[side][i] += step
                values.append(_oracle(name, *moved, **oracle_args).mean())
            expected = (values[0] - values[1]) / 2e-4
            np.testing.assert_allclose(grads[side][i], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", math.log(2)),
        ("hinge", 1.0),
        ("ipo", 25.0),
        ("bco_pair", 2 * math.log(2)),
        ("sppo_hard", 50.0),
        ("nca_pair", 2 * math.log(2)),
        ("robust", math.log(2)),
        ("aot", math.log(2)),
        ("aot_pair", math.log(2)),
        ("exo_pair", -math.log(2) - math.log(0.1 * 0.9) / 2),
    ],
)
def test_value_where_policy_is_reference(name, expected):
    reference = _random_logps(1)[2:]
    losses = _losses(name, [*reference, *reference])
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0.0, 50.0, 1e3, 1e4, 1e5])
def test_finite_at_extremes(name, size):
    """Logits up to 1e4 (log-ratios up to 1e5 at beta 0.1), both signs, and 0."""
    policy = jnp.asarray([size, -size, size, -size], jnp.float32)
    other = jnp.asarray([-size, size, size, -size], jnp.float32)
    logps = [policy, other, jnp.zeros(4), jnp.zeros(4)]
    losses = _losses(name, logps)
    grads = _policy_grads(name, logps)
    assert np.isfinite(losses).all()
    assert np.isfinite(grads).all()


def test_sigmoid_tails():
    """Far from 0 the loss is the logit itself on one side, 0 on the other."""
    zero = jnp.zeros(2)
    logps = [jnp.asarray([-1e5, 1e5], jnp.float32), zero, zero, zero]
    np.testing.assert_allclose(_losses("sigmoid", logps), [1e4, 0.0], rtol=1e-6)
    gradient = _policy_grads("sigmoid", logps)[0]
    np.testing.assert_allclose(gradient, [-0.05, 0.0], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("filler", [3e38, np.nan])
def test_padding_takes_no_part(name, filler):
    """Bit-equal to the call without padding; padding gets exact zeros."""
    mask = np.array([[False, True, True, False], [True, False, True, True]])
    logps = _random_logps(5, n=int(mask.sum()))
    padded = _padded(logps, mask, filler)
    options = {"label_smoothing": SMOOTHING.get(name, 0.0), "delta": 0.2, "beta": 0.1}
    expected = preference.pair_loss(name, *logps, **options)
    got = preference.pair_loss(name, *padded, mask=jnp.asarray(mask), **options)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == mask.shape and a.dtype == jnp.float32
        np.testing.assert_array_equal(np.asarray(a)[mask], b)
        np.testing.assert_array_equal(np.asarray(a)[~mask], 0.0)

    def total(logps, mask):
        losses = _losses(name, logps, delta=0.2, mask=mask)
        return jnp.sum(losses * jnp.arange(1.0, 1 + losses.size).reshape(losses.shape))

    weights = jnp.arange(1.0, 9.0).reshape(2, 4)[mask]
    want = jax.grad(lambda x: jnp.sum(_losses(name, x, delta=0.2) * weights))(logps)
    grads = jax.grad(total)(padded, jnp.asarray(mask))
    for a, b in zip(grads, want, strict=True):
        np.testing.assert_allclose(np.asarray(a)[mask], b, rtol=1e-6)
        np.testing.assert_array_equal(np.asarray(a)[~mask], 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_batch_of_padding_only(name):
    nothing = jnp.zeros((2, 3), bool)
    logps = [jnp.full((2, 3), np.nan)] * 4
    losses = _losses(name, logps, mask=nothing)
    np.testing.assert_array_equal(losses, jnp.zeros((2, 3)))


arrays = hnp.arrays(
    np.float32,
    (4, 6),
    elements=st.floats(-300, 0, width=32, allow_subnormal=False),
)


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(logps=arrays, order=st.permutations(range(6)))
def test_permutation(logps, order):
    """Order of pairs: per-pair losses follow it, sorted losses do not see it."""
    order = np.asarray(order)
    for name in NAMES:
        losses = np.asarray(_losses(name, list(jnp.asarray(logps))))
        moved = np.asarray(_losses(name, list(jnp.asarray(logps[:, order]))))
        if name in loss_terms.BATCH_COUPLED:
            np.testing.assert_array_equal(moved, losses)
        else:
            np.testing.assert_array_equal(moved, losses[order])


@pytest.mark.parametrize("name", NAMES)
def test_coupling_is_declared(name):
    """Moving one pair changes other pairs' losses in BATCH_COUPLED only."""
    logps = _random_logps(7)
    moved = [logps[0].at[0].add(500.0), *logps[1:]]
    same = np.array_equal(_losses(name, logps)[1:], _losses(name, moved)[1:])
    assert same == (name not in loss_terms.BATCH_COUPLED)


@pytest.mark.parametrize("name", NAMES)
def test_shared_prefix(name):
    """Log-probs of a shared response prefix cancel in margin losses only."""
    logps = _random_logps(9)
    moved = [logps[0] + 16.0, logps[1] + 16.0, *logps[2:]]
    cancels = name not in ("bco_pair", "sppo_hard", "nca_pair")
    same = np.allclose(_losses(name, logps), _losses(name, moved), rtol=1e-3, atol=1e-4)
    assert same == cancels


@pytest.mark.parametrize("name", NAMES)
def test_smoothing_is_read_where_declared(name):
    logps = _random_logps(2)
    low, high = (_losses(name, logps, label_smoothing=e) for e in (0.1, 0.3))
    assert np.allclose(low, high) != (name in loss_terms.SMOOTHED)


def test_robust_is_unbiased():
    """With flips at rate e, the expected robust loss is the clean DPO loss."""
    pc, pr, rc, rr = _random_logps(4)
    kept = _losses("robust", [pc, pr, rc, rr], label_smoothing=0.2)
    flipped = _losses("robust", [pr, pc, rr, rc], label_smoothing=0.2)
    clean = _losses("sigmoid", [pc, pr, rc, rr])
    np.testing.assert_allclose(0.8 * kept + 0.2 * flipped, clean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name):
    """No implicit promotion inside; bfloat16 log-probs still give float32."""
    logps = [x.astype(jnp.bfloat16) for x in _random_logps(6)]
    with jax.numpy_dtype_promotion("strict"):
        out = preference.pair_loss(
            name, *logps, beta=0.1, label_smoothing=0.1, mask=jnp.ones(6, bool)
        )
    assert [x.dtype for x in out] == [jnp.float32] * 3


@pytest.mark.parametrize("name", NAMES)
def test_losses_alone_are_those_with_rewards(name):
    """One preparation serves many losses; what differs between them is replaced."""
    logps, mask = _random_logps(11), jnp.arange(6) != 2
    options = {"beta": 0.3, "delta": 0.2, "label_smoothing": SMOOTHING.get(name, 0.0)}
    shared = preference.pair_inputs(*logps, beta=0.3, mask=mask)
    alone = preference.pair_losses(
        name,
        shared._replace(delta=0.2, label_smoothing=options["label_smoothing"]),
    )
    losses, chosen, rejected = preference.pair_loss(name, *logps, mask=mask, **options)
    np.testing.assert_array_equal(alone, losses)
    np.testing.assert_array_equal(shared.chosen_rewards, chosen)
    np.testing.assert_array_equal(shared.rejected_rewards, rejected)
    with pytest.raises(ValueError, match="beta must be positive"):
        preference.pair_losses(name, shared._replace(beta=0.0))


def test_aliases():
    logps = _random_logps(8)
    np.testing.assert_array_equal(_losses("rso", logps), _losses("hinge", logps))
    np.testing.assert_array_equal(
        _losses("cdpo", logps, label_smoothing=0.2),
        _losses("sigmoid", logps, label_smoothing=0.2),
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sigmiod", {}, "did you mean 'sigmoid'"),
        ("zzzz", {}, r"unknown loss 'zzzz' \(known: sigmoid, "),
        ("sigmoid", {"beta": 0.0}, "beta must be positive and finite, got 0.0"),
        ("sigmoid", {"beta": math.nan}, "beta must be positive"),
        ("robust", {"label_smoothing": 0.5}, r"\[0, 0.5\), got 0.5"),
        ("sigmoid", {"label_smoothing": -0.1}, r"\[0, 0.5\), got -0.1"),
        ("exo_pair", {"label_smoothing": 0.0}, "infinite at label_smoothing 0"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        _losses(name, _random_logps(0), **options)


def test_orpo_matches_float64():
    """Over the whole range of mean log-probs, values and gradients.

    1 - p has a relative error of float32 eps / (1 - p) in a naive form; here the
    tolerance 2e-6 holds up to the cap.
    """
    chosen = np.array([-1e-6, -1e-4, -0.3, -0.69, -0.7, -2.0, -30.0, -1e4])
    rejected = chosen[::-1].copy()
    odds = lambda x: x - np.log(-np.expm1(x))  # noqa: E731
    x = odds(chosen) - odds(rejected)
    args = jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32)
    losses = preference.orpo_loss(*args)
    np.testing.assert_allclose(losses, -_log_sigmoid(x), rtol=2e-6, atol=1e-6)
    grads = jax.grad(lambda c, r: preference.orpo_loss(c, r).sum(), (0, 1))(*args)
    slope = -1 / (1 + np.exp(np.minimum(x, 700)))
    inside = slice(1, -1)  # at the cap the slope is cut
    for grad, logp, sign in ((grads[0], chosen, 1), (grads[1], rejected, -1)):
        expected = sign * slope / -np.expm1(logp)
        assert np.isfinite(grad).all()
        np.testing.assert_allclose(
            grad[inside], expected[inside], rtol=1e-3, atol=1e-12
        )


def test_orpo_at_certainty():
    """A response of probability 1 (mean log-prob 0) gives no NaN on either side."""
    certain, unsure = jnp.zeros(2), jnp.full(2, -1.0)
    for args in ((certain, unsure), (unsure, certain), (certain, certain)):
        assert np.isfinite(preference.orpo_loss(*args)).all()
        grads = jax.grad(lambda c, r: preference.orpo_loss(c, r).sum(), (0, 1))(*args)
        assert np.isfinite(grads).all()


def test_sft_loss():
    logp = jnp.asarray([-10.0, -3.0, np.nan])
    tokens = jnp.asarray([5, 3, 0])
    np.testing.assert_allclose(preference.sft_loss(logp, tokens), [2.0, 1.0, 0.0])
    grad = jax.grad(lambda x: preference.sft_loss(x, tokens).sum())(logp)
    np.testing.assert_allclose(grad, [-1 / 5, -1 / 3, 0.0], rtol=1e-6)
