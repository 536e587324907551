"""A training of many small steps, on one process or several, for storage to fail under.

  python tests/storage_in_trouble.py --workdir=DIR --checkpoints=DIR|gs://… [fields]

The loop, checkpoints, metrics and the ends of programs are the true ones; the step is a
few numbers, and its state lies on all processes. Prints a line when the first step is
done, and at the end a checksum of the weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import packed
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec

from mpo_jax import checkpoint, config, sharding
from mpo_jax.losses import reward_shift
from mpo_jax.train import loop, state
from mpo_jax.utils import cli, metrics, profiling, runtime, watchdog

_WORKDIR = flags.DEFINE_string("workdir", None, "Of metrics and traces", required=True)
_PLACE = flags.DEFINE_string("checkpoints", None, "Their place; in the work directory")
_STEPS = flags.DEFINE_integer("steps", 12, "Of the whole run")
_EVERY = flags.DEFINE_integer("every", 4, "checkpoint.every_steps")
_STEP_S = flags.DEFINE_float("step_s", 0.05, "Seconds that a step takes")
_RETRY_S = flags.DEFINE_float("retry_s", 120.0, "checkpoint.retry_seconds")
_NUMBERS = flags.DEFINE_integer("numbers", 20_000, "Of the weights")


def _state(mesh) -> state.TrainState:
    place = NamedSharding(mesh, PartitionSpec("fsdp"))
    whole = np.random.default_rng(0).normal(size=_NUMBERS.value).astype(np.float32)
    weights = jax.make_array_from_callback(whole.shape, place, lambda at: whole[at])
    return jax.jit(
        lambda w: state.TrainState(
            step=jnp.int32(0),
            params={"w": w},
            opt_state={"m": w * 0},
            reward_shift=reward_shift.init(),
        )
    )(weights)


@jax.jit
def _update(current: state.TrainState) -> state.TrainState:
    moment = 0.9 * current.opt_state["m"] + current.params["w"] * 0.1
    return state.TrainState(
        step=current.step + 1,
        params={"w": current.params["w"] - 0.01 * moment + current.step},
        opt_state={"m": moment},
        reward_shift=current.reward_shift,
    )


def _step(current, batch, key, reference):
    del batch, key, reference
    time.sleep(_STEP_S.value)
    new, one = _update(current), np.float32(1)
    jax.block_until_ready(new.params["w"])
    names = ("loss", "pairs", "tokens", "fill/tokens")
    return new, {name: (one, one) for name in names}


def _checksum(params) -> str:
    whole = sharding.to_host(params["w"])
    return hashlib.sha256(np.asarray(whole).tobytes()).hexdigest()


def main(argv: list[str]) -> None:
    del argv
    cfg = config.RunConfig()
    cfg.hosts.heartbeat_s = 5
    cfg.checkpoint.every_steps = _EVERY.value
    cfg.checkpoint.retry_seconds = _RETRY_S.value
    runtime.initialise(cfg.hosts)
    workdir, mesh = pathlib.Path(_WORKDIR.value), sharding.make_mesh()
    with contextlib.ExitStack() as stack:
        compiles = stack.enter_context(contextlib.closing(profiling.Compiles()))
        place = _PLACE.value or str(workdir / "checkpoints")
        stored = checkpoint.Checkpoints(place, cfg.checkpoint)
        stack.callback(stored.close)
        began = _state(mesh)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            state.trees(began),
        )
        found = stored.resume(shapes, check=lambda step, meta: None)
        if found is not None:
            began = state.from_trees(found.trees)
        first = 0 if found is None else found.step
        print(f"begins after step {first}", flush=True)
        writer = None
        if runtime.is_main():
            writer = metrics.Writer(workdir, resume_step=first or -1)
            stack.callback(writer.close)
        batch = packed.batch([[]])
        job = loop.Job(
            cfg=cfg,
            mesh=mesh,
            state=began,
            num_steps=_STEPS.value,
            update=loop.Update([_step], jax.random.key(0)),
            feed=loop.Feed(
                ((n, batch) for n in range(first, _STEPS.value)), lambda n: 0
            ),
            output=loop.Output(writer=writer, checkpoints=stored, folder=workdir),
            clock=profiling.Clock(time.perf_counter(), compiles),
        )
        with watchdog.armed(workdir, minutes=2):
            final = loop.run(job)
    print(f"weights {_checksum(final.params)}", flush=True)


if __name__ == "__main__":
    cli.run(main)
