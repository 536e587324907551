"""What the steps of a recipe do: each calls what its own command calls.

Every function works on all processes, resumes by itself, and returns JSON values for
the step's marker: counts, and hashes of what is built on.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mpo_jax import config, recipe_config
from mpo_jax.evals import report_run
from mpo_jax.generate import endpoint, requests, speaker
from mpo_jax.prefs import dropout_ntp, pair_files, pairs, quality_page
from mpo_jax.run import (
    answerer,
    answering,
    dropping,
    eval_report,
    eval_tasks,
    evaluating,
    joined_meta,
    line_files,
    pairing,
    parameters,
    recipe_questions,
    sampling,
    scoring,
    setup,
    stages,
    train,
)
from mpo_jax.train import reference
from mpo_jax.utils import metrics, runtime
from mpo_jax.verify import maths, verifier

Made = dict[str, Any]
DEALT, META = "dealt.jsonl", "meta.json"
MMPR, NTP = "mmpr", "ntp"


def free() -> None:
    """Give back what the last step held on the devices, compiled programs included."""
    gc.collect()
    jax.clear_caches()


def questions(cfg: recipe_config.RecipeConfig, folder: pathlib.Path) -> Made | None:
    """Join the questions and leave out what evaluations ask; on the first process."""
    if not runtime.is_main():
        return None
    files = recipe_questions.Files(cfg.questions.files, cfg.questions.root)
    against = [pathlib.Path(path) for path in cfg.overlap.against]
    if cfg.overlap.benchmarks:
        against += recipe_questions.write_items(cfg.evaluate, folder / "benchmarks")
    made: Made = {"joined": recipe_questions.join(files, folder)}
    joined, kept = folder / recipe_questions.JOINED, folder / recipe_questions.KEPT
    made["overlap"] = recipe_questions.leave_out(joined, files.images, folder, against)
    made |= {
        "questions": recipe_questions.total(kept),
        "sha256": line_files.digest(kept),
    }
    if cfg.ntp.file:
        place, given = folder / NTP, pathlib.Path(cfg.ntp.file)
        place.mkdir(exist_ok=True)
        found = recipe_questions.leave_out(given, ntp_root(cfg), place, against)
        kept = place / recipe_questions.KEPT
        made[NTP] = {"overlap": found, "questions": recipe_questions.total(kept)}
        made[NTP]["sha256"] = line_files.digest(kept)
    if not made["questions"]:
        raise ValueError(
            f"{joined}: no question is left (see {recipe_questions.OVERLAP} and "
            f"{recipe_questions.LEDGER} beside it); name others in questions.files"
        )
    return made


def ntp_root(cfg: recipe_config.RecipeConfig) -> str:
    """Absolute folder of the images of questions without truths."""
    return os.path.abspath(cfg.ntp.root or pathlib.Path(cfg.ntp.file).parent)


def rollouts(
    cfg: recipe_config.RecipeConfig,
    source: pathlib.Path,
    folder: pathlib.Path,
    *,
    model: str,
    turn: int,
) -> Made | None:
    """Sample answers to a round's questions.

    Args:
      source: folder of :func:`questions`.
      model: path or hub id.
      turn: of the round, from 0.

    Raises:
      ValueError: some requests failed for a reason that may pass.
    """
    given = cfg.questions
    if runtime.is_main():
        recipe_questions.deal(
            source / recipe_questions.KEPT,
            folder / DEALT,
            turn=turn,
            number=given.per_round,
            seed=given.seed,
        )
    runtime.barrier("questions are dealt")
    job = sampling.Job(
        str(folder / DEALT),
        recipe_questions.Files(given.files, given.root).images,
        cfg.sampling.formats,
        rollout_draws(cfg, turn),
    )
    asker = functools.partial(_ask_rollouts, cfg, model, job.sampling)
    if not sampling.sample(job, folder, asker):
        raise ValueError(f"{folder}: some answers are missing; start the same command")
    if not runtime.is_main():
        return None
    told = json.loads((folder / sampling.MANIFEST).read_text(encoding="utf-8"))
    return {
        "rollouts": told["rollouts"],
        "sha256": line_files.digest(folder / sampling.ROLLOUTS),
    }


def rollout_draws(cfg: recipe_config.RecipeConfig, turn: int) -> requests.Sampling:
    """How the answers of a round are drawn."""
    how = cfg.sampling
    return requests.Sampling(
        n=how.n,
        seed=how.seed + turn,
        max_new_tokens=how.max_new_tokens,
        temperature=how.temperature,
        top_p=how.top_p,
        top_k=how.top_k,
    )


def _ask_rollouts(
    cfg: recipe_config.RecipeConfig,
    model: str,
    draws: requests.Sampling,
    lines: answering.Lines,
) -> requests.Answerer:
    how = cfg.sampling
    if not how.endpoint:
        loaded = _load(cfg, model, how.max_tiles)
        return _ask(loaded, cfg.answering.slots, lines, draws)
    found, tokenizer = answerer.locate(model)
    return endpoint.Endpoint(
        how.endpoint,
        tokenizer=tokenizer,
        policy=speaker.prompt_policy(found.config(), max_tiles=how.max_tiles),
        model=how.endpoint_model or None,
        concurrency=how.concurrency,
        check_parity=True,
    )


def _load(
    cfg: recipe_config.RecipeConfig, model: str, max_tiles: int = 0
) -> answerer.Model:
    how = cfg.answering
    return answerer.load(model, dtype=how.dtype, tensor=how.tensor, max_tiles=max_tiles)


def _ask(
    model: answerer.Model,
    slots: int,
    lines: answering.Lines,
    draws: requests.Sampling,
) -> requests.Answerer:
    return answering.local_answerer(
        model, lines, draws, slots=slots, max_prompt_tokens=0
    )


def correctness(
    cfg: recipe_config.RecipeConfig, source: pathlib.Path, folder: pathlib.Path
) -> Made | None:
    """Judge a round's rollouts and pair right with wrong; on the first process."""
    if not runtime.is_main():
        return None
    output = folder / MMPR
    if not output.exists():  # it appears whole
        how = cfg.pairs
        workers = how.workers or min(os.cpu_count() or 1, maths.MAX_WORKERS)
        with verifier.Verifier(workers=workers) as judged_by:
            job = pairing.Job(
                [str(source / sampling.ROLLOUTS)],
                output,
                "",
                pairs.Rules(**rule_settings(how)),
                judged_by.pins,
            )
            pairing.build(job, pairing.judge_with(judged_by))
    told = json.loads((output / pair_files.MANIFEST).read_text(encoding="utf-8"))
    return {"pairs": told["pairs"], "sha256": _digest_all(output)}


def rule_settings(how: recipe_config.PairsConfig) -> dict[str, Any]:
    """What pairs depend on, as JSON values by name."""
    given = dataclasses.asdict(how)
    for name in ("workers", "html"):
        given.pop(name)
    return given


def _digest_all(folder: pathlib.Path) -> str:
    """Of meta.json and annotations."""
    found = hashlib.sha256()
    for path in (folder / META, *sorted((folder / "annotations").iterdir())):
        found.update(f"{path.name} {line_files.digest(path)}\n".encode())
    return found.hexdigest()


def continued(
    cfg: recipe_config.RecipeConfig,
    source: pathlib.Path,
    folder: pathlib.Path,
    *,
    model: str,
    turn: int,
) -> Made | None:
    """Make a round's Dropout-NTP pairs; arguments as :func:`rollouts`."""
    how = cfg.ntp
    if runtime.is_main():
        recipe_questions.deal(
            source / NTP / recipe_questions.KEPT,
            folder / DEALT,
            turn=turn,
            number=how.per_round,
            seed=cfg.questions.seed,
        )
    runtime.barrier("questions are dealt")
    loaded = _load(cfg, model, how.max_tiles)
    asker = functools.partial(_ask, loaded, cfg.answering.slots)
    made = dropping.make(ntp_task(cfg, folder, turn), loaded.tokenizer, asker)
    if made is None:
        return None
    return {"pairs": made["counts"]["pairs"], "sha256": _digest_all(folder)}


def ntp_task(
    cfg: recipe_config.RecipeConfig, folder: pathlib.Path, turn: int
) -> dropping.Task:
    """Dropout-NTP of one round; the source is called as MMPR calls such."""
    how = cfg.ntp
    image = "with_image" if how.keep_image else "wo_image"
    return dropping.Task(
        input=folder / DEALT,
        output=folder,
        root=ntp_root(cfg),
        name=f"{pathlib.Path(how.file).stem}_prefix_pair_sr{how.ratio}_{image}",
        variant=dropout_ntp.Variant(how.ratio, how.by, how.keep_image),
        sampling=requests.Sampling(
            seed=how.seed + turn,
            max_new_tokens=how.max_new_tokens,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
        ),
        max_tiles=how.max_tiles,
    )


def joined(
    cfg: recipe_config.RecipeConfig,
    made: Sequence[pathlib.Path],
    folder: pathlib.Path,
) -> Made | None:
    """Join the pairs of a round as one data set; on the first process.

    Args:
      made: folders of the correctness pairs and, where there are such, of Dropout-NTP.
    """
    if not runtime.is_main():
        return None
    tiles = (cfg.sampling.max_tiles, cfg.ntp.max_tiles)
    metas = [(place / META, most) for place, most in zip(made, tiles, strict=False)]
    found = joined_meta.join(metas, folder / META)
    return {"pairs": {name: entry["length"] for name, entry in found.items()}}


def shown(
    source: pathlib.Path, made: Sequence[pathlib.Path], folder: pathlib.Path
) -> Made | None:
    """Write a page of a round's pairs; on the first process.

    Args:
      source: folder of :func:`questions`; where evaluations were compared, the page
        says what was found.
      made: as of :func:`joined`.
    """
    if not runtime.is_main():
        return None
    report = source / recipe_questions.OVERLAP
    overlap = str(report) if report.is_file() else ""
    found = quality_page.write(made, folder / quality_page.NAME, overlap=overlap)
    return {"pairs": found.total}


def cached(cfg: config.RunConfig, folder: pathlib.Path) -> Made | None:
    """Index, plan and reference log-probs of a training, where it looks for them."""
    run = setup.setup(cfg, folder)
    index = stages.prepare_index(run, run.cfg.data.meta)
    plan = stages.make_plan(run, index)
    params = parameters.reference_params(run, run.cfg.reference.path)
    wanted = stages.planned_records(plan, stages.num_steps(run.cfg, plan))
    values = scoring.prepare_reference(
        scoring.reference_scorer(run, index, wanted),
        wanted,
        fingerprint=reference.fingerprint(params),
        params=lambda: params,
    )
    return {"records": int((~np.isnan(values).any(axis=1)).sum())}


def trained(cfg: config.RunConfig, folder: pathlib.Path) -> Made | None:
    """Train to the end; metrics of the first and the last line, and of held-out pairs.

    What takes time is left out: it would not be the same again.
    """
    result = train.train(cfg, folder)
    if not runtime.is_main():
        return None
    lines = [line for line in metrics.read(folder / "metrics.jsonl") if "loss" in line]
    return {
        "steps": lines[-1]["step"],
        "first": _values(lines[0]),
        "last": _values(lines[-1]),
        "before": result["before"] and _values(result["before"]),
        "after": result["after"] and _values(result["after"]),
    }


_LEFT_OUT = ("step", "time", "throughput", "ledger/", "eval/", "benchmarks/")
"""Beginnings of names that say nothing of the training, or of another moment of it."""


def _values(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in line.items()
        if not name.startswith(_LEFT_OUT)
    }


def evaluated(
    cfg: recipe_config.RecipeConfig,
    folder: pathlib.Path,
    *,
    model: str,
    name: str,
    base: pathlib.Path | None,
) -> Made | None:
    """Score a model on the benchmarks.

    Args:
      name: of the model, in tables.
      base: folder of the evaluation to compare with.
    """
    tasks = eval_tasks.tasks(cfg.evaluate)
    loaded = _load(cfg, model)

    def asker(
        lines: answering.Lines, draws: requests.Sampling, max_tiles: int
    ) -> requests.Answerer:
        return _ask(loaded.with_tiles(max_tiles), cfg.answering.slots, lines, draws)

    workers = cfg.pairs.workers or os.cpu_count() or 1
    with verifier.Verifier(workers=workers) as judged_by:
        outcome = evaluating.answered_by_model(
            tasks, cfg.evaluate, folder, asker, judged_by.check
        )
        if outcome is None:
            return None
        found = eval_report.write(
            name,
            folder,
            cfg.evaluate,
            tasks,
            outcome,
            scorer=judged_by.pins,
            check=judged_by.check,
            base="" if base is None else str(base),
        )
    scores = {
        benchmark: {mode: entry["score"] for mode, entry in of.items()}
        for benchmark, of in found["scores"].items()
    }
    return {"scores": scores, "sha256": line_files.digest(folder / report_run.ITEMS)}
