"""A training that is killed in its stages ends as one that is left alone."""

from __future__ import annotations

import random
import signal
import time

import killing
import pytest

pytestmark = pytest.mark.slow

KILL, TERM = signal.SIGKILL, signal.SIGTERM


@pytest.mark.parametrize(
    ("processes", "bucket", "kills"),
    [
        (1, False, {"reference": KILL, "save": TERM}),
        (2, True, {"evaluation": KILL, "save": KILL}),
    ],
    ids=["one process on a disk", "two that share a bucket"],
)
def test_nothing_is_lost(processes, bucket, kills, tmp_path):
    """``python tests/killing.py`` kills more often, and says how each start ended."""
    luck = random.Random(time.time_ns())
    with killing.world(tmp_path / "world", processes, bucket=bucket) as made:
        expected = killing.alone(made, "whole")
        for run in ("killed", "killed_again", "killed_once_more"):
            told = [
                killing.kill(made, run, stage, number, luck)
                for stage, number in kills.items()
            ]
            if not any("too late" in what for what, _ in told):
                break  # else a stage was over before it was seen
        else:
            raise AssertionError(told)
        killing.compare(killing.until_the_end(made, run), expected)
