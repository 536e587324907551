"""``report.html``: a page to look at items, which opens from a disk as from a server.

It loads nothing from elsewhere: its content policy admits its own scripts, by a nonce,
and pictures beside it. What models and data say reaches the page as JSON alone and is
shown as text. Large runs have their items in files of a few MB beside the page
(``report_items_000.js``, …), since a page opened from a disk may fetch nothing.
"""

from __future__ import annotations

import hashlib
import html
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mpo_jax.evals import page_parts, page_script, tables
from mpo_jax.evals.tables import Table
from mpo_jax.utils import atomic, web_page

CHUNK_BYTES = 4 << 20
"""Items that one file holds; fewer stand in the page itself."""

MAX_BYTES = 256 << 20
"""Items that a page shows, together; further ones are counted."""

_CHUNK = "_items_"


def write(
    path: pathlib.Path,
    entries: Iterable[Mapping[str, Any]],
    report: Mapping[str, Any],
    plots: Sequence[str],
    *,
    chunk_bytes: int = CHUNK_BYTES,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Write the page, and files of items beside it where there are many.

    Args:
      path: of the page; its folder holds the pictures.
      entries: of the items (``page_items``).
      report: as ``report.build`` makes it.
      plots: paths relative to the page.
      chunk_bytes, max_bytes: see above.
    """
    chunks, left_out, nonce = _chunks(entries, chunk_bytes, max_bytes)
    names = [f"{path.stem}{_CHUNK}{i:03d}.js" for i in range(len(chunks))]
    if len(chunks) == 1:
        # Of another type than a script's a browser only keeps it.
        data = f'<script type="application/json" id="items">[{chunks[0]}]</script>'
        names = []
    else:
        data = "".join(
            f'<script nonce="{nonce}" src="{name}"></script>' for name in names
        )
    for name, chunk in zip(names, chunks, strict=False):
        _write(path.with_name(name), f"addItems([{chunk}]);\n")
    for old in path.parent.glob(f"{path.stem}{_CHUNK}*.js"):
        if old.name not in names:  # of an earlier, longer report
            old.unlink()
    head = _head(report["title"], nonce)
    body = [_about(report, left_out), _plots(plots), page_parts.BODY]
    loader = f'<script nonce="{nonce}">{page_script.LOADER}</script>'
    script = f'<script nonce="{nonce}">{page_script.SCRIPT}</script>'
    _write(path, "\n".join([head, *body, loader, data, script, "</body></html>\n"]))


def _chunks(
    entries: Iterable[Mapping[str, Any]], chunk_bytes: int, max_bytes: int
) -> tuple[list[str], int, str]:
    """Items in chunks, how many were too many, and a nonce.

    The nonce is a hash of all items: the same run makes the same page, and no text in
    the page can name it.
    """
    digest = hashlib.sha256()
    chunks: list[list[str]] = [[]]
    size = total = left_out = 0
    for entry in entries:
        text = web_page.safe_json(entry)
        length = len(text.encode())
        if left_out or total + length > max_bytes:
            left_out += 1
            continue
        digest.update(text.encode())
        if size + length > chunk_bytes and chunks[-1]:
            chunks.append([])
            size = 0
        chunks[-1].append(text)
        size += length
        total += length
    return [",\n".join(chunk) for chunk in chunks], left_out, digest.hexdigest()[:32]


def _head(title: str, nonce: str) -> str:
    policy = (
        "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'; "
        f"script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'"
    )
    return web_page.head(title, page_parts.STYLE, policy)


def _about(report: Mapping[str, Any], left_out: int) -> str:
    parts = []
    if report["pin"] is not None:
        parts.append(f"<p class=note>pin {html.escape(report['pin']['id'])}</p>")
    shown = (tables.headline, tables.against_base, tables.selections)
    found = [one for one in (make(report) for make in shown) if one]
    parts += ["<div class=tables>", *map(table, found), "</div>"]
    for name, of in report["scores"].items():
        for subset in dict.fromkeys(e["subset"] for e in of.values() if e["subset"]):
            parts.append(f"<p><b>{html.escape(f'{name}: {subset}')}</b></p>")
        parts.append(f"<details><summary>{html.escape(name)}</summary>")
        notes = report["benchmarks"][name]["notes"]
        parts += [f"<p class=note>{html.escape(note)}</p>" for note in notes]
        parts.append(table(tables.modes(of)))
        beside = tables.rules(of)
        parts += [table(beside)] if beside else []
        parts += [table(tables.categories(of, axis)) for axis in tables.axes(of)]
        parts.append("</details>")
    if left_out:
        said = f"The page holds no more: {left_out:,} further items are in items.jsonl."
        parts.append(f"<p><b>{said}</b></p>")
    about = "".join(parts)
    return f"<details id=about open><summary>scores</summary>{about}</details>"


def _plots(plots: Sequence[str]) -> str:
    if not plots:
        return ""
    images = "".join(
        f'<img loading="lazy" src="{html.escape(p)}" alt="{html.escape(p)}">'
        for p in plots
    )
    return f"<details class=plots><summary>plots</summary>{images}</details>"


def table(found: Table) -> str:
    """A table in HTML; texts to the left, as they are."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=left' if i <= found.texts else ''}>"
            f"{html.escape(cell)}</{tag}>"
            for i, cell in enumerate(row)
        )

    rows = "".join(f"<tr>{cells('td', row)}</tr>" for row in found.rows)
    return f"<table><tr>{cells('th', found.head)}</tr>{rows}</table>"


def _write(path: pathlib.Path, text: str) -> None:
    def write_to(temporary: pathlib.Path) -> None:
        # Half a surrogate pair in a title: UTF-8 has no place for it.
        temporary.write_text(text, encoding="utf-8", errors="replace")

    atomic.write_whole(path, write_to)
