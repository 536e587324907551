"""Benchmarks that a training scores its model on, with the weights that it has.

Every process answers its share on its own devices, as ``run.evaluating`` does; for that
it gets a copy of the model there, in the compute dtype, for as long as it answers.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mpo_jax import sharding
from mpo_jax.evals import modes, scores
from mpo_jax.generate import capacity, requests
from mpo_jax.generate import speaker as speaker_lib
from mpo_jax.inputs import tokenizer as tokenizer_lib
from mpo_jax.models import network
from mpo_jax.nn import params as params_lib
from mpo_jax.run import (
    addresses,
    answerer,
    answering,
    eval_tasks,
    evaluating,
    evaluation,
    setup,
)
from mpo_jax.train import meter
from mpo_jax.train import state as state_lib
from mpo_jax.utils import lease, mirror, runtime
from mpo_jax.utils import metrics as metrics_lib
from mpo_jax.verify import verifier as verifier_lib


class Benchmarks:
    """Scores of the policy; every answer lies in ``<workdir>/benchmarks/step_N``."""

    def __init__(self, run: setup.Setup):
        """Read the benchmarks of ``eval``; errors as ``eval_tasks.tasks``."""
        self._run, self._cfg = run, run.cfg.eval
        self._tasks = eval_tasks.tasks(self._cfg)
        model = run.model.base
        dtype = jnp.dtype(run.cfg.model.dtype)
        mesh = capacity.make_mesh(
            model.cfg,
            params_lib.count(model.shapes) * dtype.itemsize,
            devices=jax.local_devices(),
        )
        self._tokenizer = tokenizer_lib.load_tokenizer(run.tokenizer_path)
        self._speaker = speaker_lib.Speaker(
            model,
            mesh=mesh,
            compute=network.Compute(dtype=dtype, remat="none"),
            tokenizer=self._tokenizer,
        )

    def __call__(self, current: state_lib.TrainState, step: int) -> dict[str, float]:
        """Scores by ``NAME/MODE``, in per cent; on the first process, else empty.

        Args:
          step: updates that the state has had.

        Raises:
          ValueError: a benchmark could not be asked in full.
        """
        lease.check()
        model = answerer.Model(
            source=self._run.source,
            speaker=self._speaker,
            weights=self._weights(current.params),
            tokenizer=self._tokenizer,
            policy=self._run.policy,
            device_memory=self._left_by(current),
            trained={"run": str(self._run.place), "step": step},
        )
        folder = self._run.workdir / addresses.BENCHMARKS / f"step_{step}"
        mirror.fetch(folder)  # what a start that was killed has answered
        with verifier_lib.Verifier() as verifier:
            outcome = evaluating.answered_by_model(
                self._tasks,
                self._cfg,
                folder,
                functools.partial(_asker, model),
                verifier.check,
            )
        # Once its scores stand in the metrics, nobody answers this step again.
        mirror.publish(folder)
        return {} if outcome is None else self._scores(outcome)

    def _weights(self, params: params_lib.Params) -> params_lib.Params:
        """A copy on this process's devices, adapters folded in, as it computes."""
        base, dtype = self._run.model.base, self._speaker.compute.dtype

        @jax.jit
        def folded(params: params_lib.Params) -> params_lib.Params:
            found = self._run.model.fold_adapters(params)
            return jax.tree.map(lambda x: x.astype(dtype), found)

        with jax.set_mesh(self._run.mesh):
            everywhere = folded(params)
        places = sharding.shardings(base.shapes, base.axes, self._speaker.mesh)
        return jax.tree.map(self._here, everywhere, places)

    def _here(self, x: jax.Array, place: jax.sharding.Sharding) -> jax.Array:
        """An array of all processes, whole on the devices of this one."""
        if jax.process_count() > 1:
            whole = sharding.replicated(self._run.mesh)
            x = jax.jit(lambda x: x, out_shardings=whole)(x).addressable_data(0)
        return jax.device_put(x, place)

    def _left_by(self, current: state_lib.TrainState) -> int:
        """Bytes of a device that the training's state leaves."""
        held = sum(
            shard.data.nbytes
            for x in jax.tree.leaves(current)
            for shard in x.addressable_shards[:1]
        )
        return capacity.memory_of(self._speaker.mesh.devices.flat[0]) - held

    def _scores(self, outcome: evaluating.Outcome) -> dict[str, float]:
        known = {task.benchmark.name: task.benchmark for task in self._tasks}
        found = scores.scores(
            modes.modes(outcome.lines, outcome.unanswered), known, scores.Draws(1)
        )
        return {
            f"{name}/{mode}": score["score"]
            for name, of in found.items()
            for mode, score in of.items()
            if score["score"] is not None
        }


def _asker(
    model: answerer.Model,
    lines: answering.Lines,
    sampling: requests.Sampling,
    max_tiles: int,
) -> requests.Answerer:
    return answering.local_answerer(
        model.with_tiles(max_tiles), lines, sampling, slots=0, max_prompt_tokens=0
    )


def scored_once(
    run: setup.Setup,
    benchmarks: Benchmarks | None,
    writer: metrics_lib.Writer | None,
    state: state_lib.TrainState,
    step: int,
) -> None:
    """Score the model after a step, unless an earlier start did."""
    if benchmarks is None:
        return
    there = evaluation.written(run, step, meter.BENCHMARKS) is not None
    # All processes answer together, whatever each of them has read.
    if not runtime.agreed(np.array(there)):
        meter.write_benchmarks(writer, step, benchmarks(state, step))
