"""Bars as SVG, for pages that hold everything themselves."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

COLOURS = ("#2e8b57", "#d1495b")
_WIDTH, _HEIGHT = 560, 170
_LEFT, _TOP, _BELOW, _BELOW_TURNED = 52, 12, 24, 46
_TURNED = 14
"""From so many labels on they stand on end."""


def bars(
    title: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[int]],
    *,
    shaded: tuple[int, int] | None = None,
) -> str:
    """Numbers side by side in each bin, with their scale.

    Args:
      title: heading.
      labels: of the bins.
      series: at most two, by name; a number for each bin.
      shaded: first and last bin of a range to be marked.
    """
    most = max((n for numbers in series.values() for n in numbers), default=0) or 1
    step = _WIDTH / max(len(labels), 1)
    parts = [_shade(shaded, step)] if shaded else []
    parts += [_line(most * share, share) for share in (0.0, 0.5, 1.0)]
    width = 0.8 * step / len(series)
    for place, (name, numbers) in enumerate(series.items()):
        for k, number in enumerate(numbers):
            tall = _HEIGHT * number / most
            x = _LEFT + k * step + 0.1 * step + place * width
            told = html.escape(f"{labels[k]}, {name}: {number:,}")
            parts.append(
                f'<rect x="{x:.1f}" y="{_TOP + _HEIGHT - tall:.1f}" '
                f'width="{width:.1f}" height="{tall:.1f}" fill="{COLOURS[place]}">'
                f"<title>{told}</title></rect>"
            )
    parts += [_label(text, k, step, len(labels)) for k, text in enumerate(labels)]
    key = "".join(
        f'<span class="key" style="background:{colour}"></span>{html.escape(name)} '
        for colour, name in zip(COLOURS, series, strict=False)
        if len(series) > 1
    )
    below = _BELOW if len(labels) < _TURNED else _BELOW_TURNED
    wide, tall = _LEFT + _WIDTH + 6, _TOP + _HEIGHT + below
    return (
        f"<figure><figcaption>{html.escape(title)} {key}</figcaption>"
        f'<svg viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(parts)}</svg></figure>'
    )


def _shade(shaded: tuple[int, int], step: float) -> str:
    first, last = shaded
    return (
        f'<rect x="{_LEFT + first * step:.1f}" y="{_TOP}" '
        f'width="{(last - first + 1) * step:.1f}" height="{_HEIGHT}" fill="#eef3fb"/>'
    )


def _line(number: float, share: float) -> str:
    y = _TOP + _HEIGHT * (1 - share)
    text = "" if number % 1 else f"{number:,.0f}"
    return (
        f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" '
        f'stroke="#ccc"/><text x="{_LEFT - 6}" y="{y + 4:.1f}" '
        f'text-anchor="end">{text}</text>'
    )


def _label(text: str, place: int, step: float, number: int) -> str:
    x, y = _LEFT + (place + 0.5) * step, _TOP + _HEIGHT + 16
    safe = html.escape(text)
    if number < _TURNED:
        return f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{safe}</text>'
    x, y = x + 4, y - 8
    turned = f'transform="rotate(-90 {x:.1f} {y})"'
    return f'<text x="{x:.1f}" y="{y}" text-anchor="end" {turned}>{safe}</text>'
