"""Plans as one PNG: memory of each program against what the chip grants, and speed."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 130


@dataclasses.dataclass(frozen=True)
class Bar:
    """One program.

    Attributes:
      label: at the bar.
      parts: name -> GiB per device, drawn one after the other.
      granted: GiB that the compiler hands out.
      rate: estimated pairs per second and chip, 0 where there is none.
    """

    label: str
    parts: dict[str, float]
    granted: float
    rate: float


def draw(bars: Sequence[Bar], path: str | pathlib.Path, *, note: str) -> None:
    """Write the figure.

    Args:
      note: shown under the rates; says what kind of figure they are.
    """
    figure = Figure(figsize=(11, 1.6 + 0.42 * len(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    rates = any(bar.rate for bar in bars)  # quick plans have none
    ratios = (3, 2) if rates else (1,)
    panels = figure.subplots(
        1, len(ratios), sharey=True, width_ratios=ratios, squeeze=False
    )[0]
    left = panels[0]
    places = range(len(bars))
    names = list(dict.fromkeys(name for bar in bars for name in bar.parts))
    starts = [0.0] * len(bars)
    for name in names:
        widths = [bar.parts.get(name, 0.0) for bar in bars]
        left.barh(places, widths, left=starts, label=name, height=0.6)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for place, bar in zip(places, bars, strict=True):
        left.plot([bar.granted] * 2, [place - 0.4, place + 0.4], color="black")
    left.set_yticks(list(places), [bar.label for bar in bars], fontsize=7)
    left.invert_yaxis()
    left.set_xlabel("GiB per device (black: granted)")
    left.legend(fontsize=7, loc="lower right")
    if rates:
        panels[1].barh(places, [bar.rate for bar in bars], height=0.6, color="#2e8b57")
        panels[1].set_xlabel(f"pairs per second and chip, estimate, {note}", fontsize=8)
    figure.savefig(path, dpi=DPI)
