"""How many pairs a host core can prepare: reading, decoding, tiling, tokenising.

  python -m benchmarks.input                      # images drawn by the script
  python -m benchmarks.input --pairs=64 --out=benchmarks/results/input.json

Tiles are real ones of 448 pixels. Image sizes are those that ``mix`` assumes for MMPR's
sources (seven tiles a pair on average); photographs and documents are JPEG, drawings
PNG, and ``../shared`` adds real images where it is present. Then it says how many cores
of a v5e host keep up with a given training speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags
from PIL import Image, ImageDraw

from benchmarks import mix, report
from mpo_jax import config, types
from mpo_jax.demo import dataset, tiny_model
from mpo_jax.inputs import images
from mpo_jax.inputs import tokenizer as tokenizers
from mpo_jax.mmpr import examples, index, index_build, likeness
from mpo_jax.mmpr.meta import Source
from mpo_jax.packing import pipeline, plan_cache
from mpo_jax.packing import plan as plan_lib

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared/data"
WORDS = (
    "the area of triangle ABC is half base times height so we first find angle "
    "x = 35 degrees since lines are parallel and therefore option B holds because "
    "the chart shows 42 percent in 2015 compared with 17.5 percent in 2010 which means"
).split()
V5E_HOST_CORES = 56
"""Physical cores of a host of 4 v5e chips (ct5lp-hightpu-4t: 112 vCPUs)."""


def draw(rng: np.random.Generator, kind: str, width: int, height: int) -> Image.Image:
    """An image whose files are as large and as hard to decode as the real kind."""
    if kind in ("photographs", "scenes with text"):
        coarse = rng.integers(0, 256, (height // 24 + 1, width // 24 + 1, 3), np.uint8)
        image = Image.fromarray(coarse).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noise = rng.normal(0, 7, (height, width, 3))
        pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
        return Image.fromarray(pixels)
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(12 if kind != "documents" else 4):
        box = rng.integers(0, (width, height), (2, 2))
        (x0, y0), (x1, y1) = np.sort(box, axis=0).tolist()
        pen.rectangle((x0, y0, x1, y1), outline=tuple(rng.integers(0, 200, 3).tolist()))
        pen.line((x0, y1, x1, y0), fill="black", width=2)
    for y in range(10, height, 22 if kind == "documents" else 90):
        text = " ".join(rng.choice(WORDS, max(2, width // 60)).tolist())
        pen.text((8, y), text, fill="black")
    return image


def write_data(folder: pathlib.Path, count: int) -> pathlib.Path:
    """Write `count` pairs with images of MMPR's kinds; returns meta.json."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    shares = np.array([source[0] for source in mix.SOURCES.values()])
    names = list(mix.SOURCES)
    lines = []
    for number in range(count):
        kind = names[rng.choice(len(names), p=shares / shares.sum())]
        _, widths, heights, _ = mix.SOURCES[kind]
        size = [
            int(rng.integers(*limits, endpoint=True)) for limits in (widths, heights)
        ]
        drawn = kind in ("geometry drawings", "science figures", "charts")
        name = f"{number}.{'png' if drawn else 'jpg'}"
        draw(rng, kind, *size).save(folder / "images" / name, quality=90)
        question, chosen, rejected = (
            " ".join(rng.choice(WORDS, words).tolist()) for words in (45, 190, 210)
        )
        lines.append(
            {
                "image": name,
                "question": f"<image>\n{number}: {question}",
                "chosen": f"{chosen}\nFinal answer: {number}",
                "rejected": f"{rejected}\nFinal answer: {number + 1}",
            }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "pairs.jsonl").write_text(text, encoding="utf-8")
    meta = {"drawn": {"root": "images", "annotation": "pairs.jsonl"}}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder / "meta.json"


def real_meta(folder: pathlib.Path, count: int) -> pathlib.Path | None:
    """meta.json over `count` real pairs of ``../shared``; None where it is absent."""
    source = SHARED / "pref_mathv_real"
    if not source.is_dir():
        return None
    (name, entry), *_ = json.loads((source / "meta.json").read_text()).items()
    lines = (source / entry["annotation"]).read_text().splitlines()[:count]
    folder.mkdir(parents=True)
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    root = str((source / entry["root"]).resolve())
    entry = {**entry, "root": root, "annotation": str(folder / "pairs.jsonl")}
    (folder / "meta.json").write_text(json.dumps({name: entry}))
    return folder / "meta.json"


def find_tokenizer(folder: pathlib.Path) -> tuple[pathlib.Path, str]:
    """A tokenizer and its template: InternLM2's, or one trained on the demo's text."""
    real = SHARED / "tokenizers/internvl2_2b"
    if real.is_dir():
        return real, "internlm2-chat"
    written = dataset.write_dataset(folder / "demo", num_train=64, num_eval=8, seed=0)
    path = tiny_model.write_tiny_model(
        folder / "model", corpus=dataset.corpus(written["meta"])
    )
    return path, json.loads((path / "config.json").read_text())["template"]


def best(function: Callable[[], Any], *, repeats: int) -> float:
    """Least CPU seconds of some calls; reading is from the page cache."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return min(seconds)


def stages(
    built: index.Index,
    tokenizer: tokenizers.ChatTokenizer,
    policy: examples.EncodePolicy,
    *,
    repeats: int,
) -> dict[str, float]:
    """Milliseconds per pair of every stage on one core."""
    fetched = [built.fetch(i) for i in range(len(built))]
    opened = [
        [images.open_image(p, max_pixels=10**9, read=read) for p in record.images]
        for record, read in fetched
    ]
    how = {
        "min_num": policy.min_tiles,
        "max_num": policy.max_tiles,
        "image_size": policy.image_size,
        "use_thumbnail": policy.use_thumbnail,
    }

    def run(what: str) -> None:
        for number, (record, read) in enumerate(fetched):
            if what == "read":
                again, fresh = built.fetch(number)
                likeness.record_hash(again, fresh)
            elif what == "decode":
                for path in record.images:
                    images.open_image(path, max_pixels=10**9, read=read)
            elif what == "tile":
                for image in opened[number]:
                    images.tile(image, **how)
            else:  # decoding is in it, and taken off below
                examples.build_example(
                    record, tokenizer, policy=policy, with_tiles=False, read=read
                )

    found = {
        name: best(lambda name=name: run(name), repeats=repeats) / len(built) * 1e3
        for name in ("read", "decode", "tile", "tokenise")
    }
    found["tokenise"] = max(found["tokenise"] - found["decode"], 0.0)
    return found


def streams(
    built: index.Index,
    tokenizer_path: pathlib.Path,
    policy: examples.EncodePolicy,
    *,
    shape: types.RowShape,
    settings: list[tuple[int, int]],
    epochs: int,
) -> list[dict[str, Any]]:
    """Pairs per second of the loader by (worker processes, threads each)."""
    plan = plan_lib.plan_epochs(
        plan_lib.Lengths(
            built.prompt_tokens, built.chosen_tokens, built.rejected_tokens, built.tiles
        ),
        [np.arange(len(built))] * epochs,
        shapes=(shape,),
        rows_per_batch=(1,),
        seed=0,
    )
    loader = pipeline.ExampleLoader(built, str(tokenizer_path), policy)
    results = []
    for workers, threads in settings:
        with pipeline.make_loader(
            plan,
            loader,
            img_context_id=loader.img_context_id,
            tokens_per_tile=policy.tokens_per_tile,
            image_size=policy.image_size,
            workers=workers,
            threads=threads,
        ) as batches:
            # Starting workers takes seconds and is not what training pays per pair.
            for _ in range(max(1, 2 * workers)):
                next(batches)
            start, before = time.perf_counter(), os.times()
            pairs = sum(int(batch.pair_mask.sum()) for _, batch in batches)
            seconds, after = time.perf_counter() - start, os.times()
        results.append(
            {
                "workers": workers,
                "threads": threads,
                "pairs_per_s": pairs / seconds,
                "main_process_cores": (
                    after.user + after.system - before.user - before.system
                )
                / seconds,
            }
        )
    return results


def write_index(folder: pathlib.Path, rows: int) -> pathlib.Path:
    """An index of `rows` pairs as MMPR's, in the files that prepare_data leaves."""
    lengths = mix.mmpr_like(rows)
    none = np.zeros(rows, np.int32)
    values = {
        "source": none,
        "offset": np.arange(rows, dtype=np.int64) * 1500,
        "line": np.arange(1, rows + 1, dtype=np.int64),
        "prompt_tokens": lengths.prompt,
        "chosen_tokens": lengths.chosen,
        "rejected_tokens": lengths.rejected,
        "chosen_labels": lengths.chosen,
        "rejected_labels": lengths.rejected,
        "tiles": lengths.tiles,
        "images": none + 1,
        "hash": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16),
            rows,
            [None, pa.py_buffer(np.random.default_rng(0).bytes(16 * rows))],
        ),
    }
    folder.mkdir(parents=True)
    pq.write_table(pa.table(values), folder / "index.parquet", row_group_size=1 << 17)
    annotation = folder / "pairs.jsonl"
    annotation.touch()
    source = Source(name="all", root=str(folder), annotation=str(annotation))
    manifest = {
        "format": index_build.FORMAT,
        "key": {"max_text_bytes": 1_000_000, "chosen_only": False},
        "rows": rows,
        "content_hash": "",
        "sources": [dataclasses.asdict(source)],
        "annotation_bytes": [0],
        "counts": [{"lines": rows, "kept": rows, "left_out": {}}],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "ledger.jsonl").touch()
    return folder


def startup(folder: pathlib.Path, rows: int) -> dict[str, float]:
    """CPU seconds from an index on disk to the records of the first batch.

    CPU time of one core, which other programs on the machine do not disturb; nothing
    here waits for anything else.
    """
    directory = write_index(folder / "large", rows)
    shape = recipes_shape()
    found: dict[str, float] = {}
    fingerprints = []
    for name in ("first start", "later start"):
        start = time.process_time()
        built = index.load_index(directory)
        lengths = plan_lib.Lengths(
            built.prompt_tokens, built.chosen_tokens, built.rejected_tokens, built.tiles
        )
        ids = index.effective(built, seed=0, epoch=0)
        found[f"{name}: index"] = time.process_time() - start
        start = time.process_time()
        batch_rows = plan_lib.choose_rows_per_batch(
            lengths, ids, (shape,), pairs_per_batch=256, multiple=8
        )
        plan = plan_cache.plan_epochs(
            folder / "plans",
            lengths,
            [ids],
            shapes=(shape,),
            rows_per_batch=batch_rows,
            seed=0,
        )
        fingerprints.append(plan.fingerprint)
        found[f"{name}: plan"] = time.process_time() - start
        start = time.process_time()
        for record in np.concatenate(plan.batch(0)[1]).tolist():
            built.hash[record], built.offset[record], built.line[record]
        found[f"{name}: first batch"] = time.process_time() - start
    assert fingerprints[0] == fingerprints[1]
    return found


def recipes_shape() -> types.RowShape:
    """Row shape of the default recipe."""
    return config.RowsConfig().short.build()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", default="")
    parser.add_argument(
        "--index_rows", type=int, default=3_000_000, help="0 leaves the start-up out"
    )
    args = parser.parse_args()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read them
    folder = pathlib.Path(tempfile.mkdtemp(prefix="mpo-input-"))
    try:
        result = measure(folder, args)
    finally:
        shutil.rmtree(folder)
    print_result(result)
    if args.out:
        report.write(args.out, result)


def measure(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """All figures, in a folder of their own."""
    tokenizer_path, template = find_tokenizer(folder)
    policy = examples.EncodePolicy(
        template=template,
        image_size=448,
        tokens_per_tile=256,
        min_tiles=1,
        max_tiles=12,
        use_thumbnail=True,
        max_image_pixels=10**9,
    )
    tokenizer = tokenizers.load_tokenizer(tokenizer_path)
    sets = {"drawn": write_data(folder / "drawn", args.pairs)}
    real = real_meta(folder / "real", args.pairs)
    if real is not None:
        sets["real"] = real
    result: dict[str, Any] = {"sets": {}}
    if args.index_rows:
        result["startup_rows"] = args.index_rows
        result["startup_cpu_s"] = startup(folder, args.index_rows)
    for name, meta in sets.items():
        built = index.build_index(
            meta,
            folder / "index",
            tokenizer_path=tokenizer_path,
            policy=policy,
            workers=1,
        )
        parts = stages(built, tokenizer, policy, repeats=args.repeats)
        longest = int(built.prompt_tokens.max()), int(built.tiles.max())
        shape = types.RowShape(
            max(4352, longest[0]),
            max(2048, int(built.chosen_tokens.max())),
            max(2048, int(built.rejected_tokens.max())),
            max(16, longest[1]),
            8,
        )
        result["sets"][name] = {
            "pairs": len(built),
            "tiles_per_pair": float(built.tiles.mean()),
            "tokens_per_pair": float(
                (
                    built.prompt_tokens + built.chosen_tokens + built.rejected_tokens
                ).mean()
            ),
            "stages_ms": parts,
            "pairs_per_s_per_core": 1e3 / sum(parts.values()),
            "streams": streams(
                built,
                tokenizer_path,
                policy,
                shape=shape,
                settings=[(0, 1), (0, 2), (0, 4), (1, 1), (2, 1), (2, 2)],
                epochs=args.epochs,
            ),
        }
    per_core = result["sets"]["drawn"]["pairs_per_s_per_core"]
    result["v5e_host"] = {
        "cores": V5E_HOST_CORES,
        "pairs_per_s_at_most": per_core * V5E_HOST_CORES,
        "cores_needed_by_pairs_per_s": {
            str(rate): rate / per_core for rate in (1, 4, 16, 64)
        },
    }
    return result


def print_result(result: dict[str, Any]) -> None:
    """The tables."""
    for name, found in result["sets"].items():
        print(
            f"\n{name}: {found['pairs']} pairs, {found['tiles_per_pair']:.1f} tiles "
            f"and {found['tokens_per_pair']:.0f} tokens each\n"
        )
        rows = [[stage, f"{ms:.2f}"] for stage, ms in found["stages_ms"].items()]
        rows.append(["all", f"{sum(found['stages_ms'].values()):.2f}"])
        print(report.table(["stage", "CPU ms per pair"], rows))
        print(f"\n{found['pairs_per_s_per_core']:.1f} pairs/s per core\n")
        rows = [
            [
                str(stream["workers"]),
                str(stream["threads"]),
                f"{stream['pairs_per_s']:.1f}",
                f"{stream['main_process_cores']:.2f}",
            ]
            for stream in found["streams"]
        ]
        head = ["workers", "threads", "pairs/s", "cores used by the main process"]
        print(report.table(head, rows))
    if "startup_cpu_s" in result:
        print(f"\nStart with an index of {result['startup_rows']:,} pairs\n")
        rows = [[name, f"{s:.2f}"] for name, s in result["startup_cpu_s"].items()]
        print(report.table(["step", "CPU seconds"], rows))
    host = result["v5e_host"]
    print(
        f"\nA v5e host of 4 chips has {host['cores']} cores: up to "
        f"{host['pairs_per_s_at_most']:.0f} pairs/s. Cores that a step needs:"
    )
    for rate, cores in host["cores_needed_by_pairs_per_s"].items():
        print(f"  {rate:>3} pairs/s per host: {cores:.1f} cores")


if __name__ == "__main__":
    main()
