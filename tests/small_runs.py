"""Runs small enough for tests: a demo data set, a toy model, a process of its own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import speaking

from mpo_jax import config, recipes
from mpo_jax.demo import dataset, tiny_model


def make_world(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Write ``meta``, ``eval_meta``, ``model``; ``cache`` keeps compiled programs."""
    written = dataset.write_dataset(root / "data", num_train=24, num_eval=8, seed=0)
    model = tiny_model.write_tiny_model(
        root / "model",
        corpus=dataset.corpus(written["meta"]),
        vision_hidden=16,
        vision_mlp=16,
        vision_layers=2,
        vision_heads=2,
        hidden=16,
        mlp=16,
        layers=2,
        heads=2,
        kv_heads=1,
    )
    return {**written, "model": model, "cache": root / "cache"}


def small(world, stage: str = "mpo") -> config.RunConfig:
    """The recipe of drawings at toy size: 6 steps of 4 pairs."""
    cfg = recipes.quickstart(stage)
    mpo = stage == "mpo"
    cfg.rows.short = config.RowShapeConfig(208, 88, 88 if mpo else 0, 2, 2)
    cfg.model.path, cfg.model.init = str(world["model"]), "random"
    cfg.model.remat = "none"
    cfg.data.meta = str(world["meta"])
    cfg.data.index_workers = 1
    cfg.rows.pairs_per_batch = 4
    cfg.rows.row_multiple = 2
    cfg.optim.max_steps = 6
    cfg.optim.epochs = 1
    cfg.optim.learning_rate = 1e-2
    cfg.checkpoint.every_steps = 2
    cfg.log.tensorboard = cfg.log.plots = False
    return cfg


def with_questions(cfg: config.RunConfig, folder: pathlib.Path) -> config.RunConfig:
    """A recipe, with five questions that are asked before, during and after."""
    folder.mkdir()
    rows = [
        {"question": f"how many circles? {'red ' * i}", "answer": f"so #### {i}"}
        for i in range(5)
    ]
    speaking.write_lines(folder / "test.jsonl", rows)
    cfg.eval.benchmarks, cfg.eval.modes = ("gsm8k",), ("direct",)
    cfg.eval.protocol, cfg.eval.data = "official", str(folder)
    cfg.eval.every, cfg.eval.max_new_tokens = 2, 8
    cfg.eval.temperature = 1.0  # else random weights say the same to everybody
    return cfg


def write_config(path: pathlib.Path, cfg: config.RunConfig) -> pathlib.Path:
    """A config file as a user would have it, for the command line."""
    text = cfg.to_json()
    path.write_text(
        "from mpo_jax import config\n\n"
        "def get_config():\n"
        f"    return config.from_json({text!r})\n",
        encoding="utf-8",
    )
    return path


def start_training(
    root,
    world,
    cfg_path,
    workdir,
    *,
    devices: int = 1,
    script: str = "scripts/train.py",
    **env: str,
) -> subprocess.Popen:
    """Start ``scripts/train.py`` (or one with its flags) in a process of its own."""
    variables = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(world["cache"]),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **env,
    }
    return subprocess.Popen(
        [
            sys.executable,
            str(root / script),
            f"--config={cfg_path}",
            f"--workdir={workdir}",
        ],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(process: subprocess.Popen, *, timeout: float = 300) -> str:
    """Wait for a training; one that takes too long does not outlive the test."""
    try:
        return process.communicate(timeout=timeout)[0]
    finally:
        if process.poll() is None:
            process.kill()


def losses(
    workdir: pathlib.Path, *, held_out: bool = False
) -> dict[int, dict[str, float]]:
    """Deterministic metrics by step (times left out)."""
    left_out = ("time", "throughput", "hosts/") + (() if held_out else ("eval/",))
    lines: dict[int, dict[str, float]] = {}
    for text in (workdir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        kept = {
            name: value for name, value in line.items() if not name.startswith(left_out)
        }
        # A step may have a second line, of held-out pairs.
        lines.setdefault(line["step"], {}).update(kept)
    return lines


def written(workdir: pathlib.Path) -> list[tuple[int, str]]:
    """Step and kind of every line of metrics, sorted."""
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").open()]
    return sorted(
        (line["step"], "held-out" if "eval/loss" in line else "training")
        for line in lines
    )
