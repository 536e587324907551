"""Our side of `step_vs_trl`: the true training step on packed rows of the same pairs.

python -m benchmarks.ours DIR RESULT --rows=1 --remat=none
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import jax
import numpy as np

from benchmarks import clock, count, workload
from mpo_jax import config as config_lib
from mpo_jax import sharding, types
from mpo_jax.convert import hf
from mpo_jax.data import assembly, images
from mpo_jax.models import config as model_config
from mpo_jax.models import internvl
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
      fill: share of each budget that holds something (``packing.BUDGETS``).
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


def run(
    directory: pathlib.Path,
    *,
    steps: int,
    rows: int,
    fill: dict[str, float],
    options: dict[str, Any],
    profile: str = "",
) -> dict[str, Any]:
    """Time the step, warm; the reference pass apart."""
    cfg = config_lib.RunConfig()
    cfg.model.dtype = "float32"
    cfg.model.drop_path = 0.0
    for name, value in options.items():
        setattr(cfg.model, name, value)
    cfg.loss.delta = "zero"
    cfg.optim.warmup_fraction = 0.0
    cfg.optim.decay_all = False
    transform, schedule = optimizer.build(cfg.optim, 1_000_000)

    raw = json.loads((directory / "original" / "config.json").read_text())
    model = internvl.InternVL(model_config.from_hf(raw))
    pairs = examples(
        directory / "data",
        tokens_per_tile=model.cfg.tokens_per_tile,
        image_size=model.cfg.image_size,
    )
    shape = row_shape(pairs, rows=rows, fill=fill)
    each = shape.pairs
    host = assembly.assemble_batch(
        [pairs[i : i + each] for i in range(0, len(pairs), each)],
        shape,
        img_context_id=workload.IMAGE_ID,
        tokens_per_tile=model.cfg.tokens_per_tile,
        image_size=model.cfg.image_size,
        record_ids=np.split(np.arange(len(pairs)), rows),
        ref_logps=np.split(np.zeros((len(pairs), 2)), rows),
    )
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    base = clock.peak_mib()
    with jax.set_mesh(mesh):
        params = hf.load(
            directory / "original",
            model,
            shardings=sharding.shardings(
                model.declared.shapes, model.declared.axes, mesh
            ),
        )
        batch = sharding.to_global(host, mesh)
        look = step.build_logps_step(model, cfg.model, shape, mesh)
        reference = jax.block_until_ready(look(params, batch))
        passes = clock.Clock()
        passes.start()
        reference = jax.block_until_ready(look(params, batch))
        passes.stop()
        host_reference = np.asarray(reference)
        batch = types.PackedBatch(**(vars(batch) | {"ref_logps": reference}))
        current = state.create(params, transform=transform, moving=False)
        update = step.build_train_step(
            model, cfg, shape, transform=transform, schedule=schedule
        )
        key = jax.random.key(0)
        flops = count.of(update, current, batch, key, None)
        reference_flops = count.of(look, params, batch)
        del params
        compiled = update.lower(current, batch, key, None).compile()
        memory = compiled.memory_analysis()
        peak_before = clock.peak_mib()
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
    mask = np.asarray(host.pair_mask)
    return {
        **watch.result(),
        "loss": losses,
        "grad_norm": norms,
        "logps_chosen": float(host_reference[mask][:, 0].mean()),
        "logps_rejected": float(host_reference[mask][:, 1].mean()),
        "reference_seconds": passes.wall[0],
        "reference_flops": reference_flops,
        "flops": flops,
        "tokens": int(host.tokens.size),
        "used_tokens": int((host.segment_ids > 0).sum()),
        "tiles": int(host.tiles.shape[0] * host.tiles.shape[1]),
        "row_shape": list(vars(shape).values()),
        "rows": rows,
        "options": options,
        "peak_mib": clock.peak_mib(),
        "peak_before_step_mib": peak_before,
        "base_mib": base,
        "xla_mib": {
            "temporary": memory.temp_size_in_bytes / 2**20,
            "arguments": memory.argument_size_in_bytes / 2**20,
        },
        "parameters": int(
            sum(np.prod(x.shape) for x in jax.tree.leaves(model.declared.shapes))
        ),
        "versions": {"jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("result", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--fill", type=json.loads, required=True)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--profile", default="")
    args = parser.parse_args()
    result = run(
        args.directory,
        steps=args.steps,
        rows=args.rows,
        fill=args.fill,
        options=args.options,
        profile=args.profile,
    )
    args.result.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
