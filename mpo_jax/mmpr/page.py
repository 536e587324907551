"""The page for a person: figures, what is left out, likeness, sample records.

One self-contained HTML file: text is escaped, images are small JPEG data URIs, and its
content policy admits one script, which filters what is shown, and forbids loading
anything. What it holds is bounded, whatever the data set is.
"""

from __future__ import annotations

import collections
import html
import pathlib
from collections.abc import Iterable, Sequence

from mpo_jax import ledger
from mpo_jax.mmpr import index as indexes
from mpo_jax.mmpr import likeness, page_records, shares, summary
from mpo_jax.utils import web_page

MAX_ENTRIES = 20
"""Left-out records that the page lists per reason."""

MAX_GROUPS = 20
"""Groups of records that are alike that the page lists per kind."""

MAX_DETAIL = 400
"""Characters of a ledger entry's detail."""

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
.tag { border: 1px solid #bbb; border-radius: 4px; margin-left: .4em;
  padding: 0 .35em; color: #555; }
nav { position: sticky; top: 0; background: #fff; border-bottom: 1px solid #ccc;
  padding: .6em 0; }
nav label { margin-right: 1.2em; } select { font: inherit; max-width: 24em; }
[hidden] { display: none; }
.entries td, .entries th { text-align: left; overflow-wrap: anywhere; }
summary { font-weight: bold; margin: .6em 0; cursor: pointer; }
"""


_SCRIPT = """
const source = document.getElementById("source");
const kind = document.getElementById("kind");
function show() {
  let count = 0;
  for (const part of document.querySelectorAll("[data-source]")) {
    const kinds = part.dataset.kinds;
    part.hidden = (source.value && part.dataset.source !== source.value)
      || (kind.value && kinds !== undefined && !kinds.split("|").includes(kind.value));
    if (!part.hidden && part.tagName === "ARTICLE") count += 1;
  }
  document.getElementById("count").textContent = count;
}
source.addEventListener("change", show);
kind.addEventListener("change", show);
show();
"""


def render_page(index: indexes.Index, *, sample: int, title: str, seed: int = 0) -> str:
    """Render the page.

    Args:
      index: the data set.
      sample: number of records to show, beside the first ones of each notable kind.
      title: heading.
      seed: of the choice of records.
    """
    alike = likeness.Alike(index)
    numbers = page_records.choose(index, alike, sample, seed=seed)
    kinds = likeness.kinds(index, numbers, alike)
    policy = web_page.embedded_only(_SCRIPT)
    parts = [web_page.head(title, _STYLE, policy), _filter(index, kinds)]
    parts += [_summary_table(summary.summarise(index))]
    parts += [_poor(shares.poor(shares.shares(index)))]
    parts += ["<h2>Lengths</h2><div class=histograms>"]
    parts += [_bars(name, bins) for name, bins in summary.histograms(index).items()]
    parts += ["</div>", _alike(index, alike), left_out(index.ledger_path)]
    parts += [f"<h2>Records ({len(numbers)} of {len(index)})</h2>"]
    pictures = page_records.Pictures(index.key["policy"]["max_image_pixels"])
    parts += [
        page_records.article(index, number, found, pictures)
        for number, found in zip(numbers, kinds, strict=True)
    ]
    return "\n".join(parts) + f"\n<script>{_SCRIPT}</script></body></html>\n"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    sources: Sequence[str] | None = None,
) -> str:
    """Text as a table of HTML.

    With `sources`, one per row, the filter by source concerns its rows.
    """
    kind = " class=entries" if sources else ""
    lines = [f"<table{kind}><tr>", *(f"<th>{html.escape(name)}</th>" for name in head)]
    lines.append("</tr>")
    for number, row in enumerate(rows):
        of = f' data-source="{html.escape(sources[number])}"' if sources else ""
        cells = (f"<td>{html.escape(str(cell))}</td>" for cell in row)
        lines += [f"<tr{of}>", *cells, "</tr>"]
    return "".join([*lines, "</table>"])


def _summary_table(summaries: Sequence[summary.SourceSummary]) -> str:
    note = "equal: records that repeat another one; pairs: per epoch, after repeat; "
    note += "prompt, chosen, rejected: mean tokens; tiles: mean"
    found = table(summary.SUMMARY_HEAD, summary.summary_rows(summaries))
    return f"{found}<p class=note>{note}</p>"


def _poor(found: Sequence[shares.Share]) -> str:
    if not found:
        return ""
    items = "".join(f"<li>{html.escape(str(share))}</li>" for share in found)
    return f"<h2>Sources that give little</h2><ul>{items}</ul>"


def _bars(title: str, bins: Sequence[tuple[str, int]]) -> str:
    most = max((count for _, count in bins), default=1)
    rows = "".join(
        f'<tr><td>{html.escape(label)}</td><td>{count}</td><td class="text">'
        f'<span class="bar" style="width:{160 * count / most:.0f}px"></span></td></tr>'
        for label, count in bins
    )
    return f"<div><h3>{html.escape(title)}</h3><table>{rows}</table></div>"


def _alike(index: indexes.Index, alike: likeness.Alike) -> str:
    parts = ["<h2>Alike, opposite, and with chat markers</h2>"]
    for kind, found in alike.groups.items():
        count = sum(len(group) for group in found)
        parts.append(f"<h3>{kind}: {len(found)} groups, {count} records</h3>")
        parts.append(f"<p class=note>{_meaning(kind)}</p>")
        lines = [likeness.where(index, group) for group in found[:MAX_GROUPS]]
        parts += [f"<div>{html.escape(line)}</div>" for line in lines]
        if len(found) > MAX_GROUPS:
            parts.append(f"<p class=note>and {len(found) - MAX_GROUPS} more</p>")
    marked = alike.notable[likeness.MARKED]
    parts.append(f"<h3>{likeness.MARKED}: {len(marked)} records</h3>")
    parts.append(f"<p class=note>{_meaning(likeness.MARKED)}</p>")
    if len(marked):
        parts.append(f"<div>{html.escape(likeness.where(index, marked))}</div>")
    return "".join(parts)


def _meaning(kind: str) -> str:
    return html.escape(likeness.MEANING[kind])


def left_out(path: pathlib.Path) -> str:
    """What a ledger names, by reason, with the first entries of each.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no ledger.
    """
    counts = collections.Counter[str]()
    first: dict[str, list[ledger.Entry]] = collections.defaultdict(list)
    for entry in ledger.read(path):  # may be millions: not held
        counts[entry.reason] += 1
        if len(first[entry.reason]) < MAX_ENTRIES:
            first[entry.reason].append(entry)
    if not counts:
        return "<h2>Left out</h2><p>Nothing.</p>"
    parts = ["<h2>Left out</h2>"]
    for reason, count in counts.most_common():
        what = html.escape(f"{reason}: {ledger.REASONS[reason]}")
        parts.append(f"<details><summary>{what} ({count})</summary>")
        group = first[reason]
        rows = [(e.source, f"{e.file}:{e.line}", _short(e.detail)) for e in group]
        names = [e.source for e in group]
        parts.append(table(("source", "where", "detail"), rows, sources=names))
        if count > len(group):
            parts.append(f"<p class=note>and {count - len(group)} more</p>")
        parts.append("</details>")
    return "".join(parts)


def _short(text: str) -> str:
    return text if len(text) <= MAX_DETAIL else text[:MAX_DETAIL] + " …"


def _filter(index: indexes.Index, kinds: Sequence[Sequence[str]]) -> str:
    """Choice of a source (of records and of what is left out) and a kind of records."""
    names = sorted({source.name for source in index.sources})
    known = sorted({kind for found in kinds for kind in found})
    return (
        f"<nav><label>source {_select('source', names)}</label><label>kind "
        f'{_select("kind", known)}</label><span id="count">{len(kinds)}</span> '
        "records shown</nav>"
    )


def _select(name: str, values: Sequence[str]) -> str:
    options = "".join(
        f'<option value="{html.escape(value)}">{html.escape(value)}</option>'
        for value in values
    )
    return f'<select id="{name}"><option value="">all</option>{options}</select>'
