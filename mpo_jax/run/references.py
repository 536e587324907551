"""What a run compares its policy with: cached log-probs, a model, or nothing."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mpo_jax.models import adapted
from mpo_jax.nn import params as params_lib
from mpo_jax.run import gate, parameters, scoring, setup, stages
from mpo_jax.run.start import Start
from mpo_jax.train import reference


@dataclasses.dataclass(frozen=True)
class Reference:
    """The frozen reference of the training pairs; both None where there is none.

    Attributes:
      cached: log-probs that come with the batches (mode ``cache``).
      online: what a reference that each step runs does not share with the policy
        (mode ``online``).
    """

    cached: gate.Cached | None = None
    online: params_lib.Params | None = None


def prepare(run: setup.Setup, data: stages.TrainingData, origin: Start) -> Reference:
    """The reference as the run is configured; log-probs that are missing are computed.

    A moving reference (mode ``moving``) is part of the state.
    """
    mode = run.cfg.reference.mode
    if run.uses_reference and mode == "cache":
        return Reference(cached=_cached(run, data, origin))
    if run.uses_reference and mode == "online":
        return Reference(online=_online(run, origin))
    return Reference()


def reference_params(run: setup.Setup, origin: Start) -> params_lib.Params:
    """The reference's weights: the starting point, whatever was trained since.

    Raises:
      ValueError: if they are no longer those that the run began with.
    """
    cfg, trained = run.cfg, adapted.trained(run.cfg.model)
    only_adapters = not adapted.kept_by_reference(origin.state.params, trained)
    if not cfg.reference.path and (origin.step == 0 or only_adapters):
        return adapted.without_adapters(origin.state.params)
    found = parameters.reference_params(run, cfg.reference.path)
    if reference.fingerprint(found) != origin.fingerprint:
        raise ValueError(
            f"{cfg.reference.path or cfg.model.path} no longer holds the weights "
            "that this run took as its reference"
        )
    return found


def _cached(run: setup.Setup, data: stages.TrainingData, origin: Start) -> gate.Cached:
    """Log-probs of all pairs that are trained on; the gate looks at the first batch."""
    wanted, directory = data.record_ids, run.cfg.reference.cache
    scorer = scoring.reference_scorer(run, data.index, wanted)
    logps = scoring.prepare_reference(
        scorer,
        wanted,
        fingerprint=origin.fingerprint,
        params=lambda: reference_params(run, origin),
        directory=directory,
    )
    return gate.Cached(
        name="data.meta",
        directory=scoring.reference_directory(
            run, data.index, origin.fingerprint, directory
        ),
        scorer=scorer,
        record_ids=data.first_pairs,
        logps=logps,
    )


def _online(run: setup.Setup, origin: Start) -> params_lib.Params:
    found = reference_params(run, origin)
    if not run.cfg.reference.path:
        found = adapted.kept_by_reference(found, adapted.trained(run.cfg.model))
    return jax.tree.map(jnp.copy, found)  # the policy's own arrays are given away
