"""Loss and preference metrics of held-out pairs, and the step-0 gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mpo_jax import sharding, types
from mpo_jax.data import packing
from mpo_jax.losses import mixture, preference
from mpo_jax.nn import params as params_lib
from mpo_jax.run import setup, stages
from mpo_jax.train import state, step
from mpo_jax.utils import metrics as metrics_lib

GATE_TOLERANCE = 1e-3


def evaluator(
    run: setup.Setup, *, weights: str, params: Callable[[], params_lib.Params]
) -> Callable[[state.TrainState], dict[str, float]]:
    """Metrics of the held-out pairs in ``data.eval_meta``.

    Args:
      weights: fingerprint of the reference ("" where none is used).
      params: gives the reference's parameters if its log-probs are not cached yet.
    """
    index = stages.prepare_index(run, run.cfg.data.eval_meta)
    ids = np.arange(len(index))
    plan = packing.make_plan(
        stages.lengths_of(index),
        ids,
        shapes=run.shapes,
        rows_per_batch=stages.forward_rows(run, index, ids),
        seed=0,
        epoch=0,
    )
    kept = np.setdiff1d(ids, [item.record_id for item in plan.too_long])
    logps = None
    if weights:
        logps = stages.prepare_reference(
            run, index, kept, weights=weights, params=params
        )
    steps = [
        step.build_eval_step(run.model, run.cfg, shape, run.mesh)
        for shape in run.shapes
    ]

    def evaluate(current: state.TrainState) -> dict[str, float]:
        found = []
        batches = stages.loader(run, index, plan, logps=logps)
        try:
            with jax.set_mesh(run.mesh):
                for n, local in batches:
                    batch = sharding.to_global(local, run.mesh)
                    values = steps[plan.batch(n)[0]](
                        current.params, current.reward_shift, batch
                    )
                    found.append(sharding.to_host(values))
        finally:
            batches.close()
        result = metrics_lib.mean(found)
        result["pairs"] = float(sum(float(values["pairs"][0]) for values in found))
        return result

    return evaluate


def gate(
    run: setup.Setup,
    params: params_lib.Params,
    batch: types.PackedBatch,
    shape: types.RowShape,
) -> dict[str, float]:
    """Step-0 check: with policy = reference every preference term is known.

    DPO must be ln 2 and BCO 2·ln 2 (δ = 0), so the paper's preference part is
    0.8·ln 2 + 0.4·ln 2 = 0.8318. Computed without drop path.

    Raises:
      ValueError: if the weighted sum is off by more than 1e-3; lists likely causes.
    """
    loss = dataclasses.replace(run.cfg.loss, delta="zero")
    cfg = dataclasses.replace(run.cfg, loss=loss)
    with jax.set_mesh(run.mesh):
        values = step.build_eval_step(run.model, cfg, shape, run.mesh)(
            params, mixture.init_reward_shift(), batch
        )
    means = metrics_lib.mean([sharding.to_host(values)])
    zero = jnp.zeros((1,), jnp.float32)
    found = expected = 0.0
    for term, weight in zip(loss.terms, loss.weights, strict=True):
        if term in (mixture.SFT, mixture.ORPO):
            continue
        theory, _, _ = preference.pair_loss(
            term,
            zero,
            zero,
            zero,
            zero,
            beta=loss.beta,
            label_smoothing=loss.label_smoothing,
        )
        expected += weight * float(theory[0])
        found += weight * means[f"loss/{term}"]
    if abs(found - expected) > GATE_TOLERANCE:
        raise ValueError(
            f"step-0 gate: the preference part of the loss is {found:.5f}, theory says "
            f"{expected:.5f} where policy and reference are the same model. Likely "
            "causes: the reference cache belongs to other weights, reference.path "
            "names another model (then set log.gate=False), or model.dtype differs "
            "between the two. Mean log-prob of chosen responses: "
            f"{means['logps/chosen']:.3f}, mean reward {means['rewards/chosen']:.5f}."
        )
    return {**means, "gate/found": found, "gate/expected": expected}
