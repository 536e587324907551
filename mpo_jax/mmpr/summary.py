"""Figures of a data set: a table per source, histograms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mpo_jax.mmpr import index as indexes
from mpo_jax.mmpr import likeness

_TOKEN_EDGES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


@dataclasses.dataclass(frozen=True)
class SourceSummary:
    """One row of the table; token figures are over the kept records.

    Attributes:
      name: of the source.
      declared: ``length`` in meta.json, None where it has none.
      lines, kept, left_out: see :class:`mpo_jax.mmpr.index.SourceCounts`.
      repeat_time: as in meta.json.
      effective: pairs of one epoch, after ``repeat_time``.
      duplicates: kept records that repeat an earlier one of any source.
      prompt_tokens, chosen_tokens, rejected_tokens, tiles: means.
    """

    name: str
    declared: int | None
    lines: int
    kept: int
    left_out: Mapping[str, int]
    repeat_time: float
    effective: int
    duplicates: int
    prompt_tokens: float
    chosen_tokens: float
    rejected_tokens: float
    tiles: float


def summarise(index: indexes.Index) -> list[SourceSummary]:
    """Figures of every source, in order."""
    epoch = index.source[indexes.effective(index, seed=0, epoch=0)]
    effective = np.bincount(epoch, minlength=len(index.sources))
    repeats = [group[1:] for group in likeness.equal(index)]
    repeated = np.concatenate([np.zeros(0, np.int64), *repeats])
    duplicates = np.bincount(index.source[repeated], minlength=len(index.sources))
    kept = np.array([counts.kept for counts in index.counts])

    def means(column: np.ndarray) -> np.ndarray:
        sums = np.bincount(index.source, column, minlength=len(kept))
        return sums / np.maximum(kept, 1)

    columns = ("prompt_tokens", "chosen_tokens", "rejected_tokens", "tiles")
    mean = {name: means(getattr(index, name)) for name in columns}
    return [
        SourceSummary(
            name=source.name,
            declared=source.length,
            lines=counts.lines,
            kept=counts.kept,
            left_out=counts.left_out,
            repeat_time=source.repeat_time,
            effective=int(effective[position]),
            duplicates=int(duplicates[position]),
            **{name: float(mean[name][position]) for name in columns},
        )
        for position, (source, counts) in enumerate(
            zip(index.sources, index.counts, strict=True)
        )
    ]


def histograms(index: indexes.Index) -> dict[str, list[tuple[str, int]]]:
    """Histograms over all records: title to (label of the bin, number of records)."""
    tokens = {
        "prompt tokens": index.prompt_tokens,
        "chosen tokens": index.chosen_tokens,
        "rejected tokens": index.rejected_tokens,
    }
    result = {title: _token_bins(values) for title, values in tokens.items()}
    counts = np.bincount(index.tiles)
    result["tiles"] = [(str(n), int(count)) for n, count in enumerate(counts) if count]
    return result


def _token_bins(values: np.ndarray) -> list[tuple[str, int]]:
    edges = np.array(_TOKEN_EDGES)
    counts = np.bincount(np.digitize(values, edges) - 1, minlength=len(edges))
    labels = [f"{low}-{high - 1}" for low, high in zip(edges, edges[1:], strict=False)]
    bins = list(zip([*labels, f"{edges[-1]}+"], counts.tolist(), strict=True))
    used = [number for number, (_, count) in enumerate(bins) if count]
    return bins[used[0] : used[-1] + 1] if used else []


SUMMARY_HEAD = (
    "source",
    "declared",
    "records",
    "kept",
    "left out",
    "equal",
    "repeat",
    "pairs",
    "prompt",
    "chosen",
    "rejected",
    "tiles",
)
"""Column titles of :func:`summary_rows`: `equal` counts records that repeat another,
`pairs` those of an epoch after `repeat`; the last four are means."""


def summary_rows(summaries: Sequence[SourceSummary]) -> list[list[str]]:
    """Cells of the table per source, and their totals."""
    rows = [
        [
            one.name,
            "" if one.declared is None else str(one.declared),
            str(one.lines),
            str(one.kept),
            str(sum(one.left_out.values())),
            str(one.duplicates),
            f"{one.repeat_time:g}",
            str(one.effective),
            f"{one.prompt_tokens:.0f}",
            f"{one.chosen_tokens:.0f}",
            f"{one.rejected_tokens:.0f}",
            f"{one.tiles:.1f}",
        ]
        for one in summaries
    ]
    total = ["total", "", *[""] * 10]
    for column in (2, 3, 4, 5, 7):
        total[column] = str(sum(int(row[column]) for row in rows))
    return [*rows, total]
