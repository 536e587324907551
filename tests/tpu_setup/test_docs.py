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
QUEUED = "queued-resources"
CHOICE = "export SLICE="
"""A block that begins so is one choice of several; readers take one of them."""
MEANT = {"NAME", "ZONE", "PROJECT", "REPOSITORY", "CLUSTER", "IMAGE"}
"""Variables of the scripts that pages export for them."""


def blocks(page: str) -> list[str]:
    """Commands of a page, block by block."""
    text = (ROOT / page).read_text("utf-8")
    return re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)


def choices(page: str) -> list[dict[str, str]]:
    """Variables of each choice of a page; one empty choice where it has none."""
    found = [
        dict(word.split("=", 1) for word in shlex.split(block) if "=" in word)
        for block in blocks(page)
        if block.startswith(CHOICE)
    ]
    return found or [{}]


def commands(page: str, choice: dict[str, str]) -> str:
    """What somebody runs who takes one choice of a page."""
    taken = f"{CHOICE}{choice.get('SLICE')} "
    return "".join(
        block
        for block in blocks(page)
        if not block.startswith(CHOICE) or block.startswith(taken)
    )


READERS = [
    pytest.param(page, choice, id=f"{page}-{choice.get('SLICE', 'all')}")
    for page in PAGES
    for choice in choices(page)
]


def workers(state: str) -> str:
    lines = [f"mpo-job host-{number} ours {state}\n" for number in range(HOSTS)]
    return "".join(lines)


@pytest.fixture
def page(stand_ins):
    """Run the commands of a page in order, in one shell, from the root."""

    def run(
        name: str, choice: dict[str, str], **env: str
    ) -> subprocess.CompletedProcess[str]:
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
        script.write_text(f"cd {shlex.quote(str(ROOT))}\n{commands(name, choice)}")
        # No test waits for so long: a whole page takes some starts of the check.
        return subprocess.run(
            ["bash", "-euo", "pipefail", str(script)],
            env={
                **os.environ,
                **{"PATH": f"{stand_ins.bin}:{os.environ['PATH']}", "POLL": "0"},
                **{"JOB": "ours", "PYTHON": sys.executable, **env},
            },
            capture_output=True,
            text=True,
            timeout=500,
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "choice"), [(page, choices(page)[0]) for page in PAGES], ids=PAGES
)
def test_every_command_of_a_page_runs(page, stand_ins, name, choice, tmp_path):
    done = page(name, choice)
    assert done.returncode == 0, done.stderr[-3000:]
    # Trainings were looked at by the true check, and reached the workers.
    checks = done.stderr.count("rows.pairs_per_batch=256")
    assert checks == {"tpu_setup/README.md": 6, "docs/tpu.md": 4}[name]
    assert "may not fit" not in done.stderr and "is not known" not in done.stderr
    started = [c for c in stand_ins.calls("gcloud") if "job.sh start" in " ".join(c)]
    assert len(started) == {"tpu_setup/README.md": 2, "docs/tpu.md": 1}[name]
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


def flag(words: list[str], name: str) -> str:
    """Value of ``--name=value``, "" where it is not there."""
    found = [w.split("=", 1)[1] for w in words if w.startswith(f"--{name}=")]
    return found[-1] if found else ""


def made(words: list[str]) -> tuple[str, tuple[str, ...]] | None:
    """What a command creates or deletes, and which of the two; None if nothing."""
    if words[1:4] == ["compute", "tpus", QUEUED]:
        verb, name = words[4], words[5]
    elif words[0] == "xpk" and "--dry-run" not in words:
        verb, name = words[2], flag(words, "workload")
    else:
        return None
    where = (flag(words, one) for one in ("cluster", "zone", "project"))
    return verb, (words[0], name, *where)


@pytest.mark.parametrize(("name", "choice"), READERS)
def test_what_a_page_creates_it_deletes(page, stand_ins, name, choice):
    """What stays is billed; and `create` is told what the page means, no more."""
    done = page(name, choice, DRY_RUN="1", CHECK="0")
    assert done.returncode == 0, done.stderr[-3000:]
    printed = [
        shlex.split(line)
        for line in done.stdout.splitlines()
        if line.startswith("gcloud ")
    ]
    slices_made = [words for words in printed if "create" in words]
    billed, ever = set(), set()
    for words in [*printed, *stand_ins.calls("xpk")]:
        verb, what = made(words) or ("", ())
        if verb == "create":
            billed.add(what)
            ever.add(what)
        elif verb == "delete":
            billed.discard(what)
    assert len(ever) >= 2 and not billed, billed
    for words in slices_made:
        assert "mpo-bucket" not in flag(words, "metadata")
    if choice:
        called = stand_ins.calls("gcloud")
        (bucket,) = (words for words in called if "create" in words)
        (listed,) = (words for words in called if words[3:5] == [QUEUED, "list"])
        assert flag(listed, "zone") == choice["ZONE"]
        for words in slices_made:
            assert flag(words, "zone") == choice["ZONE"]
            assert choice["ZONE"].startswith(flag(bucket, "location") + "-")


def test_the_page_prepares_python_programs_for_addresses(page, stand_ins):
    name = "docs/tpu.md"
    page(name, choices(name)[0], DRY_RUN="1", CHECK="0")
    calls = stand_ins.calls()
    first = min(
        number
        for number, words in enumerate(calls)
        if words[0] == "python" and "gs://" in " ".join(words)
    )
    for words in (
        ["pip", "install", "-e", ".[gcs]"],
        ["gcloud", "auth", "application-default", "login"],
    ):
        assert words in calls[:first]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_exports_what_scripts_read_only_where_it_means_them(name):
    texts = [(ROOT / "tpu_setup" / f"{one}.sh").read_text() for one in ("qr", "xpk")]
    read = set(re.findall(r"\$\{?([A-Z][A-Z_]*)", "".join(texts)))
    assert read >= {*MEANT, "BUCKET", "ENV_FILE", "VALID"}
    lines = re.findall(r"^export (.*)", "".join(blocks(name)), re.M)
    exported = {word.split("=")[0] for line in lines for word in shlex.split(line)}
    assert {"NAME", "ZONE"} <= exported & read <= MEANT


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
                    option = word.split("=")[0]
                    assert re.search(rf"{option}\b", helped), (words[1:3], option)
                    seen.add(option)
    assert {"--spot", "--tpu-type"} <= seen


@pytest.mark.parametrize("name", PAGES)
def test_pages_show_nothing_to_fill_in_and_no_pipe(name):
    """Behind a pipe, python never gets SIGTERM (README), so examples show none."""
    text = "".join(blocks(name)).replace("\\\n", " ")
    assert "…" not in text and "..." not in text
    launched = [line for line in text.splitlines() if re.search(r" -- +python", line)]
    assert len(launched) >= 2
    assert not [line for line in launched if "|" in line]


def train_lines() -> list[tuple[str, str, str]]:
    """Every train.py line of README, docs and configs: place, words, and its slice.

    On docs/tpu.md a line is one of each choice; elsewhere the recipe names the slice.
    """
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    files += sorted((ROOT / "configs").glob("*.py"))
    found = []
    for file in files:
        text = re.sub(r"\\\n\s*", " ", file.read_text("utf-8"))
        for words in re.findall(r"(scripts/train\.py +--config=configs[^`\n#]*)", text):
            where, line = str(file.relative_to(ROOT)), " ".join(words.split())
            if where != "docs/tpu.md":
                found.append((where, line, ""))
                continue
            assert re.search(r"\$SLICE( --spot)? -- python $", text.split(words)[0])
            for choice in choices(where):
                filled = line.replace("$FIELDS", choice["FIELDS"])
                found.append((where, filled, choice["SLICE"]))
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
    for where, line, sold in train_lines():
        words = shlex.split(line.replace("$DATA", ""))
        asked = checker.read([*checker.arguments(words), "--workdir=gs://b/r"])
        cfg = asked.cfg
        if not isinstance(cfg, config.RunConfig) or not cfg.topology:
            continue  # on a CPU
        topology = slices.lookup(sold).aot_name if sold else cfg.topology
        meant = launch.Launch(asked.name, cfg, asked.recipe, topology)
        found = launch.check(meant, *kept)
        assert not found.problems, (where, line)
        planned += 1
    assert planned >= 19


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
