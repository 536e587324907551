"""Who asks a script for help has made no mistake."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest
from absl import app

from mpo_jax.utils import cli

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
# One interpreter, which has imported what they share, is split for each script.
ASK = """
import json, os, runpy, sys
import mpo_jax.run.train
ended = {}
for script in sys.argv[1:]:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = [script, "--help"]
        sys.path[0] = os.path.dirname(script)
        runpy.run_path(script, run_name="__main__")
        os._exit(99)
    ended[os.path.basename(script)] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(ended))
"""


@pytest.mark.slow
def test_help_of_every_script_ends_with_0():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK, *map(str, SCRIPTS)],
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    ended = json.loads(done.stdout)
    assert len(ended) >= 20
    assert ended == dict.fromkeys(ended, 0)


@pytest.mark.parametrize(
    ("argument", "status"), [("--help", 0), ("--helpfull", 0), ("--no_such_flag", 1)]
)
def test_help_is_no_mistake_and_a_misspelt_flag_is_one(argument, status):
    app.define_help_flags()  # as app.run does
    with pytest.raises(SystemExit) as ended:
        cli._parsed(["program.py", argument])
    assert ended.value.code == status
