"""Two real processes agree: what is damaged, what is chosen, when to save."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import checkpoint_files as made
import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import json, os, pathlib, resource, sys, time
import jax, jax.numpy as jnp, numpy as np
from absl import flags
flags.FLAGS.mark_as_parsed()
from mpo_jax import checkpoint, config, sharding
from mpo_jax.checkpoint import files as files_lib
from mpo_jax.checkpoint import schedule
from mpo_jax.utils import runtime
from jax.sharding import NamedSharding, PartitionSpec as P

workdir, what = pathlib.Path(sys.argv[1]), sys.argv[2]
runtime.initialise()
me = jax.process_index()
mesh = sharding.make_mesh(data=1, fsdp=-1)
place = NamedSharding(mesh, P("fsdp"))

def tree(step, rows=64):
    whole = np.random.default_rng(step).normal(size=(rows, 100)).astype(np.float32)
    put = lambda x: jax.make_array_from_callback(x.shape, place, lambda i: x[i])
    return {"params": {"w": put(whole)}, "opt_state": {"m": put(whole + 1)}}

def say(**values):
    print("SAID " + json.dumps(values), flush=True)

def opened(**fields):
    cfg = config.CheckpointConfig(keep_last=9, **fields)
    return checkpoint.Checkpoints(workdir / "checkpoints", cfg)

def save(*steps):
    run = opened()
    for step in steps:
        run.save(step, tree(step), meta={"n": step})
    run.close()

def resume():
    run = opened()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree(0))
    try:
        found = run.resume(abstract, check=lambda *_: None)
    finally:
        run.close()
    for ours, theirs in zip(jax.tree.leaves(found.trees),
                            jax.tree.leaves(tree(found.step)), strict=True):
        for a, b in zip(ours.addressable_shards, theirs.addressable_shards):
            np.testing.assert_array_equal(a.data, b.data)
    say(step=found.step, verdict=found.verdict)

if what == "save":
    save(20, 30, 40)
elif what == "resume":
    resume()
elif what == "unreadable":
    if me == 1:
        def fails(self, name, *args):
            raise OSError(5, "Input/output error", name)
        files_lib.Local.digest = fails
    try:
        resume()
    except OSError as error:
        say(error=str(error))
elif what == "unshared":
    if me == 1:
        original = files_lib.Local.listed
        files_lib.Local.listed = lambda self: dict(list(original(self).items())[1:])
    try:
        resume()
    except OSError as error:
        say(error=str(error))
elif what == "time":
    seconds = [0.0]
    cfg = config.CheckpointConfig(every_steps=35, every_minutes=2.0)
    made = schedule.Schedule(cfg, now=lambda: seconds[0])
    due = []
    for step in range(1, 50):
        seconds[0] += 10 if me == 0 else 1000
        if made.due(step):
            due.append(step)
    say(due=due)
elif what == "full":
    run = opened()
    if me == 1:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    run.save(50, tree(50, rows=4096), meta={})
    try:
        for _ in range(3000):
            run.check()
            time.sleep(0.01)
    except checkpoint.SaveFailed as error:
        say(error=str(error))
        run.close()
    os._exit(7)
jax.distributed.shutdown()
"""


@pytest.fixture
def two(root, tmp_path):
    """Run the program in two processes; what each said."""

    def run(what: str, *, fails: bool = False) -> list[dict]:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        environment = os.environ | {
            "PYTHONPATH": str(root),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "2",
            "MPO_COORDINATOR": address,
            "MPO_NUM_PROCESSES": "2",
        }
        started = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(tmp_path), what],
                env=environment | {"MPO_PROCESS_ID": str(number)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]
        said = []
        try:
            # Where the second one fails, it ends first; the other may wait for it.
            for process in reversed(started):
                output, errors = process.communicate(timeout=240)
                assert fails or process.returncode == 0, errors[-4000:]
                texts = [t for t in output.splitlines() if t.startswith("SAID ")]
                said.insert(0, json.loads(texts[-1][5:]) if texts else {})
                if fails:
                    break
        finally:
            for process in started:
                process.kill()
                process.communicate()
        return said

    return run


def newest(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "checkpoints" / "40"


def test_two_processes_agree(two, tmp_path):
    two("save")
    manifests = sorted(p.name for p in newest(tmp_path).glob("mpo-manifest-*"))
    assert manifests == ["mpo-manifest-0-of-2.json", "mpo-manifest-1-of-2.json"]
    listed = [
        set(json.loads((newest(tmp_path) / name).read_bytes())["manifest"]["files"])
        for name in manifests
    ]
    files = {
        path.relative_to(newest(tmp_path)).as_posix()
        for path in made.files(newest(tmp_path))
    } - set(manifests)
    assert listed[0] | listed[1] == files and not listed[0] & listed[1]
    assert any("ocdbt.process_1/d/" in name for name in listed[1])

    first, second = two("resume")
    assert first == second and first["step"] == 40
    assert first["verdict"].startswith(f"its {len(files)} files")

    # One host's storage fails, or shows it other files: nobody takes another step.
    for what, text in (
        ("unreadable", "process 1 of 2 cannot read it: [Errno 5] Input/output error"),
        ("unshared", "process 1 of 2 sees other files"),
    ):
        first, second = two(what)
        assert first == second and text in first["error"], (first, second)
        assert newest(tmp_path).is_dir()

    # Without manifests the arrays are read, by both.
    made.drop_manifests(tmp_path / "checkpoints" / "30")
    # A bit that only one of the processes looks at.
    path = max(
        (newest(tmp_path) / "opt_state").rglob("ocdbt.process_1/d/*"),
        key=lambda path: path.stat().st_size,
    )
    made.flip(path, 1000)
    first, second = two("resume")
    assert first == second and first["step"] == 30
    assert "not verified: it has no manifest" in first["verdict"]
    assert (tmp_path / "checkpoints" / "damaged_40_1").is_dir()
    assert not newest(tmp_path).exists()

    path = max(
        (tmp_path / "checkpoints" / "30").rglob("ocdbt.process_0/d/*"),
        key=lambda path: path.stat().st_size,
    )
    path.unlink()
    first, second = two("resume")
    assert first == second and first["step"] == 20


def test_the_first_processs_clock_decides(two):
    first, second = two("time")
    # 12 steps are 2 minutes: asked at 10 and 20; then by steps; then not before 47.
    assert first == second == {"due": [20, 35]}


def test_a_full_disk_of_one_host(two):
    """It says so and leaves; that the others end is the launcher's and JAX's part."""
    said = two("full", fails=True)
    assert "step 50 could not be saved" in said[0]["error"]
    assert "File too large" in said[0]["error"]
