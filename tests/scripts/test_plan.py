"""The command: what flags ask for, what it writes, how it ends."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pytest

from mpo_jax import config
from mpo_jax.utils import slices

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script, with a compiler that answers at once."""
    program = f"""
import sys
from mpo_jax.plan import compile as compile_lib
from mpo_jax.plan import programs
def answer(case, *, compiler, kept):
    memory = programs.Memory(params=2**30, needed=20 * 2**30, granted=16 * 2**30)
    if case.topology.startswith("v5e"):
        return programs.Compiled(programs.TOO_LARGE, "x", memory=memory)
    return programs.Compiled(
        programs.FITS, memory=memory, flops=1e14, cycles=1e9)
compile_lib.run = answer
sys.argv = ["plan.py"] + {list(arguments)!r}
import runpy
runpy.run_path({str(ROOT / "scripts" / "plan.py")!r}, run_name="__main__")
"""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


RECIPE = "--config=configs/internvl2_8b_mpo.py"


@pytest.mark.slow
def test_what_does_not_fit_ends_with_status_2_and_remedies():
    found = call(RECIPE, "--shape=short")
    assert found.returncode == 2, found.stderr
    assert "needs 20.00 GiB of 16.00 GiB" in found.stderr
    assert "--config.optim.accumulation=3 instead of 1" in found.stderr


@pytest.mark.slow
def test_comparison_writes_table_plot_and_json(tmp_path):
    prefix = tmp_path / "results"
    found = call(
        *(RECIPE, "--compare=v6e-32,v5p:2x4x4", "--step=both"),
        *(f"--table={prefix}", "--config.optim.accumulation=1"),
    )
    assert found.returncode == 0, found.stderr
    raw = json.loads(prefix.with_suffix(".json").read_text("utf-8"))
    kinds = [(o["topology"], o["shape"], o["step"]) for o in raw["outcomes"]]
    assert len(kinds) == len(set(kinds)) == 2 * 2 * 2
    assert {kind[0] for kind in kinds} == {"v6e:4x8", "v5p:2x4x4"}
    assert prefix.with_suffix(".md").read_text("utf-8").count("\n") == 2 + 8
    assert prefix.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.slow
def test_cases_of_a_file(tmp_path):
    cases = tmp_path / "cases.txt"
    cases.write_text(
        "# comment\nconfigs/internvl2_1b_mpo.py v6e-8\n"
        "configs/ablations.py:trdpo v6e:4x8 2  # two slices\n"
    )
    target = tmp_path / "out.json"
    found = call(f"--cases={cases}", "--shape=short", f"--json={target}")
    assert found.returncode == 0, found.stderr
    outcomes = json.loads(target.read_text("utf-8"))["outcomes"]
    assert [(o["name"], o["topology"], o["slices"]) for o in outcomes] == [
        ("internvl2_1b_mpo", "v6e-8", 1),
        ("ablations", "v6e:4x8", 2),
    ]


@pytest.mark.slow
def test_each_generation_is_planned_by_its_compiler_and_a_foreign_one_is_said(tmp_path):
    pinned = {"python": "3.12"}
    lock = (ROOT / "tpu_setup" / "locks" / "tpu-3.12.txt").read_text("utf-8")
    for package in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        pinned[package] = re.findall(rf"^{package}==(\S+)", lock, re.M)[0]
    places = {}
    for name, libtpu in (("same", pinned["libtpu"]), ("other", "9.9")):
        places[name] = tmp_path / name
        answer = json.dumps(pinned | {"libtpu": libtpu})
        places[name].write_text(f"#!/bin/sh\necho '{answer}'\n", encoding="utf-8")
        places[name].chmod(0o755)
    prefix = tmp_path / "table"
    found = call(
        *(RECIPE, "--compare=v6e-64,v5p-128,v6e-32", "--shape=short"),
        *(f"--compiler=v6e={places['other']}", f"--compiler=v5p={places['same']}"),
        f"--table={prefix}",
    )
    assert found.returncode == 0, found.stderr
    warnings = [x for x in found.stderr.splitlines() if x.startswith("warning: ")]
    assert len(warnings) == 1
    assert (
        f"libtpu 9.9 plans, but slices install libtpu=={pinned['libtpu']} "
        in (warnings[0])
    )
    outcomes = json.loads(prefix.with_suffix(".json").read_text("utf-8"))["outcomes"]
    who = [outcome["compiler"]["libtpu"] for outcome in outcomes]
    assert who == ["9.9", pinned["libtpu"], "9.9"]
    rows = prefix.with_suffix(".md").read_text("utf-8").splitlines()
    assert "v6e:8x8" in rows[2] and rows[2].endswith("| 9.9 (3.12) |")
    assert "v5p:4x4x4" in rows[3]
    assert rows[3].endswith(f"| {pinned['libtpu']} (3.12) |")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config is missing"),
        ((RECIPE, "--compiler=v9=python"), "write GENERATION=PYTHON"),
        ((RECIPE, "--compiler=v5e=/no/python"), "/no/python does not run as Python"),
        (
            (RECIPE, f"--compiler=v6e={sys.executable}"),
            "--compiler of v6e: no such slice is asked for",
        ),
        ((RECIPE, "--topology=v6e-7"), "unknown TPU slice 'v6e-7'"),
        (("--compare=configs/none.py",), "configs/none.py does not exist"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    found = call(*arguments)
    assert found.returncode == 1
    assert message in found.stderr and "Traceback" not in found.stderr


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_recipe_names_a_slice_that_is_sold(file):
    """Their full programs: ``scripts/plan.py --compare=configs``, by hand."""
    spec = importlib.util.spec_from_file_location(f"plan_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cfg = module.get_config()
    if not isinstance(cfg, config.RunConfig):
        return  # an evaluation runs wherever the model fits
    if cfg.topology:
        found = slices.lookup(cfg.topology)
        assert found.devices > 1
        # The batch divides over the slice that the recipe is meant for.
        assert cfg.rows.row_multiple % (found.devices // cfg.mesh.tensor) == 0
    else:
        assert "CPU" in (module.__doc__ or "")


def test_the_cases_of_the_documentation_exist():
    lines = (ROOT / "docs" / "planning_cases.txt").read_text("utf-8").splitlines()
    for line in lines:
        words = line.split("#")[0].split()
        if words:
            assert (ROOT / words[0].split(":")[0]).is_file()
            assert len(words) < 2 or slices.lookup(words[1])
