"""Our side of `step_vs_trl`: the true training step on packed rows of the same pairs.

  python -m benchmarks.ours reference DIR RESULT --fill=...
  python -m benchmarks.ours steps DIR RESULT --fill=... --reference=RESULT

Reference log-probs are computed once and stored, as a run does; so that is a process of
its own, and the steps have their memory to themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from benchmarks import clock, count, workload
from mpo_jax import config as config_lib
from mpo_jax import sharding, types
from mpo_jax.convert import hf
from mpo_jax.inputs import images
from mpo_jax.models import config as model_config
from mpo_jax.models import internvl
from mpo_jax.packing import assembly
from mpo_jax.train import optimizer, state, step


def example(
    pair: workload.Pair, tiles: np.ndarray, *, tokens_per_tile: int
) -> types.Example:
    """A pair encoded once; `tiles` are uint8 ``[m, S, S, 3]``."""
    prompt = pair.prompt_ids(tokens_per_tile)
    sides = []
    for side in ("chosen", "rejected"):
        labels = pair.response_ids(side).astype(np.int32)
        tokens = np.append(prompt[-1:], labels[:-1]).astype(np.int32)
        sides += [tokens, labels, np.ones(len(labels), bool)]
    return types.Example(
        prompt[:-1].astype(np.int32), *sides, tiles=tiles, num_tiles=pair.tiles
    )


def examples(
    directory: pathlib.Path, *, tokens_per_tile: int, image_size: int
) -> list[types.Example]:
    """The pairs of the workload with the tiles of their images."""
    result = []
    for file, pair in workload.read(directory):
        image = images.open_image(file, max_pixels=100_000_000)
        tiles = images.tile(
            image,
            min_num=1,
            max_num=12,
            image_size=image_size,
            use_thumbnail=True,
        )
        result.append(example(pair, tiles, tokens_per_tile=tokens_per_tile))
    return result


def row_shape(
    pairs: list[types.Example], *, rows: int, fill: dict[str, float]
) -> types.RowShape:
    """Budgets of rows that these pairs fill as far as the recipe's rows are filled.

    Args:
      rows: rows that share the pairs evenly.
      fill: share of each budget that holds something (``packing.plan.BUDGETS``).
    """
    each = len(pairs) // rows
    parts = [pairs[i : i + each] for i in range(0, len(pairs), each)]

    def budget(name: str, lengths: list[list[int]], *, whole: bool) -> int:
        most = max(sum(part) for part in lengths)
        wanted = most / fill[name]
        return max(most, round(wanted) if whole else -(-int(wanted) // 16) * 16)

    return types.RowShape(
        prompt_tokens=budget(
            "prompt_tokens", [[len(p.prompt) for p in r] for r in parts], whole=False
        ),
        chosen_tokens=budget(
            "chosen_tokens",
            [[len(p.chosen_tokens) for p in r] for r in parts],
            whole=False,
        ),
        rejected_tokens=budget(
            "rejected_tokens",
            [[len(p.rejected_tokens) for p in r] for r in parts],
            whole=False,
        ),
        tiles=budget("tiles", [[p.num_tiles for p in r] for r in parts], whole=True),
        pairs=each,
    )


@dataclasses.dataclass(frozen=True)
class Job:
    """The workload as this project sees it."""

    cfg: config_lib.RunConfig
    model: internvl.InternVL
    shape: types.RowShape
    batch: types.PackedBatch
    mesh: Any

    def params(self, directory: pathlib.Path) -> Any:
        """Weights on the device."""
        placed = sharding.shardings(self.model.shapes, self.model.axes, self.mesh)
        return hf.load(directory / "original", self.model, shardings=placed)


def prepare(
    directory: pathlib.Path,
    *,
    rows: int,
    fill: dict[str, float],
    options: dict[str, Any],
    accumulation: int,
    reference: np.ndarray | None,
) -> Job:
    """Read pairs, pack them into `rows` rows.

    Args:
      options: fields of ``config.model``.
      accumulation: micro-batches that share the rows of the update.
      reference: reference log-probs ``[n, 2]``; None where they are not known yet.
    """
    cfg = config_lib.RunConfig()
    cfg.model.dtype = "float32"
    cfg.model.drop_path = 0.0
    for name, value in options.items():
        setattr(cfg.model, name, value)
    cfg.optim.accumulation = accumulation
    cfg.loss.delta = "zero"
    cfg.optim.warmup_fraction = 0.0
    cfg.optim.decay_all = False
    raw = json.loads((directory / "original" / "config.json").read_text())
    model = internvl.InternVL(model_config.from_hf(raw))
    pairs = examples(
        directory / "data",
        tokens_per_tile=model.cfg.tokens_per_tile,
        image_size=model.cfg.image_size,
    )
    shape = row_shape(pairs, rows=rows, fill=fill)
    each = shape.pairs
    batch = assembly.assemble_batch(
        [pairs[i : i + each] for i in range(0, len(pairs), each)],
        shape,
        img_context_id=workload.IMAGE_ID,
        tokens_per_tile=model.cfg.tokens_per_tile,
        image_size=model.cfg.image_size,
        record_ids=np.split(np.arange(len(pairs)), rows),
        ref_logps=np.split(
            np.zeros((len(pairs), 2)) if reference is None else reference, rows
        ),
    )
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    return Job(cfg, model, shape, batch, mesh)


def run_reference(job: Job, directory: pathlib.Path) -> dict[str, Any]:
    """Reference log-probs of all pairs ``[n, 2]`` (a list), and a warm pass timed."""
    with jax.set_mesh(job.mesh):
        params, batch = job.params(directory), sharding.to_global(job.batch, job.mesh)
        look = step.build_logps_step(job.model, job.cfg.model, job.shape, job.mesh)
        jax.block_until_ready(look(params, batch))
        watch = clock.Clock()
        watch.start()
        found = jax.block_until_ready(look(params, batch))
        watch.stop()
        flops = count.of(look, params, batch)
    logps = np.asarray(found)[np.asarray(job.batch.pair_mask)]
    return {
        "logps": logps.tolist(),
        "logps_chosen": float(logps[:, 0].mean()),
        "logps_rejected": float(logps[:, 1].mean()),
        "reference_seconds": watch.wall[0],
        "reference_flops": flops,
        "reference_peak_mib": clock.peak_mib(),
    }


def run_steps(
    job: Job, directory: pathlib.Path, *, steps: int, profile: str = ""
) -> dict[str, Any]:
    """Time the training step; the first is left out later."""
    transform, schedule = optimizer.build(job.cfg.optim, 1_000_000)
    base = clock.peak_mib()
    with jax.set_mesh(job.mesh):
        params, batch = job.params(directory), sharding.to_global(job.batch, job.mesh)
        current = state.create(params, transform=transform, moving=False)
        del params
        update = step.build_train_step(
            job.model, job.cfg, job.shape, transform=transform, schedule=schedule
        )
        key = jax.random.key(0)
        compiled = update.lower(current, batch, key, None).compile()
        memory = compiled.memory_analysis()
        before = clock.peak_mib()
        watch, losses, norms = clock.Clock(), [], []
        for number in range(steps):
            if profile and number == steps - 1:
                jax.profiler.start_trace(profile)
            watch.start()
            current, metrics = compiled(current, batch, key, None)
            jax.block_until_ready((current, metrics))
            watch.stop()
            found = {k: float(a) / float(b) for k, (a, b) in metrics.items()}
            losses.append(found["loss"])
            norms.append(found["grad_norm"])
        if profile:
            jax.profiler.stop_trace()
        peak = clock.peak_mib()
        flops = count.of(update, current, batch, key, None)
    host, shapes = job.batch, jax.tree.leaves(job.model.shapes)
    return {
        **watch.result(),
        "loss": losses,
        "grad_norm": norms,
        "flops": flops,
        "tokens": int(host.tokens.size),
        "used_tokens": int((host.segment_ids > 0).sum()),
        "tiles": int(host.tiles.shape[0] * host.tiles.shape[1]),
        "row_shape": list(vars(job.shape).values()),
        "rows": len(host.tokens),
        "peak_mib": peak,
        "peak_before_step_mib": before,
        "base_mib": base,
        "xla_mib": {
            "temporary": memory.temp_size_in_bytes / 2**20,
            "arguments": memory.argument_size_in_bytes / 2**20,
        },
        "parameters": int(sum(np.prod(x.shape) for x in shapes)),
        "versions": {"jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("reference", "steps"))
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("result", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--fill", type=json.loads, required=True)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--reference", type=pathlib.Path, help="result of `reference`")
    parser.add_argument("--compile_cache", default="")
    parser.add_argument("--profile", default="")
    args = parser.parse_args()
    reference = None
    if args.what == "steps":
        found = json.loads(args.reference.read_text(encoding="utf-8"))
        reference = np.asarray(found["logps"])
    if args.compile_cache:
        jax.config.update("jax_compilation_cache_dir", args.compile_cache)
    job = prepare(
        args.directory,
        rows=args.rows,
        fill=args.fill,
        options=args.options,
        accumulation=args.accumulation,
        reference=reference,
    )
    if args.what == "reference":
        result = run_reference(job, args.directory)
    else:
        result = run_steps(job, args.directory, steps=args.steps, profile=args.profile)
        result["options"] = args.options
        result["accumulation"] = args.accumulation
    args.result.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
