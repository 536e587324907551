"""A small model that can be asked, its questions, and the command that asks them."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
from PIL import Image

from mpo_jax import api
from mpo_jax.demo import tiny_model
from mpo_jax.models import config, internvl

CORPUS = ("the answer is a circle", "how many squares are red and blue?", "one two")


def write_model(directory: pathlib.Path, **sizes: int) -> pathlib.Path:
    """Random weights, large enough that answers differ, beside a tokenizer."""
    made = {
        **{"image_size": 56, "vision_hidden": 16, "vision_mlp": 16},
        **{"vision_layers": 2, "vision_heads": 2, "hidden": 16, "mlp": 16},
        **{"layers": 2, "heads": 4, "kv_heads": 2, "vocab_size": 300},
    } | sizes
    files = directory.with_name(directory.name + "-bare")
    tiny_model.write_tiny_model(files, corpus=CORPUS, **made)
    raw = json.loads((files / "config.json").read_text())
    raw["max_dynamic_patch"] = 4
    raw["llm_config"]["max_position_embeddings"] = 1024
    (files / "config.json").write_text(json.dumps(raw))
    model = internvl.InternVL(config.load(files))
    weights = jax.jit(model.init)(jax.random.key(1))
    weights = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, weights)
    made = api.InternVL(model, weights, files=files)
    made.save_pretrained(directory, dtype="float32")
    return directory


def write_images(folder: pathlib.Path) -> list[str]:
    """Pictures of one tile and of several."""
    rng = np.random.default_rng(0)
    names = []
    for number, size in enumerate([(56, 56), (112, 56), (30, 90), (64, 64)]):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        names.append(f"{number}.png")
        Image.fromarray(pixels).save(folder / names[-1])
    return names


def questions(images: list[str], number: int) -> list[dict[str, Any]]:
    """Unequal ones: with no image, one and two, a history, a prefix, an own system."""
    found = []
    for i in range(number):
        record: dict[str, Any] = {"id": i if i % 3 else f"q{i}"}
        record["question"] = "how many? " * (1 + i % 5)
        if i % 4 == 1:
            record["image"] = images[i % len(images)]
        if i % 4 == 2:
            record["image"] = [images[i % len(images)], images[0]]
            record["question"] = "<image><image> " + record["question"]
        if i % 5 == 3:
            record["history"] = [["one?", "two"]]
            record["question"] = record["question"].replace("<image>", "")
            record.pop("image", None)
        if i % 7 == 4:
            record["prefix"] = "the answer"
        if i % 6 == 5:
            record["system"] = "be brief"
        found.append(record)
    return found


def write_lines(path: pathlib.Path, records: list[Any]) -> pathlib.Path:
    text = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(text), encoding="utf-8")
    return path


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def start(
    root: pathlib.Path,
    *flags: str,
    script: str = "generate.py",
    devices: int = 1,
    cache: pathlib.Path | None = None,
    **env: str,
) -> subprocess.Popen:
    """Start a script in a process of its own."""
    variables = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": str(root),
        **({"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {}),
        **env,
    }
    return subprocess.Popen(
        [sys.executable, str(root / "scripts" / script), *flags],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(process: subprocess.Popen, *, timeout: float = 200) -> str:
    """What it printed; one that takes too long does not outlive the test."""
    try:
        return process.communicate(timeout=timeout)[0]
    finally:
        if process.poll() is None:
            process.kill()
