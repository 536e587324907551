"""scripts/import_data.py as a person runs it, and training on what it writes."""

from __future__ import annotations

import os
import subprocess
import sys

import import_cases as cases
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_runs
import tiny_mmpr

from mpo_jax import ledger
from mpo_jax.run import train

pytestmark = pytest.mark.slow


@pytest.fixture
def call(root, tmp_path):
    def run(*arguments, code=0):
        done = subprocess.run(
            [
                sys.executable,
                str(root / "scripts/import_data.py"),
                *map(str, arguments),
            ],
            env={**os.environ, "PYTHONPATH": str(root)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return run


def test_every_layout_and_parquet_are_imported_and_trained_on(call, world, tmp_path):
    image = tiny_mmpr.write_image(tmp_path / "a.png", 56, 28)
    swift = cases.records()["swift"][1]
    files = ["talk.jsonl"]
    tiny_mmpr.write_lines(tmp_path / "talk.jsonl", [swift, {**swift, "images": ["b"]}])
    for name, (_, record) in cases.records().items():
        files.append(tiny_mmpr.write_lines(tmp_path / f"{name}.jsonl", [record]))
    rows = [
        {
            "image": {"bytes": image.read_bytes(), "path": "x.png"},
            **{"question": f"How many? {n}", "chosen": "Two.", "rejected": "Three."},
        }
        for n in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    printed = call("--out=out", *files, "--input=rows.parquet")
    assert "talk: JSON lines, layout swift (detected)" in printed
    assert "rows: Parquet, layout mmpr (detected)" in printed
    assert "image_missing: image" in printed and "line 2: image: " in printed
    assert "--config=configs/internvl2_8b_mpo.py" in printed
    assert "--config.data.meta=out/meta.json" in printed
    (entry,) = ledger.read(tmp_path / "out/ledger.jsonl")
    assert (entry.source, entry.line, entry.reason) == ("talk", 2, "image_missing")

    cfg = small_runs.small(world)
    cfg.data.meta = str(tmp_path / "out/meta.json")
    cfg.optim.max_steps = 0  # every record once
    cfg.checkpoint.export_hf = False
    train.train(cfg, tmp_path / "run", devices=jax.devices()[:1])
    assert (tmp_path / "run/ledger.jsonl").read_text() == ""
    lines = small_runs.losses(tmp_path / "run")
    assert sum(line["pairs"] for line in lines.values()) == len(files) + len(rows)
    assert all(np.isfinite(line["loss"]) for line in lines.values())
    np.testing.assert_allclose(lines[1]["loss/sigmoid"], np.log(2), rtol=1e-4)


def test_what_the_command_says(call, tmp_path):
    (tmp_path / "a.png").touch()
    record = cases.records()["trl"][1]
    path = tiny_mmpr.write_lines(tmp_path / "x.jsonl", [record] * 5)
    help_text = call("--help")
    assert all(f"  {name} " in help_text for name in ("swift", "trl", "internvl"))
    shown = call("--dry_run", "--limit=2", path)
    assert shown.count('"question": "<image>\\nWhat is it?"') == 2
    assert shown.count('"type": "image"') == 2 and not (tmp_path / "out").exists()
    printed = call("--limit=3", "--out=out", path)
    assert "trl (detected)      3         3          0" in printed
    for arguments, problem in [
        (["--out=out", path], "add --overwrite"),
        ([path], "--out is required"),
        (["--out=new", "--layout=sharegpt", path], "no record could be imported"),
        ([f"--out={path}/y", path], "x.jsonl"),  # no FileNotFoundError
    ]:
        printed = call(*arguments, code=1)
        assert "import_data.py: " in printed and problem in printed
        assert "Traceback" not in printed
    assert not (tmp_path / "new").exists()
