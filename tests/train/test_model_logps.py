"""What the log-probs of a step take from the mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest

from mpo_jax import sharding
from mpo_jax.losses import logps
from mpo_jax.models import internvl, network
from mpo_jax.train import step


@pytest.mark.parametrize("tensor", [None, 1, 4])
def test_the_vocabulary_is_cut_as_the_mesh_splits_it(tensor, monkeypatch):
    asked = []
    token_logps = logps.token_logps

    def noting(*args, shards, **options):
        asked.append(shards)
        return token_logps(*args, shards=shards, **options)

    monkeypatch.setattr(logps, "token_logps", noting)
    model = internvl.InternVL(packed.tiny_config())
    rng = np.random.default_rng(0)
    batch = jax.tree.map(jnp.asarray, packed.batch([[packed.example(rng)], []]))

    def run(weights):
        compute = network.Compute(dtype=jnp.float32, remat="none")
        return step.model_logps(
            model, weights, batch, shape=packed.SHAPE, compute=compute
        )

    if tensor is None:
        jax.eval_shape(run, model.shapes)
    else:
        devices = jax.devices()[: 2 * tensor]
        mesh = sharding.make_mesh(fsdp=2, tensor=tensor, devices=devices)
        with jax.set_mesh(mesh):
            jax.eval_shape(run, model.shapes)
    assert asked == [tensor or 1]
