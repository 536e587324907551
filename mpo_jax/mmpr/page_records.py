"""Sample records as HTML: which ones, their pictures, their answers side by side."""

from __future__ import annotations

import base64
import collections
import dataclasses
import difflib
import html
import io
import re

import numpy as np

from mpo_jax import ledger
from mpo_jax.inputs import images
from mpo_jax.mmpr import index as indexes
from mpo_jax.mmpr import likeness
from mpo_jax.mmpr.store import Read

MAX_RECORDS = 500
"""Records that a page shows at most."""

MAX_TEXT = 6000
"""Characters of one text that the page shows; what is cut off is counted."""

MAX_IMAGES = 8
"""Images of one record that the page shows."""

MAX_PICTURE_BYTES = 24 << 20
"""Pictures of one page, together; further ones are named only."""

PER_KIND = 6
"""Records of each notable kind that are shown beside the sample."""


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


def choose(
    index: indexes.Index, alike: likeness.Alike, count: int, *, seed: int = 0
) -> list[int]:
    """Record numbers of a page: a sample, and the first ones of every notable kind."""
    chosen = set(pick(index, min(count, MAX_RECORDS), seed=seed))
    for numbers in alike.notable.values():
        chosen |= set(numbers[: min(PER_KIND, count)].tolist())
    return sorted(chosen)


Part = tuple[bool, str]
"""Words of a text, and whether the other text lacks them."""


def mark_differences(first: str, second: str) -> tuple[str, str]:
    """Escape two texts for HTML; words that the other lacks stand in ``<mark>``."""
    left, right = (
        "".join(
            f"<mark>{html.escape(text)}</mark>" if differs else html.escape(text)
            for differs, text in parts
        )
        for parts in differences(first, second)
    )
    return left, right


def differences(first: str, second: str) -> tuple[list[Part], list[Part]]:
    """Two texts in parts that they share, in the same order, and that differ."""
    left, right = _words(first), _words(second)
    # Long texts leave out their commonest words as anchors, else it takes seconds.
    long = len(left) + len(right) > 1000
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=long)
    sides: tuple[list[Part], list[Part]] = ([], [])
    for kind, i, j, k, m in matcher.get_opcodes():
        for side, words in zip(sides, (left[i:j], right[k:m]), strict=True):
            if words:
                side.append((kind != "equal", "".join(words)))
    return sides


def _words(text: str) -> list[str]:
    """Words, runs of white space, and single other characters.

    Kana and Han characters count one by one: their text has no spaces.
    """
    return re.findall(r"[^\W\u3040-\u9fff]+|\s+|.", text, re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Attributes:
      data: as a data URI.
      size: of the image, such as ``640x480``.
    """

    data: str
    size: str


@dataclasses.dataclass
class Pictures:
    """Makes small JPEGs as data URIs until the page holds enough of them.

    Attributes:
      left: bytes that pictures may still take.
      max_pixels: see :func:`images.open_image`.
    """

    max_pixels: int
    left: int = MAX_PICTURE_BYTES

    def show(self, path: str, read: Read) -> str:
        """An image as HTML, or the reason why it is not shown."""
        found = self.picture(path, read)
        if isinstance(found, str):
            return f"<span class=note>{html.escape(found)}</span>"
        alt = html.escape(f"{path} ({found.size})", quote=True)
        return f'<img src="{found.data}" alt="{alt}" title="{alt}">'

    def picture(self, path: str, read: Read = images.read_file) -> Picture | str:
        """An image made small, or the reason why it is not shown."""
        if self.left <= 0:
            return f"{path}: the page is full"
        try:
            image = images.open_image(path, max_pixels=self.max_pixels, read=read)
        except ledger.BadRecord as bad:
            return str(bad)[:MAX_TEXT]
        size = f"{image.width}x{image.height}"
        image.thumbnail((360, 260))
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=80)
        data = base64.b64encode(stream.getvalue()).decode("ascii")
        self.left -= len(data)
        return Picture(f"data:image/jpeg;base64,{data}", size)


def article(
    index: indexes.Index, number: int, kinds: list[str], pictures: Pictures
) -> str:
    """One record as HTML.

    Args:
      kinds: what the page's filter finds it by.
    """
    source = index.sources[index.source[number]].name
    head = (
        f'<article data-source="{html.escape(source, quote=True)}" '
        f'data-kinds="{html.escape("|".join(kinds), quote=True)}">'
    )
    try:
        record, read = index.fetch(number)
    except ledger.BadRecord as bad:  # the file was changed: say so in its place
        return f"{head}record {number}: {html.escape(str(bad))}</article>"
    chosen, rejected = mark_differences(
        record.chosen[:MAX_TEXT], record.rejected[:MAX_TEXT]
    )
    where = html.escape(f"{record.source} · {record.file}:{record.line}")
    shown = "".join(pictures.show(path, read) for path in record.images[:MAX_IMAGES])
    if len(record.images) > MAX_IMAGES:
        shown += f"<span class=note>and {len(record.images) - MAX_IMAGES} more</span>"
    question = html.escape(record.question[:MAX_TEXT])
    tags = "".join(f"<span class=tag>{html.escape(kind)}</span>" for kind in kinds)
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
        f"{head}<p class=note>record {number} · {where} · "
        f"{index.prompt_tokens[number]} prompt tokens, {index.tiles[number]} tiles "
        f'{tags}</p><p>{shown}</p><div class="text">{question}{_cut(record.question)}'
        f'</div><div class="sides">{"".join(sides)}</div></article>'
    )


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return ""
    return f'<span class="note"> … {len(text) - MAX_TEXT} more characters</span>'
