"""A recipe of seconds: a toy that says "1" or "2" at random, some drawn spots."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import speaking
from PIL import Image

from mpo_jax import config, recipe_config, recipes
from mpo_jax.demo import tiny_model
from mpo_jax.run import train
from mpo_jax.verify import formats

QUESTION = "How many spots?"
BENCHMARK = "own_benchmarks.spots"


def write_spots(folder: pathlib.Path, number: int, *, seed: int) -> list[dict]:
    """Pictures with one or two spots, and lines of questions on them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(number):
        pixels = rng.integers(0, 200, (56, 56, 3), np.uint8)
        answer = i % 2 + 1
        pixels[:14, : 28 * answer] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
        line = {"id": i, "question": f"{QUESTION} {seed}.{i}", "image": f"{i}.png"}
        lines.append(line | {"answer": str(answer)})
    return lines


def write_inputs(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """``questions``, ``open`` questions, ``benchmarks``."""
    asked = write_spots(root / "data", 12, seed=1)
    held_out = write_spots(root / "benchmarks", 6, seed=2)
    speaking.write_lines(root / "benchmarks" / "spots.jsonl", held_out)
    # One of the questions is the benchmark's, and so is to be left out.
    twin = {"id": "twin", "question": held_out[0]["question"], "image": "twin.png"}
    (root / "data" / "twin.png").write_bytes((root / "benchmarks/0.png").read_bytes())
    questions = [*asked, twin | {"answer": "1"}, {"id": "bad", "question": "Why?"}]
    speaking.write_lines(root / "data" / "spots_train.jsonl", questions)
    wrap = formats.FORMATS["en"].wrap  # a bare answer is too short to be cut
    free = [
        {"question": wrap(line["question"]), "image": line["image"]}
        for line in asked[:6]
    ]
    speaking.write_lines(root / "data" / "spots_open.jsonl", free)
    return {
        "questions": root / "data" / "spots_train.jsonl",
        "open": root / "data" / "spots_open.jsonl",
        "benchmarks": root / "benchmarks",
    }


def make_world(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The same with a ``model`` that was trained, and a ``cache`` of programs."""
    found = write_inputs(root)
    return found | {"model": _model(root), "cache": root / "cache"}


def _model(root: pathlib.Path) -> pathlib.Path:
    """Trained to say either number to any picture, with a chain of thought or none."""
    lines = []
    for line in speaking.read_lines(root / "data" / "spots_train.jsonl")[:12]:
        for number in (1, 2):
            end = f"I look.\n\nFinal answer: {number}"
            for question, chosen in (
                (formats.FORMATS["en"].wrap(line["question"]), end),
                (line["question"], str(number)),
            ):
                said = {"question": question, "chosen": chosen, "rejected": "-"}
                lines.append(said | {"image": line["image"]})
    speaking.write_lines(root / "data" / "sft.jsonl", lines)
    meta = {"sft": {"root": ".", "annotation": "sft.jsonl", "max_dynamic_patch": 1}}
    (root / "data" / "sft_meta.json").write_text(json.dumps(meta))
    texts = [text for line in lines for text in (line["question"], line["chosen"])]
    bare = tiny_model.write_tiny_model(
        root / "bare",
        corpus=texts,
        vocab_size=400,
        image_size=56,
        vision_hidden=16,
        vision_mlp=16,
        vision_layers=1,
        vision_heads=2,
        hidden=32,
        mlp=32,
        layers=1,
        heads=2,
        kv_heads=1,
    )
    cfg = _small(recipes.quickstart("sft"))
    cfg.model.path, cfg.data.meta = str(bare), str(root / "data" / "sft_meta.json")
    cfg.rows.short = config.RowShapeConfig(160, 32, 0, 2, 2)
    cfg.optim.max_steps, cfg.optim.epochs, cfg.optim.learning_rate = 60, 40, 2e-2
    cfg.checkpoint.every_steps = 1000
    cfg.checkpoint.export_hf = True
    train.train(cfg, root / "sft", devices=jax.devices()[:1])
    return root / "sft" / "hf"


def _small(cfg: config.RunConfig) -> config.RunConfig:
    cfg.model.remat = "none"
    cfg.data.index_workers = 1
    cfg.rows.pairs_per_batch = 8
    cfg.rows.row_multiple = 4
    cfg.log.tensorboard = cfg.log.plots = False
    return cfg


def recipe(world: dict[str, pathlib.Path]) -> recipe_config.RecipeConfig:
    """Two rounds of all that there is, at toy size."""
    model = str(world.get("model", "OWNER/NAME"))
    cfg = recipe_config.RecipeConfig(name="spots", model=model, rounds=2)
    cfg.questions.files = (str(world["questions"]),)
    cfg.questions.per_round = 8
    cfg.ntp.file, cfg.ntp.per_round = str(world["open"]), 4
    cfg.ntp.max_new_tokens, cfg.ntp.max_tiles = 24, 1
    cfg.sampling.n, cfg.sampling.max_tiles = 4, 1
    cfg.sampling.max_new_tokens = 24
    cfg.pairs.workers = 1
    cfg.train = _small(recipes.quickstart("mpo"))
    cfg.train.rows.short = config.RowShapeConfig(160, 32, 32, 2, 2)
    cfg.train.optim.max_steps, cfg.train.optim.learning_rate = 4, 5e-3
    cfg.train.optim.epochs = 4
    cfg.train.checkpoint.every_steps = 1
    cfg.train.checkpoint.export_hf = False
    cfg.evaluate.benchmarks = (BENCHMARK,)
    cfg.evaluate.data = str(world["benchmarks"])
    return cfg
