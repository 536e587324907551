"""tpu_setup/xpk.sh with an xpk that records, and the signal path of its command."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

ENV = {"CLUSTER": "cluster", "IMAGE": "region-docker.pkg.dev/p/i:1"}
WORDS = ["python", "a b", "it's", "$HOME", "x | tee y", "{z}", "l\nm"]


@pytest.fixture
def xpk(stand_ins, root):
    stand_ins.add("xpk")

    def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        return stand_ins.run([root / "tpu_setup/xpk.sh", *argv], **{**ENV, **env})

    return run


def test_argv(xpk, stand_ins, shell_words):
    done = xpk(
        "run-1", "v5e:8x8", "--dry-run", "--spot", "--", *WORDS, ZONE="z", PROJECT="p"
    )
    assert done.returncode == 0, done.stderr
    (call,) = stand_ins.calls()
    assert call[:-1] == [
        *"xpk workload create --cluster=cluster --workload=run-1".split(),
        "--tpu-type=v5litepod-64",
        "--docker-image=region-docker.pkg.dev/p/i:1",
        "--max-restarts=20",
        "--restart-on-exit-codes=75",
        "--termination-grace-period-seconds=300",
        "--zone=z",
        "--project=p",
        "--dry-run",
        "--spot",
    ]
    command = call[-1].removeprefix("--command=")
    assert "\n" not in command  # it lands in an indented block of YAML
    assert command.startswith("exec ")
    assert shell_words(command.removeprefix("exec ")) == WORDS


@pytest.mark.parametrize(
    "argv, env, message",
    [
        (["run-1", "v6e-63", "--", "python"], {}, "near: v6e-64"),
        (["run-1", "v6e-64", "python", "x"], {}, "xpk.sh WORKLOAD SLICE"),
        (["run-1", "v6e-64", "--spot", "--"], {}, "xpk.sh WORKLOAD SLICE"),
        *[
            (["r", "v6e-64", *flags, "--", "python"], {}, f"--num-slices='{value}'")
            for flags, value in (
                (["--num-slices=0"], "0"),
                (["--num-slices", "x"], "x"),
                (["--num-slices="], ""),
                (["--num-slices"], "--"),
            )
        ],
        (["run-1", "v6e-64", "--", "python"], {"CLUSTER": ""}, "CLUSTER"),
        (["run-1", "v6e-64", "--", "python"], {"IMAGE": ""}, "IMAGE"),
    ],
)
def test_mistakes_reach_no_cluster(xpk, stand_ins, argv, env, message):
    done = xpk(*argv, **env)
    assert done.returncode in (1, 2) and message in done.stderr
    assert not stand_ins.calls()


def test_help_is_no_mistake(xpk):
    done = xpk("--help")
    assert done.returncode == 0 and "xpk.sh WORKLOAD SLICE" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "flags", "message"),
    [
        ("v5litepod-16", (), "set --config.optim.accumulation=6"),
        ("v5litepod-256", (), "--config.mesh.tensor=2"),
        ("v6e-64", ("--num-slices=2",), ""),  # 128 devices, one row each
        ("v6e-64", ("--num-slices=4",), "256 are the fewest for 256 devices"),
        ("v6e-64", ("--num-slices", "4"), "256 are the fewest for 256 devices"),
        ("v6e-64", ("--num-sl", "4"), "256 are the fewest for 256 devices"),
    ],
)
def test_a_recipe_that_does_not_suit_the_slices_reaches_no_cluster(
    xpk, stand_ins, where, flags, message
):
    line = ["python", "scripts/train.py", "--config=configs/internvl2_8b_mpo.py"]
    line += ["--config.data.meta=gs://b/meta.json", "--workdir=gs://b/r"]
    argv = ["r", where, *flags, "--", *line]
    done = xpk(*argv, PYTHON=sys.executable)
    assert done.returncode == (2 if message else 0), done.stderr
    assert message in done.stderr and bool(stand_ins.calls()) == (not message)
    assert xpk(*argv, CHECK="0").returncode == 0 and stand_ins.calls()


@pytest.mark.slow
def test_the_manifest_of_xpk_itself_restarts_on_42_75_and_signals(root, tmp_path):
    beside = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    if shutil.which("xpk", path=beside) is None:
        pytest.skip("xpk is not installed: pip install xpk==1.16.0, in its own venv")
    manifest = tmp_path / "jobset.yaml"
    done = subprocess.run(
        [
            *(root / "tpu_setup/xpk.sh", "run-1", "v6e-64", "--dry-run"),
            *(f"--output-manifest-file={manifest}", "--", "python", "x.py"),
        ],
        env={**os.environ, **ENV, "PATH": beside, "ZONE": "z", "PROJECT": "p"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert manifest.is_file(), done.stdout + done.stderr
    (values,) = re.findall(
        r"operator: NotIn\s+values: \[([\d, ]+)\]", manifest.read_text()
    )
    restarts = {int(value) for value in values.split(",")}
    assert restarts == {42, 75, *range(127, 256)}
    assert "maxRestarts: 20" in manifest.read_text()


SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
print("ready", flush=True)
time.sleep(120)
"""


def test_sigterm_reaches_python_and_42_comes_back(xpk, stand_ins):
    """The command as xpk's pod runs it: in a background subshell that gets SIGTERM."""
    assert xpk("r", "v6e-8", "--", sys.executable, "-c", SAVES).returncode == 0
    command = stand_ins.calls()[0][-1].removeprefix("--command=")
    pod = (
        "_sigterm() (kill -SIGTERM $! 2>/dev/null;); trap _sigterm SIGTERM; "
        f"({command}) & PID=$!; "
        "while kill -0 $PID 2>/dev/null; do sleep 0.1; done; wait $PID; exit $?"
    )
    with subprocess.Popen(["bash", "-c", pod], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=100) == 42
