"""One accelerator, bfloat16: our step and torch with flash attention, duplicated pairs.

  python -m benchmarks.device --size=1b                # on a GPU
  python -m benchmarks.device --size=toy               # any CPU, tries the script

Random weights, random pairs with lengths like MMPR's, packed as the recipe packs them;
the peer runs the same pairs one at a time, chosen and rejected as a batch of two with
its pixels twice, reference forward included. Weights are float32 and matrix products
bfloat16 on both sides; both recompute each layer in the backward pass. Each side has a
process of its own. ``--peer_python`` names an interpreter with torch and transformers
where this one has none. A side that fails is named with its error; the other is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import clock, report, sizes, workload

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L4": 121.0}
"""Dense bfloat16, from the makers' data sheets, by a part of the device's name."""


def config_of(size: str) -> dict[str, Any]:
    """Original-layout configuration; ``toy`` has the structure of ``1b``."""
    if size != "toy":
        return sizes.released(size)
    raw = sizes.slice_of("1b", layers=2, vocab_size=512)
    raw["vision_config"] |= {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "intermediate_size": 128,
    }
    raw["llm_config"] |= {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
    }
    return raw


def draw_work(size: str, rows: int) -> dict[str, Any]:
    """Row shape and the lengths of the pairs in each row, as JSON.

    One batch of the plan of 4,096 pairs: average rows, not chosen ones.
    """
    from benchmarks import mix
    from mpo_jax import recipes, types
    from mpo_jax.packing import plan as plan_lib

    lengths = mix.mmpr_like(4096)
    shape = recipes.released_mpo().rows.short.build()
    if size == "toy":
        shape = types.RowShape(1152, 640, 640, 4, 4)
    need = lengths.need(np.arange(len(lengths)))
    budgets = [getattr(shape, name) for name in plan_lib.BUDGETS]
    fits = np.flatnonzero((need <= budgets).all(axis=1))
    plan = plan_lib.make_plan(
        lengths, fits, shapes=[shape], rows_per_batch=[rows], seed=0, epoch=0
    )
    _, batch = plan.batch(0)
    return {
        "shape": list(vars(shape).values()),
        "rows": [need[ids, :4].tolist() for ids in batch],
        "ids": [ids.tolist() for ids in batch],
    }


def pairs_of(work: dict[str, Any], vocab_size: int) -> list[list[workload.Pair]]:
    """The pairs of every row; the same on both sides."""
    return [
        [
            workload.of_lengths(
                prompt=p, chosen=c, rejected=r, tiles=m, vocab_size=vocab_size, seed=i
            )
            for i, (p, c, r, m) in zip(ids, row, strict=True)
        ]
        for ids, row in zip(work["ids"], work["rows"], strict=True)
    ]


def run_ours(
    raw: dict[str, Any], work: dict[str, Any], *, steps: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Warm steps of the true training step on one device."""
    import jax

    from benchmarks import ours
    from mpo_jax import config as config_lib
    from mpo_jax import sharding, types
    from mpo_jax.models import config as model_config
    from mpo_jax.models import flops, internvl
    from mpo_jax.packing import assembly
    from mpo_jax.train import optimizer, state, step

    cfg = config_lib.RunConfig()
    for name, value in ({"drop_path": 0.0} | options).items():
        setattr(cfg.model, name, value)
    cfg.optim.warmup_fraction = 0.0  # the first rate of a warm-up is 0
    model = internvl.InternVL(model_config.from_hf(raw))
    shape = types.RowShape(*work["shape"])
    transform, schedule = optimizer.build(cfg.optim, 1_000_000)
    rng = np.random.default_rng(0)
    rows = [
        [
            ours.example(
                pair,
                rng.integers(0, 256, (pair.tiles, 448, 448, 3), np.uint8),
                tokens_per_tile=256,
            )
            for pair in row
        ]
        for row in pairs_of(work, raw["llm_config"]["vocab_size"])
    ]
    host = assembly.assemble_batch(
        rows,
        shape,
        img_context_id=workload.IMAGE_ID,
        tokens_per_tile=256,
        image_size=448,
        record_ids=[np.array(ids) for ids in work["ids"]],
        ref_logps=[np.zeros((len(row), 2)) for row in rows],
    )
    device = jax.devices()[0]
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=[device])
    watch, losses = clock.Clock(), []
    with jax.set_mesh(mesh):
        placed = sharding.shardings(model.shapes, model.axes, mesh)
        draw = jax.jit(model.init, out_shardings=placed)
        current = state.create(
            draw(jax.random.key(0)),
            transform=transform,
            moving=False,
        )
        batch = sharding.to_global(host, mesh)
        look = step.build_logps_step(model, cfg.model, shape, mesh)
        reference = look(current.params, batch)
        batch = types.PackedBatch(**(vars(batch) | {"ref_logps": reference}))
        update = step.build_train_step(
            model,
            cfg,
            shape,
            transform=transform,
            schedule=schedule,
            compiler_options=sharding.compiler_options(mesh),
        )
        key = jax.random.key(0)
        for _ in range(steps):
            watch.start()
            current, metrics = update(current, batch, key, None)
            jax.block_until_ready((current, metrics))
            watch.stop()
            total, weight = metrics["loss"]
            losses.append(float(total) / float(weight))
    stats = device.memory_stats() or {}
    pairs = sum(len(row) for row in rows)
    useful = sum(
        flops.training(model.cfg, flops.of_pairs(p, c, r, tiles=m)).total
        for row in work["rows"]
        for p, c, r, m in row
    )
    return {
        **watch.result(),
        "loss": losses,
        "pairs": pairs,
        "useful_flops": useful,
        "peak_mib": stats.get("peak_bytes_in_use", 0) / 2**20 or clock.peak_mib(),
        "device": device.device_kind,
        "versions": {"jax": jax.__version__},
        "attention": cfg.model.attention,
    }


def run_torch(
    raw: dict[str, Any], work: dict[str, Any], *, steps: int
) -> dict[str, Any]:
    """The duplicated layout on transformers' model."""
    import importlib.util

    import torch

    from benchmarks import peer

    peer._import_torchvision()
    import transformers

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    kernel = "sdpa"
    if cuda and importlib.util.find_spec("flash_attn"):
        kernel = "flash_attention_2"
    torch.manual_seed(0)
    config = peer.build_config(raw)
    config._attn_implementation = kernel

    with torch.device(device):
        model = transformers.InternVLForConditionalGeneration(config).float().train()
        reference = transformers.InternVLForConditionalGeneration(config)
    reference.load_state_dict(model.state_dict())
    reference.to(device=device, dtype=torch.bfloat16)  # type: ignore[arg-type]
    reference.eval().requires_grad_(False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=5e-6, weight_decay=0.05, fused=cuda
    )
    batches = []
    for row in pairs_of(work, raw["llm_config"]["vocab_size"]):
        for pair in row:
            pixels = torch.randn(pair.tiles, 3, 448, 448)
            one = peer.duplicated(pair, pixels)
            batches.append({k: v.to(device) for k, v in one.items()})

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    watch, losses = clock.Clock(), []
    for _ in range(steps):
        wait()
        watch.start()
        total = 0.0
        for one in batches:
            with torch.autocast(device.type, torch.bfloat16):
                total += peer.backward(model, reference, one, len(batches))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        watch.stop()
        losses.append(total)
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else clock.peak_mib()
    return {
        **watch.result(),
        "loss": losses,
        "pairs": len(batches),
        "peak_mib": peak,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "attention": kernel,
    }


def peak_tflops(device: str) -> float | None:
    """Peak of a device by its name; None if it is not known."""
    known = (peak for name, peak in PEAK_TFLOPS.items() if name in device)
    return next(known, None)


def summarise(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Pairs per second, peak memory and MFU of the sides that ran.

    MFU counts what a pair needs when it is encoded once, forward and backward, for
    both sides: work that a layout repeats is no use.
    """
    useful = next(
        (r["useful_flops"] for r in results.values() if "useful_flops" in r), 0
    )
    summary = {}
    for name, entry in results.items():
        if "error" in entry:
            continue
        seconds = clock.warm(entry["seconds"])
        peak = peak_tflops(entry["device"])
        summary[name] = {
            "pairs_per_s": entry["pairs"] / seconds,
            "peak_mib": entry["peak_mib"],
            "mfu": useful / seconds / peak / 1e12 if peak and useful else None,
            "device": entry["device"],
        }
    return summary


def _side(
    python: str, side: str, directory: pathlib.Path, arguments: Sequence[str]
) -> dict[str, Any]:
    """Run one side in its own process; its error if it fails."""
    result = directory / f"{side}.json"
    result.unlink(missing_ok=True)
    root = pathlib.Path(__file__).resolve().parent.parent
    command = [python, "-m", "benchmarks.device", f"--side={side}"]
    done = subprocess.run(
        [*command, f"--work={directory}", *arguments],
        cwd=root,
        env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode or not result.is_file():
        tail = done.stderr.strip().splitlines()[-15:]
        print(f"{side} failed (exit status {done.returncode}):", *tail, sep="\n  ")
        return {"error": tail}
    return json.loads(result.read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("toy", "1b", "2b"), default="toy")
    parser.add_argument("--rows", type=int, default=2, help="packed rows per update")
    parser.add_argument("--steps", type=int, default=4, help="the first is left out")
    parser.add_argument("--options", type=json.loads, default={}, help="config.model")
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--side", choices=("ours", "torch"), help="used internally")
    parser.add_argument("--work", type=pathlib.Path, default="build/benchmarks/device")
    parser.add_argument("--out", default="build/benchmarks/device.json")
    args = parser.parse_args(argv)
    directory = args.work.absolute()
    raw = config_of(args.size)
    if args.side:
        work = json.loads((directory / "work.json").read_text(encoding="utf-8"))
        if args.side == "ours":
            result = run_ours(raw, work, steps=args.steps, options=args.options)
        else:
            result = run_torch(raw, work, steps=args.steps)
        text = json.dumps(result, indent=2)
        (directory / f"{args.side}.json").write_text(text, encoding="utf-8")
        return

    directory.mkdir(parents=True, exist_ok=True)
    work = draw_work(args.size, args.rows)
    (directory / "work.json").write_text(json.dumps(work), encoding="utf-8")
    arguments = [f"--size={args.size}", f"--steps={args.steps}"]
    arguments += [f"--options={json.dumps(args.options)}"]
    results = {
        "ours": _side(sys.executable, "ours", directory, arguments),
        "torch": _side(args.peer_python, "torch", directory, arguments),
    }
    summary = summarise(results)
    rows = [
        [
            name,
            entry["device"],
            f"{entry['pairs_per_s']:.3f}",
            "unknown" if entry["mfu"] is None else f"{entry['mfu']:.3f}",
            f"{entry['peak_mib']:.0f}",
        ]
        for name, entry in summary.items()
    ]
    print(report.table(["side", "device", "pairs/s", "MFU", "peak MiB"], rows))
    ratio = None
    if len(summary) == 2:
        ratio = {
            "time": summary["ours"]["pairs_per_s"] / summary["torch"]["pairs_per_s"],
            "memory": summary["torch"]["peak_mib"] / summary["ours"]["peak_mib"],
        }
        print(f"ratio: time {ratio['time']:.2f}, memory {ratio['memory']:.2f}")
    report.write(
        args.out,
        {"size": args.size, "ratio": ratio, "summary": summary, "raw": results},
    )


if __name__ == "__main__":
    main()
