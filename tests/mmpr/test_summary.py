"""Figures: the table per source, histograms."""

from __future__ import annotations

import numpy as np
import pytest

from mpo_jax.mmpr import summary


def test_summary(three_sources):
    a, b, c = summary.summarise(three_sources)
    assert (a.lines, a.kept, a.effective, a.duplicates) == (4, 3, 9, 1)
    assert dict(a.left_out) == {"bad_json": 1} and a.declared == 4
    assert (b.lines, b.kept, b.effective, b.duplicates) == (3, 3, 1, 1)
    assert (c.lines, c.kept, c.effective, c.tiles) == (0, 0, 0, 0.0)
    assert b.tiles == pytest.approx(three_sources.tiles[3:].mean())
    assert a.prompt_tokens == pytest.approx(three_sources.prompt_tokens[:3].mean())
    rows = summary.summary_rows([a, b, c])
    assert rows[0][:8] == ["a", "4", "4", "3", "1", "1", "3", "9"]
    assert rows[-1][:8] == ["total", "", "7", "6", "1", "2", "", "10"]
    assert {len(row) for row in rows} == {len(summary.SUMMARY_HEAD)}


def test_histograms_count_every_record(three_sources):
    found = summary.histograms(three_sources)
    assert set(found) == {"prompt tokens", "chosen tokens", "rejected tokens", "tiles"}
    for bins in found.values():
        assert sum(count for _, count in bins) == len(three_sources)
    assert dict(found["tiles"])["0"] == 5
    label = next(label for label, _ in found["chosen tokens"] if "4096" in label)
    assert label == "4096-8191"
    edges = summary._token_bins(np.array([0, 31, 32, 40_000]))
    assert edges[0] == ("0-31", 2) and edges[1] == ("32-63", 1)
    assert edges[-1] == ("32768+", 1)
