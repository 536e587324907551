"""Sections of a quality report: numbers as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mpo_jax.mmpr import page
from mpo_jax.prefs import overlap, pair_counts, pairs, quality_figures, seam
from mpo_jax.prefs.guesses import Lengths, Share, binned, quantile, steps
from mpo_jax.prefs.overlap_report import Report
from mpo_jax.prefs.pair_folder import CHOSEN, REJECTED, Folder
from mpo_jax.prefs.pair_quality import ALL, Quality
from mpo_jax.prefs.quality_examples import clipped

MAX_ROWS = 60
"""Of a table; further ones are counted."""
MAX_CELL = 300
USUAL = (0.2, 0.8)
"""Accuracies of prompts that are neither too hard nor too easy, as usually chosen."""
_NONE = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of bounded size; numbers get separators, texts are cut."""
    found = list(rows)
    shown = [[cell(value) for value in row] for row in found[:MAX_ROWS]]
    more = len(found) - len(shown)
    note = f"<p class=note>and {more:,} more rows</p>" if more else ""
    return page.table(head, shown) + note


def cell(value: Any) -> str:
    """A number or text as a cell shows it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return _NONE if value is None else clipped(str(value), MAX_CELL)


def note(text: str) -> str:
    return f"<p class=note>{html.escape(text)}</p>"


def share_words(share: Share) -> str:
    """A share with its interval, such as ``62.0% [55.1%, 68.4%]``."""
    if share.value is None:
        return _NONE
    interval = share.interval()
    told = f" [{interval[0]:.1%}, {interval[1]:.1%}]" if interval else ""
    return f"{share.value:.1%}{told}"


def is_biased(share: Share) -> bool:
    """Does the interval leave out one half?"""
    interval = share.interval()
    return interval is not None and not interval[0] <= 0.5 <= interval[1]


# ---- counts --------------------------------------------------------------------------


def by_source(found: Quality) -> str:
    """Pairs by source and reason."""
    reasons = found.by_reason()
    rows = [
        [source, *(of.get(reason, 0) for reason in reasons), sum(of.values())]
        for source, of in found.by_source().items()
    ]
    rows.append([ALL, *reasons.values(), found.total])
    return table(("source", *reasons, "pairs"), rows)


def left_out(folder: Folder) -> str:
    """What made no pair and why, by the manifest and the ledger."""
    told = folder.manifest
    if not told:
        return note("The folder has no manifest.json: what was left out is not known.")
    rows = []
    for what, why in (
        ("lines that could not be used", told.get("left_out")),
        ("lines that could not be used", _of(told, "counts").get("left_out")),
        ("lines that made no pair", _of(told, "counts").get("dropped")),
        ("two answers that made no pair", told.get("skipped")),
    ):
        if isinstance(why, dict):
            rows += [(f"{what}: {name}", n) for name, n in why.items() if n]
    undecided = _of(told, "roles").get("undecided")
    if undecided:
        rows.append(("answers on neither side: undecided", undecided))
    if told.get("filtered_by_accuracy"):
        rows.append(("prompts kept out by accuracy", told["filtered_by_accuracy"]))
    parts = [table(("left out", "number"), rows) if rows else note("Nothing.")]
    if folder.ledger is not None:
        parts += ["<details><summary>the lines by name</summary>"]
        parts += [page.left_out(folder.ledger), "</details>"]
    return "".join(parts)


def _of(told: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = told.get(name)
    return found if isinstance(found, dict) else {}


def prompts(folder: Folder) -> str:
    """How the answers to prompts turned out, and a histogram of accuracy."""
    told = folder.manifest
    answered = _of(told, "answered")
    if not answered:
        return note("Nobody judged these answers: there is no truth to hold them to.")
    names = pair_counts.ANSWERED
    rows = []
    for source, of in _of(told, "sources").items():
        numbers = [of.get(f"prompts, {name}", 0) for name in names]
        if sum(numbers):  # a manifest of an earlier version has them for all alone
            rows.append((source, *numbers, of.get("prompts", 0)))
    rows.append((ALL, *(answered.get(n) for n in names), told.get("prompts")))
    head = ("prompts", *(name.replace("_", " ") for name in names), "all")
    return table(head, rows) + _accuracy(told)


def _accuracy(told: Mapping[str, Any]) -> str:
    bins, counts = pair_counts.bins(), _of(told, "accuracy")
    low, high = (pair_counts.bin_of(limit) for limit in USUAL)
    shaded = bins.index(low), bins.index(high) - 1
    numbers = [int(counts.get(name, 0)) for name in bins]
    figure = quality_figures.bars(
        "prompts by share of right answers", bins, {"prompts": numbers}, shaded=shaded
    )
    within = sum(numbers[shaded[0] : shaded[1] + 1])
    rules = _of(told, "rules")
    used = f"{rules.get('min_accuracy')} to {rules.get('max_accuracy')}"
    return figure + note(
        f"Shaded: 0.2 to 0.8, where usually filtered, {within:,} of {sum(numbers):,} "
        f"prompts. Pairs here are of prompts from {used}. Undecided answers do not "
        "count."
    )


# ---- chosen against rejected ---------------------------------------------------------


def lengths(unit: str, found: Mapping[str, Lengths]) -> str:
    """Lengths by reason, and a histogram."""
    total = found[ALL]
    if not total.longer.pairs:
        return note(f"No pair tells the {unit} of both answers.")
    rows = []
    for reason, of in found.items():
        sides = (of.chosen, of.rejected)
        quantiles = [quantile(side, q) for side in sides for q in (0.1, 0.5, 0.9)]
        told = share_words(of.longer)
        rows.append((reason, of.longer.pairs, *quantiles, of.longer.ties, told))
    head = ["reason", "pairs"]
    head += [f"{s} {q}" for s in (CHOSEN, REJECTED) for q in ("10%", "median", "90%")]
    most = max((*total.chosen, *total.rejected))
    edges = steps(most)
    first = min(min(total.chosen), min(total.rejected))
    edges = [e for k, e in enumerate(edges) if edges[k + 1 : k + 2] > [first]] or edges
    labels = [f"{edge:,}" for edge in edges]
    figure = quality_figures.bars(
        f"{unit} (bins by their lower end)",
        labels,
        {CHOSEN: binned(total.chosen, edges), REJECTED: binned(total.rejected, edges)},
    )
    return table((*head, "equal", "chosen is longer"), rows) + figure


def answers(found: Quality) -> str:
    """The most frequent final answers, and what is guessed by them alone."""
    guessed = found.answers.guessed
    if not guessed.pairs:
        return note("No pair tells the final answers of both sides.")
    rows = [
        (answer, chosen, rejected, f"{chosen / (chosen + rejected):.0%}")
        for answer, chosen, rejected in found.answers.top()
    ]
    text = (
        "Whoever knows nothing but how often an answer is chosen in pairs of other "
        f"questions picks the chosen one in {share_words(guessed)} of "
        f"{guessed.pairs:,} pairs (50% is chance; answers not seen before are a coin). "
        f"{found.answers.without:,} pairs lack a final answer on a side."
    )
    head = ("final answer", CHOSEN, REJECTED, "chosen, share")
    return f"<p>{html.escape(text)}</p>" + table(head, rows)


def rules(found: Quality) -> str:
    """Verdicts and rules of both sides."""
    rows = {}
    for (side, verdict, rule), number in found.rules.items():
        if rule:
            name = f"{verdict}: {rule}" if verdict else rule
            rows.setdefault(name, {})[side] = number
    if not rows:
        return note("The pairs name no rules: nobody judged their answers.")
    ordered = sorted(rows.items(), key=lambda row: (-sum(row[1].values()), row[0]))
    return table(
        ("verdict and rule", CHOSEN, REJECTED),
        [(name, of.get(CHOSEN, 0), of.get(REJECTED, 0)) for name, of in ordered],
    )


# ---- checks --------------------------------------------------------------------------


def seam_words(folder: Folder) -> str | None:
    """The seam check of a folder; None where it has no seams."""
    if "seam" not in folder.manifest:
        return None
    found = folder.manifest["seam"]
    try:
        return seam.words(found)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder.path}/manifest.json: seam={found!r:.80} is no seam check; build "
            "the folder again"
        ) from error


def overlaps(report: Report | None) -> str:
    """Questions that stand in evaluations, too."""
    if report is None:
        return (
            "<p><b>Not checked.</b> Run scripts/find_overlap.py on the questions, and "
            "name its report with --overlap.</p>"
        )
    kept = "no file of kept questions was written"
    if report.kept_in is not None:
        kept = f"the others were written to {clipped(report.kept_in, MAX_CELL)}"
    text = (
        f"{report.removed:,} of {report.lines:,} questions overlap with an evaluation; "
        f"{kept}. {standing_words(report)}"
    )
    rows = [
        (source, evaluation, kind, n, overlap.MEANING.get(kind, ""))
        for source, evaluation, kind, n in report.counts
    ]
    if not rows:
        return f"<p>{html.escape(text)}</p>"
    head = ("source", "evaluation", "kind", "questions", "meaning")
    standing = set(report.standing)
    examples = [
        (e.kind, e.id, e.question, f"{e.evaluation} {e.with_id}", e.with_question)
        + ("yes" if e in standing else "no",)
        for e in report.examples
    ]
    names = ("kind", "id", "question", "evaluation", "its question", "in a pair")
    return (
        f"<p>{html.escape(text)}</p><div class=texts>{table(head, rows)}</div>"
        "<details><summary>examples</summary>"
        f"<div class=texts>{table(names, examples)}</div></details>"
    )


def standing_words(report: Report) -> str:
    """Whether what overlaps was left out, as far as the report's examples tell."""
    if not report.looked:
        return "There is none that pairs could hold."
    standing = len({(e.source, e.id) for e in report.standing})
    said = f"{standing:,} stand in pairs" if standing else "none stands in a pair"
    return f"Of {report.looked:,} examples that should be left out, {said}."


def rollouts(folders: Iterable[Folder]) -> tuple[int, int]:
    """Rollouts and prompts that the manifests count."""
    told = [folder.manifest for folder in folders]
    first, second = (
        sum(int(one.get(name) or 0) for one in told) for name in ("rollouts", "prompts")
    )
    return first, second


def roles(folder: Folder) -> str:
    """What the rollouts of a folder are good for."""
    counts = _of(folder.manifest, "roles")
    if not counts:
        return ""
    return table(("answers", *pairs.ROLES), [("number", *map(counts.get, pairs.ROLES))])
