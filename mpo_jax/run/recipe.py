"""A recipe as steps: questions, then rounds of sampling, pairing, training, scoring.

::

    WORKDIR/
      recipe.json            the configuration
      report.md, .html, .json
      questions/             all questions, without what the benchmarks ask
      start/evaluation/      scores of the start
      round_1/rollouts/      answers to the round's questions
              pairs/, ntp/   right against wrong; continued without the image
              data/          both as one meta.json
              pairs_page/    both for a person, where pairs.html asks for it
              reference/     index, plan and reference log-probs
              train/         the training's work directory
              evaluation/    scores of the trained model, against the start's
      round_2/ ...           from round 1's model
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from mpo_jax import config, fields, recipe_config
from mpo_jax.convert import files, hub
from mpo_jax.generate import results
from mpo_jax.prefs import asking
from mpo_jax.run import line_files, recipe_report, recipe_stages, steps
from mpo_jax.utils import progress, remote, runtime

CONFIG, LOCK = "recipe.json", "recipe.lock"
QUESTIONS, START = "questions", "start"
ROLLOUTS, PAIRS, NTP, DATA = "rollouts", "pairs", "ntp", "data"
PAIRS_PAGE = "pairs_page"
REFERENCE, TRAIN, EVALUATION = "reference", "train", "evaluation"

_HOW_ONLY = (
    *("name", "topology", "compile_cache", "log.", "mesh.", "checkpoint.", "eval."),
    *("hosts.", "data.retry_seconds"),
    *("data.index_workers", "data.workers", "data.threads", "data.prefetch"),
    *("model.path", "data.meta", "data.cache_dir"),
)
"""Fields of a training that change how it runs, or that the recipe fills in."""
_OF_REFERENCE = ("mode", "seed", "model.", "data.", "rows.", "reference.")
_OF_PLAN = ("optim.epochs", "optim.max_steps", "optim.accumulation")


def run(cfg: recipe_config.RecipeConfig, workdir: pathlib.Path) -> dict[str, Any]:
    """Make all that is missing and report; on every process.

    Args:
      cfg: valid and located.

    Returns:
      What ``report.json`` holds.

    Raises:
      ValueError: as ``steps.run_steps``, and from any step, naming what to do.
    """
    runtime.compilation_cache(_compile_cache(cfg, workdir))
    wanted = recipe_steps(cfg, workdir)
    marks = steps.run_steps(wanted, workdir / LOCK)
    found: dict[str, Any] = {}
    if runtime.is_main():
        results.write_json(workdir / CONFIG, dataclasses.asdict(cfg))
        found = recipe_report.write(cfg, workdir, marks)
        progress.console().print(f"Report: {workdir / recipe_report.PAGE}")
    runtime.barrier("the report is written")
    return found


def _compile_cache(
    cfg: recipe_config.RecipeConfig, workdir: pathlib.Path
) -> pathlib.Path | None:
    """Where compiled programs of all steps are kept."""
    name = cfg.train.compile_cache
    if name == "none":
        return None
    return pathlib.Path(name) if name else workdir / "compile_cache"


def name_of(turn: int, what: str) -> str:
    """Name of a step of a round, from 0: ``round_1/pairs``; its folder, too."""
    return f"round_{turn + 1}/{what}"


def recipe_steps(
    cfg: recipe_config.RecipeConfig, workdir: pathlib.Path
) -> list[steps.Step]:
    """All steps in order; nothing is read but names, sizes and hashes of inputs.

    Raises:
      OSError: a file of questions is missing.
      ValueError: a format does not exist.
    """
    asking.check_formats(cfg.sampling.formats)
    made = _Recipe(cfg, workdir)
    made.questions()
    if cfg.evaluates:
        made.evaluation(None)
    for turn in range(cfg.rounds):
        made.round(turn)
    return made.steps


class _Recipe:
    """Collects the steps."""

    def __init__(self, cfg: recipe_config.RecipeConfig, workdir: pathlib.Path):
        self.cfg, self.workdir = cfg, workdir
        self.steps: list[steps.Step] = []
        self._start = {"model": cfg.model, "weights": _weights(cfg.model)}
        self._answering = {"dtype": cfg.answering.dtype}

    def add(
        self,
        name: str,
        settings: Mapping[str, Any],
        make: Callable[..., Any],
        *after: str,
    ) -> None:
        def fresh() -> Any:
            try:
                return make(folder=folder)
            finally:
                recipe_stages.free()

        folder = self.workdir / name
        self.steps.append(steps.Step(name, folder, settings, fresh, after))

    def questions(self) -> None:
        cfg = self.cfg
        given = [cfg.questions.files, cfg.overlap.against]
        settings: dict[str, Any] = {
            "files": _digests(given[0]),
            "root": cfg.questions.root,
            "against": _digests(given[1]),
            "overlap_with": [],
            "ntp": _digests([cfg.ntp.file] if cfg.ntp.file else []),
            "ntp_root": cfg.ntp.root,
        }
        if cfg.overlap.benchmarks:
            settings["overlap_with"] = list(cfg.evaluate.benchmarks)
            settings["benchmarks"] = cfg.evaluate.data
        self.add(QUESTIONS, settings, functools.partial(recipe_stages.questions, cfg))

    def round(self, turn: int) -> None:
        named = functools.partial(name_of, turn)
        self._rollouts(turn)
        self._pairs(turn)
        made = [named(PAIRS)]
        if self.cfg.ntp.file:
            self._ntp(turn)
            made.append(named(NTP))
        folders = [self.workdir / made[0] / recipe_stages.MMPR]
        folders += [self.workdir / name for name in made[1:]]
        tiles = {"max_tiles": self.cfg.sampling.max_tiles}
        join = functools.partial(recipe_stages.joined, self.cfg, folders)
        self.add(named(DATA), tiles, join, *made)
        if self.cfg.pairs.html:
            source = self.workdir / QUESTIONS
            show = functools.partial(recipe_stages.shown, source, folders)
            self.add(named(PAIRS_PAGE), {}, show, QUESTIONS, *made)
        self._training(turn)
        last = turn + 1 == self.cfg.rounds
        if self.cfg.evaluate.when == recipe_config.ALL or (last and self.cfg.evaluates):
            self.evaluation(turn)

    def _rollouts(self, turn: int) -> None:
        how = dataclasses.asdict(self.cfg.sampling)
        asked = how.pop("endpoint")
        how.pop("concurrency")
        how["seed"] += turn
        settings = {
            "sampling": how | {"by": "an endpoint" if asked else "this process"},
            "per_round": self.cfg.questions.per_round,
            "order": self.cfg.questions.seed,
            "answering": self._answering,
            "start": self._begun(turn),
        }
        make = functools.partial(
            recipe_stages.rollouts,
            self.cfg,
            self.workdir / QUESTIONS,
            model=self.model(turn),
            turn=turn,
        )
        after = (QUESTIONS, *self._before(turn))
        self.add(name_of(turn, ROLLOUTS), settings, make, *after)

    def _pairs(self, turn: int) -> None:
        rules = recipe_stages.rule_settings(self.cfg.pairs)
        source = name_of(turn, ROLLOUTS)
        make = functools.partial(
            recipe_stages.correctness, self.cfg, self.workdir / source
        )
        self.add(name_of(turn, PAIRS), {"pairs": rules}, make, source)

    def _ntp(self, turn: int) -> None:
        how = dataclasses.asdict(self.cfg.ntp)
        how["seed"] += turn
        how["file"] = pathlib.Path(self.cfg.ntp.file).name
        settings = {
            "ntp": how,
            "order": self.cfg.questions.seed,
            "answering": self._answering,
            "start": self._begun(turn),
        }
        make = functools.partial(
            recipe_stages.continued,
            self.cfg,
            self.workdir / QUESTIONS,
            model=self.model(turn),
            turn=turn,
        )
        after = (QUESTIONS, *self._before(turn))
        self.add(name_of(turn, NTP), settings, make, *after)

    def _training(self, turn: int) -> None:
        cfg = training(self.cfg, self.workdir, turn)
        flat = training_settings(cfg)
        start = {"start": self._begun(turn)}
        after = [name_of(turn, DATA), *self._before(turn)]
        if caches(cfg):
            of_reference = {
                name: value
                for name, value in flat.items()
                if name.startswith(_OF_REFERENCE) or name in _OF_PLAN
            }
            make = functools.partial(recipe_stages.cached, cfg)
            name = name_of(turn, REFERENCE)
            self.add(name, {"train": of_reference} | start, make, *after)
            after.append(name)
        make = functools.partial(recipe_stages.trained, cfg)
        self.add(name_of(turn, TRAIN), {"train": flat} | start, make, *after)

    def evaluation(self, turn: int | None) -> None:
        """Of the start (None), or of a round's model."""
        given = dataclasses.asdict(self.cfg.evaluate)
        given.pop("when")
        first = f"{START}/{EVALUATION}"
        after = [] if turn is None else [name_of(turn, TRAIN), first]
        settings = {"evaluate": given, "answering": self._answering}
        if turn is None:
            settings["start"] = self._start
        make = functools.partial(
            recipe_stages.evaluated,
            self.cfg,
            model=self.cfg.model if turn is None else self.model(turn + 1),
            name=START if turn is None else f"round {turn + 1}",
            base=None if turn is None else self.workdir / first,
        )
        name = first if turn is None else name_of(turn, EVALUATION)
        self.add(name, settings, make, *after)

    def model(self, turn: int) -> str:
        """What a round starts from."""
        return model_of(self.cfg, self.workdir, turn)

    def _begun(self, turn: int) -> dict[str, Any]:
        """The start of round 1; a later round's stands in what it builds on."""
        return {} if turn else self._start

    def _before(self, turn: int) -> tuple[str, ...]:
        return (name_of(turn - 1, TRAIN),) if turn else ()


def model_of(cfg: recipe_config.RecipeConfig, workdir: pathlib.Path, turn: int) -> str:
    """What a round, from 0, starts from."""
    return str(workdir / name_of(turn - 1, TRAIN)) if turn else cfg.model


def training(
    cfg: recipe_config.RecipeConfig, workdir: pathlib.Path, turn: int
) -> config.RunConfig:
    """The training of a round, filled in.

    The reference is the model that the round starts from, as in iterated DPO.
    """
    found = copy.deepcopy(cfg.train)
    found.name = f"{cfg.name}, round {turn + 1}"
    found.model.path = model_of(cfg, workdir, turn)
    found.data.meta = str(workdir / name_of(turn, DATA) / recipe_stages.META)
    if caches(found):
        found.data.cache_dir = str(workdir / name_of(turn, REFERENCE))
    if not found.compile_cache:
        found.compile_cache = str(workdir / "compile_cache")
    return found


def training_settings(cfg: config.RunConfig) -> dict[str, Any]:
    """What the result of a training depends on, paths aside; by dotted names."""
    flat = fields.flat(dataclasses.asdict(cfg))
    return {k: v for k, v in flat.items() if not k.startswith(_HOW_ONLY)}


def caches(cfg: config.RunConfig) -> bool:
    """Does a training read stored reference log-probs?"""
    return cfg.reference.mode == "cache"


def _weights(model: str) -> Any:
    """Names, sizes and times of a model's files where it lies here; else None.

    A hub id is fetched when it is used.
    """
    if remote.is_remote(model) or not pathlib.Path(model).is_dir():
        return None
    return files.fingerprint(hub.locate(model).weights)


def _digests(paths: Any) -> dict[str, str]:
    """sha256 of files by their names."""
    return {
        pathlib.Path(path).name: line_files.digest(pathlib.Path(path)) for path in paths
    }
