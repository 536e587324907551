"""prepare_data.py and inspect_data.py as a person runs them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest
import tiny_mmpr

from mpo_jax.mmpr import index

pytestmark = pytest.mark.slow


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
    assert "\nequal: 0 groups" in printed and "chosen tokens" in printed
    text = page.read_text()
    assert text.count("<article ") == 2 and "image_too_large" in text


def test_errors_say_what_to_do(run, tmp_path):
    """In one line, also those of the system; tables may stand before it."""
    meta = tiny_mmpr.write_good(tmp_path / "data")
    template = "--template=Hermes-2"
    full = f"--html={os.devnull}/page.html"
    wrong = tmp_path / "wrong"
    for script, arguments, text in [
        ("inspect_data.py", [], "give one with --template"),
        ("prepare_data.py", [template], "--out is required"),
        ("prepare_data.py", [template, f"--out={meta}"], "exists"),
        ("inspect_data.py", [template, full], "Not a directory"),
        ("inspect_data.py", [template, "--html=/dev/full"], "No space left on device"),
        ("inspect_data.py", [template, f"--meta={wrong}"], "wrong"),
        ("prepare_data.py", ["--meta=a", f"--shards={wrong}"], "'a' does not exist"),
    ]:
        printed = run(script, meta, *arguments, code=1)
        assert "Traceback" not in printed
        error = printed[printed.index(f"{script}: ") :].strip()
        assert text in error and error.count("\n") <= 2, printed  # wrapped at 160


def test_poor_sources_are_named(run, tmp_path):
    meta = tiny_mmpr.write_good(tmp_path / "data")
    (tmp_path / "data/images").rename(tmp_path / "elsewhere")
    out = f"--out={tmp_path / 'out'}"
    printed = " ".join(run("prepare_data.py", meta, "--template=Hermes-2", out).split())
    assert "Warning: source 'single' leaves out 20 of 20 records" in printed
    assert "is no folder; correct root in meta.json" in printed
    (tmp_path / "elsewhere").rename(tmp_path / "data/images")  # the remedy
    printed = run("prepare_data.py", meta, "--template=Hermes-2", out)
    assert "55 kept, 0 left out" in printed and "leaves out" not in printed


def test_shards_say_what_is_missing(run, tmp_path):
    meta = tiny_mmpr.write_good(tmp_path / "data")
    (tmp_path / "data/images").rename(tmp_path / "elsewhere")
    shards = f"--shards={tmp_path / 'shards'}"
    printed = " ".join(run("prepare_data.py", meta, shards, code=1).split())
    assert "prepare_data.py: 4 of 4 image files are missing" in printed
    (tmp_path / "elsewhere").rename(tmp_path / "data/images")
    run("prepare_data.py", meta, shards, "--template=Hermes-2", f"--out={tmp_path}/out")


def test_every_script_explains_its_errors(root):
    """Through utils/cli.py; absl alone would show a traceback."""
    scripts = sorted((root / "scripts").glob("*.py"))
    assert len(scripts) >= 9
    for path in scripts:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        runs = {
            ast.unparse(node.func)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
        }
        assert runs & {"cli.run", "command.run"} and "app.run" not in runs, path


@pytest.mark.parametrize(
    "error, text, status",
    [
        (
            "PermissionError(13, 'Permission denied', '/a[b]')",
            "/a[b]: Permission denied; get",
            1,
        ),
        ("OSError(28, 'No space left on device', '/x')", "No space left on device", 1),
        ("IsADirectoryError(21, 'Is a directory', '/x')", "Is a directory", 1),
        ("TimeoutError(110, 'Connection timed out')", "timed out", 75),
    ],
)
def test_errors_of_the_system_are_one_line(root, error, text, status):
    code = "from mpo_jax.utils import cli\n"
    code += f"def main(argv): raise {error}\ncli.run(main)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert done.stderr.count("\n") == 1 and text in done.stderr
