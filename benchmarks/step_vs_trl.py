"""One update on the same pairs and weights: this project, TRL, the released way.

  python -m benchmarks.step_vs_trl                   # 1, 7 and 13 tiles
  python -m benchmarks.step_vs_trl --tiles=7 --vocab_size=151655   # head-heavy

Makes the peers' environment on first use (``--venv``; a CPU build of torch if the
package index offers one). Every trainer runs in a process of its own, one after
another, in float32, with the machine's cores, its first step left out; ours finds its
program in the compilation cache (its peak while compiling is given apart). Losses and
gradient norms of the first step must agree, which shows that it is the same work.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import clock, mix, packing, report, sizes, workload
from mpo_jax import recipes

PEER_PACKAGES = ("torch==2.13.0", "trl==1.16.0", "transformers==5.23.0", "pillow")
TORCHVISION = "torchvision==0.28.0"  # without dependencies: it would change torch
WORK = {1: (8, 8, 4), 7: (1, 1, 1), 13: (1, 1, 1)}
"""By tiles per pair: pairs of an update, packed rows that hold them, micro-batches."""
LOSS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3


def ensure_venv(directory: pathlib.Path) -> pathlib.Path:
    """The peers' Python; the environment is made if it is not there."""
    python = directory / "bin" / "python"
    done = directory / ".complete"
    if done.is_file():
        return python
    print(f"making {directory} (several minutes)", flush=True)
    venv.create(directory, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *PEER_PACKAGES], check=True)
    subprocess.run([*pip, "--no-deps", TORCHVISION], check=True)
    done.touch()
    return python


def recipe_fill() -> dict[str, float]:
    """Fill that the recipe's short row reaches on the paper's lengths."""
    rows = recipes.released_mpo().rows
    lengths = mix.mmpr_like(20_000)
    plan = packing.plan_of(lengths, (rows.short.build(), rows.long.build()))
    return plan.fill()[0]


def prepare(
    directory: pathlib.Path,
    python: pathlib.Path,
    raw: dict[str, Any],
    *,
    tiles: int,
    pairs: int,
) -> None:
    """Pairs and weights on disk."""
    (directory / "original").mkdir(parents=True, exist_ok=True)
    config = directory / "original" / "config.json"
    text = json.dumps(raw, indent=2)
    workload.write(
        directory / "data",
        pairs=pairs,
        tiles=tiles,
        vocab_size=raw["llm_config"]["vocab_size"],
    )
    weights = directory / "original" / "model.safetensors"
    if not weights.is_file() or config.read_text() != text:
        config.write_text(text)
        _run([python, "-m", "benchmarks.peer", "prepare", directory])


def _run(command: Sequence[Any]) -> None:
    """Run from the repository root, which both sides import `benchmarks` from."""
    root = pathlib.Path(__file__).resolve().parent.parent
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [str(part) for part in command], check=True, cwd=root, env=environment
    )


def measure(
    directory: pathlib.Path,
    python: pathlib.Path,
    *,
    tiles: int,
    pairs: int,
    rows: int,
    accumulation: int,
    steps: int,
    fill: dict[str, float],
    options: dict[str, Any],
    checkpointing: bool,
    who: Sequence[str],
) -> dict[str, Any]:
    """Results of the trainers asked for, by name."""
    results = {}
    for name in who:
        file = directory / f"{name}_{tiles}.json"
        print(f"{tiles} tiles, {pairs} pairs: {name}", flush=True)
        if name == "ours":
            shape = [f"--rows={rows}", f"--fill={json.dumps(fill)}"]
            shape += [f"--accumulation={accumulation}"]
            shape += [f"--options={json.dumps(options)}"]
            results[name] = _ours(directory, file, shape=shape, steps=steps)
            continue
        command = [python, "-m", "benchmarks.peer", name, directory, file]
        command += ["--checkpointing"] * checkpointing
        _run([*command, f"--steps={steps}"])
        results[name] = json.loads(file.read_text(encoding="utf-8"))
    return results


def _ours(
    directory: pathlib.Path, file: pathlib.Path, *, shape: list[str], steps: int
) -> dict[str, Any]:
    """Reference pass, then the steps twice: compiling, and with what was compiled.

    The compiler's memory, some hundred MB whatever the size of the model, stays with
    its process. The second run has times and memory of a run that finds its program in
    the compilation cache; the first one's peak is reported beside it.
    """
    reference = directory / "reference.json"
    module = [sys.executable, "-m", "benchmarks.ours"]
    _run([*module, "reference", directory, reference, *shape])
    with tempfile.TemporaryDirectory(prefix="mpo_cache_") as cache:
        common = [*shape, f"--reference={reference}", f"--compile_cache={cache}"]
        _run([*module, "steps", directory, file, *common, "--steps=2"])
        cold = json.loads(file.read_text(encoding="utf-8"))
        _run([*module, "steps", directory, file, *common, f"--steps={steps}"])
    found = json.loads(file.read_text(encoding="utf-8"))
    found |= json.loads(reference.read_text(encoding="utf-8"))
    return found | {"peak_compiling_mib": cold["peak_mib"]}


def check_same_work(
    results: dict[str, Any], directory: pathlib.Path
) -> dict[str, float]:
    """Differences of the first step, relative; the tokens that TRL saw are ours.

    Raises:
      ValueError: if the trainers did not do the same work.
    """
    ours = results["ours"]
    found = {}
    for name, other in results.items():
        if name == "ours":
            continue
        for field, tolerance in (
            ("loss", LOSS_TOLERANCE),
            ("grad_norm", GRADIENT_TOLERANCE),
        ):
            if field not in other:
                continue
            # TRL logs seven digits of the loss or fewer; that bounds what is seen.
            difference = abs(ours[field][0] / other[field][0] - 1)
            found[f"{name}/{field}"] = difference
            if not difference < tolerance:
                raise ValueError(
                    f"first step, {field}: ours {ours[field][0]}, {name} "
                    f"{other[field][0]}: not the same work"
                )
    if "trl" in results:
        check_inputs(directory)
    return found


def check_inputs(directory: pathlib.Path) -> None:
    """Compare the ids that TRL's collator made with ours.

    Raises:
      ValueError: naming the pair and side that differs.
    """
    with np.load(directory / "trl_inputs.npz") as inputs:
        for i, (_, pair) in enumerate(workload.read(directory / "data")):
            if inputs["tiles"][i] != 2 * pair.tiles:
                raise ValueError(f"pair {i}: TRL saw {inputs['tiles'][i]} tiles")
            for row, side in enumerate(("chosen", "rejected")):
                mask = inputs[f"mask_{i}"][row].astype(bool)
                ids = inputs[f"ids_{i}"][row][mask]
                whole = np.concatenate([pair.prompt_ids(256), pair.response_ids(side)])
                if not np.array_equal(ids, whole):
                    raise ValueError(f"pair {i}, {side}: TRL's token ids differ")


def summarise(results: dict[str, Any], *, pairs: int) -> dict[str, Any]:
    """Per-pair figures of every trainer and ratios to ours (above 1: we need less)."""
    summary: dict[str, Any] = {}
    for name, entry in results.items():
        seconds = clock.warm(entry["seconds"])
        summary[name] = {
            "seconds_per_pair": seconds / pairs,
            "processor_seconds_per_pair": clock.warm(entry["processor_seconds"])
            / pairs,
            "cores_of_others": clock.warm(entry["cores_of_others"]),
            "tokens_per_pair": entry["tokens"] / pairs,
            "tiles_per_pair": entry["tiles"] / pairs,
            "tflops_per_pair": entry["flops"] / pairs / 1e12,
            "gflops_per_s": entry["flops"] / seconds / 1e9,
            "peak_mib": entry["peak_mib"],
            "peak_compiling_mib": entry.get("peak_compiling_mib", entry["peak_mib"]),
            "working_mib": entry["peak_mib"] - entry["base_mib"],
        }
    ours, raw = summary["ours"], results["ours"]
    cached = ours["seconds_per_pair"] + raw["reference_seconds"] / pairs
    with_pass = ours["tflops_per_pair"] + raw["reference_flops"] / pairs / 1e12
    ours["seconds_per_pair_with_reference"] = cached
    for name, entry in summary.items():
        if name == "ours":
            continue
        entry["ratio"] = {
            "time": entry["seconds_per_pair"] / ours["seconds_per_pair"],
            "time_with_reference": entry["seconds_per_pair"] / cached,
            "processor_time": entry["processor_seconds_per_pair"]
            / ours["processor_seconds_per_pair"],
            "flops": entry["tflops_per_pair"] / ours["tflops_per_pair"],
            "flops_with_reference": entry["tflops_per_pair"] / with_pass,
            "tokens": entry["tokens_per_pair"] / ours["tokens_per_pair"],
            "peak": entry["peak_mib"] / ours["peak_mib"],
            "peak_compiling": entry["peak_mib"] / ours["peak_compiling_mib"],
            "working": entry["working_mib"] / ours["working_mib"],
        }
    return summary


def show(summary: dict[str, dict[str, Any]]) -> str:
    """Markdown tables of all cases."""
    rows, ratios = [], []
    for case, entries in summary.items():
        for name, entry in entries.items():
            rows.append(
                [
                    case,
                    name,
                    f"{entry['seconds_per_pair']:.2f}",
                    f"{entry['tokens_per_pair']:.0f}",
                    f"{entry['tiles_per_pair']:.1f}",
                    f"{entry['tflops_per_pair']:.2f}",
                    f"{entry['gflops_per_s']:.0f}",
                    f"{entry['peak_mib']:.0f}",
                    f"{entry['peak_compiling_mib']:.0f}",
                    f"{entry['working_mib']:.0f}",
                ]
            )
            if "ratio" in entry:
                values = (f"{value:.2f}" for value in entry["ratio"].values())
                ratios.append([case, name, *values])
    head = ["case", "trainer", "s/pair", "tokens/pair", "tiles/pair", "TFLOP/pair"]
    head += ["GFLOP/s", "peak MiB", "peak MiB, compiling", "working MiB"]
    head2 = ["case", "against", "time", "time, reference pass counted"]
    head2 += ["processor time", "FLOPs"]
    head2 += ["FLOPs, reference pass counted", "tokens", "peak"]
    head2 += ["peak, compiling", "working"]
    return report.table(head, rows) + "\n\n" + report.table(head2, ratios)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, nargs="*", default=[1, 7, 13])
    parser.add_argument("--steps", type=int, default=3, help="the first is left out")
    parser.add_argument("--pairs", type=int, default=0, help="of an update; 0: WORK")
    parser.add_argument("--pack_rows", type=int, default=1, help="rows of --pairs")
    parser.add_argument(
        "--snug",
        action="store_true",
        help="budgets that these pairs fill, instead of the recipe's mean slack",
    )
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--vocab_size", type=int, default=0, help="0: share as in 1B")
    parser.add_argument(
        "--who", nargs="*", default=["ours", "trl", "released"], help="first is ours"
    )
    parser.add_argument(
        "--options",
        type=json.loads,
        default={"remat": "none"},
        help="fields of config.model for ours",
    )
    parser.add_argument(
        "--checkpointing",
        action="store_true",
        help="gradient checkpointing of the peers, as remat=full is ours",
    )
    parser.add_argument("--venv", type=pathlib.Path, default="build/trl-venv")
    parser.add_argument("--work", type=pathlib.Path, default="build/benchmarks")
    parser.add_argument("--out", default="")
    args = parser.parse_args(argv)

    python = ensure_venv(args.venv.absolute())
    raw = sizes.slice_of("1b", layers=args.layers, vocab_size=args.vocab_size or None)
    vocab_size = raw["llm_config"]["vocab_size"]
    directory = (args.work / f"slice_{args.layers}_{vocab_size}").absolute()
    summary: dict[str, Any] = {}
    fill = recipe_fill()
    if args.snug:
        fill = dict.fromkeys(fill, 1.0)
    content: dict[str, Any] = {
        "vocab_size": vocab_size,
        "layers": args.layers,
        "checkpointing": args.checkpointing,
        "fill": fill,
    }
    for tiles in args.tiles:
        pairs, rows, accumulation = WORK[tiles]
        if args.pairs:
            pairs, rows, accumulation = args.pairs, args.pack_rows, 1
        prepare(directory, python, raw, tiles=tiles, pairs=pairs)
        results = measure(
            directory,
            python,
            tiles=tiles,
            pairs=pairs,
            rows=rows,
            accumulation=accumulation,
            steps=args.steps,
            fill=fill,
            options=args.options,
            checkpointing=args.checkpointing,
            who=args.who,
        )
        case = f"{tiles} tile{'s' if tiles > 1 else ''}"
        summary[case] = summarise(results, pairs=pairs)
        content[case] = {
            "difference": check_same_work(results, directory),
            "summary": summary[case],
            "raw": results,
        }
    print("\n" + show(summary))
    name = "_".join(str(t) for t in args.tiles) + ("_snug" if args.snug else "")
    out = args.out or args.work / f"step_vs_trl_{vocab_size}_{name}.json"
    report.write(out, content)


if __name__ == "__main__":
    main()
