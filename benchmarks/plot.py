"""Bars of the ratios that `step_vs_trl` wrote.

python -m benchmarks.plot build/benchmarks/step_vs_trl_*.json --out=docs/benchmarks.png
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

QUANTITIES = {
    "time": "wall clock",
    "processor_time": "processor time",
    "flops": "FLOPs",
    "peak": "peak memory",
}


def ratios(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Ratios by ``case, trainer``, of every case of the given files.

    Raises:
      ValueError: if no file holds a comparison.
    """
    found = {}
    for result in results:
        for case, entry in result.items():
            if not isinstance(entry, dict) or "summary" not in entry:
                continue
            for name, values in entry["summary"].items():
                if "ratio" in values:
                    found[f"{case}\n{name}"] = {
                        k: values["ratio"][k] for k in QUANTITIES
                    }
    if not found:
        raise ValueError("the files hold no ratios; run benchmarks.step_vs_trl first")
    return found


def draw(found: dict[str, dict[str, float]], out: pathlib.Path) -> None:
    """Write a grouped bar chart; the line at 1 is this project."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(1.5 + 1.6 * len(found), 3.6))
    width = 0.8 / len(QUANTITIES)
    for number, (key, label) in enumerate(QUANTITIES.items()):
        places = [i + (number - 1.5) * width for i in range(len(found))]
        bars = axes.bar(places, [v[key] for v in found.values()], width, label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_ylabel("peer / mpo-jax, per pair")
    axes.legend(fontsize=8, ncols=2)
    figure.tight_layout()
    figure.savefig(out, dpi=120)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=pathlib.Path, nargs="+")
    parser.add_argument("--out", type=pathlib.Path, default="docs/benchmarks.png")
    args = parser.parse_args(argv)
    draw(ratios([json.loads(f.read_text()) for f in args.files]), args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
