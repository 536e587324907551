"""What a data set holds: figures per source, histograms, and a page for a person.

The page is one self-contained HTML file without scripts: text is escaped, images are
small JPEG data URIs, and its content policy forbids loading anything.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import difflib
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mpo_jax.data import images, ledger
from mpo_jax.data import index as indexes

MAX_TEXT = 6000
"""Characters of one text that the page shows; what is cut off is counted."""

MAX_IMAGES = 8
"""Images of one record that the page shows."""

MAX_ENTRIES = 20
"""Left-out records that the page lists per reason."""

_TOKEN_EDGES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


@dataclasses.dataclass(frozen=True)
class SourceSummary:
    """One row of the table; token figures are over the kept records.

    Attributes:
      name: of the source.
      declared: ``length`` in meta.json, None where it has none.
      lines, kept, left_out: see :class:`mpo_jax.data.index.SourceCounts`.
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
    repeats = [group[1:] for group in indexes.duplicates(index)]
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


def pick(index: indexes.Index, count: int, *, seed: int = 0) -> list[int]:
    """Choose up to `count` record numbers, the sources taking turns."""
    rng = np.random.default_rng(seed)
    queues = []
    for position in range(len(index.sources)):
        numbers = np.flatnonzero(index.source == position)
        chosen = rng.choice(numbers, min(count, len(numbers)), replace=False)
        queues.append(collections.deque(chosen.tolist()))
    picked: list[int] = []
    while len(picked) < count and any(queues):
        for queue in queues:
            if queue and len(picked) < count:
                picked.append(queue.popleft())
    return sorted(picked)


def mark_differences(first: str, second: str) -> tuple[str, str]:
    """Escape two texts for HTML; words that the other lacks stand in ``<mark>``."""
    left, right = _words(first), _words(second)
    # Long texts leave out their commonest words as anchors, else it takes seconds.
    long = len(left) + len(right) > 1000
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=long)
    sides: tuple[list[str], list[str]] = ([], [])
    for kind, i, j, k, m in matcher.get_opcodes():
        for side, words in zip(sides, (left[i:j], right[k:m]), strict=True):
            text = html.escape("".join(words))
            side.append(f"<mark>{text}</mark>" if kind != "equal" and text else text)
    return "".join(sides[0]), "".join(sides[1])


def _words(text: str) -> list[str]:
    """Words, runs of white space, and single other characters.

    Kana and Han characters count one by one: their text has no spaces.
    """
    return re.findall(r"[^\W\u3040-\u9fff]+|\s+|.", text, re.DOTALL)


def render_page(index: indexes.Index, *, sample: int, title: str, seed: int = 0) -> str:
    """Render the page.

    Args:
      index: the data set.
      sample: number of records to show.
      title: heading.
      seed: of the choice of records.
    """
    parts = [_head(title), _summary_table(summarise(index))]
    parts += ["<h2>Lengths</h2><div class=histograms>"]
    parts += [_bars(name, bins) for name, bins in histograms(index).items()]
    parts += ["</div>", _left_out(index.ledger())]
    numbers = pick(index, sample, seed=seed)
    parts += [f"<h2>Records ({len(numbers)} of {len(index)})</h2>"]
    parts += [_record(index, number) for number in numbers]
    return "\n".join(parts) + "\n</body></html>\n"


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 80em;
  padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { border: 1px solid #ccc; padding: .25em .6em; text-align: right; }
th:first-child, td:first-child, td.text { text-align: left; }
.histograms { display: flex; flex-wrap: wrap; gap: 2em; }
.bar { display: inline-block; height: .8em; background: #48a; }
article { border: 1px solid #bbb; border-radius: 6px; margin: 1.2em 0; padding: 1em; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1em; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.chosen { background: #f1faf1; padding: .6em; }
.rejected { background: #fdf3f2; padding: .6em; }
.chosen mark { background: #b6e3b6; } .rejected mark { background: #f4c0ba; }
img { max-height: 260px; margin-right: .5em; border: 1px solid #ddd; }
.note { color: #777; font-size: 90%; }
"""


def _head(title: str) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    safe = html.escape(title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{safe}</title><style>{_STYLE}</style></head><body><h1>{safe}</h1>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["<table><tr>", *(f"<th>{html.escape(name)}</th>" for name in head)]
    for row in rows:
        lines += ["</tr><tr>", *(f"<td>{html.escape(str(cell))}</td>" for cell in row)]
    return "".join([*lines, "</tr></table>"])


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


def _summary_table(summaries: Sequence[SourceSummary]) -> str:
    note = "equal: records that repeat another one; pairs: per epoch, after repeat; "
    note += "prompt, chosen, rejected: mean tokens; tiles: mean"
    table = _table(SUMMARY_HEAD, summary_rows(summaries))
    return f"{table}<p class=note>{note}</p>"


def _bars(title: str, bins: Sequence[tuple[str, int]]) -> str:
    most = max((count for _, count in bins), default=1)
    rows = "".join(
        f'<tr><td>{html.escape(label)}</td><td>{count}</td><td class="text">'
        f'<span class="bar" style="width:{160 * count / most:.0f}px"></span></td></tr>'
        for label, count in bins
    )
    return f"<div><h3>{html.escape(title)}</h3><table>{rows}</table></div>"


def _left_out(entries: Sequence[ledger.Entry]) -> str:
    if not entries:
        return "<h2>Left out</h2><p>Nothing.</p>"
    by_reason: dict[str, list[ledger.Entry]] = collections.defaultdict(list)
    for entry in entries:
        by_reason[entry.reason].append(entry)
    parts = ["<h2>Left out</h2>"]
    for reason, group in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        what = html.escape(f"{reason}: {ledger.REASONS[reason]}")
        parts.append(f"<h3>{what} ({len(group)})</h3>")
        rows = [(e.source, f"{e.file}:{e.line}", e.detail) for e in group[:MAX_ENTRIES]]
        parts.append(_table(("source", "where", "detail"), rows))
        if len(group) > MAX_ENTRIES:
            parts.append(f"<p class=note>and {len(group) - MAX_ENTRIES} more</p>")
    return "".join(parts)


def _record(index: indexes.Index, number: int) -> str:
    try:
        record = index.record(number)
    except ledger.BadRecord as bad:  # the file was changed: say so in its place
        return f"<article>record {number}: {html.escape(str(bad))}</article>"
    chosen, rejected = mark_differences(
        record.chosen[:MAX_TEXT], record.rejected[:MAX_TEXT]
    )
    where = html.escape(f"{record.source} · {record.file}:{record.line}")
    shown = "".join(_picture(path) for path in record.images[:MAX_IMAGES])
    if len(record.images) > MAX_IMAGES:
        shown += f"<span class=note>and {len(record.images) - MAX_IMAGES} more</span>"
    question = html.escape(record.question[:MAX_TEXT])
    sides = [
        f'<div class="{side} text"><b>{side}</b> <span class=note>'
        f"{getattr(index, side + '_tokens')[number]} tokens</span>\n{text}{_cut(full)}"
        "</div>"
        for side, text, full in (
            ("chosen", chosen, record.chosen),
            ("rejected", rejected, record.rejected),
        )
    ]
    return (
        f"<article><p class=note>record {number} · {where} · "
        f"{index.prompt_tokens[number]} prompt tokens, {index.tiles[number]} tiles</p>"
        f'<p>{shown}</p><div class="text">{question}{_cut(record.question)}</div>'
        f'<div class="sides">{"".join(sides)}</div></article>'
    )


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return ""
    return f'<span class="note"> … {len(text) - MAX_TEXT} more characters</span>'


def _picture(path: str) -> str:
    """A small JPEG of an image as a data URI, or the reason why there is none."""
    try:
        image = images.open_image(path, max_pixels=1 << 28)
    except ledger.BadRecord as bad:
        return f"<span class=note>{html.escape(str(bad))}</span>"
    size = f"{image.width}x{image.height}"
    image.thumbnail((360, 260))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    alt = html.escape(f"{path} ({size})", quote=True)
    return f'<img src="data:image/jpeg;base64,{data}" alt="{alt}" title="{alt}">'
