"""Real programs on storage that fails: what they say, how they end, what is left.

A training of many small steps (``storage_in_trouble.py``) on one and on two processes;
whatever happens, a run that was started again has the weights of one without trouble.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import bucket_in_trouble
import fake_gcs
import pytest
import several

from mpo_jax.utils import metrics

pytestmark = pytest.mark.slow

TESTS = pathlib.Path(__file__).parents[1]
PROGRAM = [sys.executable, str(TESTS / "storage_in_trouble.py")]
STEPS = 12


@pytest.fixture
def start(tmp_path):
    """Starts so many processes; `faults` are of the last one."""

    def start(
        count: int,
        *flags: str,
        before: tuple[str, ...] = (),
        faults: dict | None = None,
    ) -> list[subprocess.Popen]:
        path = os.pathsep.join([str(TESTS.parent), str(TESTS), *sys.path])
        if not any(flag.startswith("--workdir") for flag in flags):
            flags = (f"--workdir={tmp_path}", *flags)
        return several.start(
            [*before, *PROGRAM, f"--steps={STEPS}", *flags],
            count,
            env={"PYTHONPATH": path},
            of_last=faults,
        )

    return start


def ended(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Statuses and outputs, within 60 s."""
    statuses, outputs = zip(*several.ended(processes, timeout=60), strict=True)
    return list(statuses), list(outputs)


def weights_of(output: str) -> str:
    found = re.search(r"^weights (\w{64})$", output, re.M)
    assert found is not None, output
    return found[1]


def begins(output: str) -> int:
    found = re.search(r"^begins after step (\d+)$", output, re.M)
    assert found is not None, output
    return int(found[1])


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """Of a run that meets no trouble."""
    workdir = tmp_path_factory.mktemp("well")
    done = subprocess.run(
        [*PROGRAM, f"--workdir={workdir}", f"--steps={STEPS}", "--step_s=0"],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS), *sys.path]),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return weights_of(done.stdout)


def steps_of_metrics(workdir: pathlib.Path) -> list[int]:
    return [line["step"] for line in metrics.read(workdir / "metrics.jsonl")]


def saved(workdir: pathlib.Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


# ---- calls that fail ----


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> pathlib.Path:
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    made = tmp_path_factory.mktemp("faults") / "storage_faults.so"
    source = TESTS / "storage_faults.c"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O1",
        "-o",
        str(made),
        str(source),
        "-ldl",
    ]
    subprocess.run(command, check=True, timeout=60)
    return made


@pytest.fixture
def faults(library, tmp_path):
    """Environment in which calls below the work directory fail."""

    def faults(*rules: str) -> dict[str, str]:
        notes = tmp_path / "open"
        notes.mkdir(exist_ok=True)
        return {
            "LD_PRELOAD": str(library),
            "STORAGE_FAULTS": ";".join(rules),
            "STORAGE_BELOW": str(tmp_path),
            "STORAGE_OPEN": str(notes),
        }

    return faults


def test_one_process_goes_on_and_makes_up_for_what_failed(
    start, faults, tmp_path, weights
):
    """EIO in a save, in the last save, in metrics; and 1 s to create each file."""
    given = faults(
        f"write:/4.orbax:1:9:{errno.EIO}:0",
        "create:/8.orbax:1:3:0:1000",
        f"write:/12.orbax:1:12:{errno.EIO}:0",
        f"write:metrics.jsonl:4:2:{errno.EIO}:0",
    )
    statuses, (output,) = ended(start(1, faults=given))
    assert statuses == [0], output
    assert weights_of(output) == weights
    assert f"{tmp_path}/checkpoints/4: the checkpoint of step 4 could not be" in output
    assert "The checkpoint of step 8 is saved, after 1 failures" in output
    assert "/12: the checkpoint of step 12 could not be saved" in output
    assert "The checkpoint of step 12 is saved, after " in output
    assert "metrics.jsonl cannot be written ([Errno 5]" in output
    assert "Traceback" not in output
    assert steps_of_metrics(tmp_path) == list(range(1, STEPS + 1))
    assert saved(tmp_path) == ["12", "8"]


def test_storage_that_stays_away_ends_the_run_with_75(start, faults, tmp_path, weights):
    given = faults(f"mkdir:/8.orbax:1:99:{errno.EIO}:0", "mkdir:/12.orbax:1:99:116:0")
    statuses, (output,) = ended(start(1, "--retry_s=2", faults=given))
    assert statuses == [75], output
    told = " ".join(output.split())
    assert re.search(r"3 saves failed in \d s; checkpoint.retry_seconds=2", told)
    assert "Stale file handle" in output and "start the same command again" in output
    statuses, (output,) = ended(start(1))
    assert (statuses, begins(output), weights_of(output)) == ([0], 4, weights)


def test_two_processes_are_started_again_and_lose_nothing(
    start, faults, tmp_path, weights
):
    """Once for an error of one host in a save; then both are killed, on storage that
    has only what was closed."""
    given = faults(f"write:/8.orbax:1:1:{errno.EIO}:0", "create:/4.orbax:1:3:0:500")
    statuses, outputs = ended(start(2, faults=given))
    assert statuses == [75, 75], outputs
    for number, output in enumerate(outputs):
        assert f"{tmp_path}/checkpoints/8: the checkpoint of step 8 could" in output
        assert ("ends, because host 1 failed" in output) == (number == 0)
    assert "4" in saved(tmp_path) and "8" not in saved(tmp_path)

    env = faults("write:/nothing:1:1:0:0")
    killed = start(2, "--step_s=0.3", faults=env)
    deadline = time.monotonic() + 150
    while "8" not in saved(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in killed:
        process.kill()
    _, outputs = ended(killed)
    assert [begins(output) for output in outputs] == [4, 4]
    for note in (tmp_path / "open").iterdir():
        pathlib.Path(os.readlink(note)).unlink(missing_ok=True)

    statuses, outputs = ended(start(2))
    assert statuses == [0, 0], outputs
    assert all(begins(output) in (4, 8) for output in outputs)
    assert {weights_of(output) for output in outputs} == {weights}
    assert steps_of_metrics(tmp_path) == list(range(1, STEPS + 1))


# ---- a disk that is full ----


@pytest.fixture
def disk():
    """A small tmpfs: prefix of commands that see it, its place there and from here."""
    holder = subprocess.Popen(
        ["unshare", "-Urm", "sh", "-c", "echo here; exec sleep 600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stderr is not None
    if holder.stdout.readline() != "here\n":
        pytest.skip(f"no user namespaces: {holder.stderr.read().strip()}")
    inside = ("nsenter", "-U", "-m", "--preserve-credentials", "-t", str(holder.pid))

    @contextlib.contextmanager
    def disk(place: pathlib.Path, size: str):
        place.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
        done = subprocess.run([*inside, *mount], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no mount in a user namespace: {done.stderr.strip()}")
        yield inside, pathlib.Path(f"/proc/{holder.pid}/root{place}")

    yield disk
    holder.kill()
    holder.communicate()


@pytest.mark.parametrize("count", [1, 2])
def test_a_full_disk_ends_all_with_one_word_and_room_lets_them_go_on(
    start, disk, tmp_path, weights, count
):
    """20,000 numbers take 200 kB in a checkpoint: the third one does not fit."""
    place = tmp_path / "disk"
    with disk(place, "600k") as (inside, seen):
        flags = (f"--workdir={tmp_path}", f"--checkpoints={place}/checkpoints")
        statuses, outputs = ended(start(count, *flags, before=inside))
        assert statuses == [1] * count, outputs
        for output in outputs:
            text = " ".join(output.split())  # lines are folded
            assert "could not be saved" in text and "No space left on device" in text
            assert f"({place} has " in text and " of 0.6 MB" in text
            assert "Make room" in text and "start the same command again" in text
        good = saved(seen)
        assert "4" in good and "12" not in good
        room = ["mount", "-o", "remount,size=4m", str(place)]
        subprocess.run([*inside, *room], check=True, timeout=60)
        statuses, outputs = ended(start(count, *flags, before=inside))
        assert statuses == [0] * count, outputs
        assert {begins(output) for output in outputs} == {8 if "8" in good else 4}
        assert {weights_of(output) for output in outputs} == {weights}


def test_a_disk_that_metrics_fill_ends_no_run(start, disk, tmp_path):
    place = tmp_path / "disk"
    with disk(place, "16k") as (inside, seen):
        stored = f"--checkpoints={tmp_path}/checkpoints"
        flags = (f"--workdir={place}", stored, "--steps=60", "--step_s=0")
        statuses, (output,) = ended(start(1, *flags, before=inside))
        assert statuses == [0], output
        written = steps_of_metrics(seen)
    assert 0 < len(written) < 60
    assert f"{place}/metrics.jsonl cannot be written ([Errno 28]" in output
    printed = re.findall(r"not in .*?metrics.jsonl: \{\"step\": (\d+)", output)
    assert written + [int(step) for step in printed] == list(range(1, 61))


# ---- a bucket that is away ----


def test_a_bucket_that_is_away_for_a_while(start, tmp_path, monkeypatch, weights):
    """Refused, dropped and slow requests, in the middle of a save and of a resume."""
    pytest.importorskip("gcsfs", reason="pip install -e '.[gcs]'")
    with fake_gcs.serve() as (url, bucket):
        for name, value in fake_gcs.environment(url).items():
            monkeypatch.setenv(name, value)
        place = "--checkpoints=gs://bucket/run/checkpoints"
        trouble = {"refused": 3, "dropped": 2, "delay_s": 0.1}
        saves = bucket_in_trouble.Trouble("checkpoints%2F4", **trouble)
        bucket.trouble = saves
        statuses, outputs = ended(start(2, place, "--steps=8"))
        assert statuses == [0, 0], outputs
        assert saves.met == 5
        resumes = bucket_in_trouble.Trouble("checkpoints%2F8", **trouble)
        bucket.trouble = resumes
        statuses, outputs = ended(start(2, place))
        assert statuses == [0, 0], outputs
        assert resumes.met == 5
        assert {begins(output) for output in outputs} == {8}
        assert {weights_of(output) for output in outputs} == {weights}
