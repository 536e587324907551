"""FLOPs per pair of our step and of the duplicated layout, without running either.

  python -m benchmarks.step_flops

Ours is counted on the traced training step (forward, backward, update) over the rows
that `step_vs_trl` takes, padding included. The duplicated layout is counted by formula:
policy forward and backward, reference forward, logits at every position, attention in
full, as torch's counter does. On the slice that `step_vs_trl` runs both ways agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import count, flops, ours, report, sizes, step_vs_trl, workload
from mpo_jax import config as config_lib
from mpo_jax import sharding
from mpo_jax.models import config as model_config
from mpo_jax.models import internvl
from mpo_jax.packing import assembly
from mpo_jax.train import optimizer, state, step

WORK = {1: (8, 2), 7: (2, 1), 13: (1, 1)}
"""By tiles per pair: pairs, and rows of the recipe's mean slack that hold them."""


def ours_per_pair(
    raw: dict[str, Any], *, tiles: int, fill: dict[str, float], remat: str = "none"
) -> dict[str, Any]:
    """FLOPs of the step and of the reference pass, and the row shape."""
    model = internvl.InternVL(model_config.from_hf(raw))
    cfg = config_lib.RunConfig()
    cfg.model.dtype, cfg.model.remat, cfg.model.drop_path = "float32", remat, 0.0
    cfg.loss.delta = "zero"
    transform, schedule = optimizer.build(cfg.optim, 1000)
    pairs, rows = WORK[tiles]
    examples = [
        ours.example(
            pair, np.zeros((tiles, 448, 448, 3), np.uint8), tokens_per_tile=256
        )
        for pair in workload.draw(pairs=pairs, tiles=tiles, vocab_size=1000)
    ]
    shape = ours.row_shape(examples, rows=rows, fill=fill)
    host = assembly.assemble_batch(
        [examples[i : i + shape.pairs] for i in range(0, pairs, shape.pairs)],
        shape,
        img_context_id=workload.IMAGE_ID,
        tokens_per_tile=256,
        image_size=448,
        record_ids=np.split(np.arange(pairs), rows),
        ref_logps=np.split(np.zeros((pairs, 2)), rows),
    )
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), host)
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        abstract = state.abstract(
            model,
            transform=transform,
            moving=False,
            mesh=mesh,
        )
        update = step.build_train_step(
            model, cfg, shape, transform=transform, schedule=schedule
        )
        look = step.build_logps_step(model, cfg.model, shape, mesh)
        key = jax.random.key(0)
        return {
            "step": count.of(update, abstract, batch, key, None) / pairs,
            "reference": count.of(look, abstract.params, batch) / pairs,
            "row_shape": list(vars(shape).values()),
        }


def duplicated_per_pair(raw: dict[str, Any], *, tiles: int) -> float:
    """FLOPs of policy forward and backward and of the reference forward."""
    cfg = model_config.from_hf(raw)
    total = 0.0
    drawn = workload.draw(pairs=WORK[tiles][0], tiles=tiles, vocab_size=1000)
    for pair in drawn:
        responses = [len(pair.response_ids(side)) for side in ("chosen", "rejected")]
        width = len(pair.prompt_ids(cfg.tokens_per_tile)) + max(responses)
        one = flops.two_sequences(cfg, tokens=width, tiles=tiles)
        # Scores are not halved for causality; four units: forward, backward, reference.
        hidden = one.language_attention * (width - 1) / (width + 1)
        total += 4 * (one.total + hidden)
    return total / len(drawn)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="build/benchmarks/step_flops.json")
    args = parser.parse_args(argv)
    fill = step_vs_trl.recipe_fill()
    models = {"slice of 1B": sizes.slice_of("1b", layers=1)}
    models |= {
        name.upper(): sizes.released(name)
        for name in sizes.LANGUAGE
        if name in ("1b", "2b", "8b")
    }
    result, rows = {}, []
    for name, raw in models.items():
        for tiles in WORK:
            mine = ours_per_pair(raw, tiles=tiles, fill=fill)
            theirs = duplicated_per_pair(raw, tiles=tiles)
            entry = mine | {
                "duplicated": theirs,
                "ratio": theirs / mine["step"],
                "ratio_with_reference": theirs / (mine["step"] + mine["reference"]),
            }
            result[f"{name}, {tiles}"] = entry
            rows.append(
                [
                    name,
                    str(tiles),
                    f"{mine['step'] / 1e12:.2f}",
                    f"{mine['reference'] / 1e12:.2f}",
                    f"{theirs / 1e12:.2f}",
                    f"{entry['ratio']:.2f}",
                    f"{entry['ratio_with_reference']:.2f}",
                ]
            )
    header = ["model", "tiles", "ours, step", "ours, reference pass", "duplicated"]
    header += ["ratio", "ratio, reference pass counted"]
    print(report.table(header, rows))
    report.write(args.out, {"fill": fill, "cases": result})


if __name__ == "__main__":
    main()
