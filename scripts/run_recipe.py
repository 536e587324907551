"""Iterated MPO in one command: sample, pair, train and evaluate, for some rounds.

  python scripts/run_recipe.py --config=configs/iterated_mpo.py \
      --workdir=runs/iterated --dry_run
  python scripts/run_recipe.py --config=configs/iterated_mpo.py --workdir=runs/iterated

In each round a model answers the questions, right answers are paired with wrong ones
(and, where ntp.file is named, own answers with continuations without the image), a
training starts from that model with it as its reference, and the benchmarks score what
came out. The next round starts from there.

What it may cost is printed first; `--dry_run` ends there, and touches neither devices
nor files. Killed at any moment, the same command goes on where it stopped; what was
made with other settings is refused by the name of the field. Any field can be set:
--config.rounds=3 --config.sampling.n=16 --config.train.optim.learning_rate=1e-6.

WORKDIR/report.html has all rounds side by side. docs/recipe.md has the rest.
"""

from __future__ import annotations

import pathlib

import jax
from absl import flags
from ml_collections import config_flags

from mpo_jax import recipe_config
from mpo_jax.run import recipe, recipe_plan, steps
from mpo_jax.utils import cli, progress, runtime

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, e.g. configs/iterated_mpo.py", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where all goes", required=True)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan, and end")


def show_plan(cfg: recipe_config.RecipeConfig, workdir: pathlib.Path) -> None:
    """Every step with its bounds, and what is left to do."""
    wanted = recipe.recipe_steps(cfg, workdir)
    steps.check(wanted)
    found = recipe_plan.plan(cfg, wanted)
    console = progress.stdout_console()
    console.print(found.table())
    for line in found.words():
        console.print(line, markup=False)


def main(argv: list[str]) -> None:
    del argv
    given: recipe_config.RecipeConfig = _CONFIG.value
    given.validate()
    cfg = given.located()
    workdir = cli.path(_WORKDIR.value, "workdir").absolute()
    if _DRY_RUN.value:
        jax.config.update("jax_platforms", "cpu")  # messages open no device
        runtime.quiet()
        show_plan(cfg, workdir)
        return
    runtime.initialise()
    if runtime.is_main():
        show_plan(cfg, workdir)
    recipe.run(cfg, workdir)


if __name__ == "__main__":
    cli.run(main, recipe_config.RecipeConfig())
