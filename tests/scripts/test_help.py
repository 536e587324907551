"""Who asks a script for help has made no mistake."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def test_every_script_runs_by_what_knows_of_help():
    assert len(SCRIPTS) >= 20
    for script in SCRIPTS:
        assert re.search(r"\b(cli|command)\.run\(", script.read_text("utf-8")), script


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "status", "shown"),
    [
        ("--help", 0, "--watch"),
        ("--helpfull", 0, "--watch"),
        ("--no_such_flag", 1, "Unknown command line flag"),
    ],
)
def test_help_is_no_mistake_and_a_misspelt_flag_is_one(argument, status, shown):
    command = [sys.executable, str(ROOT / "scripts" / "status.py"), argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == status and shown in done.stdout + done.stderr
