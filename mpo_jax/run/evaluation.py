"""Loss and preference metrics of held-out pairs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from mpo_jax import sharding
from mpo_jax.nn import params as params_lib
from mpo_jax.run import scoring, setup, stages
from mpo_jax.train import state, step
from mpo_jax.utils import metrics as metrics_lib
from mpo_jax.utils import progress


class HeldOut:
    """The pairs of ``data.eval_meta``; calling it with a state gives their metrics.

    Args:
      weights: fingerprint of the reference ("" where none is used).
      params: gives the reference's parameters if its log-probs are not cached yet.

    Attributes:
      index: of all held-out pairs.
      record_ids: pairs that fit a row shape, int ``[n]``.
      logps: their reference log-probs, float32 ``[N, 2]``, or None.
      scorer: recomputes them.
    """

    def __init__(
        self,
        run: setup.Setup,
        *,
        weights: str,
        params: Callable[[], params_lib.Params],
    ):
        self._run = run
        self.index = stages.prepare_index(run, run.cfg.data.eval_meta)
        ids = np.arange(len(self.index))
        self.scorer = scoring.scorer(run, self.index, ids)
        self._plan = self.scorer.plan(ids)
        too_long = self._plan.too_long
        if too_long:
            first = self.index.where(too_long[0].record_id)
            progress.console().print(
                f"{len(too_long)} of {len(ids)} held-out pairs fit no row shape, so "
                f"they are not scored; the first is {first}: {too_long[0].detail}.",
                markup=False,
            )
        self.record_ids = np.setdiff1d(ids, [item.record_id for item in too_long])
        self.logps = None
        if weights:
            self.logps = scoring.prepare_reference(
                self.scorer, self.record_ids, weights=weights, params=params
            )
        self._steps = [
            step.build_eval_step(run.model, run.cfg, shape, run.mesh)
            for shape in run.shapes
        ]

    def __call__(self, current: state.TrainState) -> dict[str, float]:
        found = []
        batches = stages.loader(self._run, self.index, self._plan, logps=self.logps)
        try:
            with jax.set_mesh(self._run.mesh):
                for n, local in batches:
                    batch = sharding.to_global(local, self._run.mesh)
                    values = self._steps[self._plan.batch(n)[0]](
                        current.params, current.reward_shift, batch
                    )
                    found.append(sharding.to_host(values))
        finally:
            batches.close()
        result = metrics_lib.mean(found)
        result["pairs"] = float(sum(float(values["pairs"][0]) for values in found))
        return result
