"""Loss and preference metrics of held-out pairs: before, during and after training."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from mpo_jax import sharding
from mpo_jax.nn import params as params_lib
from mpo_jax.run import gate, scoring, setup, stages
from mpo_jax.run.start import Start
from mpo_jax.train import meter, state, step
from mpo_jax.utils import metrics as metrics_lib
from mpo_jax.utils import progress, runtime, watchdog


class HeldOut:
    """The pairs of ``data.eval_meta``; calling it with a state gives their metrics.

    Args:
      fingerprint: of the reference's weights ("" where none is used).
      params: gives the reference's parameters if its log-probs are not cached yet.

    Attributes:
      index: of all held-out pairs.
      record_ids: pairs that fit a row shape, int ``[n]``.
      logps: their reference log-probs, float32 ``[N, 2]``, or None.
    """

    def __init__(
        self,
        run: setup.Setup,
        *,
        fingerprint: str,
        params: Callable[[], params_lib.Params],
    ):
        self._run, self._fingerprint = run, fingerprint
        self.index = stages.prepare_index(run, run.cfg.data.eval_meta)
        ids = np.arange(len(self.index))
        self._scorer = scoring.reference_scorer(run, self.index, ids)
        self._plan = self._scorer.plan(ids)
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
        if fingerprint:
            self.logps = scoring.prepare_reference(
                self._scorer, self.record_ids, fingerprint=fingerprint, params=params
            )
        self._steps = [
            step.build_eval_step(run.model, run.cfg, shape, run.mesh)
            for shape in run.shapes
        ]

    def cached(self, most: int) -> gate.Cached | None:
        """Their cached log-probs, the first `most` pairs for the gate to recompute."""
        if self.logps is None:
            return None
        return gate.Cached(
            name="data.eval_meta",
            directory=scoring.reference_directory(
                self._run, self.index, self._fingerprint
            ),
            scorer=self._scorer,
            record_ids=self.record_ids[:most],
            logps=self.logps,
        )

    def __call__(self, current: state.TrainState) -> dict[str, float]:
        found = []
        batches = stages.loader(self._run, self.index, self._plan, logps=self.logps)
        try:
            with jax.set_mesh(self._run.mesh):
                for n, local in batches:
                    watchdog.beat(f"batch {n} of the held-out pairs")
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


def held_out(
    run: setup.Setup, *, fingerprint: str, params: Callable[[], params_lib.Params]
) -> HeldOut | None:
    """The held-out pairs of a run, or None; arguments as :class:`HeldOut`."""
    if not run.cfg.data.eval_meta:
        return None
    made = HeldOut(run, fingerprint=fingerprint, params=params)
    if run.cfg.reference.mode == "moving":
        progress.console().print(
            "Held-out pairs are scored against the starting point, so that their "
            "metrics compare over the run; training's are against the reference "
            "as it moves (reference.mode='moving')."
        )
    return made


def before_training(
    run: setup.Setup,
    evaluate: HeldOut | None,
    origin: Start,
    writer: metrics_lib.Writer | None,
) -> dict[str, float] | None:
    """Held-out metrics of step 0: computed, or on resume read back."""
    if evaluate is None:
        return None
    if origin.step:
        return written(run, 0, meter.HELD_OUT)
    values = evaluate(origin.state)
    meter.write_held_out(writer, 0, values)
    return values


def scored_once(
    run: setup.Setup,
    evaluate: HeldOut,
    state: state.TrainState,
    writer: metrics_lib.Writer | None,
    step: int,
) -> dict[str, float] | None:
    """Held-out metrics after a step: read back where an earlier start wrote them."""
    values = written(run, step, meter.HELD_OUT)
    # All processes score together, whatever each of them has read.
    if not runtime.agreed(np.array(values is not None)):
        values = evaluate(state)
        meter.write_held_out(writer, step, values)
    return values


def after_training(
    run: setup.Setup,
    evaluate: HeldOut | None,
    origin: Start,
    writer: metrics_lib.Writer | None,
    *,
    final: state.TrainState,
    num_steps: int,
) -> dict[str, float] | None:
    """Held-out metrics of the last step, of state `final`."""
    if evaluate is None:
        return None
    return scored_once(run, evaluate, final, writer, num_steps)


def written(run: setup.Setup, step: int, prefix: str) -> dict[str, float] | None:
    """Metrics that an earlier start wrote for a step, without `prefix`, or None."""
    for line in metrics_lib.read(run.workdir / "metrics.jsonl"):
        found = {
            name.removeprefix(prefix): value
            for name, value in line.items()
            if name.startswith(prefix)
        }
        if line["step"] == step and found:
            return found
    return None
