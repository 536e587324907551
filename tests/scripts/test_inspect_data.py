"""prepare_data.py and inspect_data.py as a person runs them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tiny_mmpr

from mpo_jax.data import index


@pytest.fixture
def run(root, tmp_path):
    tokenizer = tiny_mmpr.write_tokenizer(tmp_path / "tokenizer")

    def call(script, meta, *more, code=0):
        done = subprocess.run(
            [
                sys.executable,
                str(root / "scripts" / script),
                f"--meta={meta}",
                f"--tokenizer={tokenizer}",
                "--image_size=28",
                "--tokens_per_tile=4",
                "--workers=1",
                *more,
            ],
            env={
                **os.environ,
                "PYTHONPATH": str(root),
                "XDG_CACHE_HOME": str(tmp_path / "cache"),
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return call


def test_prepare_then_inspect(run, tmp_path):
    meta, expected = tiny_mmpr.write_broken(tmp_path / "data")
    out = tmp_path / "out"
    options = ("--template=Hermes-2", f"--out={out}")
    printed = run("prepare_data.py", meta, *options)
    (manifest,) = out.glob("*/manifest.json")
    built = index.load_index(manifest.parent)
    assert len(built) == 3 and len(built.ledger()) == len(expected)
    assert f"3 kept, {len(expected)} left out" in printed
    assert "the image cannot be decoded" in printed
    assert str(built.ledger_path) in printed

    page = tmp_path / "page.html"
    before = manifest.stat().st_mtime_ns
    printed = run("inspect_data.py", meta, *options, f"--html={page}", "--sample=2")
    assert manifest.stat().st_mtime_ns == before  # the index was used as it is
    assert "duplicates: 0 groups" in printed and "chosen tokens" in printed
    text = page.read_text()
    assert text.count("<article>") == 2 and "image_too_large" in text


def test_errors_say_what_to_do(run, tmp_path):
    meta = tiny_mmpr.write_good(tmp_path / "data")
    printed = run("inspect_data.py", meta, code=1)
    assert "give one with --template" in printed
    printed = run("prepare_data.py", meta, "--template=Hermes-2", code=1)
    assert "--out is required" in printed
