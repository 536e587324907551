"""Commands that read and write files say so where they are given an address."""

from __future__ import annotations

import subprocess
import sys

import pytest

PLACE = "gs://bucket/x"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (f"build_pairs.py --input={PLACE} --output=a", "input"),
        (f"generate.py --model=m --input=a.jsonl --output={PLACE}", "output"),
        (f"miniature.py --config=configs/miniature.py --workdir={PLACE}", "workdir"),
    ],
)
def test_an_address_is_refused_with_its_flag(command, flag, root, tmp_path):
    script, *flags = command.split()
    flags = [x.replace("=configs/", f"={root}/configs/") for x in flags]
    done = subprocess.run(
        [sys.executable, str(root / "scripts" / script), *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, said
    assert f"--{flag}={PLACE}: it is read and written as files" in said
    assert list(tmp_path.iterdir()) == []
