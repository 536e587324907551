"""The paper's claim in miniature: from drawings to a table with intervals.

  make miniature     (python scripts/miniature.py --config=configs/miniature.py …)
  make quickstart    (the same with --config=configs/miniature.py:quickstart)

For every seed it draws a world (questions about rectangles on a grid, with pictures),
trains a tiny InternVL from scratch by SFT on direct answers and chains of thought, asks
it new questions, pairs right answers with wrong ones and Dropout-NTP, trains it on the
same pairs by every method, and scores all models on held-out drawings, directly and
with chain of thought. Every step is what the project's commands do at full size.

With several workers each has one core of its own; WORKDIR/logs has what they say.
`--dry_run` says what would be made. Killed at any moment, the same command goes on.
WORKDIR/report.md has the table, the claims of the paper held against it, every seed,
and a figure; each model's own page of answers is
WORKDIR/seed_N/METHOD/evaluation/report.html. With --config.recipe.pairs.html (set for
the quickstart) WORKDIR/seed_N/round_1/pairs_page/report.html shows pairs with their
pictures. Any setting can be changed:
--config.seeds=7 --config.methods=mpo --config.learning_rates=1e-3.
"""

from __future__ import annotations

import pathlib
import time

import rich.table
from absl import flags
from ml_collections import config_flags

from mpo_jax.miniature import config as config_lib
from mpo_jax.miniature import methods, plan, pool, report, results, seed
from mpo_jax.prefs import quality_page
from mpo_jax.run import recipe
from mpo_jax.utils import cli, progress, runtime

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, e.g. configs/miniature.py", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything goes", required=True)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Say what would be made, and end")


def main(argv: list[str]) -> None:
    del argv
    began = time.perf_counter()
    cfg: config_lib.MiniatureConfig = _CONFIG.value
    cfg.validate()
    for line in plan.words(cfg):
        progress.stdout_console().print(line, markup=False)
    if _DRY_RUN.value:
        return
    workdir = cli.path(_WORKDIR.value, "workdir").absolute()
    runtime.initialise()
    pool.run(cfg, workdir)
    rows = results.read(cfg, workdir)
    report.write(cfg, workdir, rows)
    show(cfg, workdir, rows)
    progress.stdout_console().print(f"{time.perf_counter() - began:.0f} s in all.")


def show(
    cfg: config_lib.MiniatureConfig, workdir: pathlib.Path, rows: list[results.Row]
) -> None:
    """The table, and where the rest is."""
    found = report.table(cfg, rows)
    table = rich.table.Table()
    for number, column in enumerate(found.head):
        table.add_column(column, justify="right" if number > found.texts else "left")
    for row in found.rows:
        table.add_row(*row)
    console = progress.stdout_console()
    console.print(table)
    first = pool.folder_of(workdir, cfg.seeds[0])
    for name in (methods.START, *cfg.models()):
        page = first / name / seed.EVALUATION / "report.html"
        console.print(f"Answers of {cfg.title_of(name)}: {page}")
    if cfg.recipe.pairs.html:
        page = first / recipe.name_of(0, recipe.PAIRS_PAGE) / quality_page.NAME
        console.print(f"Pairs, side by side: {page}")
    console.print(f"Report: {workdir / report.MARKDOWN}")


if __name__ == "__main__":
    cli.run(main, config_lib.MiniatureConfig())
