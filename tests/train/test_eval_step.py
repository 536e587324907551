"""Metrics of held-out pairs: the reward shift is read, never moved by them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest

from mpo_jax import config, sharding, types
from mpo_jax.losses import mixture, reward_shift
from mpo_jax.models import internvl
from mpo_jax.train import step as step_lib


@pytest.fixture(scope="module")
def scored():
    """Log-probs that the model would give, and a batch with the reference's."""
    rng = np.random.default_rng(0)
    examples = [packed.example(rng) for _ in range(4)]
    refs = {i: tuple(-20 + 3 * rng.normal(size=2)) for i in range(4)}
    rows = [examples[:2], examples[2:]]
    batch = packed.batch(rows, ids=[[0, 1], [2, 3]], refs=refs)
    noise = rng.normal(size=batch.ref_logps.shape).astype(np.float32)
    policy = batch.ref_logps + 2 * noise
    tokens = np.full(batch.pair_mask.shape, 5.0, np.float32)
    return batch, types.PairLogps(
        chosen=policy[..., 0],
        rejected=policy[..., 1],
        chosen_tokens=tokens,
        rejected_tokens=tokens,
    )


@pytest.mark.parametrize("mode", ["cumulative", "ema", "previous"])
def test_held_out_pairs_do_not_move_the_reward_shift(scored, mode, monkeypatch):
    batch, policy = scored
    monkeypatch.setattr(step_lib, "model_logps", lambda *_, **__: policy)
    cfg = config.RunConfig()
    cfg.loss.delta = mode
    model = internvl.InternVL(packed.tiny_config())
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    step = step_lib.build_eval_step(model, cfg, packed.SHAPE, mesh)
    shift = reward_shift.RewardShift(mean=jnp.float32(0.7), count=jnp.float32(40))
    found = step({}, shift, jax.tree.map(jnp.asarray, batch))
    total, weight = found["delta"]
    assert float(total) / float(weight) == pytest.approx(0.7)

    fixed = dataclasses.replace(cfg.loss, delta="zero")
    rewards = mixture.mixed_loss(
        jax.tree.map(jnp.asarray, policy),
        jnp.asarray(batch.ref_logps),
        jnp.asarray(batch.pair_mask),
        shift,
        config=fixed,
    )[1][0]
    # Without the shift the BCO term is another: the test would see a zero one too.
    assert float(found["loss/bco_pair"][0]) != pytest.approx(
        float(rewards["loss/bco_pair"][0]), rel=1e-3
    )
