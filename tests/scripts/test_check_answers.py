"""The command that judges a file, on real and made answers."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/check_answers.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_file_is_judged_and_the_cache_serves_the_next_run(tmp_path: pathlib.Path):
    lines = [
        {"id": 1, "answer_gt": "\\frac{1}{2}", "response": "so \\boxed{0.5}"},
        {"id": 2, "answer_gt": "\\sqrt{50}", "prediction": "5\\sqrt{2}"},
        {"id": 3, "answer_gt": "x+1", "prediction": "x+2"},
        {
            "id": 4,
            "answer_gt": "B",
            "response": "Final answer: (B)",
            "options": ["a", "b"],
        },
        {"id": 5, "answer_gt": "x+1", "prediction": "9^{9^{9^9}}"},
        {"id": 6, "answer_gt": 12.5, "prediction": "12.5%"},
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    arguments = (
        f"--input={source}",
        f"--output={output}",
        f"--cache={tmp_path / 'v.sqlite'}",
        "--percent=strict",
        "--workers=1",
    )
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["id"] for line in found] == [1, 2, 3, 4, 5, 6]
    verdicts = [line["verdict"] for line in found]
    assert verdicts[:5] == ["right", "right", "wrong", "right", "undecided"]
    assert verdicts[5] != "right"
    assert "maths" in first.stdout and "6 answers in" in first.stdout
    assert "1 bad_json" in first.stdout and f"{output}.ledger.jsonl" in first.stdout
    content = output.read_text()
    second = run(*arguments)
    assert second.returncode == 0 and output.read_text() == content
    loose = run(*arguments[:3], "--percent=sign_optional", "--format=direct")
    assert loose.returncode == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert found[5]["verdict"] == "right"


@pytest.mark.slow
def test_errors_say_what_to_do(tmp_path: pathlib.Path):
    absent = run(f"--input={tmp_path / 'no.jsonl'}", f"--output={tmp_path / 'o'}")
    assert absent.returncode == 1 and "no.jsonl" in absent.stderr
    source = tmp_path / "in.jsonl"
    source.write_text("")
    same = run(f"--input={source}", f"--output={source}")
    assert same.returncode == 1 and "name another file" in same.stderr
    share = run(f"--input={source}", f"--output={tmp_path / 'o'}", "--relative=2")
    assert share.returncode == 1 and "relative=2" in share.stderr
    nothing = run(f"--input={source}", f"--output={tmp_path / 'o'}")
    assert nothing.returncode == 0 and "0 answers" in nothing.stdout
