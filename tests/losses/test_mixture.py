"""Mixture of terms: theory, reward shift, invariances, metrics, configuration."""

from __future__ import annotations

import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpo_jax import config as config_lib
from mpo_jax import loss_terms, types
from mpo_jax.losses import mixture, preference, reward_shift

MODES = config_lib.DELTA_MODES
LN2 = math.log(2)


def _config(**kwargs):
    if "terms" in kwargs:
        kwargs.setdefault("weights", (1.0,) * len(kwargs["terms"]))
    return config_lib.LossConfig(**kwargs)


def _shift(mean, count):
    return reward_shift.RewardShift(jnp.float32(mean), jnp.float32(count))


def _batch(seed=0, shape=(6,), *, spread=6.0, mask=None):
    """Random log-probs; one shape in most tests, so that operations compile once."""
    rng = np.random.default_rng(seed)
    reference = rng.uniform(-170, -60, (*shape, 2))
    policy = reference + rng.normal(0, spread, reference.shape)
    tokens = rng.integers(3, 40, reference.shape)
    logps = types.PairLogps(
        chosen=jnp.asarray(policy[..., 0], jnp.float32),
        rejected=jnp.asarray(policy[..., 1], jnp.float32),
        chosen_tokens=jnp.asarray(tokens[..., 0]),
        rejected_tokens=jnp.asarray(tokens[..., 1]),
    )
    mask = jnp.ones(shape, bool) if mask is None else jnp.asarray(mask)
    return logps, jnp.asarray(reference, jnp.float32), mask


def _run(batch, *, config, shift=None, totals=None):
    """Loss, metrics, new shift and gradients with respect to both log-probs."""
    logps, reference, mask = batch
    shift = shift or reward_shift.init()

    def loss(chosen, rejected, shift):
        policy = types.PairLogps(
            chosen, rejected, logps.chosen_tokens, logps.rejected_tokens
        )
        return mixture.mixed_loss(
            policy, reference, mask, shift, config=config, totals=totals
        )

    # Not jitted: the operations compile once per shape, not once per configuration.
    grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, (metrics, new)), grads = grad(logps.chosen, logps.rejected, shift)
    return value, metrics, new, grads


def _means(metrics):
    return {name: float(a) / float(b) for name, (a, b) in metrics.items() if b > 0}


def _take(batch, index):
    return jax.tree.map(lambda x: x[index], batch)


# --- theory ---------------------------------------------------------------------


def test_step_zero():
    """Policy = reference: 0.8 ln 2 + 0.2 * 2 ln 2 plus the NLL (paper, default)."""
    logps, _, mask = _batch()
    reference = jnp.stack([logps.chosen, logps.rejected], axis=-1)
    loss, metrics, shift, _ = _run((logps, reference, mask), config=_config())
    got = _means(metrics)
    nll = np.mean(-np.asarray(logps.chosen) / np.asarray(logps.chosen_tokens))
    np.testing.assert_allclose(loss, 0.8 * LN2 + 0.4 * LN2 + nll, rtol=1e-6)
    np.testing.assert_allclose(got["loss/sigmoid"], LN2, rtol=1e-6)
    np.testing.assert_allclose(got["loss/bco_pair"], 2 * LN2, rtol=1e-6)
    np.testing.assert_allclose(got["loss/sft"], nll, rtol=1e-6)
    for name in ("chosen", "rejected", "margins", "accuracies"):
        assert got[f"rewards/{name}"] == 0.0  # ties are not accurate
    assert got["delta"] == 0.0 and shift.mean == 0.0 and shift.count == 6


@pytest.mark.parametrize("name", ["internlm2", "qwen2", "llama", "phi3"])
def test_matches_reference_terms(shared, name):
    """Terms and total of the reference implementation from its log-probs.

    rtol 1e-5: both sides are float32 and see the same inputs.
    """
    golden = np.load(shared / "goldens" / f"internvl2-{name}" / "golden.npz")
    pairs = len(golden["dpo"])

    def sides(x):  # chosen of all pairs, then rejected
        return jnp.asarray(x).reshape(2, pairs)

    chosen, rejected = sides(golden["sum_logps"])
    tokens = sides((golden["labels"][:, 1:] != -100).sum(axis=1))
    logps = types.PairLogps(chosen, rejected, *tokens)
    batch = (logps, sides(golden["ref_logps"]).T, jnp.ones(pairs, bool))
    loss, metrics, _, _ = _run(batch, config=_config(beta=float(golden["beta"])))
    got = _means(metrics) | {"total": loss}
    expected = {
        "loss/sigmoid": golden["dpo"].mean(),
        "loss/bco_pair": golden["bco"].mean(),
        "loss/sft": golden["sft_sequence_mean"],
        "delta": golden["bco_delta"],
        "total": golden["total"],
    }
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
    token = _config(terms=("sft",), sft_reduction="token")
    np.testing.assert_allclose(
        _run(batch, config=token)[0], golden["sft_token_mean"], rtol=1e-5
    )


# --- reward shift ---------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_delta_in_the_loss(mode):
    """The step uses, reports and returns what `delta_for` gives for its rewards."""
    batch = _batch(3, mask=[True, True, False, True, False, False])
    logps, reference, mask = batch
    mask = np.asarray(mask)
    rewards = 0.1 * (
        np.stack([logps.chosen, logps.rejected], -1) - np.asarray(reference)
    )
    shift = _shift(0.7, 5)
    config = _config(terms=("bco_pair",), delta=mode, delta_decay=0.75)
    loss, metrics, new, _ = _run(batch, config=config, shift=shift)
    mean = jnp.float32(rewards[mask].mean())
    delta, expected = reward_shift.delta_for(
        mode, shift, mean, jnp.asarray(3), decay=0.75
    )
    np.testing.assert_allclose(metrics["delta"][0], delta, rtol=1e-5)
    np.testing.assert_allclose(new.mean, expected.mean, rtol=1e-5)
    assert new.count == expected.count and metrics["delta"][1] == 1
    chosen, rejected = rewards[mask].astype(np.float64).T
    bco = np.logaddexp(0, delta - chosen) + np.logaddexp(0, rejected - delta)
    np.testing.assert_allclose(loss, bco.mean(), rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_no_gradient_through_delta(mode):
    """Gradients are those of BCO at a fixed delta: they do not see its mean."""
    batch = _batch(4)
    logps, reference, _ = batch
    config = _config(terms=("bco_pair",), delta=mode)
    _, metrics, _, grads = _run(batch, config=config, shift=_shift(0.1, 2))
    delta = float(metrics["delta"][0])
    hc = 0.1 * np.asarray(logps.chosen - reference[..., 0], np.float64)
    hr = 0.1 * np.asarray(logps.rejected - reference[..., 1], np.float64)
    expected = (-0.1 / (1 + np.exp(hc - delta)), 0.1 / (1 + np.exp(delta - hr)))
    for got, want in zip(grads, expected, strict=True):
        np.testing.assert_allclose(got, want / 6, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_shift_and_reference_are_constants(mode):
    """No cotangent reaches the reference, the old shift or the new one's mean."""
    logps, reference, mask = _batch(4)

    def total(reference, mean):
        shift = reward_shift.RewardShift(mean, jnp.float32(3))
        loss, (metrics, new) = mixture.mixed_loss(
            logps, reference, mask, shift, config=_config(delta=mode)
        )
        return loss + new.mean + sum(a for a, _ in metrics.values())

    for grad in jax.grad(total, argnums=(0, 1))(reference, jnp.float32(0.2)):
        np.testing.assert_array_equal(grad, jnp.zeros_like(grad))


def test_held_out_pairs_use_the_trained_shift():
    """As documented: "previous" reads the state of any mode without changing it."""
    config = _config(terms=("bco_pair",), delta="previous")
    for seed in (1, 2):
        _, metrics, _, _ = _run(_batch(seed), config=config, shift=_shift(0.4, 9))
        np.testing.assert_allclose(metrics["delta"][0], 0.4)


# --- invariances ----------------------------------------------------------------

MIXES = {
    "mpo": _config(),
    "token": _config(sft_reduction="token", delta="batch"),
    "aot": _config(terms=("aot", "aot_pair", "sft"), weights=(0.5, 0.5, 1.0)),
    "smooth": _config(terms=("cdpo", "exo_pair", "robust"), label_smoothing=0.1),
    "others": _config(terms=("ipo", "hinge", "sppo_hard", "nca_pair"), beta=0.5),
    "orpo": _config(terms=("orpo", "sft"), weights=(0.1, 1.0)),
    "previous": _config(delta="previous"),
    "previous_token": _config(delta="previous", sft_reduction="token"),
}


def _assert_same(got, want, *, rtol=2e-5):
    """Loss, metrics and shift; sums in another order differ by float32 rounding."""
    np.testing.assert_allclose(got[0], want[0], rtol=rtol)
    assert got[1].keys() == want[1].keys()
    for name in want[1]:
        np.testing.assert_allclose(
            got[1][name], want[1][name], rtol=rtol, atol=2e-4, err_msg=name
        )
    np.testing.assert_allclose(got[2].mean, want[2].mean, rtol=rtol, atol=1e-6)
    assert got[2].count == want[2].count


def _spread(batch, mask, filler):
    """Place the pairs at the True positions of `mask`; the rest holds `filler`."""

    def spread(x):
        x = np.asarray(x)
        empty = filler if np.issubdtype(x.dtype, np.floating) else 7
        out = np.full((*mask.shape, *x.shape[1:]), empty, x.dtype)
        out[mask] = x
        return jnp.asarray(out)

    logps, reference, _ = batch
    return jax.tree.map(spread, logps), spread(reference), jnp.asarray(mask)


@pytest.mark.parametrize("mix", MIXES)
def test_padding(mix):
    """Padding pairs change nothing, wherever they are and whatever they hold."""
    batch = _batch(5, (4,))
    shift = _shift(0.2, 3)
    masks = [np.array([1, 1, 1, 1, 0, 0], bool), np.array([0, 1, 1, 0, 1, 1], bool)]
    results = []
    for mask, filler in zip(masks, (0.0, np.nan), strict=True):
        padded = _spread(batch, mask, filler)
        results.append(_run(padded, config=MIXES[mix], shift=shift))
    want, got = results
    _assert_same(got, want)
    for a, b in zip(got[3], want[3], strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a[masks[1]], b[masks[0]], rtol=2e-5, atol=1e-8)
        np.testing.assert_array_equal(a[~masks[1]], 0.0)


@pytest.mark.parametrize("mix", MIXES)
def test_batch_without_pairs(mix):
    """Loss and gradient 0, weights 0, shift as before: nothing to divide by 0."""
    logps, reference, mask = _batch(6)
    shift = _shift(0.2, 3)
    batch = (logps, reference, jnp.zeros_like(mask))
    loss, metrics, new, grads = _run(batch, config=MIXES[mix], shift=shift)
    assert loss == 0.0
    assert (new.mean, new.count) == (shift.mean, shift.count)
    np.testing.assert_array_equal(grads, np.zeros((2, *mask.shape)))
    assert all(np.isfinite(v).all() for v in metrics.values())
    assert metrics["loss"] == (0.0, 0.0)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 2**31),
    order=st.permutations(range(6)),
    mix=st.sampled_from(sorted(MIXES)),
)
def test_permutation(seed, order, mix):
    """Order of pairs changes neither loss nor metrics; gradients follow it."""
    batch = _batch(seed)
    order = np.asarray(order)
    want = _run(batch, config=MIXES[mix])
    got = _run(_take(batch, order), config=MIXES[mix])
    _assert_same(got, want, rtol=1e-4)
    for a, b in zip(got[3], want[3], strict=True):
        np.testing.assert_allclose(a, np.asarray(b)[order], rtol=1e-4, atol=1e-7)


def test_layouts():
    """[Q] without padding and [A, B, Q] with garbage in it are the same batch."""
    batch = _batch(8)
    mask = np.zeros((3, 2, 2), bool)
    mask.flat[[1, 2, 5, 6, 7, 10]] = True
    want = _run(batch, config=_config())
    got = _run(_spread(batch, mask, np.nan), config=_config())
    _assert_same(got, want)
    for a, b in zip(got[3], want[3], strict=True):
        np.testing.assert_allclose(np.asarray(a)[mask], b, rtol=2e-5, atol=1e-8)


def test_sharded_batch():
    """Pairs spread over eight devices give the loss and gradients of one device.

    AOT sorts and delta averages across the devices.
    """
    config = _config(terms=("aot", "bco_pair", "sft"), weights=(1.0, 0.2, 1.0))
    batch = _batch(17, (8, 2), mask=np.arange(16).reshape(8, 2) % 5 > 0)
    shift = reward_shift.init()

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def step(logps, reference, mask):
        return mixture.mixed_loss(logps, reference, mask, shift, config=config)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def floats(batch):  # token counts are no integers under grad
        logps = jax.tree.map(lambda x: x.astype(jnp.float32), batch[0])
        return (logps, *batch[1:])

    want = step(*floats(batch))
    got = step(*jax.device_put(floats(batch), sharding))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want
    )


@pytest.mark.parametrize(
    "mix", [m for m in MIXES if not mixture.needs_two_passes(MIXES[m])]
)
def test_parts_sum_to_the_whole(mix):
    """Unequal parts with `totals`: losses, gradients and metrics add up exactly."""
    config, shift = MIXES[mix], _shift(0.2, 3)
    batch = _batch(9, mask=[True, True, False, True, True, True])
    want = _run(batch, config=config, shift=shift)
    logps, reference, mask = batch
    totals = mixture.Totals(jnp.sum(mask), jnp.sum(logps.chosen_tokens * mask))
    parts = [
        _run((logps, reference, mask & part), config=config, shift=shift, totals=totals)
        for part in (jnp.arange(6) < 1, jnp.arange(6) >= 1)
    ]
    np.testing.assert_allclose(sum(p[0] for p in parts), want[0], rtol=1e-5)
    for side in (0, 1):
        grads = sum(p[3][side] for p in parts)
        np.testing.assert_allclose(grads, want[3][side], rtol=1e-5, atol=1e-8)
    for name, (total, weight) in want[1].items():
        if name in ("delta", "pairs", "chosen_tokens", "rejected_tokens"):
            continue  # per call, not per pair
        summed = [sum(p[1][name][i] for p in parts) for i in (0, 1)]
        np.testing.assert_allclose(
            summed, (total, weight), rtol=1e-5, atol=2e-4, err_msg=name
        )
    if "delta" in want[1]:
        rewards = want[1]["rewards/chosen"][0] + want[1]["rewards/rejected"][0]
        _, new = reward_shift.delta_for(
            config.delta,
            shift,
            rewards / (2 * totals.pairs),
            totals.pairs,
            decay=config.delta_decay,
        )
        np.testing.assert_allclose(new.mean, want[2].mean, rtol=1e-5)
        assert new.count == want[2].count


@pytest.mark.parametrize("mix", MIXES)
def test_needs_two_passes_is_what_the_gradient_says(mix):
    """Moving one pair moves other pairs' gradients where two passes are needed."""
    config = MIXES[mix]
    logps, reference, mask = _batch(10, spread=3.0)
    moved = types.PairLogps(
        logps.chosen.at[0].add(40.0),
        logps.rejected,
        logps.chosen_tokens,
        logps.rejected_tokens,
    )
    grads = [
        np.asarray(_run((x, reference, mask), config=config)[3])[:, 1:]
        for x in (logps, moved)
    ]
    coupled = not np.array_equal(*grads)
    assert coupled == mixture.needs_two_passes(config)


@pytest.mark.parametrize("mode", MODES)
def test_needs_two_passes_by_mode(mode):
    current = mode in ("cumulative", "ema", "batch")
    assert mixture.needs_two_passes(_config(delta=mode)) == current
    unweighted = _config(delta=mode, weights=(0.8, 0.0, 1.0))
    assert not mixture.needs_two_passes(unweighted)
    assert not mixture.needs_two_passes(_config(delta=mode, terms=("sigmoid", "sft")))
    assert mixture.needs_two_passes(_config(delta=mode, terms=("aot", "sft")))


# --- terms and metrics ----------------------------------------------------------


def test_weights_and_metrics():
    """Every metric of the default mix against NumPy, with padding."""
    mask = np.array([True, False, True, True, True, False])
    batch = _batch(11, mask=mask)
    logps, reference, _ = batch
    loss, metrics, _, _ = _run(batch, config=_config(delta="zero"))
    policy = np.stack([logps.chosen, logps.rejected], -1).astype(np.float64)[mask]
    tokens = np.stack([logps.chosen_tokens, logps.rejected_tokens], -1)[mask]
    hc, hr = (0.1 * (policy - np.asarray(reference)[mask])).T
    terms = {
        "loss/sigmoid": np.logaddexp(0, hr - hc).mean(),
        "loss/bco_pair": (np.logaddexp(0, -hc) + np.logaddexp(0, hr)).mean(),
        "loss/sft": (-policy[:, 0] / tokens[:, 0]).mean(),
    }
    total = np.dot([0.8, 0.2, 1.0], list(terms.values()))
    expected = terms | {
        "loss": total,
        "rewards/chosen": hc.mean(),
        "rewards/rejected": hr.mean(),
        "rewards/margins": (hc - hr).mean(),
        "rewards/accuracies": (hc > hr).mean(),
        "logps/chosen": policy[:, 0].mean(),
        "logps/rejected": policy[:, 1].mean(),
        "logps/chosen_per_token": policy[:, 0].sum() / tokens[:, 0].sum(),
        "logps/rejected_per_token": policy[:, 1].sum() / tokens[:, 1].sum(),
        "logps/accuracies": np.less(*(policy / tokens).T[::-1]).mean(),
        "delta": 0.0,
        "pairs": 4.0,
        "chosen_tokens": tokens[:, 0].sum(),
        "rejected_tokens": tokens[:, 1].sum(),
    }
    assert metrics.keys() == expected.keys()
    assert all(x.dtype == jnp.float32 for pair in metrics.values() for x in pair)
    for name, value in _means(metrics).items():
        np.testing.assert_allclose(
            value, expected[name], rtol=1e-5, atol=1e-5, err_msg=name
        )
    np.testing.assert_allclose(loss, total, rtol=1e-5)


def test_rewards_do_not_depend_on_the_number_of_terms():
    batch = _batch(12)
    one = _means(_run(batch, config=_config(terms=("sigmoid",)))[1])
    for terms in (("sigmoid", "bco_pair", "sft"), ("ipo", "hinge", "orpo", "sft")):
        many = _means(_run(batch, config=_config(terms=terms))[1])
        for name in ("chosen", "rejected", "margins", "accuracies"):
            np.testing.assert_allclose(many[f"rewards/{name}"], one[f"rewards/{name}"])


@pytest.mark.parametrize("name", sorted(preference.LOSSES))
def test_one_term_is_the_mean_of_its_pair_loss(name):
    smoothing = 0.1 if name in loss_terms.SMOOTHED else 0.0
    batch = _batch(13, mask=[True, False, True, True, True, False])
    logps, reference, mask = batch
    config = _config(terms=(name,), weights=(2.0,), label_smoothing=smoothing)
    loss, metrics, _, _ = _run(batch, config=config, shift=_shift(0.0, 0))
    losses, _, _ = preference.pair_loss(
        name,
        logps.chosen,
        logps.rejected,
        reference[..., 0],
        reference[..., 1],
        beta=0.1,
        label_smoothing=smoothing,
        delta=metrics["delta"][0] if name == "bco_pair" else 0.0,
        mask=mask,
    )
    np.testing.assert_allclose(loss, 2 * losses.sum() / 4, rtol=1e-5)
    np.testing.assert_allclose(metrics[f"loss/{name}"], (losses.sum(), 4), rtol=1e-5)


def test_sft_reductions():
    """Mean of per-response means against mean over tokens."""
    logps = types.PairLogps(
        chosen=jnp.asarray([[-10.0, -30.0]]),
        rejected=jnp.zeros((1, 2)),
        chosen_tokens=jnp.asarray([[10, 90]]),
        rejected_tokens=jnp.zeros((1, 2), "int32"),
    )
    batch = (logps, None, jnp.ones((1, 2), bool))
    by_reduction = {
        reduction: _run(batch, config=_config(terms=("sft",), sft_reduction=reduction))
        for reduction in config_lib.SFT_REDUCTIONS
    }
    loss, metrics, _, grads = by_reduction["sequence"]
    np.testing.assert_allclose(loss, (1 + 1 / 3) / 2, rtol=1e-6)
    np.testing.assert_allclose(grads[0], [[-0.05, -1 / 180]], rtol=1e-6)
    assert metrics["loss/sft"][1] == 2
    loss, metrics, _, grads = by_reduction["token"]
    np.testing.assert_allclose(loss, 0.4, rtol=1e-6)
    np.testing.assert_allclose(grads[0], [[-0.01, -0.01]], rtol=1e-6)
    assert metrics["loss/sft"] == (40.0, 100.0)


def test_sft_mode():
    """No reference: no rewards; rejected responses get neither gradient nor metric."""
    logps, _, mask = _batch(14)
    loss, metrics, shift, grads = _run(
        (logps, None, mask), config=_config(terms=("sft",)), shift=_shift(0.2, 3)
    )
    assert set(metrics) == {
        "loss",
        "loss/sft",
        "logps/chosen",
        "logps/chosen_per_token",
        "pairs",
        "chosen_tokens",
    }
    assert (shift.mean, shift.count) == (np.float32(0.2), 3)
    np.testing.assert_array_equal(grads[1], np.zeros_like(grads[1]))
    nll = -np.asarray(logps.chosen) / np.asarray(logps.chosen_tokens)
    np.testing.assert_allclose(loss, nll.mean(), rtol=1e-6)


def test_orpo_needs_no_reference():
    logps, _, mask = _batch(15)
    config = _config(terms=("orpo", "sft"), weights=(0.1, 1.0))
    _, metrics, _, grads = _run((logps, None, mask), config=config)
    odds = []
    for logp, tokens in (
        (logps.chosen, logps.chosen_tokens),
        (logps.rejected, logps.rejected_tokens),
    ):
        p = np.exp(np.asarray(logp, np.float64) / np.asarray(tokens))
        odds.append(np.log(p / (1 - p)))
    expected = np.logaddexp(0, odds[1] - odds[0]).mean()
    np.testing.assert_allclose(_means(metrics)["loss/orpo"], expected, rtol=1e-5)
    assert "logps/rejected" in metrics and "rewards/chosen" not in metrics
    assert np.all(np.asarray(grads[1]) > 0)


def test_cdpo_beside_sigmoid_leaves_it_plain():
    """The paper's DPO + cDPO mix: only cDPO is smoothed."""
    batch = _batch(16)
    both = _config(terms=("sigmoid", "cdpo"), label_smoothing=0.2)
    got = _means(_run(batch, config=both)[1])
    plain = _means(_run(batch, config=_config(terms=("sigmoid",)))[1])
    smooth = _config(terms=("cdpo",), label_smoothing=0.2)
    smoothed = _means(_run(batch, config=smooth)[1])
    assert got["loss/sigmoid"] == plain["loss/sigmoid"]
    assert got["loss/cdpo"] == smoothed["loss/cdpo"] != got["loss/sigmoid"]


# --- configuration --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": ("sigmoid",), "weights": (1.0, 2.0)}, "longer than"),
        ({"terms": ("sigmoyd",)}, "unknown loss 'sigmoyd'; did you mean 'sigmoid'"),
        ({"delta": "cumulativ"}, "loss.delta='cumulativ': .*mean 'cumulative'"),
        ({"sft_reduction": "tokens"}, "loss.sft_reduction='tokens': .*mean 'token'"),
        ({"beta": -1.0}, "beta must be positive and finite, got -1.0"),
        ({"label_smoothing": 0.5}, "got 0.5"),
        ({"terms": ("exo_pair",)}, "'exo_pair' is infinite at label_smoothing 0"),
        ({"terms": ("robust",), "label_smoothing": 0.6}, "got 0.6"),
    ],
)
def test_what_cannot_be_computed_with(options, message):
    """Without ``LossConfig.validate`` too, no wrong number comes of it."""
    with pytest.raises(ValueError, match=message):
        _run(_batch(0), config=_config(**options))


@pytest.mark.parametrize("name", [*preference.LOSSES, *loss_terms.ALIASES])
def test_pair_terms_need_both_models_and_responses(name):
    config = _config(terms=(name, "sft"))
    assert mixture.needs_reference(config) and mixture.needs_rejected(config)


def test_reference_free_terms():
    assert not mixture.needs_reference(_config(terms=("sft", "orpo")))
    assert mixture.needs_rejected(_config(terms=("sft", "orpo")))
    assert not mixture.needs_rejected(_config(terms=("sft",)))


def test_missing_reference():
    logps, _, mask = _batch(0)
    with pytest.raises(ValueError, match="need reference log-probs, got None"):
        _run((logps, None, mask), config=_config())


def test_totals_refused_where_pairs_are_coupled():
    totals = mixture.Totals(jnp.asarray(6), jnp.asarray(99))
    with pytest.raises(ValueError, match="couple the pairs of a batch"):
        _run(_batch(0), config=_config(), totals=totals)


def test_dtypes():
    """No implicit promotion inside; bfloat16 log-probs give float32 results."""
    logps, reference, mask = _batch(0)
    half = types.PairLogps(
        logps.chosen.astype(jnp.bfloat16),
        logps.rejected.astype(jnp.bfloat16),
        logps.chosen_tokens,
        logps.rejected_tokens,
    )
    for config in MIXES.values():
        loss = functools.partial(mixture.mixed_loss, config=config)
        with jax.numpy_dtype_promotion("strict"):
            out = jax.eval_shape(loss, half, reference, mask, reward_shift.init())
        assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype("float32")}
