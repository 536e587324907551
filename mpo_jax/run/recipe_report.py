"""The report of a recipe: rounds side by side, with links to the parts' own pages.

Everything is read from what the steps have written; it is made anew at every end.
"""

from __future__ import annotations

import html
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mpo_jax import recipe_config
from mpo_jax.evals import markdown, page, page_parts, report_run, tables
from mpo_jax.evals import report as eval_report
from mpo_jax.evals.tables import Table
from mpo_jax.prefs import pair_files, quality_page, seam
from mpo_jax.run import dropping, steps
from mpo_jax.utils import atomic

MARKDOWN, PAGE, JSON = "report.md", "report.html", "report.json"
START = "start/evaluation"

_METRICS = (
    ("loss", "loss"),
    ("rewards/accuracies", "preference accuracy"),
    ("rewards/margins", "reward margin"),
    ("logps/chosen", "chosen log-prob"),
    ("logps/rejected", "rejected log-prob"),
    ("loss/sigmoid", "DPO term"),
    ("loss/bco_pair", "BCO term"),
    ("loss/sft", "SFT term"),
    ("grad_norm", "gradient norm"),
)
"""Metrics of a training that the report shows, where there are such."""

_COUNTED = ("rollouts", "roles", "prompts", "answered", "pairs", "pairs_by_reason")
_PAIRS = (*_COUNTED, "accuracy", "filtered_by_accuracy", "mean_characters")


def write(
    cfg: recipe_config.RecipeConfig,
    workdir: pathlib.Path,
    marks: Mapping[str, steps.Mark],
) -> dict[str, Any]:
    """Write ``report.json``, ``report.md`` and ``report.html``.

    Args:
      marks: of all steps, done.

    Returns:
      What ``report.json`` holds.
    """
    found = build(cfg, workdir, marks)
    parts = list(_parts(found))
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, whole in (
        (JSON, text),
        (MARKDOWN, _markdown(found, parts)),
        (PAGE, _html(found, parts)),
    ):
        _write(workdir / name, whole)
    return found


def build(
    cfg: recipe_config.RecipeConfig,
    workdir: pathlib.Path,
    marks: Mapping[str, steps.Mark],
) -> dict[str, Any]:
    """What ``report.json`` holds; JSON values, none of them a time."""
    rounds = []
    for turn in range(cfg.rounds):
        place = f"round_{turn + 1}"
        trained = marks[f"{place}/train"].made or {}
        rounds.append(
            {
                "pairs": _pairs(workdir / place / "pairs" / "mmpr"),
                "ntp": _ntp(workdir / place / "ntp") if cfg.ntp.file else None,
                "page": f"{place}/pairs_page" in marks,
                "data": (marks[f"{place}/data"].made or {})["pairs"],
                "training": trained,
                "evaluation": _evaluation(workdir, f"{place}/evaluation", marks),
            }
        )
    return {
        "title": cfg.name,
        "model": cfg.model,
        "questions": marks["questions"].made,
        "start": _evaluation(workdir, START, marks),
        "rounds": rounds,
    }


def _pairs(folder: pathlib.Path) -> dict[str, Any]:
    told = _read(folder / pair_files.MANIFEST)
    return {name: told[name] for name in _PAIRS}


def _ntp(folder: pathlib.Path) -> dict[str, Any]:
    told = _read(folder / dropping.MANIFEST)
    return {"counts": told["counts"], "seam": told["seam"]}


def _evaluation(
    workdir: pathlib.Path, name: str, marks: Mapping[str, steps.Mark]
) -> dict[str, Any] | None:
    """Scores, and the comparison with the start; None where nothing was evaluated."""
    if name not in marks:
        return None
    told = _read(workdir / name / report_run.JSON)
    base = told["base"]
    return {
        "scores": told["scores"],
        "direct_vs_cot": told["direct_vs_cot"],
        "against_start": base and base["comparisons"],
    }


def _read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


Part = tuple[str, Sequence[Table], str]
"""Heading, tables, and a sentence on what they say."""


def _parts(found: Mapping[str, Any]) -> Iterator[Part]:
    models = _models(found)
    if models:
        yield (
            "Scores",
            [_scores(models), _unparsed(models)],
            "In brackets: interval of 95 %, a bootstrap over items. A difference to "
            "the start is paired: the same items, drawn together.",
        )
    said = [_overlap(found["questions"])]
    said += [
        f"Round {number}: {seam.words(one['ntp']['seam'])}."
        for number, one in enumerate(found["rounds"], 1)
        if one["ntp"]
    ]
    yield "Pairs", list(_pair_tables(found["rounds"])), " ".join(said)
    yield (
        "Training",
        list(_training_tables(found["rounds"])),
        "First and last line of the training's metrics: means over other pairs each, "
        "so that they compare loosely; held-out pairs, where there are such, compare.",
    )


Models = Sequence[tuple[str, Mapping[str, Any]]]
"""Names and evaluations, the start first."""


def _models(found: Mapping[str, Any]) -> Models:
    """Those that were evaluated."""
    models = [("start", found["start"])]
    models += [
        (f"round {number}", one["evaluation"])
        for number, one in enumerate(found["rounds"], 1)
    ]
    return [(name, of) for name, of in models if of]


def _asked(models: Models) -> Iterator[tuple[str, str, str]]:
    """Benchmark, mode and protocol of every score."""
    for benchmark, modes in models[0][1]["scores"].items():
        for mode, entry in modes.items():
            yield benchmark, mode, entry["protocol"]


def _scores(models: Models) -> Table:
    """A row for each benchmark and mode, a column for each model."""
    head = ["benchmark", "mode", "protocol"]
    for name, of in models:
        head += [name] + ([] if of["against_start"] is None else [f"{name} - start"])
    rows = []
    for benchmark, mode, protocol in _asked(models):
        row = [benchmark, mode, protocol]
        for _, of in models:
            row.append(tables.scored(of["scores"].get(benchmark, {}).get(mode)))
            if of["against_start"] is not None:
                gain = of["against_start"].get(benchmark, {}).get(mode)
                row.append(tables.gain(gain))
        rows.append(row)
    return Table(head, rows, 2)


def _unparsed(models: Models) -> Table:
    """Answers in which nothing was found, of how many."""
    rows = []
    for benchmark, mode, _ in _asked(models):
        row = [benchmark, mode]
        for _, of in models:
            entry = of["scores"][benchmark][mode]
            none = entry["unparsed"] + entry["empty"]
            row.append(f"{none:,} of {entry['total']:,}")
        rows.append(row)
    head = ["answers without a final one", "mode", *(name for name, _ in models)]
    return Table(head, rows, 1)


def _pair_tables(rounds: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    numbers = [f"round {number}" for number in range(1, len(rounds) + 1)]
    rows = []
    for name in _COUNTED:
        values = [one["pairs"][name] for one in rounds]
        if not isinstance(values[0], dict):
            rows.append([name, *(f"{value:,}" for value in values)])
            continue
        for what in dict.fromkeys(key for value in values for key in value):
            label = f"{name}: {what}".replace("_", " ")
            rows.append([label, *(f"{value.get(what, 0):,}" for value in values)])
    for one in ("pairs", "dropped"):
        rows += _ntp_rows(rounds, one)
    yield Table(["", *numbers], rows)
    bins = [
        [name, *(f"{one['pairs']['accuracy'][name]:,}" for one in rounds)]
        for name in rounds[0]["pairs"]["accuracy"]
    ]
    yield Table(["prompts by share of right answers", *numbers], bins)


def _ntp_rows(rounds: Sequence[Mapping[str, Any]], what: str) -> list[list[str]]:
    if rounds[0]["ntp"] is None:
        return []
    counts = [one["ntp"]["counts"][what] for one in rounds]
    numbers = [sum(c.values()) if isinstance(c, dict) else c for c in counts]
    return [[f"Dropout-NTP: {what}", *(f"{number:,}" for number in numbers)]]


def _overlap(questions: Mapping[str, Any]) -> str:
    told = questions["overlap"]
    kept = f"{questions['questions']:,} of {questions['joined']:,} questions are asked"
    if told is None:
        return f"{kept}; they were compared with no evaluation."
    return f"{kept}; left out since an evaluation asks them, too: {told['removed']:,}."


def _training_tables(rounds: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    for title, before, after in (
        ("training pairs", "first", "last"),
        ("held-out pairs", "before", "after"),
    ):
        values = [(one["training"][before], one["training"][after]) for one in rounds]
        if any(pair[0] is None for pair in values):
            continue
        head = [title]
        for number in range(1, len(rounds) + 1):
            head += [f"round {number}, {before}", after]
        rows = []
        for name, label in _METRICS:
            flat = [value.get(name) for pair in values for value in pair]
            if any(value is not None for value in flat):
                rows.append([label, *map(_plain, flat)])
        yield Table(head, rows)


def _plain(value: float | None) -> str:
    return tables.NONE if value is None else f"{value:.4f}"


def _links(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Titles of the parts' own pages, and where they lie."""
    if found["start"]:
        yield "Evaluation of the start", f"{START}/{eval_report.PAGE}"
    for number, one in enumerate(found["rounds"], 1):
        place = f"round_{number}"
        if one["page"]:
            page_of = f"{place}/pairs_page/{quality_page.NAME}"
            yield f"Round {number}: pairs, side by side", page_of
        yield f"Round {number}: counts of pairs", f"{place}/pairs/mmpr/manifest.json"
        if one["ntp"]:
            yield f"Round {number}: Dropout-NTP", f"{place}/ntp/{dropping.MANIFEST}"
        yield f"Round {number}: metrics", f"{place}/train/metrics.jsonl"
        if one["evaluation"]:
            page_of = f"{place}/evaluation/{eval_report.PAGE}"
            yield f"Round {number}: evaluation, item by item", page_of


def _markdown(found: Mapping[str, Any], parts: Sequence[Part]) -> str:
    lines = [f"# {found['title']}", f"Start: {found['model']}"]
    for heading, shown, said in parts:
        lines += [f"## {heading}", *(markdown.table(one) for one in shown), said]
    lines += ["## Parts"]
    lines.append("\n".join(f"- [{title}]({place})" for title, place in _links(found)))
    return "\n\n".join(lines) + "\n"


def _html(found: Mapping[str, Any], parts: Sequence[Part]) -> str:
    title = html.escape(found["title"])
    body = [f"<h1>{title}</h1><p>Start: {html.escape(found['model'])}</p>"]
    for heading, shown, said in parts:
        body.append(f"<h2>{html.escape(heading)}</h2><div class=tables>")
        body += [page.table(one) for one in shown]
        body.append(f"</div><p class=note>{html.escape(said)}</p>")
    links = "".join(
        f'<li><a href="{html.escape(place)}">{html.escape(name)}</a></li>'
        for name, place in _links(found)
    )
    body.append(f"<h2>Parts</h2><ul>{links}</ul>")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{title}</title><style>{page_parts.STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _write(path: pathlib.Path, text: str) -> None:
    def write_to(temporary: pathlib.Path) -> None:
        temporary.write_text(text, encoding="utf-8", errors="replace")

    atomic.write_whole(path, write_to)
