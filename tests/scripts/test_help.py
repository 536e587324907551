"""Who asks a script for help has made no mistake."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest
from absl import app

from mpo_jax.utils import cli

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def test_every_script_runs_by_what_knows_of_help():
    assert len(SCRIPTS) >= 20
    for script in SCRIPTS:
        assert re.search(r"\b(cli|command)\.run\(", script.read_text("utf-8")), script


@pytest.mark.slow
def test_help_ends_with_0():
    command = [sys.executable, str(ROOT / "scripts" / "status.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "--watch" in done.stdout


@pytest.mark.parametrize(
    ("argument", "status"), [("--help", 0), ("--helpfull", 0), ("--no_such_flag", 1)]
)
def test_help_is_no_mistake_and_a_misspelt_flag_is_one(argument, status):
    app.define_help_flags()  # as app.run does
    with pytest.raises(SystemExit) as ended:
        cli._parsed(["program.py", argument])
    assert ended.value.code == status
