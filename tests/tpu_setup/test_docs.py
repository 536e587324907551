"""The pages on launching: every command runs, every training suits its slice."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest
from test_lint import REAL, lint

from mpo_jax import config
from mpo_jax.plan import launch, planner
from mpo_jax.utils import slices

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ("tpu_setup/README.md", "docs/tpu.md")
# Programs of the pages that only record; qr.sh, xpk.sh and the check are real.
PROGRAMS = (
    *("gcloud", "xpk", "docker", "pip", "python", "tensorboard", "git", "sleep"),
)
HOSTS = 16


def blocks(page: str) -> list[str]:
    """Commands of a page, block by block."""
    text = (ROOT / page).read_text("utf-8")
    return re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)


def workers(state: str) -> str:
    lines = [f"mpo-job host-{number} ours {state}\n" for number in range(HOSTS)]
    return "".join(lines)


@pytest.fixture
def page(stand_ins):
    """Run all commands of a page in order, in one shell, from the root."""

    def run(name: str) -> subprocess.CompletedProcess[str]:
        stand_ins.add(*PROGRAMS)
        stand_ins.script(
            {
                "queued-resources describe": [(0, "ACTIVE\t\tv5litepod-64\t\n")],
                "job.sh status": [
                    (0, workers("running 0 0")),
                    *[(0, workers("dead 0 0")), (0, workers("exited 1 0"))] * 4,
                ],
                "projects describe": [(0, "1234\n")],
                "rev-parse": [(0, "abc123\n")],
                "get-url": [(0, "https://example.org/mpo.git\n")],
            }
        )
        script = stand_ins.base / "page.sh"
        script.write_text(f"cd {shlex.quote(str(ROOT))}\n" + "".join(blocks(name)))
        # No test waits for so long: a whole page takes some starts of the check.
        return subprocess.run(
            ["bash", "-euo", "pipefail", str(script)],
            env={
                **os.environ,
                **{"PATH": f"{stand_ins.bin}:{os.environ['PATH']}", "POLL": "0"},
                **{"JOB": "ours", "PYTHON": sys.executable},
            },
            capture_output=True,
            text=True,
            timeout=500,
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_page_runs(page, stand_ins, name, tmp_path):
    done = page(name)
    assert done.returncode == 0, done.stderr[-3000:]
    # Trainings were looked at by the true check, and reached the workers.
    checks = done.stderr.count("rows.pairs_per_batch=256")
    assert checks == {"tpu_setup/README.md": 6, "docs/tpu.md": 8}[name]
    assert "may not fit" not in done.stderr and "is not known" not in done.stderr
    started = [c for c in stand_ins.calls("gcloud") if "job.sh start" in " ".join(c)]
    assert len(started) == {"tpu_setup/README.md": 2, "docs/tpu.md": 3}[name]
    for call in started:
        assert "--workdir=gs://my-bucket/runs/8b" in " ".join(call)
        assert "--config.model.path=gs://" in " ".join(call)
    if REAL is None:
        return  # gcloud itself would read the lines now
    distinct = {}
    for call in stand_ins.calls("gcloud"):
        flags = {word.split("=")[0] for word in call if word.startswith("--")}
        distinct[(*call[1:4], *sorted(flags))] = call
    for call in distinct.values():
        found = lint(call, tmp_path / "config")
        assert found["success"], (call, found["error_message"])


@pytest.mark.slow
def test_xpk_knows_every_flag_of_the_pages():
    beside = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    if shutil.which("xpk", path=beside) is None:
        pytest.skip("xpk is not installed: pip install xpk==1.16.0, in its own venv")
    seen = set()
    for name in PAGES:
        for line in "".join(blocks(name)).replace("\\\n", " ").splitlines():
            words = line.split()
            if words[:1] != ["xpk"] or words[1] == "config":
                continue
            helped = subprocess.run(
                ["xpk", *words[1:3], "--help"],
                env={**os.environ, "PATH": beside},
                capture_output=True,
                text=True,
                timeout=120,
            ).stdout
            for word in words[3:]:
                if word.startswith("--"):
                    flag = word.split("=")[0]
                    assert re.search(rf"{flag}\b", helped), (words[1:3], flag)
                    seen.add(flag)
    assert {"--spot", "--tpu-type"} <= seen


@pytest.mark.parametrize("name", PAGES)
def test_pages_show_nothing_to_fill_in_and_no_pipe(name):
    """Behind a pipe, python never gets SIGTERM (README), so examples show none."""
    text = "".join(blocks(name)).replace("\\\n", " ")
    assert "…" not in text and "..." not in text
    launched = [line for line in text.splitlines() if re.search(r" -- +python", line)]
    assert len(launched) >= 3
    assert not [line for line in launched if "|" in line]


def train_lines() -> list[tuple[str, str]]:
    """Places and words of every train.py line of README, docs and configs."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    files += sorted((ROOT / "configs").glob("*.py"))
    found = []
    for file in files:
        text = re.sub(r"\\\n\s*", " ", file.read_text("utf-8"))
        for words in re.findall(r"(scripts/train\.py +--config=configs[^`\n#]*)", text):
            found.append((str(file.relative_to(ROOT)), " ".join(words.split())))
    return found


@pytest.fixture(scope="module")
def checker():
    spec = importlib.util.spec_from_file_location(
        "check_launch", ROOT / "scripts" / "check_launch.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_every_training_of_the_documents_suits_the_slice_of_its_recipe(
    checker, monkeypatch
):
    monkeypatch.chdir(ROOT)
    kept = launch.read_kept(ROOT / "docs" / "planning_results.json")
    planned = 0
    for where, line in train_lines():
        words = shlex.split(line.replace("$DATA", ""))
        asked = checker.read([*checker.arguments(words), "--workdir=gs://b/r"])
        cfg = asked.cfg
        if not isinstance(cfg, config.RunConfig) or not cfg.topology:
            continue  # on a CPU
        topology = cfg.topology
        if where == "docs/tpu.md":  # the slice that stands before it
            text = (ROOT / where).read_text("utf-8").replace("\\\n", " ")
            before = " ".join(text.split()).split(line)[0]
            named = re.findall(r"qr\.sh watch (\S+)|xpk\.sh \S+ (\S+)", before)[-1]
            topology = slices.lookup("".join(named)).aot_name
        meant = launch.Launch(asked.name, cfg, asked.recipe, topology)
        found = launch.check(meant, *kept)
        assert not found.problems, (where, line)
        planned += 1
    assert planned >= 17


def test_kept_results_are_of_the_compilers_that_slices_install():
    """After ``make locks`` with another libtpu: plan again (docs/planning.md)."""
    kept = json.loads((ROOT / "docs/planning_results.json").read_text("utf-8"))
    generations = {}
    for one in kept["outcomes"]:
        who = dict(one["compiler"])
        python = who.pop("python")
        lock = (ROOT / f"tpu_setup/locks/tpu-{python}.txt").read_text("utf-8")
        for package in ("jax", "jaxlib", "libtpu"):
            assert f"\n{package}=={who[package]} \\\n" in lock, (one["topology"], who)
        generation = slices.lookup(one["topology"]).generation
        generations.setdefault(generation, set()).add(python)
    # Workers have 3.11 (startup.sh); tpu7x takes an image with 3.12.
    assert generations.pop("tpu7x") == {"3.12"}
    assert set(map(frozenset, generations.values())) == {frozenset({"3.11"})}


def test_figures_of_the_page_are_those_of_the_kept_results():
    """After `scripts/plan.py --table=docs/planning_results`: this table, too."""
    outcomes = [
        one
        for one in json.loads((ROOT / "docs/planning_results.json").read_text("utf-8"))[
            "outcomes"
        ]
        if one["name"] == "internvl2_8b_mpo" and one["slices"] == 1
    ]
    text = (ROOT / "docs/tpu.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\S+)` \((\S+)\) \| (.*) \|$", text, re.M)
    assert len(rows) == 6
    for name, topology, cells in rows:
        short, long = (
            next(
                one
                for one in outcomes
                if (one["topology"], one["shape"]) == (topology, shape)
            )
            for shape in ("short", "long")
        )
        sold = slices.lookup(name)
        assert sold.aot_name == topology
        gib = [
            f"{one['compiled']['memory']['needed'] / 2**30:.2f}"
            for one in (short, long)
        ]
        granted = short["compiled"]["memory"]["granted"] / 2**30
        bound, pairs = short["estimate"]["bound"], short["estimate"]["pairs"]
        hours = 3e6 / pairs * bound / 3600
        wanted = [
            str(sold.chips),
            f"{gib[0]}, {gib[1]} of {granted:.2f}",
            f"{bound:.3g}",
            f"{pairs:.0f}",
            f"{hours:.3g}",
            f"{hours * sold.chips:.0f}",
        ]
        found = re.split(r"\s*\|\s*", cells)
        assert [found[0], *found[2:]] == wanted, name
        # The fields are those of the planned case.
        cfg = runpy.run_path(str(ROOT / "configs/internvl2_8b_mpo.py"))["get_config"]()
        changes = re.findall(r"`(\S+=\S+)`", found[1])
        cfg = planner.changed(cfg, changes)
        assert cfg.model.remat == short["remat"], name
        request = planner.Request("x", cfg, topology=topology)
        workload = launch.read_kept(ROOT / "docs/planning_results.json")[1]
        cases = [case for case, _ in planner.cases(request, workload)]
        assert [(case.rows, case.micro_batches) for case in cases] == [
            (one["rows"], one["accumulation"]) for one in (short, long)
        ], name
