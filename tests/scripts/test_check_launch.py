"""What of a command line is read, and how it ends; the judgement: test_launch.py."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import shlex
import subprocess
import sys

import pytest

from mpo_jax.checkpoint import places

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = "configs/internvl2_8b_mpo.py"


@pytest.fixture(scope="module")
def checker():
    spec = importlib.util.spec_from_file_location(
        "check_launch_script", ROOT / "scripts" / "check_launch.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


WORKDIR, META = "--workdir=gs://b/r", "--config.data.meta=gs://b/meta.json"
LINE = ["python", "scripts/train.py", f"--config={RECIPE}", META, WORKDIR]


def test_the_config_is_the_one_that_train_would_see(checker):
    words = [
        *("env", "A=1", "python", "/opt/mpo/src/scripts/train.py"),
        *("--dry_run", "--config", RECIPE, "-workdir=/x", "--workdir", "gs://b/r"),
        *("--config.loss.weights=(0.8,0.2,0.0)", "--config.mesh.tensor", "2"),
        *("--resume_step=7", "--config.model.freeze_vision=true"),
        *("--config.model.freeze_projector", "--profile", "20:5", "--verbosity=0"),
    ]
    line = checker.read(checker.arguments(words))
    cfg = line.cfg
    assert cfg.loss.weights == (0.8, 0.2, 0.0)
    assert cfg.mesh.tensor == 2 and cfg.model.freeze_vision is True
    assert cfg.rows.row_multiple == 96
    assert (cfg.checkpoint.resume_step, cfg.log.profile_start) == (7, 20)
    assert (line.workdir, line.name) == ("gs://b/r", "internvl2_8b_mpo")
    assert line.recipe.mesh.tensor == 1 and not line.recipe.model.freeze_projector
    asked = checker._plan_command(line.overrides, "v6e:8x8", 2)
    assert shlex.split(asked)[2:] == [
        *(f"--config={RECIPE}", "--config.loss.weights=(0.8,0.2,0.0)"),
        *("--config.mesh.tensor=2", "--config.model.freeze_vision=true"),
        *("--config.model.freeze_projector", "--topology=v6e:8x8", "--num_slices=2"),
        "--quick",
    ]


def test_an_argument_of_the_recipe_is_passed_on(checker):
    words = ["scripts/train.py", "--config=configs/ablations.py:dpo+", WORKDIR]
    line = checker.read(checker.arguments(words))
    assert line.cfg.name == line.recipe.name == "ablation_dpo+"
    assert line.name == "ablations"


def test_other_commands_are_none_of_its_business(checker):
    for words in (["python", "train.py"], ["python", "x.py", RECIPE], ["true"]):
        assert checker.arguments(words) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=configs/no.py"], "configs/no.py"),
        (["--config=configs/ablations.py:no"], "unknown ablation 'no'"),
        ([], "--config is missing"),
        ([f"--config={RECIPE}", "--config.optim.lr=1"], "no field 'optim.lr'"),
        ([f"--config={RECIPE}", "--config.mesh.tensor=many"], "mesh.tensor"),
        ([f"--config={RECIPE}", "--config.mode=no"], "mode='no'"),
        (
            [f"--config={RECIPE}", "--wokdir=gs://b/r"],
            "'wokdir'. Did you mean: workdir",
        ),
        ([f"--config={RECIPE}", "--resume_step=-1"], "resume_step"),
        ([f"--config={RECIPE}", "--profile=20"], "write START:COUNT"),
        ([f"--config={RECIPE}", "stray", "--dry_run"], "'stray' is no flag"),
        ([f"--config={RECIPE}", "--help"], "--help starts no training"),
    ],
)
def test_mistakes_are_named(checker, words, message):
    with pytest.raises(ValueError, match=message):
        checker.read([WORKDIR, *words])
    with pytest.raises(ValueError, match="--workdir"):
        checker.read([f"--config={RECIPE}"])


def test_a_mistake_in_a_recipe_is_one_of_the_line(checker, tmp_path):
    for text, message in (
        ("x = = 1", "invalid syntax"),
        ("def get_config(): return {}[1]", "KeyError"),
    ):
        file = tmp_path / "recipe.py"
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            checker.read([f"--config={file}", WORKDIR])


@pytest.mark.parametrize(
    ("words", "hosts", "message"),
    [
        (["--workdir=runs/8b"], 16, "--workdir=runs/8b: each of the 16 hosts"),
        (["--workdir=~/8b"], 2, "each of the 2 hosts"),
        (["--workdir=runs/8b"], 1, ""),
        (["--workdir=/shared/8b"], 16, ""),
        (["--workdir=gs://b/8b"], 16, ""),
        (["--workdir=/bucket/8b"], 1, "/bucket for reading alone; .*gs://"),
        (["--workdir=hf://b/8b"], 1, "gs://"),
        ([WORKDIR, "--config.data.cache_dir=index"], 2, "data.cache_dir=index: each"),
        ([WORKDIR, "--config.reference.cache=logps"], 2, "reference.cache=logps: each"),
        ([WORKDIR, "--config.data.cache_dir=gs://b/i"], 2, ""),
    ],
)
def test_places_that_workers_do_not_share_are_refused(checker, words, hosts, message):
    line = checker.read([f"--config={RECIPE}", META, *words])
    refused = pytest.raises(ValueError, match=message or None)
    with refused if message else contextlib.nullcontext():
        checker.check_places(line, hosts=hosts)


def test_what_train_refuses_as_a_work_directory_the_check_refuses(checker, monkeypatch):
    """By the one function that both ask; no store is looked at."""
    monkeypatch.setattr(places.remote, "Folder", None)
    line = checker.read([f"--config={RECIPE}", META, WORKDIR])
    for place in ("gs://b/r", "s3://b/r", "hf://b/r", "/a\\b", "/a/b"):
        found = []
        for ask in (
            lambda place: places.check_name(place),
            lambda place: checker.check_places(
                dataclasses.replace(line, workdir=place), hosts=1
            ),
        ):
            try:
                found.append(ask(place))
            except ValueError as error:
                found.append(str(error))
        assert found[0] == found[1], place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["v5e:4x8", "--", *LINE, "--traceback"], 0, ""),
        (["v6e-64*4", "--", *LINE], 2, "are the fewest for 256 devices"),
        (["v5e:4x8", "--", "true"], 0, ""),
        (["v5e:4x9", "--", "true"], 2, "unknown TPU slice 'v5e:4x9'"),
        (["v5e:4x8"], 2, "usage: check_launch.py"),
        (["v5e:4x8*x", "--", "true"], 2, "usage: check_launch.py"),
        (["v5e:4x8*0", "--", "true"], 2, "v5e:4x8*0: NUMBER is a whole number"),
        (["v5e:4x8*", "--", "true"], 2, "usage: check_launch.py"),
        (
            ["v5e:4x8", "--", *LINE, "--config.mesh.fsdp=5"],
            2,
            "does not fit the 32 devices",
        ),
        (["v5e:4x8", "--", *LINE, "--config.optim.lr=1"], 2, "no field 'optim.lr'"),
        (["v6e:8x8", "--", *LINE, "--workdir=runs/8b"], 2, "each of the 16 hosts"),
        (["v6e:8x8", "--", *LINE, "--workdir=~/8b"], 2, "--workdir=~/8b: each"),
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
