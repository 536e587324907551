"""Plan a run without hardware: does it fit a TPU slice, and how fast could it be?

  python scripts/plan.py --config=configs/internvl2_8b_mpo.py
  python scripts/plan.py --config=configs/internvl2_8b_mpo.py --topology=v6e-64
  python scripts/plan.py --config=configs/internvl2_8b_mpo.py --search
  python scripts/plan.py --config=configs/internvl2_8b_mpo.py \
      --compare=v5e:4x8,v5p:2x4x4,v6e:4x8
  python scripts/plan.py --compare=configs
  python scripts/plan.py --cases=docs/planning_cases.txt --table=docs/planning_results
  python scripts/plan.py --config=configs/internvl2_8b_mpo.py --step=generate \
      --compare=v5e:2x4,v6e:2x4,v5p:2x2x1 --prompt_tokens=2048 --max_new_tokens=1024

The true step of every case is compiled with the TPU compiler (`pip install -e
'.[plan]'`, Linux on x86), minutes each, some GB of host memory; no weight is loaded and
no network used. Printed: memory of a chip against what the compiler grants,
collectives, FLOPs, a lower bound of the step's time and an estimate (not measured on
TPU); docs/planning.md says how to read it. Exit status 2: something does not fit, and
the remedies are printed.

With `--step=generate` the programs that answer questions (scripts/generate.py,
scripts/serve.py) take the place of the step: for each of `--samples`, answers to a
prompt, the mesh, the slots that fit, memory of every program, collectives of a decode
step and a bound on tokens a second. Of the config only the model counts.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import TypeVar

import jax
import rich.console
from absl import flags
from ml_collections import config_flags

from mpo_jax import config as config_lib
from mpo_jax.plan import (
    compilers,
    estimate,
    generation,
    generation_report,
    planner,
    programs,
    report,
)
from mpo_jax.utils import cli, plan_plot, progress, slices

_LOCKS = pathlib.Path(__file__).resolve().parents[1] / "tpu_setup" / "locks"
_Job = TypeVar("_Job")
_Outcome = TypeVar("_Outcome")

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe", lock_config=True)
_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "Slice, v5litepod-16 or v5e:4x4; empty is the config's"
)
_SLICES = flags.DEFINE_integer("num_slices", 1, "Slices, joined by DCN", lower_bound=1)
_ROWS = flags.DEFINE_integer(
    "rows_per_chip",
    0,
    "Rows per data shard and micro-batch; 0 takes what a run would choose",
    lower_bound=0,
)
_SHAPE = flags.DEFINE_enum(
    "shape", "both", ["short", "long", "both"], "Row shapes to compile"
)
_STEP = flags.DEFINE_enum(
    "step",
    "train",
    ["train", "reference", "both", "generate"],
    "Programs to compile; both are train and reference",
)
_COMPARE = flags.DEFINE_list(
    "compare", [], "Slices, or config files, or 'configs' for all with a topology"
)
_CASES = flags.DEFINE_string(
    "cases", "", "File with lines CONFIG [TOPOLOGY [SLICES]] instead of --config"
)
_SEARCH = flags.DEFINE_bool(
    "search", False, "Find the most rows per chip that fit, per remat policy"
)
_QUICK = flags.DEFINE_bool(
    "quick",
    False,
    "Stop before code is generated: memory and lower bound in under a minute, no "
    "estimate",
)
_REMATS = flags.DEFINE_list(
    "remats", ["full", "attention", "dots", "none"], "Policies of --search"
)
_MOST = flags.DEFINE_integer("most_rows", 16, "Bound of --search", lower_bound=1)
_JOBS = flags.DEFINE_integer(
    "jobs", 1, "Compilations at a time; each takes one core and some GB", lower_bound=1
)
_KEPT = flags.DEFINE_string(
    "kept", "runs/plans", "Compiled results, reused while code is the same; '' is none"
)
_COMPILERS = flags.DEFINE_multi_string(
    "compiler",
    [],
    "GENERATION=PYTHON (tpu7x=venv312/bin/python): an interpreter whose jax and libtpu "
    "compile for the slices of a generation; for all others it is this one",
)
_JSON = flags.DEFINE_string("json", "", "Write all figures to this file")
_TABLE = flags.DEFINE_string("table", "", "Write PREFIX.json, PREFIX.md, PREFIX.png")
_PAIR_PROMPT = flags.DEFINE_float(
    "pair_prompt", estimate.Workload.pair_prompt, "Mean prompt tokens of a pair"
)
_FILL = flags.DEFINE_list(
    "fill",
    ["0.944", "0.73", "0.79", "0.937"],
    "Mean fill of the prompt, chosen, rejected and tile budgets",
)
_PROMPT = flags.DEFINE_integer(
    "prompt_tokens",
    2048,
    "generate: longest prompt, image tokens included",
    lower_bound=1,
)
_ANSWER = flags.DEFINE_integer(
    "max_new_tokens", 1024, "generate: longest answer", lower_bound=1
)
_SAMPLES = flags.DEFINE_list(
    "samples", ["32", "1"], "generate: answers to a prompt; each number is a plan"
)
_SLOTS = flags.DEFINE_integer(
    "slots",
    0,
    "generate: answers at a time of a host; 0 is as many as suit and fit",
    lower_bound=0,
)
_TENSOR = flags.DEFINE_integer(
    "tensor",
    0,
    "generate: devices that share one copy of the model; 0 is as few as it fits on",
    lower_bound=0,
)
_OF_GENERATION = ("prompt_tokens", "max_new_tokens", "samples", "slots", "tensor")
_OF_STEPS = (
    *("rows_per_chip", "shape", "search", "quick", "remats", "most_rows"),
    *("pair_prompt", "fill"),
)


def main(argv: list[str]) -> None:
    del argv
    jax.config.update("jax_platforms", "cpu")  # the slice is not there; do not look
    generates = _STEP.value == "generate"
    _refuse(_OF_STEPS if generates else _OF_GENERATION)
    console = progress.console()
    requests = _with_compilers(_requests(), console)
    kept = pathlib.Path(_KEPT.value) if _KEPT.value else None
    if generates:
        _generate(requests, kept, console)
        return
    workload = _workload()
    outcomes = (_search if _SEARCH.value else _compile_all)(requests, workload, kept)
    _print(outcomes, requests, workload, console)
    _write(
        planner.to_json(outcomes, workload),
        report.markdown(outcomes),
        report.bars(outcomes),
    )
    if _SEARCH.value:
        found = planner.best(outcomes)
        if found is None:
            sys.exit(2)
        console.print(
            f"Best of the trials that fit: remat="
            f"{found.case.cfg.model.remat}, {found.rows_per_chip:g} rows per chip."
        )
    elif not all(outcome.fits for outcome in outcomes):
        sys.exit(2)


def _refuse(names: Sequence[str]) -> None:
    """Raise ValueError where a flag is given that would do nothing."""
    given = [f"--{name}" for name in names if flags.FLAGS[name].present]
    if given:
        raise ValueError(
            f"{', '.join(given)} do nothing with --step={_STEP.value}; leave them out"
        )


def _generate(
    requests: Sequence[planner.Request],
    kept: pathlib.Path | None,
    console: rich.console.Console,
) -> None:
    """Plan generation for every request and number of answers."""
    work = [
        (request, planner.generation_case(request, _asked(samples)))
        for request in requests
        for samples in _SAMPLES.value
    ]

    def plan(job: tuple[planner.Request, generation.Case]) -> generation.Outcome:
        request, case = job
        return planner.plan_generation(
            request.name, case, compiler=request.compiler, kept=kept
        )

    outcomes = _all(plan, work)
    for table in (
        generation_report.memory,
        generation_report.traffic,
        generation_report.speed,
    ):
        console.print(table(outcomes))
    console.print(generation_report.NOTE)
    for outcome in outcomes:
        if text := generation_report.words(outcome):
            console.print(text, markup=False)
    raw = [outcome.to_dict() for outcome in outcomes]
    _write(
        json.dumps({"outcomes": raw}, indent=1),
        generation_report.markdown(outcomes),
        generation_report.bars(outcomes),
    )
    if not all(outcome.fits for outcome in outcomes):
        sys.exit(2)


def _asked(samples: str) -> planner.Asked:
    if not samples.isdecimal() or not int(samples):
        raise ValueError(f"--samples={samples}: positive numbers are expected")
    return planner.Asked(
        prompt_tokens=_PROMPT.value,
        answer_tokens=_ANSWER.value,
        samples=int(samples),
        slots=_SLOTS.value,
        tensor=_TENSOR.value,
    )


def _all(plan: Callable[[_Job], _Outcome], work: Sequence[_Job]) -> list[_Outcome]:
    """Plan everything, several at once."""
    with progress.bar() as bar:
        task = bar.add_task("Compiling", total=len(work))

        def one(job: _Job) -> _Outcome:
            outcome = plan(job)
            bar.advance(task)
            return outcome

        # Threads only wait: every compilation is a process of its own.
        with futures.ThreadPoolExecutor(_JOBS.value) as pool:
            return list(pool.map(one, work))


def _search(
    requests: Sequence[planner.Request],
    workload: estimate.Workload,
    kept: pathlib.Path | None,
) -> list[planner.Outcome]:
    """Try rematerialisation and rows, one trial after another."""
    outcomes = []
    with progress.bar() as bar:
        task = bar.add_task("Trials", total=None)
        for request in requests:
            for outcome in planner.search(
                request,
                remats=tuple(_REMATS.value),
                most_rows=_MOST.value,
                workload=workload,
                kept=kept,
            ):
                outcomes.append(outcome)
                bar.console.print(
                    f"{report.label(outcome)}: remat={outcome.case.cfg.model.remat}"
                    f", {outcome.rows_per_chip:g} rows per chip: "
                    f"{outcome.compiled.status}"
                )
                bar.advance(task)
    return outcomes


def _compile_all(
    requests: Sequence[planner.Request],
    workload: estimate.Workload,
    kept: pathlib.Path | None,
) -> list[planner.Outcome]:
    """Compile every program of the requests, several at once."""
    work = [
        (request, case, shards)
        for request in requests
        for case, shards in planner.cases(request, workload)
    ]

    def plan(job: tuple[planner.Request, programs.Case, int]) -> planner.Outcome:
        request, case, shards = job
        return planner.plan(
            request.name,
            case,
            shards=shards,
            workload=workload,
            compiler=request.compiler,
            kept=kept,
        )

    return _all(plan, work)


def _print(
    outcomes: Sequence[planner.Outcome],
    requests: Sequence[planner.Request],
    workload: estimate.Workload,
    console: rich.console.Console,
) -> None:
    for table in (report.memory, report.traffic, report.speed):
        console.print(table(outcomes))
    console.print(report.SPEED_NOTE)
    by_name = {request.name: request for request in requests}
    held = {name: planner.held(request.cfg) for name, request in by_name.items()}
    console.print(report.trained(held))
    for request in by_name.values():
        shape = request.cfg.rows.short.build()
        console.print(
            report.layout(
                request.name, *planner.comparison(request.cfg, shape, workload)
            )
        )
    for outcome in outcomes:
        for text in (report.what_costs(outcome), report.words(outcome)):
            if text:
                console.print(text, markup=False)


def _workload() -> estimate.Workload:
    if len(_FILL.value) != 4:
        raise ValueError(f"--fill={','.join(_FILL.value)}: four numbers are expected")
    return estimate.Workload(_PAIR_PROMPT.value, *(float(x) for x in _FILL.value))


def _requests() -> list[planner.Request]:
    """What the flags ask for.

    Raises:
      ValueError: if they name no config, or an unknown slice.
    """
    if _CASES.value:
        return [request for line in _lines(_CASES.value) for request in [_case(line)]]
    wanted = list(_COMPARE.value)
    if wanted == ["configs"]:
        directory = pathlib.Path(__file__).parents[1] / "configs"
        found = [
            (str(file), load(str(file))) for file in sorted(directory.glob("*.py"))
        ]
        return [_request(name, cfg) for name, cfg in found if cfg.topology]
    if wanted and all(".py" in name for name in wanted):
        return [_request(name, load(name)) for name in wanted]
    if _CONFIG.value is None:
        raise ValueError("--config is missing; name a recipe, e.g. configs/….py")
    cfg: config_lib.RunConfig = _CONFIG.value
    if not wanted:
        return [_request(cfg.name, cfg)]
    return [_request(cfg.name, cfg, topology=slices.lookup(n).aot_name) for n in wanted]


def _with_compilers(
    requests: Sequence[planner.Request], console: rich.console.Console
) -> list[planner.Request]:
    """Requests, each with who compiles for its slice; says where no slice has that.

    Raises:
      ValueError: on a wrong ``--compiler``, an interpreter that cannot compile, and an
        unknown slice.
    """
    named = compilers.by_generation(_COMPILERS.value)
    asked = [slices.lookup(planner.topology_of(r)).generation for r in requests]
    if idle := sorted(set(named) - set(asked)):
        raise ValueError(f"--compiler of {', '.join(idle)}: no such slice is asked for")
    who = [named.get(generation) or compilers.of() for generation in asked]
    for compiler in dict.fromkeys(who):
        if text := compilers.unlike_lock(compiler, _LOCKS):
            console.print(text, markup=False, soft_wrap=True)
    return [
        dataclasses.replace(request, compiler=compiler)
        for request, compiler in zip(requests, who, strict=True)
    ]


def _request(
    name: str, cfg: config_lib.RunConfig, *, topology: str = "", num_slices: int = 0
) -> planner.Request:
    both = {"both": ("short", "long")}
    return planner.Request(
        name=pathlib.Path(name).stem,
        cfg=copy.deepcopy(cfg),
        topology=topology or _TOPOLOGY.value,
        slices=num_slices or _SLICES.value,
        shapes=both.get(_SHAPE.value, (_SHAPE.value,)),
        steps={"both": ("train", "reference")}.get(_STEP.value, (_STEP.value,)),
        rows_per_chip=_ROWS.value,
        quick=_QUICK.value,
    )


def _lines(path: str) -> list[list[str]]:
    text = pathlib.Path(path).read_text(encoding="utf-8")
    lines = [line.split("#")[0].split() for line in text.splitlines()]
    return [line for line in lines if line]


def _case(words: list[str]) -> planner.Request:
    """Request of one line of a file of cases.

    Raises:
      ValueError: on more words, unknown fields and values of another type.
    """
    changes = [word for word in words if "=" in word and ".py" not in word]
    rest = [word for word in words if word not in changes]
    if len(rest) > 3:
        raise ValueError(
            f"{' '.join(words)}: write CONFIG [TOPOLOGY [SLICES]] [FIELD=VALUE ...]"
        )
    topology = rest[1] if len(rest) > 1 else ""
    number = int(rest[2]) if len(rest) > 2 else 1
    cfg = planner.changed(load(rest[0]), changes)
    return _request(rest[0], cfg, topology=topology, num_slices=number)


def load(name: str) -> config_lib.RunConfig:
    """Config of a file; what follows a colon is its argument, as in ``--config``.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    file, _, argument = name.partition(":")
    if not pathlib.Path(file).is_file():
        raise FileNotFoundError(f"{file} does not exist; name a config file")
    spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


def _write(text: str, table: str, bars: list[plan_plot.Bar]) -> None:
    """Write the files that flags name: `text` is JSON, `table` Markdown."""
    prefix = _TABLE.value
    for path in [_JSON.value, f"{prefix}.json" if prefix else ""]:
        if path:
            pathlib.Path(path).write_text(text, encoding="utf-8")
    if prefix:
        pathlib.Path(f"{prefix}.md").write_text(table, encoding="utf-8")
        plan_plot.draw(bars, f"{prefix}.png", note=estimate.NOT_MEASURED)


if __name__ == "__main__":
    cli.run(main)
