"""Plots of scores: bars, their whiskers, lengths; nothing to draw is an error."""

from __future__ import annotations

import matplotlib.axes
import pytest
from PIL import Image

from mpo_jax.utils import score_plots
from mpo_jax.utils.score_plots import Value


@pytest.mark.parametrize("count, upright", [(3, True), (12, False)])
def test_bars_and_whiskers(tmp_path, monkeypatch, count, upright):
    names = ("bar", "vlines") if upright else ("barh", "hlines")
    drawn: dict[str, list] = {name: [] for name in names}
    for name in names:
        original = getattr(matplotlib.axes.Axes, name)

        def record(self, *args, _name=name, _original=original, **kwargs):
            drawn[_name].append(args)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(matplotlib.axes.Axes, name, record)
    labels = [f"benchmark {i}" for i in range(count)]
    series = {
        "direct": {label: Value(50.0, 40.0, 61.0) for label in labels},
        "cot": {labels[0]: Value(70.0)},  # no interval, and most are absent
    }
    path = tmp_path / "new" / "scores.png"
    score_plots.plot_scores(series, path, title="Scores")
    bars, whiskers = drawn.values()
    assert [len(args[0]) for args in bars] == [count, 1]
    assert [args[1:] for args in whiskers] == [(40.0, 61.0)] * count
    with Image.open(path) as image:
        assert image.width > 300


def test_lengths(tmp_path):
    path = tmp_path / "lengths.png"
    lengths = {"direct": {"right": [1, 2, 3], "wrong": []}, "cot": {"right": []}}
    score_plots.plot_lengths(lengths, path, title="sums", unit="tokens")
    with Image.open(path) as image:
        assert image.width < 700  # one panel: nothing is known of cot


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no scores to plot"):
        score_plots.plot_scores({"direct": {}}, tmp_path / "a.png", title="")
    with pytest.raises(ValueError, match="no lengths to plot"):
        score_plots.plot_lengths(
            {"direct": {"right": []}}, tmp_path / "a.png", title="", unit="tokens"
        )


@pytest.mark.parametrize("text", [r"$\nothing{$", "a$b$c$", "half \ud800", "a\nb" * 90])
def test_labels_of_data_are_text(tmp_path, text):
    path = tmp_path / "scores.png"
    score_plots.plot_scores({"cot": {text: Value(1.0)}}, path, title=text)
    score_plots.plot_lengths({"cot": {"right": [1]}}, path, title=text, unit="tokens")
    assert path.is_file()
