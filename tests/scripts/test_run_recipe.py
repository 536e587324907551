"""run_recipe.py as a person runs it: planned, killed, resumed, changed."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import time

import pytest
import small_recipe
import small_runs
import speaking

from mpo_jax.run import steps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_recipe.make_world(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def config_file(world):
    cfg = small_recipe.recipe(world)
    cfg.evaluate.when = "ends"
    cfg.pairs.html = True
    cfg.answering.slots = 2  # some answers at a time, so that a kill comes in between
    text = cfg.to_json()
    path = world["cache"].with_name("recipe.py")
    path.write_text(
        "from mpo_jax import recipe_config\n\n"
        "def get_config():\n"
        f"    return recipe_config.from_json({text!r})\n"
    )
    return path


def start(root, world, config_file, workdir, *flags):
    return speaking.start(
        root,
        *(f"--config={config_file}", f"--workdir={workdir}", *flags),
        script="run_recipe.py",
        cache=world["cache"],
        PYTHONPATH=os.pathsep.join((str(root), str(root / "tests"))),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )


def finish(root, world, config_file, workdir, *flags, code=0) -> str:
    process = start(root, world, config_file, workdir, *flags)
    said = speaking.output_of(process, timeout=500)
    assert process.returncode == code, said
    return said


@pytest.fixture(scope="module")
def whole(root, world, config_file):
    """What one run gives that is left alone, and what it said."""
    workdir = world["cache"].with_name("whole")
    return workdir, finish(root, world, config_file, workdir)


# What comes out, whatever has happened on the way.
OUTPUTS = (
    *("report.json", "report.md", "report.html", "questions/questions.jsonl"),
    *("round_?/pairs/mmpr/annotations/*.jsonl", "round_?/pairs/mmpr/*.json*"),
    *("round_?/ntp/annotations/*.jsonl", "round_?/rollouts/rollouts.jsonl"),
    *("round_?/data/meta.json", "*/evaluation/items.jsonl"),
    "round_?/pairs_page/report.html",
)


def outputs(workdir: pathlib.Path) -> dict[str, bytes]:
    found = [path for pattern in OUTPUTS for path in workdir.glob(pattern)]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in found}


def test_a_dry_run_writes_nothing(root, world, config_file, tmp_path):
    place = tmp_path / "dry"
    said = finish(root, world, config_file, place, "--dry_run")
    assert "round_2/reference" in said and "Left to do: 17 of 17 steps" in said
    assert not place.exists()
    said = finish(
        *(root, world, config_file, place, "--dry_run", "--config.rounds=0"), code=1
    )
    assert "rounds=0 must be at least 1" in said
    said = finish(
        *(root, world, config_file, place, "--dry_run", "--config.round=3"), code=1
    )
    assert "no field 'round'; did you mean rounds" in said


def test_a_recipe_leaves_what_it_promises(whole):
    workdir, said = whole
    found = json.loads((workdir / "report.json").read_text())
    assert found["questions"]["overlap"]["removed"] == 1
    first, second = found["rounds"]
    for one in (first, second):
        assert one["pairs"]["rollouts"] == 32 and one["pairs"]["pairs"] > 0
        assert one["training"]["steps"] == 4
        assert one["training"]["first"]["loss/sigmoid"] == pytest.approx(0.6931, 1e-3)
        assert sum(one["data"].values()) == (
            one["pairs"]["pairs"] + one["ntp"]["counts"]["pairs"]
        )
    assert first["evaluation"] is None  # when="ends"
    name = small_recipe.BENCHMARK
    gained = second["evaluation"]["against_start"][name]
    scores = [
        of["scores"][name][mode]["score"]
        for mode in ("direct", "cot")
        for of in (found["start"], second["evaluation"])
    ]
    assert gained["direct"]["difference"] == pytest.approx(scores[1] - scores[0])
    assert gained["cot"]["difference"] == pytest.approx(scores[3] - scores[2])
    # Round 2 has other questions and other draws.
    asked = [
        {line["id"] for line in speaking.read_lines(workdir / place / "dealt.jsonl")}
        for place in ("round_1/rollouts", "round_2/rollouts")
    ]
    assert asked[0] != asked[1] and len(asked[0] | asked[1]) == 12
    for link in (
        *("start/evaluation/report.html", "round_1/pairs/mmpr/manifest.json"),
        *("round_1/pairs_page/report.html", "round_2/pairs_page/report.html"),
    ):
        assert (workdir / link).exists()
        assert link in (workdir / "report.md").read_text()
        assert link in (workdir / "report.html").read_text()
    page = (workdir / "round_1/pairs_page/report.html").read_text()
    assert f"<b>{sum(first['data'].values()):,}</b>pairs<" in page
    assert "data:image/jpeg" in page and "was not checked" not in page
    meta = json.loads((workdir / "round_1/data/meta.json").read_text())
    assert {entry["max_dynamic_patch"] for entry in meta.values()} == {1}
    assert "Left to do: 17 of 17 steps" in said


def test_done_it_is_done_and_other_settings_are_refused(
    root, world, config_file, whole
):
    workdir, _ = whole
    before = outputs(workdir)
    said = finish(root, world, config_file, workdir)
    assert "All is done" in said and said.count("Done already") == 17
    said = finish(root, world, config_file, workdir, "--config.pairs.seed=3", code=1)
    assert "round_1/pairs was made with other settings: pairs.seed was 0, now 3" in (
        " ".join(said.split())
    )
    assert outputs(workdir) == before


def lines(*paths: pathlib.Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in paths if path.exists())


def reached(step: pathlib.Path, draw: random.Random):
    """Whether a run is in the midst of a step, by what it has written."""
    least = draw.randrange(1, 4)

    def answering() -> bool:
        return lines(*step.glob("**/*.parts/part-*.jsonl")) >= least

    def training() -> bool:
        return lines(step / "metrics.jsonl") >= min(least, 3)

    def begun() -> bool:
        return (step / steps.MARKER).exists()

    return {"pairs": begun, "train": training}.get(step.name, answering)


def test_killed_anywhere_it_ends_as_one_left_alone(root, world, config_file, whole):
    workdir, draw = world["cache"].with_name("killed"), random.Random(7)
    for name in (
        *("start/evaluation", "round_1/rollouts", "round_1/pairs", "round_1/train"),
        "round_2/ntp",
    ):
        process = start(root, world, config_file, workdir)
        here = reached(workdir / name, draw)
        deadline = time.time() + 300
        while not here():
            assert process.poll() is None and time.time() < deadline, name
            time.sleep(0.002)
        time.sleep(draw.random() / 10 if name.endswith("pairs") else 0)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        told = json.loads((workdir / name / steps.MARKER).read_text())
        assert not told["done"], f"{name} ended before it was killed"
    said = finish(root, world, config_file, workdir)
    assert said.count("Done already") > 8
    left_alone = whole[0]
    assert outputs(workdir) == outputs(left_alone)
    for turn in ("round_1", "round_2"):
        place = f"{turn}/train"
        assert small_runs.losses(workdir / place) == small_runs.losses(
            left_alone / place
        )
