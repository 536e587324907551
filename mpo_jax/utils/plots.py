"""Curves from ``metrics.jsonl`` and before/after bars, as PNG files.

Figures are built as objects on the Agg canvas: no display, no global pyplot state, so
a training process may call this from any thread.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mpo_jax.utils import metrics

DPI = 130
COLOURS = (
    *("#1f5fbf", "#d1495b", "#2e8b57", "#e08e0b", "#7d4bb0"),
    *("#159aa0", "#8c564b", "#5b6770", "#c2418e", "#88931f"),
)

Series = tuple[np.ndarray, np.ndarray]
"""Steps, increasing, and the values at them; both float64."""


@dataclasses.dataclass(frozen=True)
class _Panel:
    """One set of axes.

    Attributes:
      title, unit: heading and label of the vertical axis.
      match: whether a metric of this name belongs here.
      zero_line: mark zero, where the sign matters.
      share: values lie in 0-1.
    """

    title: str
    unit: str
    match: Callable[[str], bool]
    zero_line: bool = False
    share: bool = False


def _named(*names: str) -> Callable[[str], bool]:
    """Match names, and everything below a name that ends in ``/``."""
    exact = {name for name in names if not name.endswith("/")}
    below = tuple(name for name in names if name.endswith("/"))
    return lambda name: name in exact or (bool(below) and name.startswith(below))


_REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins")
_LOGPS = ("logps/chosen", "logps/rejected")
_PER_TOKEN = ("logps/chosen_per_token", "logps/rejected_per_token")

_FIGURES: dict[str, tuple[_Panel, ...]] = {
    "loss": (
        _Panel("Total loss", "nats", _named("loss")),
        _Panel("Loss terms, unweighted", "nats", _named("loss/")),
    ),
    "rewards": (
        _Panel("Implicit rewards", "nats × beta", _named(*_REWARDS), zero_line=True),
        _Panel(
            "Pairs with chosen above rejected",
            "share of pairs",
            _named("rewards/accuracies"),
            share=True,
        ),
    ),
    "logps": (
        _Panel("Response log-probability", "nats per response", _named(*_LOGPS)),
        _Panel("Log-probability per token", "nats per token", _named(*_PER_TOKEN)),
        _Panel(
            "Pairs with chosen likelier per token",
            "share of pairs",
            _named("logps/accuracies"),
            share=True,
        ),
    ),
    "optimisation": (
        _Panel("Learning rate", "learning rate", _named("learning_rate")),
        _Panel(
            "Gradient norm before clipping",
            "L2 norm",
            _named("grad_norm", "grad_norm/"),
        ),
        _Panel(
            "BCO reward shift (delta)", "nats × beta", _named("delta"), zero_line=True
        ),
    ),
    "benchmarks": (_Panel("Benchmarks", "per cent", _named("benchmarks/")),),
    "throughput": (
        _Panel("Pairs per second", "1/s", _named("throughput/pairs_per_s")),
        _Panel("Tokens per second", "1/s", _named("throughput/tokens_per_s")),
        _Panel("Time per step", "s", _named("time/")),
        _Panel("True pairs in a batch", "pairs", _named("pairs")),
        _Panel(
            "Trained tokens in a batch",
            "tokens",
            _named("chosen_tokens", "rejected_tokens"),
        ),
        _Panel(
            "Fill of packed rows",
            "used / available",
            _named("fill", "fill/"),
            share=True,
        ),
    ),
}


def read_metrics(path: str | pathlib.Path) -> dict[str, Series]:
    """Series of a metrics file by metric name; ``step`` left out, ``time_s`` kept.

    Where a step occurs twice (held-out metrics have a line of their own, a resumed run
    may repeat one), the later value of a name counts. Fields that hold no number are
    not metrics.

    Raises:
      ValueError: as :func:`mpo_jax.utils.metrics.read`.
    """
    values: dict[str, dict[int, float]] = {}
    for line in metrics.read(path):
        for name, value in line.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "step" and is_number:
                values.setdefault(name, {})[line["step"]] = float(value)
    series = {}
    for name, points in values.items():
        steps = np.array(sorted(points), np.float64)
        series[name] = (steps, np.array([points[int(step)] for step in steps]))
    return series


def plot_metrics(
    metrics_jsonl: str | pathlib.Path, out_dir: str | pathlib.Path
) -> list[pathlib.Path]:
    """Draw every metric of a run.

    One PNG per subject (loss, rewards, logps, optimisation, benchmarks, throughput);
    held-out
    metrics (``eval/...``) go to ``eval.png``, all that is left to ``other.png``. A
    figure without data is not written.

    Args:
      metrics_jsonl: file as :func:`read_metrics` takes it.
      out_dir: folder, made if absent.

    Returns:
      Paths of the PNGs, in the order above.

    Raises:
      ValueError: as :func:`read_metrics`, or a file without any metric.
    """
    series = read_metrics(metrics_jsonl)
    series.pop("time_s", None)
    if not series:
        raise ValueError(f"{metrics_jsonl}: no metrics to plot")
    held_out = {n: s for n, s in series.items() if n.startswith("eval/")}
    training = {n: s for n, s in series.items() if n not in held_out}
    figures = dict(_FIGURES)
    covered = [panel.match for panels in _FIGURES.values() for panel in panels]
    others = [n for n in training if not any(match(n) for match in covered)]
    figures["other"] = tuple(_Panel(name, "", _named(name)) for name in others)
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for stem, panels in figures.items():
        paths += _draw(out_dir / f"{stem}.png", panels, training)
    # Held-out metrics have the names of the training ones: same panels, one figure.
    short = {name.removeprefix("eval/"): s for name, s in held_out.items()}
    panels = [panel for panels in _FIGURES.values() for panel in panels]
    left = [n for n in short if not any(panel.match(n) for panel in panels)]
    panels += [_Panel(name, "", _named(name)) for name in left]
    paths += _draw(out_dir / "eval.png", panels, short, heading="Held-out pairs")
    return paths


def plot_before_after(
    before: Mapping[str, float],
    after: Mapping[str, float],
    out_png: str | pathlib.Path,
) -> pathlib.Path:
    """Draw metrics before and after training side by side.

    Metrics of one unit share axes: those whose values all lie in 0-1 and whose name
    speaks of an accuracy, rate or share are drawn in per cent, rewards, losses and
    log-probabilities each on their own axes.

    Args:
      before, after: value by metric name.
      out_png: file to write; its folder is made if absent.

    Raises:
      ValueError: the two do not hold the same names, or hold none.
    """
    if not before or set(before) != set(after):
        odd = sorted(set(before) ^ set(after))
        raise ValueError(f"before and after must hold the same metrics; differ: {odd}")
    groups: dict[str, list[str]] = {}
    for name in before:
        groups.setdefault(_unit(name, before[name], after[name]), []).append(name)
    widths = [len(names) + 0.6 for names in groups.values()]
    figure = figure_of(width=max(4.0, 1.5 * sum(widths)), height=4.2)
    grid = figure.add_gridspec(1, len(groups), width_ratios=widths)
    for column, (unit, names) in enumerate(groups.items()):
        _bars(figure.add_subplot(grid[0, column]), unit, names, before, after)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    out_png = pathlib.Path(out_png)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png, dpi=DPI)
    return out_png


def smooth(values: np.ndarray, *, window: int) -> np.ndarray:
    """Centred moving average, float64, of the length of `values`.

    The window shrinks at both ends, so the first and last values stay at their place;
    values that are not finite take no part.

    Raises:
      ValueError: `window` is not odd and positive.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, got {window}")
    finite = np.isfinite(values)
    kernel = np.ones(min(window, 2 * len(values) - 1))
    half = len(kernel) // 2
    total = np.convolve(np.where(finite, values, 0.0), kernel)
    count = np.convolve(finite.astype(np.float64), kernel)
    total, count = (x[half : half + len(values)] for x in (total, count))
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)


def _draw(
    path: pathlib.Path,
    panels: Sequence[_Panel],
    series: Mapping[str, Series],
    *,
    heading: str = "",
) -> list[pathlib.Path]:
    """Draw the panels that have data; ``[path]``, or ``[]`` if none has."""
    filled = [(p, [name for name in series if p.match(name)]) for p in panels]
    filled = [(panel, names) for panel, names in filled if names]
    if not filled:
        return []
    columns = min(2, len(filled))
    rows = math.ceil(len(filled) / columns)
    figure = figure_of(width=5.6 * columns, height=3.3 * rows + (0.3 if heading else 0))
    if heading:
        figure.suptitle(heading)
    for number, (panel, names) in enumerate(filled, start=1):
        axes = figure.add_subplot(rows, columns, number)
        _curves(axes, panel, {name: series[name] for name in names})
    figure.savefig(path, dpi=DPI)
    return [path]


def _curves(axes: Axes, panel: _Panel, series: Mapping[str, Series]) -> None:
    """Faint raw lines with their moving average; dots where points are few."""
    widest = 1
    for (name, (steps, values)), colour in zip(series.items(), _cycle(), strict=False):
        window = 2 * (len(steps) // 50) + 1
        marker = "o" if len(steps) <= 20 else ""
        if window > 1 and name != "learning_rate":
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.9)
            values = smooth(values, window=window)
            widest = max(widest, window)
        axes.plot(
            steps,
            values,
            color=colour,
            linewidth=1.7,
            marker=marker,
            markersize=4,
            label=name,
        )
    axes.set_title(panel.title, fontsize=10.5)
    if widest > 1:
        note = f"mean of {widest} points, faint: as logged"
        axes.text(
            1,
            -0.16,
            note,
            fontsize=7,
            color="0.4",
            ha="right",
            va="top",
            transform=axes.transAxes,
        )
    axes.set_xlabel("step")
    axes.set_ylabel(panel.unit)
    if panel.zero_line:
        axes.axhline(0, color="0.35", linewidth=0.8)
    if panel.share:
        axes.set_ylim(-0.02, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    axes.ticklabel_format(axis="y", scilimits=(-3, 5), useMathText=True)
    axes.legend(fontsize=8, frameon=False)
    tidy(axes)


def _bars(
    axes: Axes,
    unit: str,
    names: Sequence[str],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> None:
    """Pairs of bars with their values written on them."""
    scale = 100.0 if unit == "per cent" else 1.0
    places = np.arange(len(names))
    sides = (("before", before, "#b8c0c8", -0.2), ("after", after, "#1f5fbf", 0.2))
    for label, values, colour, shift in sides:
        heights = [scale * float(values[name]) for name in names]
        bars = axes.bar(places + shift, heights, 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt=lambda value: f"{value:.3g}", fontsize=8, padding=2)
    axes.set_xticks(places, [name.replace("/", "/\n") for name in names], fontsize=8)
    axes.set_ylabel(unit)
    axes.axhline(0, color="0.35", linewidth=0.8)
    axes.margins(y=0.12)
    if unit == "per cent":
        axes.set_ylim(0, 112)
        axes.set_yticks(range(0, 101, 20))
    tidy(axes)


def _unit(name: str, *values: float) -> str:
    words = ("accurac", "rate", "share", "exact", "parsed")
    if any(w in name for w in words) and all(0 <= value <= 1 for value in values):
        return "per cent"
    if "reward" in name:
        return "reward, nats × beta"
    if "per_token" in name:
        return "nats per token"
    if "logps" in name:
        return "nats per response"
    if "loss" in name:
        return "loss, nats"
    return "value"


def figure_of(*, width: float, height: float) -> Figure:
    """An empty figure, in inches, that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """Faint lines at the ticks of the values, and no box."""
    axes.grid(True, axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _cycle() -> tuple[str, ...]:
    return COLOURS * 4
