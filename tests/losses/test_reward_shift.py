"""BCO's reward shift: the modes as sequences, against float64, and empty batches."""

from __future__ import annotations

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpo_jax import config
from mpo_jax.losses import reward_shift

MODES = config.DELTA_MODES


@pytest.mark.parametrize(
    ("mode", "deltas", "final"),
    [
        ("cumulative", [0.2, 0.05, 0.2], (0.2, 12)),
        ("previous", [0.0, 0.2, 0.05], (0.2, 12)),
        ("ema", [0.2, 0.17, 0.203], (0.203, 12)),
        ("batch", [0.2, -0.1, 0.5], (0.0, 0)),
        ("zero", [0.0, 0.0, 0.0], (0.0, 0)),
    ],
)
def test_delta_sequences(mode, deltas, final):
    shift = reward_shift.init()
    for mean, expected in zip([0.2, -0.1, 0.5], deltas, strict=True):
        delta, shift = reward_shift.delta_for(
            mode, shift, jnp.float32(mean), jnp.asarray(4), decay=0.9
        )
        assert delta.dtype == shift.mean.dtype == shift.count.dtype == jnp.float32
        np.testing.assert_allclose(delta, expected, rtol=1e-6)
    np.testing.assert_allclose((shift.mean, shift.count), final, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("garbage", [0.0, np.nan])
def test_empty_batch_leaves_the_shift(mode, garbage):
    shift = reward_shift.RewardShift(jnp.float32(0.3), jnp.float32(8))
    delta, new = reward_shift.delta_for(
        mode, shift, jnp.float32(garbage), jnp.asarray(0), decay=0.9
    )
    assert (new.mean, new.count) == (shift.mean, shift.count)
    assert delta == (0.0 if mode in ("batch", "zero") else shift.mean)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    st.lists(
        st.tuples(st.floats(-5, 5, width=32), st.integers(0, 600)),
        min_size=1,
        max_size=12,
    )
)
def test_cumulative_is_the_mean_over_pairs(batches):
    """However pairs fall into batches; float32 recursion against float64, 1e-5."""
    update = jax.jit(functools.partial(reward_shift.delta_for, "cumulative", decay=0.0))
    shift = reward_shift.init()
    for mean, count in batches:
        _, shift = update(shift, jnp.float32(mean), jnp.float32(count))
    means, counts = np.asarray(batches, np.float64).T
    assert shift.count == counts.sum()
    expected = (means * counts).sum() / max(counts.sum(), 1)
    np.testing.assert_allclose(shift.mean, expected, rtol=1e-5, atol=1e-5)


def test_unknown_mode():
    with pytest.raises(ValueError, match="loss.delta='mean': use one of"):
        reward_shift.delta_for(
            "mean",
            reward_shift.init(),
            jnp.float32(0),
            jnp.asarray(1),
            decay=0.9,
        )


def test_shift_is_a_pytree():
    """State can be donated: its leaves are two buffers."""
    shift = reward_shift.init()
    leaves = jax.tree.leaves(shift)
    assert len(leaves) == 2 and leaves[0] is not leaves[1]
    assert isinstance(jax.tree.map(lambda x: x + 1, shift), reward_shift.RewardShift)
