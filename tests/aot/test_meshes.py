"""Rows of hosts on every slice that is sold, see ``mesh_checks.py``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_a_host_loads_the_rows_of_its_devices(root):
    done = subprocess.run(
        [sys.executable, str(root / "tests/aot/mesh_checks.py")],
        # Another process may hold libtpu; a description needs no device.
        env={**os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "slices agree" in done.stdout
