"""A whole miniature at toy size: two workers, killed, ended by the same command."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mpo_jax.miniature import pool, report

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {
    "methods": "('sft', 'dpo_sft')",
    "learning_rates": "(1e-3, 3e-4)",
    "seeds": "(3,)",
    "workers": 2,
    "samples": 0,
    "world.mixture": 320,
    "world.questions": 24,
    "world.blind_questions": 12,
    "world.held_out": 8,
    "start.optim.max_steps": 25,
    "recipe.sampling.n": 4,
    "recipe.sampling.max_new_tokens": 64,
    "recipe.ntp.max_new_tokens": 64,
    "recipe.pairs.max_pairs": 2,
    "recipe.pairs.html": True,
    "recipe.train.optim.max_steps": 2,
    "recipe.train.rows.pairs_per_batch": 4,
    "recipe.evaluate.max_new_tokens": 16,
}


def start(workdir: pathlib.Path) -> subprocess.Popen:
    options = [f"--config.{name}={value}" for name, value in SMALL.items()]
    return subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "scripts" / "miniature.py")),
            *("--config=configs/miniature.py", f"--workdir={workdir}", *options),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(path: pathlib.Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_killed_in_a_training_and_ended_by_the_same_command(tmp_path):
    seed = pool.folder_of(tmp_path, 3)
    process = start(tmp_path)
    wait_for(seed / "dpo_sft" / "train" / "step.json", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    world = seed / "world" / "step.json"
    drawn = world.stat().st_mtime_ns
    assert json.loads(world.read_text())["done"]
    assert not (tmp_path / report.MARKDOWN).exists()

    process = start(tmp_path)
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 0, output
    assert world.stat().st_mtime_ns == drawn
    told = json.loads((tmp_path / report.JSON).read_text())
    assert [row["name"] for row in told["rows"]] == ["start", "sft", "dpo_sft"]
    for row in told["rows"]:
        assert 0 <= row["cot"] <= 100 and 0 <= row["direct"] <= 100
    assert "SFT on chosen" in output and "Report:" in output
    page = seed / "round_1" / "pairs_page" / "report.html"
    assert f"Pairs, side by side: {page}" in output.replace("\n", "")
    assert "data:image/jpeg" in page.read_text()

    # Both methods were trained on the same pairs.
    counts = json.loads((seed / "round_1" / "data" / "step.json").read_text())["made"]
    assert sum(counts["pairs"].values()) > 0
    for name in ("sft", "dpo_sft"):
        cfg = json.loads((seed / name / "train" / "run_config.json").read_text())
        assert cfg["data"]["meta"] == str(seed / "round_1" / "data" / "meta.json")
