"""How full rows get on lengths like MMPR's, and what padding costs the usual layouts.

  python -m benchmarks.packing                    # the recipe's budgets
  python -m benchmarks.packing --search=6144      # other budgets of as many tokens

Host only: plans are made, nothing is trained. Throughput is what a device that
sustains 100 TFLOP/s would reach on an InternVL2-8B, by the formulas of ``flops``.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import flops, mix, report, sizes
from mpo_jax import config, recipes, types
from mpo_jax.models import config as model_config
from mpo_jax.packing import plan as plan_lib

RELEASED_MAX = 6144  # tokens that the released 2.0 run pads or cuts a sequence to
FLOPS_PER_S = 100e12


def plan_of(
    lengths: plan_lib.Lengths, shapes: Sequence[types.RowShape]
) -> plan_lib.Plan:
    """A plan in which no row is empty: what the shapes do, not the batch size."""
    return plan_lib.make_plan(
        lengths,
        np.arange(len(lengths)),
        shapes=shapes,
        rows_per_batch=[1] * len(shapes),
        seed=0,
        epoch=0,
    )


def rate_plan(
    lengths: plan_lib.Lengths,
    shapes: Sequence[types.RowShape],
    cfg: model_config.InternVLConfig,
) -> dict[str, Any]:
    """Fill of every budget and cost per pair.

    Returns:
      ``fill`` of the first shape, its binding budget, pairs per row, share of pairs in
      the other shapes, forward TFLOPs per pair over all shapes, and the share of token
      positions that hold a token.
    """
    start = time.perf_counter()
    plan = plan_of(lengths, shapes)
    seconds = time.perf_counter() - start
    fill = plan.fill()[0]
    budgets = {name: share for name, share in fill.items() if name != "pairs"}
    batches = np.bincount(plan.batch_shapes, minlength=len(shapes))
    pairs = np.array(plan.used[:, 4])
    cost = sum(
        n * flops.row(cfg, shape).total
        for n, shape in zip(batches.tolist(), shapes, strict=True)
    )
    positions = sum(
        n * shape.tokens for n, shape in zip(batches.tolist(), shapes, strict=True)
    )
    return {
        "fill": fill,
        "binding": max(budgets, key=lambda name: budgets[name]),
        "pairs_per_row": float(pairs[0] / max(batches[0], 1)),
        "pairs_elsewhere": float(1 - pairs[0] / plan.num_pairs),
        "too_long": len(plan.too_long),
        "tflops_per_pair": cost / plan.num_pairs / 1e12,
        "useful_share": float(plan.used[:, :3].sum() / positions),
        "planned_pairs_per_s": plan.num_pairs / seconds,
    }


def rate_padding(
    lengths: plan_lib.Lengths, cfg: model_config.InternVLConfig, *, batch: int
) -> dict[str, dict[str, float]]:
    """The two-sequence layout: padded to the batch's longest, and to the maximum.

    A sequence that exceeds the maximum is left out of both, as a trainer that does not
    cut image tokens must.
    """
    longest = lengths.prompt + np.maximum(lengths.chosen, lengths.rejected)
    keep = np.flatnonzero(longest <= RELEASED_MAX)
    keep = keep[: len(keep) // batch * batch]
    padded = longest[keep].reshape(-1, batch).max(axis=1).repeat(batch)
    useful = lengths.need(keep)[:, :3].sum()
    result = {}
    for name, width in (
        ("longest", padded),
        ("maximum", np.full(len(keep), RELEASED_MAX)),
    ):
        cost = [
            flops.two_sequences(cfg, tokens=w, tiles=m).total
            for w, m in zip(width.tolist(), lengths.tiles[keep].tolist(), strict=True)
        ]
        result[name] = {
            "tflops_per_pair": float(np.mean(cost)) / 1e12,
            "useful_share": float(useful / (2 * width.sum())),
        }
    return result


def useful_per_s(lengths: plan_lib.Lengths, tflops_per_pair: float) -> float:
    """Unique tokens of pairs per second of training (forward and backward)."""
    tokens = (lengths.prompt + lengths.chosen + lengths.rejected).mean()
    return float(tokens) * FLOPS_PER_S / (3e12 * tflops_per_pair)


def candidates(total: int) -> list[types.RowShape]:
    """Row shapes of `total` tokens, budgets multiples of 128 (lanes of a TPU)."""
    result = []
    for chosen in range(640, 1793, 128):
        for rejected in range(chosen, min(chosen + 257, 1921), 128):
            prompt = total - chosen - rejected
            for spare in (0, 128, 256, 384, 512):
                tiles, left = divmod(prompt - spare, mix.TOKENS_PER_TILE)
                if left < 128 and tiles >= 13:
                    result.append(types.RowShape(prompt, chosen, rejected, tiles, 8))
    return sorted(set(result), key=dataclasses.astuple)


def search(
    lengths: plan_lib.Lengths,
    total: int,
    long: types.RowShape,
    cfg: model_config.InternVLConfig,
) -> list[dict[str, Any]]:
    """Candidates of `total` tokens, cheapest per pair first."""
    found = [
        {"shape": dataclasses.asdict(shape), **rate_plan(lengths, (shape, long), cfg)}
        for shape in candidates(total)
    ]
    return sorted(found, key=lambda entry: entry["tflops_per_pair"])


def _line(name: str, entry: dict[str, Any]) -> list[str]:
    fill = entry["fill"]
    return [
        name,
        *(f"{fill[b]:.3f}" for b in plan_lib.BUDGETS),
        entry["binding"],
        f"{entry['pairs_per_row']:.2f}",
        f"{entry['pairs_elsewhere']:.3f}",
        f"{entry['tflops_per_pair']:.2f}",
    ]


HEADER = [
    "shape",
    *plan_lib.BUDGETS,
    "binding",
    "pairs/row",
    "in long",
    "TFLOP/pair",
]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40_000)
    parser.add_argument("--search", type=int, nargs="*", default=[])
    parser.add_argument("--out", default="build/benchmarks/packing.json")
    args = parser.parse_args(argv)

    cfg = model_config.from_hf(sizes.released("8b"))
    rows: config.RowsConfig = recipes.released_mpo().rows
    shapes = (rows.short.build(), rows.long.build())
    result: dict[str, Any] = {"pairs": args.pairs, "recipe": {}, "search": {}}
    table = []
    for tiles, spread in itertools.product(mix.TILES, (0.4, 0.6, 0.8)):
        lengths = mix.mmpr_like(args.pairs, tiles=tiles, spread=spread)
        name = f"{tiles}, spread {spread}"
        entry = rate_plan(lengths, shapes, cfg)
        padding = rate_padding(lengths, cfg, batch=8)
        entry["useful_tokens_per_s"] = useful_per_s(lengths, entry["tflops_per_pair"])
        for other in padding.values():
            other["useful_tokens_per_s"] = useful_per_s(
                lengths, other["tflops_per_pair"]
            )
            other["ratio"] = other["tflops_per_pair"] / entry["tflops_per_pair"]
        entry["padding"] = padding
        entry["mean_tiles"] = float(lengths.tiles.mean())
        result["recipe"][name] = entry
        table.append(_line(name, entry))
    print(f"recipe {dataclasses.astuple(shapes[0])}, {args.pairs} pairs")
    print(report.table(HEADER, table))

    print()
    header = ["mix", "layout", "useful share", "useful tokens/s", "FLOPs ratio"]
    table = []
    for name, entry in result["recipe"].items():
        layouts = {"packed": entry | {"ratio": 1.0}} | {
            f"padded to {other}": values for other, values in entry["padding"].items()
        }
        table += [
            [
                name,
                layout,
                f"{values['useful_share']:.3f}",
                f"{values['useful_tokens_per_s']:.0f}",
                f"{values['ratio']:.2f}",
            ]
            for layout, values in layouts.items()
        ]
    print(report.table(header, table))

    for total in args.search:
        lengths = mix.mmpr_like(min(args.pairs, 6_000))
        found = search(lengths, total, shapes[1], cfg)
        result["search"][str(total)] = found
        print(f"\nbest of {len(found)} shapes of {total} tokens")
        lines = [
            _line(str(tuple(entry["shape"].values())), entry) for entry in found[:8]
        ]
        print(report.table(HEADER, lines))
    report.write(args.out, result)


if __name__ == "__main__":
    main()
