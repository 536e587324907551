"""``scripts/plan.py --step=generate``: what flags ask for, what is written, the end."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = "--config=configs/internvl2_8b_mpo.py"
pytestmark = pytest.mark.slow


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script, with a compiler that answers at once; on v5e nothing fits."""
    program = f"""
import sys
from mpo_jax.plan import compile_generation, generation, programs
def answer(case, *, compiler, kept):
    memory = programs.Memory(params=2**30, needed=14 * 2**30, granted=16 * 2**30)
    made = programs.Compiled(programs.FITS, memory=memory)
    found = generation.Planned(
        programs.FITS, data=4, tensor=case.tensor or 2, groups=8,
        slots=min(case.samples, 8), granted=16 * 2**30, weights=2**33, read=2**33,
        programs={{name: made for name in generation.PROGRAMS}})
    if case.topology.startswith("v5e"):
        return generation.Planned(programs.TOO_LARGE, "one answer needs 20 GiB")
    return found
compile_generation.run = answer
sys.argv = ["plan.py", "--step=generate"] + {list(arguments)!r}
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


def test_every_slice_and_number_of_answers_is_a_plan(tmp_path):
    prefix = tmp_path / "generation"
    found = call(
        *(RECIPE, "--compare=v6e:2x4,v5p:2x2x1", f"--table={prefix}"),
        *("--prompt_tokens=512", "--max_new_tokens=64", "--slots=16", "--tensor=4"),
    )
    assert found.returncode == 0, found.stderr
    assert "n=32" in found.stderr and "No program is faster" in found.stderr
    outcomes = json.loads(prefix.with_suffix(".json").read_text("utf-8"))["outcomes"]
    kinds = [(o["topology"], o["samples"]) for o in outcomes]
    slices = ("v6e:2x4", "v5p:2x2x1")
    assert kinds == [(name, n) for name in slices for n in (32, 1)]
    for outcome in outcomes:
        asked = ("prompt_tokens", "answer_tokens", "slots", "tensor")
        assert [outcome[name] for name in asked] == [512, 64, 16, 4]
        assert outcome["bound"]["tokens"] > 0
    assert prefix.with_suffix(".md").read_text("utf-8").count("\n") == 2 + 4
    assert prefix.with_suffix(".png").stat().st_size > 10_000


def test_what_does_not_fit_ends_with_status_2_and_remedies():
    found = call(RECIPE, "--topology=v5e:2x4", "--samples=8")
    assert found.returncode == 2, found.stderr
    assert "one answer needs 20 GiB" in found.stderr
    assert "--tensor=2" in found.stderr and "--max_new_tokens=512" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows_per_chip=2",), "--rows_per_chip do nothing with --step=generate"),
        (("--search", "--shape=long"), "--shape, --search do nothing"),
        (("--step=train", "--samples=8"), "--samples do nothing with --step=train"),
        (("--samples=0",), "--samples=0: positive numbers are expected"),
        (("--topology=v6e-7",), "unknown TPU slice 'v6e-7'"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    found = call(RECIPE, *arguments)
    assert found.returncode == 1
    assert message in found.stderr and "Traceback" not in found.stderr
