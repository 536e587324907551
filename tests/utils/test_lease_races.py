"""Of many processes that want a work directory at one instant, one gets it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time

import fake_gcs
import pytest

from mpo_jax.utils import lease

ROUNDS, PROCESSES = 12, 4

PROGRAM = """
import json, sys, time
from mpo_jax.utils import lease

first_s, every_s, *places = sys.argv[1:]
first_s, every_s = float(first_s), float(every_s)

def too_late(seconds):
    raise ValueError("another run goes on here, and was there before")

for number, place in enumerate(places):
    if place.startswith("gs://"):
        lease.remote.Folder(place).read("ready")  # connects
    at = first_s + number * every_s
    time.sleep(max(at - time.time(), 0))
    try:
        with lease.held(place, tell=str, lost=print, wait=too_late) as mine:
            began = time.monotonic()
            time.sleep(max(at + 0.8 * every_s - time.time(), 0))
            lease.check()
            print(json.dumps([number, began, time.monotonic(), ""]))
    except ValueError as error:
        print(json.dumps([number, 0, 0, str(error)]))
"""


def race(
    places: list[str], *, every_s: float, env: dict[str, str] | None = None
) -> None:
    """Start processes that want one place after the other, all at the same instants."""
    times = [str(time.time() + 3.0), str(every_s)]
    command = [sys.executable, "-c", PROGRAM, *times, *places]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    lines = [line for text in outputs for line in text.splitlines()]
    assert all(line.startswith("[") for line in lines), lines  # else one was put out
    found = [json.loads(line) for line in lines]
    assert len(found) == PROCESSES * len(places), outputs
    for number in range(len(places)):
        of_round = [line[1:] for line in found if line[0] == number]
        inside = sorted(line[:2] for line in of_round if not line[2])
        assert inside, of_round
        # One that was held up may come when the first has left.
        for (_, left), (came, _) in zip(inside, inside[1:], strict=False):
            assert left <= came, of_round
        for _, _, refused in of_round:
            assert not refused or "another run goes on here" in refused, refused


def dead_lease() -> str:
    """Of a process of this host that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as past:
        past.wait()
    mine = dataclasses.replace(lease._of_this_process(), pid=past.pid)
    return json.dumps(dataclasses.asdict(mine))


def has_dead_one(number: int) -> bool:
    """Of every second place a dead holder is followed; the others are free."""
    return number % 2 == 1 and bool(lease._pids())


def test_one_of_many_gets_a_directory(tmp_path):
    places = [tmp_path / str(number) for number in range(ROUNDS)]
    for number, place in enumerate(places):
        place.mkdir()
        if has_dead_one(number):
            (place / lease.FILE).write_text(dead_lease())
    race(list(map(str, places)), every_s=0.15)
    left = [path for place in places for path in place.iterdir()]
    assert not left, left


@pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is None, reason="pip install -e '.[gcs]'"
)
def test_one_of_many_gets_a_place_in_a_bucket(tmp_path):
    with fake_gcs.serve() as (url, bucket):
        for number in range(ROUNDS):
            bucket.put(f"{number}/ready", b"")
            if has_dead_one(number):
                bucket.put(f"{number}/{lease.FILE}", dead_lease().encode())
        places = [f"gs://bucket/{number}" for number in range(ROUNDS)]
        env = {**fake_gcs.environment(url), "XDG_CACHE_HOME": str(tmp_path)}
        race(places, every_s=0.3, env=env)
        left = [name for name in bucket.objects if not name.endswith("/ready")]
        assert not left, left
