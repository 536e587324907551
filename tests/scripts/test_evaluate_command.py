"""scripts/evaluate.py as a user starts it, on stored answers and dry."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
import speaking

pytestmark = pytest.mark.slow

NAME = "own_benchmarks.signs"


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    records = [
        {
            **{"id": i, "question": "Which?", "options": ["stop", "go"]},
            **{"answer": "AB"[i % 2], "country": "de"},
        }
        for i in range(4)
    ]
    speaking.write_lines(folder / "signs.jsonl", records)
    return folder


def run(root: pathlib.Path, *flags: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join((str(root), str(root / "tests")))
    env = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "COLUMNS": "160"}
    command = [sys.executable, str(root / "scripts/evaluate.py"), *flags]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_stored_answers_are_scored(root, data, tmp_path):
    answers = speaking.write_lines(
        tmp_path / "said.jsonl",
        [{"id": i, "answer": "A"} for i in range(4)]
        + [{"id": 1, "mode": "cot", "answer": "So.\nFinal answer: B"}],
    )
    work = tmp_path / "work"
    done = run(
        root,
        *(f"--benchmarks={NAME}", f"--data={data}", f"--workdir={work}"),
        f"--answers={answers}",
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads((work / "report.json").read_text())["scores"][NAME]
    direct, cot = scores["direct"], scores["cot"]
    assert (direct["score"], direct["correct"], direct["total"]) == (50.0, 2, 4)
    assert (cot["score"], cot["total"], cot["missing"]) == (100.0, 1, 3)
    assert "50.00" in done.stdout and "report.html" in done.stdout
    assert {path.name for path in (work / "exports").iterdir()} == {
        f"{NAME}_{mode}{end}"
        for mode in ("direct", "cot")
        for end in (".tsv", "_samples.jsonl")
    }
    # And another model's answers against these, item by item.
    more = speaking.write_lines(
        tmp_path / "more.jsonl", [{"id": i, "answer": "AB"[i % 2]} for i in range(4)]
    )
    done = run(
        root,
        *(f"--benchmarks={NAME}", f"--data={data}", f"--workdir={tmp_path / 'second'}"),
        *(f"--answers={more}", "--modes=direct", f"--base={work}"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "second" / "report.json").read_text())
    assert report["scores"][NAME]["direct"]["score"] == 100.0
    assert report["base"]["name"] == "work"


def test_a_dry_run_asks_nobody(root, data, tmp_path):
    work = tmp_path / "work"
    done = run(
        root,
        *(f"--benchmarks={NAME}", f"--data={data}", f"--workdir={work}"),
        *("--dry_run", "--n=3"),
    )
    assert done.returncode == 0, done.stderr
    assert "At most 12,480 tokens" in done.stderr  # 3 · 4 · (16 + 1024)
    assert not work.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--benchmarks=popp",), "pope"),
        ((), "--model is empty"),
        (("--base=nowhere",), "--base=nowhere: there is no items.jsonl"),
        (("--config=configs/eval_paper.py", "--config.nn=3"), "config has no field"),
    ],
)
def test_mistakes_are_one_line(root, data, tmp_path, flags, said):
    done = run(
        root,
        *(f"--benchmarks={NAME}", f"--data={data}", f"--workdir={tmp_path / 'work'}"),
        *flags,
    )
    assert done.returncode == 1
    assert said in done.stderr and "Traceback" not in done.stderr
