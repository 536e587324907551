"""``report.md``, ``report.json`` and a figure: the table, the claims, the paper's."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from mpo_jax.evals import markdown
from mpo_jax.evals.tables import Table
from mpo_jax.generate import results as results_json
from mpo_jax.miniature import claims, methods, results
from mpo_jax.miniature.config import MiniatureConfig
from mpo_jax.miniature.results import Row
from mpo_jax.utils import atomic, score_plots

MARKDOWN, JSON, FIGURE = "report.md", "report.json", "accuracy.png"
NONE = "–"


def write(
    cfg: MiniatureConfig, workdir: pathlib.Path, rows: Sequence[Row]
) -> dict[str, Any]:
    """Write the report of a finished run.

    Returns:
      What ``report.json`` holds.
    """
    found = claims.findings(rows)
    told = {
        "config": dataclasses.asdict(cfg),
        "rows": [dataclasses.asdict(row) for row in rows],
        "claims": [
            {
                "claim": one.claim.text,
                "unit": one.claim.unit,
                **dataclasses.asdict(one.difference),
                "paper": one.claim.paper,
                "verdict": one.verdict,
            }
            for one in found
        ],
    }
    results_json.write_json(workdir / JSON, told)
    draw(cfg, rows, workdir / FIGURE)
    text = render(cfg, rows, found)
    atomic.write_whole(workdir / MARKDOWN, lambda path: _write(path, text))
    return told


def _write(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def render(
    cfg: MiniatureConfig, rows: Sequence[Row], found: Sequence[claims.Finding]
) -> str:
    """The report for people."""
    seeds = ", ".join(map(str, cfg.seeds))
    several = len(cfg.seeds) > 1
    parts = [
        f"# {cfg.name}",
        f"Seeds {seeds}; {cfg.world.held_out:,} held-out questions in each, no drawing "
        "of which was trained on. "
        + ("Means over seeds with 95 % intervals (Student's t)." if several else ""),
        markdown.table(table(cfg, rows)),
        f"![accuracy]({FIGURE})",
    ]
    if found:
        parts += ["## What the paper says", markdown.table(claims_table(found))]
    if several:
        parts += ["## Every seed", markdown.table(seeds_table(rows))]
    return "\n\n".join(parts) + "\n"


HEAD = (
    *("model", "learning rate", "CoT %", "direct %", "CoT − direct"),
    *("CoT sampled %", "no final answer %", "log-prob chosen", "rejected"),
    "paper: CoT / direct",
)


def table(cfg: MiniatureConfig, rows: Sequence[Row]) -> Table:
    """A row per model."""
    found = []
    for name in (methods.START, *cfg.methods):
        start = name == methods.START
        direct, cot = methods.START_PAPER if start else methods.METHODS[name].paper
        rate = cfg.start.optim.learning_rate if start else cfg.rate(name)
        cells = [
            results.summary(rows, name, what)
            for what in ("cot", "direct", "gap", "sampled", "unparsable")
            + ("chosen", "rejected")
        ]
        found.append(
            (
                methods.title_of(name),
                f"{rate:g}",
                *(NONE if cell is None else str(cell) for cell in cells),
                f"{cot} / {direct}",
            )
        )
    return Table(HEAD, found, texts=0)


def claims_table(found: Sequence[claims.Finding]) -> Table:
    """A row per claim."""
    return Table(
        ("claim", "verdict", "difference", "unit", "paper"),
        [
            (
                one.claim.text,
                one.verdict,
                str(one.difference),
                one.claim.unit,
                NONE if one.claim.paper is None else f"{one.claim.paper:.1f}",
            )
            for one in found
        ],
        texts=1,
    )


def seeds_table(rows: Sequence[Row]) -> Table:
    """A row per seed and model: none is left out."""
    return Table(
        ("model", "seed", "CoT %", "direct %", "CoT sampled %", "no final answer %"),
        [
            (
                methods.title_of(row.name),
                str(row.seed),
                *(f"{value:.1f}" for value in (row.cot, row.direct)),
                NONE if row.sampled is None else f"{row.sampled:.1f}",
                f"{row.unparsable:.1f}",
            )
            for row in rows
        ],
        texts=0,
    )


def draw(cfg: MiniatureConfig, rows: Sequence[Row], path: pathlib.Path) -> None:
    """CoT and direct accuracy of every model, here and in the paper."""
    names = (methods.START, *cfg.methods)
    titles = [methods.title_of(name) for name in names]
    papers = [
        methods.START_PAPER if name == methods.START else methods.METHODS[name].paper
        for name in names
    ]
    here = {}
    for mode in ("direct", "cot"):
        found = [results.summary(rows, name, mode) for name in names]
        here[mode] = {
            title: score_plots.Value(one.value, one.low, one.high)
            for title, one in zip(titles, found, strict=True)
            if one is not None
        }
    paper = {
        mode: {
            title: score_plots.Value(numbers[place])
            for title, numbers in zip(titles, papers, strict=True)
        }
        for place, mode in enumerate(("direct", "cot"))
    }
    score_plots.plot_beside(
        {
            f"Drawn world, {len(cfg.seeds)} seeds": here,
            "Paper: InternVL2-8B on M3CoT": paper,
        },
        path,
        unit="accuracy, %",
    )
