"""What of a command line is read, and how it ends; the judgement: test_launch.py."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = "configs/internvl2_8b_mpo.py"


@pytest.fixture(scope="module")
def checker():
    spec = importlib.util.spec_from_file_location(
        "check_launch_script", ROOT / "scripts" / "check_launch.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_config_is_the_one_that_train_would_see(checker):
    words = [
        *("env", "A=1", "python", "/opt/mpo/src/scripts/train.py"),
        *("--dry_run", "--config", RECIPE, "-workdir=/x", "--workdir", "gs://b/r"),
        *("--config.loss.weights=(0.8,0.2,0.0)", "--config.mesh.tensor", "2"),
        *("--resume_step=7", "--config.model.freeze_vision=true", "--traceback"),
    ]
    arguments = checker.arguments(words)
    assert arguments[:2] == ["--dry_run", f"--config={RECIPE}"]
    cfg = checker.read(arguments)
    assert cfg.loss.weights == (0.8, 0.2, 0.0)
    assert cfg.mesh.tensor == 2 and cfg.model.freeze_vision is True
    assert cfg.rows.row_multiple == 96


def test_an_argument_of_the_recipe_is_passed_on(checker):
    cfg = checker.read(
        checker.arguments(["scripts/train.py", "--config=configs/ablations.py:dpo+"])
    )
    assert cfg.name == "ablation_dpo+"


def test_other_commands_are_none_of_its_business(checker):
    for words in (["python", "train.py"], ["python", "x.py", RECIPE], ["true"]):
        assert checker.arguments(words) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=configs/no.py"], "configs/no.py"),
        ([], "--config is missing"),
        ([f"--config={RECIPE}", "--config.optim.lr=1"], "no field 'optim.lr'"),
        ([f"--config={RECIPE}", "--config.mesh.tensor=many"], "mesh.tensor"),
    ],
)
def test_mistakes_are_named(checker, words, message):
    with pytest.raises(ValueError, match=message):
        checker.read(words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["v5e:4x8", "--", "python", "scripts/train.py", f"--config={RECIPE}"], 0, ""),
        (
            ["v6e-64*4", "--", "scripts/train.py", f"--config={RECIPE}"],
            2,
            "are the fewest for 256 devices",
        ),
        (["v5e:4x8", "--", "true"], 0, ""),
        (["v5e:4x9", "--", "true"], 1, "unknown TPU slice 'v5e:4x9'"),
        (["v5e:4x8"], 1, "usage: check_launch.py"),
        (["v5e:4x8*x", "--", "true"], 1, "usage: check_launch.py"),
        (
            [*("v5e:4x8", "--", "scripts/train.py"), f"--config={RECIPE}"]
            + ["--config.mesh.fsdp=5"],
            1,
            "does not fit the 32 devices",
        ),
    ],
)
def test_the_command_ends_with(argv, status, message):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "check_launch.py"), *argv],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    assert message in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
    if not status and argv[-1] != "true":
        assert "short rows: 96 a batch, 3 a device" in done.stdout
        kept = json.loads((ROOT / "docs/planning_results.json").read_text("utf-8"))
        memory = kept["outcomes"][0]["compiled"]["memory"]  # of this very program
        needed, granted = (memory[name] / 2**30 for name in ("needed", "granted"))
        said = f"fits: {needed:.2f} of {granted:.2f} GiB (planned)"
        assert f"short rows: {said}" in done.stdout
        assert "planned by libtpu 0.0." in done.stdout
