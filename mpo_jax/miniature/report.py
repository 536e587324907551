"""``report.md``, ``report.json`` and a figure: the table, the claims, the paper's."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from mpo_jax.evals import markdown
from mpo_jax.evals.tables import Table
from mpo_jax.generate import results as results_json
from mpo_jax.miniature import claims, methods, results, search
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
        f"{'Seeds' if several else 'Seed'} {seeds}; {cfg.world.held_out:,} held-out "
        f"questions{' in each' if several else ''}, no drawing of which was trained on."
        + (" Means over seeds with 95 % intervals (Student's t)." if several else ""),
        markdown.table(table(cfg, rows)),
        f"![accuracy]({FIGURE})",
    ]
    if cfg.search:
        parts.append(search.words(cfg, rows))
    if found:
        parts += ["## What the paper says", markdown.table(claims_table(found))]
    if several:
        parts += ["## Every seed", markdown.table(seeds_table(cfg, rows))]
    return "\n\n".join(parts) + "\n"


HEAD = (
    *("model", "learning rate", "CoT %", "direct %", "CoT − direct"),
    *("CoT sampled %", "no final answer %", "log-prob chosen", "rejected"),
    "paper: CoT / direct",
)


def table(cfg: MiniatureConfig, rows: Sequence[Row]) -> Table:
    """A row per model."""
    found, rates = [], {methods.START: cfg.start.optim.learning_rate}
    rates |= {model.name: model.learning_rate for model in cfg.models().values()}
    for name, (direct, cot) in _papers(cfg).items():
        cells = [
            results.summary(rows, name, what)
            for what in ("cot", "direct", "gap", "sampled", "unparsable")
            + ("chosen", "rejected")
        ]
        found.append(
            (
                cfg.title_of(name),
                f"{rates[name]:g}",
                *(NONE if cell is None else str(cell) for cell in cells),
                f"{cot} / {direct}",
            )
        )
    return Table(HEAD, found, texts=0)


def _papers(cfg: MiniatureConfig) -> dict[str, tuple[float, float]]:
    """The paper's direct and CoT accuracy of the start and of every model."""
    found = {methods.START: methods.START_PAPER}
    return found | {name: model.method.paper for name, model in cfg.models().items()}


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


def seeds_table(cfg: MiniatureConfig, rows: Sequence[Row]) -> Table:
    """A row per seed and model: none is left out."""
    return Table(
        ("model", "seed", "CoT %", "direct %", "CoT sampled %", "no final answer %"),
        [
            (
                cfg.title_of(row.name),
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
    papers = _papers(cfg)
    here: dict[str, dict[str, score_plots.Value]] = {"direct": {}, "cot": {}}
    paper: dict[str, dict[str, score_plots.Value]] = {"direct": {}, "cot": {}}
    for name, numbers in papers.items():
        title = cfg.title_of(name)
        for mode, number in zip(("direct", "cot"), numbers, strict=True):
            one = results.summary(rows, name, mode)
            assert one is not None  # every model has both
            here[mode][title] = score_plots.Value(one.value, one.low, one.high)
            paper[mode][title] = score_plots.Value(number)
    score_plots.plot_beside(
        {
            f"Drawn world, {len(cfg.seeds)} seeds": here,
            "Paper: InternVL2-8B on M3CoT": paper,
        },
        path,
        unit="accuracy, %",
    )
