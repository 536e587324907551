"""Score a model on benchmarks, asked directly and with chain of thought.

  python scripts/evaluate.py --config=configs/eval_paper.py --model=runs/8b \
      --workdir=runs/8b_eval --data=/data/benchmarks
  python scripts/evaluate.py --model=OpenGVLab/InternVL2-8B --workdir=runs/base_eval \
      --benchmarks=mathvista,pope --modes=cot --data=/data/benchmarks
  python scripts/evaluate.py --benchmarks=mathvision --protocol=official \
      --answers=outputs.jsonl --workdir=runs/theirs --data=/data/benchmarks

`--model` is what scripts/generate.py takes; `--endpoint` asks a server instead.
`--data` holds the files of a benchmark in DATA/<name> (or directly); docs/evaluation.md
says where each comes from. `--protocol` says whose prompts, limits and rules: `paper`
(InternVL's scripts), `vlmevalkit` or `official` (the authors of the benchmark); a
benchmark named `name:protocol` takes its own. Any field of the config can be set:
--config.n=8 --config.temperature=0.7.

`--answers` scores what any system said, without a model: lines of {"id", "answer"},
with "mode" ("direct" where absent), "benchmark" where several are scored and "sample"
where there are several answers to an item; ids are the benchmark's own.

The work directory gets report.md, report.html, report.json, plots, and items.jsonl
with every item, answer and grade; exports/ has the answers for VLMEvalKit and
lmms-eval. Where authors grade by a model (MM-Vet, LLaVA-Bench, MMHal, MathVista's
extraction), --judge_endpoint and --judge_model do so, beside a rule. Killed at any
moment, the same command goes on, on any number of processes (started as
scripts/train.py). `--base=WORKDIR` compares with the evaluation of another model, item
by item.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from typing import Any

import rich.table
from absl import flags
from ml_collections import config_flags

from mpo_jax import config as config_lib
from mpo_jax.evals import report, report_run
from mpo_jax.generate import endpoint, requests, speaker, text_endpoint
from mpo_jax.run import (
    addresses,
    answerer,
    answering,
    eval_judging,
    eval_report,
    eval_tasks,
    evaluating,
)
from mpo_jax.utils import cli, mirror, progress, runtime
from mpo_jax.verify import verifier

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, e.g. configs/eval_paper.py", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go", required=True)
_MODEL = flags.DEFINE_string("model", "", "Model directory, workdir or hub id")
_DATA = flags.DEFINE_string("data", "", "Folder of the benchmarks' files")
_BENCHMARKS = flags.DEFINE_list("benchmarks", [], "Names, instead of the config's")
_MODES = flags.DEFINE_list("modes", [], "direct, cot, or both; instead of the config's")
_PROTOCOL = flags.DEFINE_string("protocol", "", "Instead of the config's")
_LIMIT = flags.DEFINE_integer("limit", 0, "Items of each benchmark; 0 is the config's")
_N = flags.DEFINE_integer("n", 0, "Answers to each item; 0 is the config's")
_ANSWERS = flags.DEFINE_string("answers", "", "Score these answers; no model is asked")
_BASE = flags.DEFINE_string("base", "", "Workdir of an evaluation to compare with")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    "auto",
    answerer.DTYPES,
    "Of parameters and computation; auto is float32 on a CPU, else bfloat16",
)
_SLOTS = flags.DEFINE_integer(
    "slots", 0, "Answers at a time; 0 is as many as suit and fit", 0
)
_TENSOR = flags.DEFINE_integer(
    "tensor", 0, "Devices that share one copy of the model; 0 is as few as it fits", 0
)
_COMPILE_CACHE = flags.DEFINE_string(
    "compile_cache", runtime.PROGRAMS, "Where compiled programs are kept, or none"
)
_ENDPOINT = flags.DEFINE_string(
    "endpoint", "", "URL of an OpenAI-compatible server that answers instead"
)
_ENDPOINT_MODEL = flags.DEFINE_string(
    "endpoint_model", "", "Its name for the model, where it has several"
)
_CONCURRENCY = flags.DEFINE_integer(
    "concurrency", 16, "Requests to an endpoint at a time", 1
)
_PARITY = flags.DEFINE_bool(
    "check_parity", True, "Refuse an endpoint that reads other prompt tokens than ours"
)
_JUDGE = flags.DEFINE_string(
    "judge_endpoint", "", "URL of a server whose model grades where the authors' does"
)
_JUDGE_MODEL = flags.DEFINE_string(
    "judge_model", "", "Its name there, with its version; scores are called after it"
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print what would be asked, then stop before loading weights"
)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Processes that judge mathematics; 0 is one per core", 0
)


def configured() -> config_lib.EvaluationConfig:
    """The config with what the command line names instead."""
    cfg = _CONFIG.value if _CONFIG.value is not None else config_lib.EvaluationConfig()
    given = {
        "benchmarks": tuple(_BENCHMARKS.value),
        "modes": tuple(_MODES.value),
        "protocol": _PROTOCOL.value,
        "data": os.path.expanduser(_DATA.value),
        "limit": _LIMIT.value,
        "n": _N.value,
    }
    cfg = dataclasses.replace(cfg, **{k: v for k, v in given.items() if v})
    cfg.validate()
    if _JUDGE.value and not _JUDGE_MODEL.value:
        raise ValueError(
            "--judge_model is empty; name the model behind --judge_endpoint, with its "
            "version: scores are called after it"
        )
    base = cli.path(_BASE.value, "base")
    if _BASE.value and not (base / report_run.ITEMS).is_file():
        raise ValueError(
            f"--base={_BASE.value}: there is no {report_run.ITEMS} in it; name the "
            "--workdir of an evaluation that has ended"
        )
    return cfg


def asker() -> evaluating.Asker:
    """What answers: the endpoint's server, or the model on this process's devices."""
    if not _MODEL.value:
        raise ValueError("--model is empty; name a model, or score --answers=FILE")
    if _ENDPOINT.value:
        return ask_endpoint
    runtime.programs_cache(_COMPILE_CACHE.value)
    model = answerer.load(_MODEL.value, dtype=_DTYPE.value, tensor=_TENSOR.value)
    return functools.partial(ask_model, model)


def ask_model(
    model: answerer.Model,
    lines: answering.Lines,
    sampling: requests.Sampling,
    max_tiles: int,
) -> requests.Answerer:
    return answering.local_answerer(
        model.with_tiles(max_tiles),
        lines,
        sampling,
        slots=_SLOTS.value,
        max_prompt_tokens=0,
    )


def ask_endpoint(
    lines: answering.Lines, sampling: requests.Sampling, max_tiles: int
) -> requests.Answerer:
    del lines, sampling
    found, tokenizer = answerer.locate(_MODEL.value)
    return endpoint.Endpoint(
        _ENDPOINT.value,
        tokenizer=tokenizer,
        policy=speaker.prompt_policy(found.config(), max_tiles=max_tiles),
        model=_ENDPOINT_MODEL.value or None,
        concurrency=_CONCURRENCY.value,
        check_parity=_PARITY.value,
    )


def main(argv: list[str]) -> None:
    del argv
    cfg = configured()
    runtime.initialise()
    tasks = eval_tasks.tasks(cfg)
    if not _ANSWERS.value:
        show_plan(tasks, cfg)
    if _DRY_RUN.value:
        return
    with addresses.working(_WORKDIR.value) as workdir:
        evaluate(cfg, tasks, workdir)
        runtime.barrier("reports are written")


def evaluate(
    cfg: config_lib.EvaluationConfig,
    tasks: list[eval_tasks.Task],
    workdir: pathlib.Path,
) -> None:
    """Answers, grades and reports, into a directory of this host."""
    workers = _WORKERS.value or os.cpu_count() or 1
    with verifier.Verifier(workers=workers) as judged_by:
        if _ANSWERS.value:
            given = cli.path(_ANSWERS.value, "answers")
            name = given.stem
            outcome = None
            if runtime.is_main():  # there is nothing to share
                outcome = evaluating.answered_by_file(
                    tasks, cfg, workdir, given, judged_by.check
                )
        else:
            name = pathlib.PurePath(_MODEL.value.rstrip("/")).name
            outcome = evaluating.answered_by_model(
                tasks, cfg, workdir, asker(), judged_by.check
            )
        if outcome is not None and _JUDGE.value:
            judge = text_endpoint.TextEndpoint(
                _JUDGE.value,
                model=_JUDGE_MODEL.value,
                concurrency=_CONCURRENCY.value,
            )
            outcome = eval_judging.judged(tasks, outcome, judge, workdir)
        if outcome is not None:
            found = eval_report.write(
                name,
                workdir,
                cfg,
                tasks,
                outcome,
                scorer=judged_by.pins,
                check=judged_by.check,
                base=os.path.expanduser(_BASE.value),
            )
            show(found, workdir)


def show_plan(tasks: list[eval_tasks.Task], cfg: config_lib.EvaluationConfig) -> None:
    """What is asked, and how much may be said."""
    table = rich.table.Table(title="To be asked")
    for column in ("benchmark", "mode", "protocol", "judge"):
        table.add_column(column)
    for column in ("items", "of", "answers", "tiles", "tokens at most"):
        table.add_column(column, justify="right")
    total = 0
    for task in tasks:
        asks = [task.protocol.ask(item, task.mode) for item in task.items]
        tokens = [cfg.max_new_tokens or ask.max_new_tokens for ask in asks]
        tiles = {cfg.max_tiles or ask.max_tiles for ask in asks}
        total += cfg.n * sum(tokens)
        judge = task.protocol.judge
        table.add_row(
            *(task.benchmark.name, task.mode, task.protocol_name),
            judge.model if judge else "",
            *(str(len(task.items)), str(len(task.ids)), str(cfg.n * len(task.items))),
            *(", ".join(map(str, sorted(tiles))), f"{cfg.n * sum(tokens):,}"),
        )
    console = progress.console()
    console.print(table)
    console.print(
        f"At most {total:,} tokens, should every answer be as long as it may."
    )


_SHOWN_REPORTS = (report.MARKDOWN, report.PAGE)


def show(found: dict[str, Any], workdir: pathlib.Path) -> None:
    """The scores, and where the rest is."""
    table = rich.table.Table(title=found["title"])
    for number, column in enumerate(eval_report.COLUMNS):
        table.add_column(column, justify="left" if number < 3 else "right")
    for row in eval_report.table(found):
        table.add_row(*row)
    console = progress.stdout_console()
    console.print(table)
    places = [mirror.known_as(workdir / name) for name in _SHOWN_REPORTS]
    console.print(f"Reports: {', '.join(places)}")


if __name__ == "__main__":
    cli.run(main, config_lib.EvaluationConfig())
