"""Scores of evaluations as PNG files: by benchmark, by category; lengths of answers."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mpo_jax.utils import plots

MAX_LABEL = 48
"""Characters of a label; longer ones are cut."""

_BARS = 0.8
_BINS = 30
_COLOURS = {
    "direct": "#8aa6d6",
    "cot": "#1f5fbf",
    "base direct": "#d8d8d8",
    "base cot": "#9a9a9a",
}


@dataclasses.dataclass(frozen=True)
class Value:
    """A score to draw, in percent.

    Attributes:
      low, high: its interval; None where there is none.
    """

    score: float
    low: float | None = None
    high: float | None = None


def plot_scores(
    series: Mapping[str, Mapping[str, Value]],
    out_png: str | pathlib.Path,
    *,
    title: str,
) -> None:
    """Draw scores side by side, with their intervals.

    Args:
      series: by name (``direct``, ``cot``, ``base direct``, …), a value by label; a
        label that a series lacks stays empty.
      out_png: file to write; its folder is made if absent.
      title: over the figure.

    Raises:
      ValueError: there is nothing to draw.
    """
    labels = list(dict.fromkeys(label for of in series.values() for label in of))
    if not labels:
        raise ValueError(f"{out_png}: no scores to plot")
    flat = len(labels) > 8  # many labels are read as lines of text
    length = 1.4 + (0.12 + 0.16 * len(series)) * len(labels)
    size = (7.5, max(2.4, length)) if flat else (max(4.0, 2.0 + 1.9 * len(labels)), 4.0)
    figure = plots.figure_of(width=size[0], height=size[1])
    axes = figure.add_subplot()
    places = np.arange(len(labels))
    thick = _BARS / len(series)
    for number, (name, of) in enumerate(series.items()):
        there = [place for place in places if labels[place] in of]
        values = [of[labels[place]] for place in there]
        middle = np.array(there) + (number + 0.5) * thick - _BARS / 2
        colour = _COLOURS.get(name, plots.COLOURS[number % len(plots.COLOURS)])
        _bars(axes, middle, values, flat=flat, thick=thick, name=name, colour=colour)
    names = [_label(label) for label in labels]
    if flat:
        axes.set_yticks(places, names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("score, interval of 95 %")
    else:
        axes.set_xticks(places, names, fontsize=8)
        axes.set_ylabel("score, interval of 95 %")
        axes.margins(y=0.12)
    axes.set_title(_label(title), fontsize=10.5)
    plots.tidy(axes)
    axes.grid(False)
    axes.grid(True, axis="x" if flat else "y", color="0.9", linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    _save(figure, out_png)


def plot_lengths(
    lengths: Mapping[str, Mapping[str, Sequence[int]]],
    out_png: str | pathlib.Path,
    *,
    title: str,
    unit: str,
) -> None:
    """Draw how long right and wrong answers are.

    Args:
      lengths: by mode, then by outcome (``right``, ``wrong``, …): one per answer.
      unit: of the lengths.

    Raises:
      ValueError: there is nothing to draw.
    """
    filled = {mode: of for mode, of in lengths.items() if any(of.values())}
    if not filled:
        raise ValueError(f"{out_png}: no lengths to plot")
    figure = plots.figure_of(width=4.6 * len(filled), height=3.4)
    colours = {"right": "#2e8b57", "wrong": "#d1495b"}
    for number, (mode, of) in enumerate(filled.items(), start=1):
        axes = figure.add_subplot(1, len(filled), number)
        longest = max(max(values, default=0) for values in of.values())
        edges = np.linspace(0, longest + 1, _BINS + 1)
        for outcome, values in of.items():
            if values:
                axes.hist(
                    values,
                    bins=edges.tolist(),
                    histtype="step",
                    linewidth=1.6,
                    color=colours.get(outcome, "#777777"),
                    label=f"{outcome} ({len(values)}), mean {np.mean(values):.0f}",
                )
        axes.set_title(f"{_label(title)}, {mode}", fontsize=10.5)
        axes.set_xlabel(unit)
        axes.set_ylabel("answers")
        axes.legend(fontsize=8, frameon=False)
        plots.tidy(axes)
    _save(figure, out_png)


def plot_beside(
    panels: Mapping[str, Mapping[str, Mapping[str, Value]]],
    out_png: str | pathlib.Path,
    *,
    unit: str,
) -> None:
    """Draw scores of several studies side by side, on one scale each.

    Bars do not begin at zero: what is compared are a study's own bars.

    Args:
      panels: by title, then by series (``direct``, ``cot``), a value by label.
      unit: of the values.

    Raises:
      ValueError: there is nothing to draw.
    """
    if not panels or not all(panels.values()):
        raise ValueError(f"{out_png}: no scores to plot")
    labels = list(next(iter(next(iter(panels.values())).values())))
    figure = plots.figure_of(width=1.6 + 1.05 * len(labels) * len(panels), height=3.8)
    for number, (title, series) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), number)
        places, thick = np.arange(len(labels)), _BARS / len(series)
        low, high = np.inf, -np.inf
        for turn, (name, of) in enumerate(series.items()):
            values = [of[label] for label in labels]
            middle = places + (turn + 0.5) * thick - _BARS / 2
            colour = _COLOURS[name]
            legend = name if number == 1 else ""
            _bars(
                axes,
                middle,
                values,
                flat=False,
                thick=thick,
                name=legend,
                colour=colour,
            )
            for value in values:
                low = min(low, value.score if value.low is None else value.low)
                high = max(high, value.score if value.high is None else value.high)
        reach = max(high - low, 1.0)
        axes.set_ylim(max(0.0, low - 0.25 * reach), high + 0.1 * reach)
        axes.set_xticks(places, [_label(label) for label in labels], fontsize=8)
        axes.set_ylabel(unit)
        axes.set_title(title, fontsize=10.5)
        plots.tidy(axes)
        axes.grid(False)
        axes.grid(True, axis="y", color="0.9", linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    _save(figure, out_png)


def _bars(
    axes: Axes,
    middle: np.ndarray,
    values: Sequence[Value],
    *,
    flat: bool,
    thick: float,
    name: str,
    colour: str,
) -> None:
    """Bars of one series, with whiskers; upright ones with their values."""
    scores = np.array([value.score for value in values])
    draw = axes.barh if flat else axes.bar
    draw(middle, scores, thick * 0.92, color=colour, label=name)
    if not flat:
        for place, value in zip(middle, values, strict=True):
            axes.annotate(
                f"{value.score:.1f}",
                (place, value.score if value.high is None else value.high),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
            )
    ends = [
        (place, value.low, value.high)
        for place, value in zip(middle, values, strict=True)
        if value.low is not None and value.high is not None
    ]
    whisker = axes.hlines if flat else axes.vlines
    for place, low, high in ends:
        whisker(place, low, high, color="0.25", linewidth=1.0)


def _label(text: str) -> str:
    """Text of data as a label: one line, not taken for mathematics."""
    flat = " ".join(text.split()).encode("utf-8", "replace").decode("utf-8")
    if len(flat) > MAX_LABEL:
        flat = flat[:MAX_LABEL] + " …"
    return flat.replace("$", r"\$")


def _save(figure: Figure, out_png: str | pathlib.Path) -> None:
    path = pathlib.Path(out_png)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=plots.DPI)
