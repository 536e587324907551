"""Gradients by micro-batches are the whole batch's, on a model of two numbers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest

from mpo_jax import config, types
from mpo_jax.losses.reward_shift import RewardShift
from mpo_jax.train import gradients

SHIFT = RewardShift(mean=jnp.float32(0.3), count=jnp.float32(9))
WEIGHTS = {"language": {"w": jnp.array([0.9, 0.4])}}


@pytest.fixture(scope="module")
def batch():
    """Eight rows, some of them empty."""
    rng = np.random.default_rng(0)
    layout = [[0, 1, 2], [3], [], [4, 5], [6, 7], [], [8, 9, 10], []]
    refs = {i: tuple(-20 + 3 * rng.normal(size=2)) for i in range(11)}
    rows = [[packed.example(rng) for _ in row] for row in layout]
    return jax.tree.map(jnp.asarray, packed.batch(rows, ids=layout, refs=refs))


def policy(weights, batch) -> types.PairLogps:
    """Log-probs near the reference's, another function of the weights on each side."""
    first, second = weights["language"]["w"]
    noise = jnp.sin(batch.record_ids.astype(jnp.float32))
    labels = jnp.full(batch.pair_mask.shape, 5.0)
    return types.PairLogps(
        chosen=first * batch.ref_logps[..., 0] + second * noise,
        rejected=second**2 * batch.ref_logps[..., 1] - first * noise,
        chosen_tokens=labels,
        rejected_tokens=labels,
    )


def objective(**loss) -> gradients.Objective:
    return gradients.Objective(
        policy=policy,
        reference=lambda batch: batch.ref_logps,
        loss=dataclasses.replace(config.LossConfig(), **loss),
    )


INDEPENDENT = [{"delta": "previous"}, {"delta": "zero", "sft_reduction": "token"}]
COUPLED = [{"delta": "cumulative"}, {"terms": ("aot", "sft"), "weights": (1.0, 0.5)}]


def assert_same(found: gradients.Gradients, expected: gradients.Gradients):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("loss", INDEPENDENT + COUPLED, ids=str)
@pytest.mark.parametrize("parts", [2, 4])
def test_two_passes_are_exact_for_any_loss(batch, loss, parts):
    ours = objective(**loss)
    expected = gradients.whole_batch_grads(ours, WEIGHTS, batch, SHIFT)
    assert np.abs(expected.tree["language"]["w"]).min() > 1e-3
    micro_batches = gradients.split_rows(batch, parts)
    found = gradients.two_pass_grads(ours, WEIGHTS, micro_batches, SHIFT)
    assert_same(found, expected)


@pytest.mark.parametrize("loss", INDEPENDENT, ids=str)
@pytest.mark.parametrize("parts", [2, 4])
def test_one_pass_is_exact_where_pairs_are_independent(batch, loss, parts):
    ours = objective(**loss)
    micro_batches = gradients.split_rows(batch, parts)
    # As many labels count as the policy says, so that the totals are the whole's.
    labels = np.zeros(micro_batches.label_mask.shape, bool)
    labels.flat[: 5 * int(batch.pair_mask.sum())] = True
    micro_batches = dataclasses.replace(micro_batches, label_mask=jnp.asarray(labels))
    found = gradients.one_pass_grads(
        ours, WEIGHTS, micro_batches, SHIFT, chosen_tokens=labels.shape[-1]
    )
    assert_same(found, gradients.whole_batch_grads(ours, WEIGHTS, batch, SHIFT))


@pytest.mark.parametrize("loss", COUPLED, ids=str)
def test_one_pass_is_refused_where_pairs_are_coupled(batch, loss):
    with pytest.raises(ValueError, match="couple the pairs of a batch"):
        gradients.one_pass_grads(
            objective(**loss),
            WEIGHTS,
            gradients.split_rows(batch, 2),
            SHIFT,
            chosen_tokens=packed.SHAPE.chosen_tokens,
        )


@pytest.mark.parametrize(
    ("parts", "delta", "passes"),
    [(1, "cumulative", 1), (1, "previous", 1), (4, "cumulative", 2), (4, "zero", 1)],
)
def test_no_more_rows_are_looked_at_than_needed(batch, parts, delta, passes):
    """A micro-batch at a time, and twice only where the loss couples them."""
    seen, asked = [], []

    def counted(weights, rows):
        seen.append(len(rows.pair_mask))
        return policy(weights, rows)

    ours = dataclasses.replace(
        objective(delta=delta),
        policy=counted,
        reference=lambda rows: asked.append(len(rows.pair_mask)) or rows.ref_logps,
    )
    found = gradients.batch_grads(
        ours,
        WEIGHTS,
        batch,
        SHIFT,
        parts=parts,
        chosen_tokens=packed.SHAPE.chosen_tokens,
    )
    assert set(seen) == {8 // parts} and len(seen) == passes
    assert set(asked) == {8 // parts} and len(asked) == 1
    whole = gradients.whole_batch_grads(objective(delta=delta), WEIGHTS, batch, SHIFT)
    assert_same(found, whole)


def test_sums_are_in_float32_whatever_the_weights(batch):
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), WEIGHTS)
    for delta, dtype, parts in (
        ("zero", "bfloat16", 1),
        ("zero", "float32", 2),
        ("cumulative", "float32", 2),
    ):
        found = gradients.batch_grads(
            objective(delta=delta), narrow, batch, SHIFT, parts=parts, chosen_tokens=20
        )
        assert found.tree["language"]["w"].dtype == dtype


def test_micro_batches_interleave_the_rows(batch):
    split = gradients.split_rows(batch, 4)
    for part in range(4):
        np.testing.assert_array_equal(split.record_ids[part], batch.record_ids[part::4])
