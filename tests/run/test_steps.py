"""Steps of a run: made once, gone on with after a kill, refused with other settings."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import toy_steps

from mpo_jax.run import steps
from mpo_jax.utils import atomic


def run(workdir: pathlib.Path, **settings):
    """Make the toys; the names of those that were made."""
    log: list[str] = []
    toys = toy_steps.toys(workdir, {"start": 1} | settings, log=log)
    return steps.run_steps(toys, workdir / "run.lock"), log


def test_steps_are_made_once_and_in_order(tmp_path):
    marks, log = run(tmp_path)
    assert log == ["one", "two", "sum"]
    assert marks["one"].made == {"sum": 820} and marks["one"].done
    assert set(marks["sum"].after) == {"one", "two"}
    assert marks["sum"].after["one"] == marks["one"].fingerprint
    before = toy_steps.files(tmp_path)
    assert set(before) == {
        f"{name}/{file}" for name in log for file in ("numbers", "step.json")
    }
    again, log = run(tmp_path)
    assert log == [] and again == marks and toy_steps.files(tmp_path) == before
    assert [steps.state_of(one) for one in toy_steps.toys(tmp_path, {})] == ["done"] * 3


def test_what_was_begun_is_entered_again(tmp_path):
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    run(whole)
    toys = toy_steps.toys(begun, {"start": 1})

    def fail():
        (begun / "two").joinpath("numbers").write_text("1\n2\n3")
        raise OSError("the disk is full")

    toys[1] = dataclasses.replace(toys[1], make=fail)
    with pytest.raises(OSError, match="disk is full"):
        steps.run_steps(toys, begun / "run.lock")
    assert [steps.state_of(one) for one in toys] == ["done", "begun", "absent"]
    _, log = run(begun)
    assert log == ["two", "sum"] and toy_steps.files(begun) == toy_steps.files(whole)


def test_other_settings_are_refused_by_name_before_anything_is_made(tmp_path):
    run(tmp_path, sampling={"n": 8, "seed": 0})
    before = toy_steps.files(tmp_path)
    with pytest.raises(ValueError) as error:
        run(tmp_path, sampling={"n": 4, "seed": 0})
    said = str(error.value)
    assert "sampling.n was 8, now 4" in said and "seed" not in said
    # What builds upon it goes, too; its sibling is judged by itself.
    assert f"remove what was made so: {tmp_path / 'one'}, {tmp_path / 'sum'}" in said
    assert toy_steps.files(tmp_path) == before
    with pytest.raises(ValueError, match="sampling.n was 8, now None"):
        run(tmp_path, sampling={"seed": 0})
    with pytest.raises(ValueError, match="an empty field came or went"):
        run(tmp_path, sampling={"n": 8, "seed": 0, "top": None})


def test_all_that_builds_on_what_changed_is_named(tmp_path):
    one, two, total = toy_steps.toys(tmp_path, {"start": 1})
    two = dataclasses.replace(two, after=("one",))
    total = dataclasses.replace(total, after=("two",))
    steps.run_steps([one, two, total], tmp_path / "run.lock")
    changed = dataclasses.replace(one, settings={"start": 2})
    with pytest.raises(ValueError) as error:
        steps.check([changed, two, total])
    folders = ", ".join(str(tmp_path / name) for name in ("one", "two", "sum"))
    assert str(error.value).endswith(f"remove what was made so: {folders}")


def test_a_step_that_was_only_begun_is_refused_as_well(tmp_path):
    toys = toy_steps.toys(tmp_path, {"start": 1})

    def fail():
        raise OSError("no room")

    toys[0] = dataclasses.replace(toys[0], make=fail)
    with pytest.raises(OSError, match="no room"):
        steps.run_steps(toys, tmp_path / "run.lock")
    with pytest.raises(ValueError, match="start was 1, now 2"):
        run(tmp_path, start=2)


def remove(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_what_was_built_on_another_result_is_stale(tmp_path):
    run(tmp_path)
    remove(tmp_path / "one")
    _, log = run(tmp_path)
    assert log == ["one"]  # the same again, so that all upon it is as good
    remove(tmp_path / "one")
    toys = toy_steps.toys(tmp_path, {"start": 1})
    toys[0] = dataclasses.replace(toys[0], make=lambda: {"sum": 7})
    with pytest.raises(ValueError, match="sum: sum was made .*built on another one"):
        steps.run_steps(toys, tmp_path / "run.lock")
    # Now that both are there, it is seen before anything starts.
    with pytest.raises(ValueError, match="built on another one"):
        steps.check(toys)


def test_order_names_and_folders_are_checked(tmp_path):
    one, two, total = toy_steps.toys(tmp_path, {"start": 1})
    with pytest.raises(ValueError, match="'sum' builds on two, which does not come be"):
        steps.check([one, total, two])
    with pytest.raises(ValueError, match="'one' .*another step's, too"):
        steps.check([one, dataclasses.replace(two, name="one")])
    with pytest.raises(ValueError, match="'two' .*another step's, too"):
        steps.check([one, dataclasses.replace(two, folder=one.folder)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "is no marker"),
        ('{"step": "one"}', "is no marker"),
        (
            '{"step": "b", "settings": {}, "after": {}, "done": true, "made": null}',
            "of the step 'b', not of 'one'",
        ),
        (
            '{"step": "one", "settings": 1, "after": {}, "done": true, "made": null}',
            "is no marker",
        ),
    ],
)
def test_a_damaged_marker_is_named(tmp_path, text, said):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "step.json").write_text(text)
    with pytest.raises(ValueError, match=f"step.json: .*{said}.*remove .*one"):
        run(tmp_path)


def test_what_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="thesis.txt: no step.json beside it"):
        run(tmp_path)
    assert toy_steps.files(tmp_path) == {"two/thesis.txt": b"mine"}


def test_one_run_at_a_time(tmp_path):
    def busy():
        raise AssertionError("held")

    with (
        atomic.alone(tmp_path / "run.lock", busy=busy),
        pytest.raises(ValueError, match="another run is at work here"),
    ):
        run(tmp_path)
    assert run(tmp_path)[1] == ["one", "two", "sum"]


@pytest.mark.slow
def test_killed_anywhere_the_same_run_ends_alike(root, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole)

    def start() -> subprocess.Popen:
        return subprocess.Popen(
            [
                *(sys.executable, str(root / "tests" / "toy_steps.py"), str(killed)),
                json.dumps({"start": 1, "pause": 0.02}),
            ],
            env={**os.environ, "PYTHONPATH": str(root)},
        )

    draw = random.Random(0)
    for lines in sorted(draw.sample(range(3 * toy_steps.LINES), 5)):
        process = start()
        deadline = time.time() + 150
        while written(killed) < lines:
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert written(killed) < 3 * toy_steps.LINES
    assert start().wait(100) == 0
    assert toy_steps.files(killed) == toy_steps.files(whole)


def written(workdir: pathlib.Path) -> int:
    return sum(path.read_text().count("\n") for path in workdir.glob("*/numbers"))
