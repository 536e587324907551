"""Figures: the table per source, histograms."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_mmpr

from mpo_jax.data import index, summary


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Three sources; `a` repeats a record of its own, `b` one of `a`."""
    folder = tmp_path_factory.mktemp("report")
    tokenizer = tiny_mmpr.write_tokenizer(folder / "tokenizer")
    tiny_mmpr.write_image(folder / "i.png", 90, 40)
    tiny_mmpr.write_lines(
        folder / "a.jsonl",
        [tiny_mmpr.pair(1), tiny_mmpr.pair(1), tiny_mmpr.pair(2), b"broken <b>line"],
    )
    evil = "<script>alert(1)</script>"
    tiny_mmpr.write_lines(
        folder / "b.jsonl",
        [
            tiny_mmpr.pair(1),
            tiny_mmpr.pair(5, image="i.png", chosen=evil, question='Q" & <i>?'),
            tiny_mmpr.pair(6, chosen="z" * 7000),
        ],
    )
    (folder / "c.jsonl").touch()
    sources = {
        name: {"root": ".", "annotation": f"{key}.jsonl", **more}
        for name, key, more in [
            ("a", "a", {"repeat_time": 3, "length": 4}),
            ("<b>", "b", {"repeat_time": 0.5}),
            ("c", "c", {}),
        ]
    }
    return index.build_index(
        tiny_mmpr.write_meta(folder, sources),
        folder / "out",
        tokenizer_path=tokenizer,
        policy=tiny_mmpr.POLICY,
        workers=1,
    )


def test_summary(built):
    a, b, c = summary.summarise(built)
    assert (a.lines, a.kept, a.effective, a.duplicates) == (4, 3, 9, 1)
    assert dict(a.left_out) == {"bad_json": 1} and a.declared == 4
    assert (b.lines, b.kept, b.effective, b.duplicates) == (3, 3, 1, 1)
    assert (c.lines, c.kept, c.effective, c.tiles) == (0, 0, 0, 0.0)
    assert b.tiles == pytest.approx(built.tiles[3:].mean())
    assert a.prompt_tokens == pytest.approx(built.prompt_tokens[:3].mean())
    rows = summary.summary_rows([a, b, c])
    assert rows[0][:8] == ["a", "4", "4", "3", "1", "1", "3", "9"]
    assert rows[-1][:8] == ["total", "", "7", "6", "1", "2", "", "10"]
    assert {len(row) for row in rows} == {len(summary.SUMMARY_HEAD)}


def test_histograms_count_every_record(built):
    found = summary.histograms(built)
    assert set(found) == {"prompt tokens", "chosen tokens", "rejected tokens", "tiles"}
    for bins in found.values():
        assert sum(count for _, count in bins) == len(built)
    assert dict(found["tiles"])["0"] == 5
    label = next(label for label, _ in found["chosen tokens"] if "4096" in label)
    assert label == "4096-8191"
    edges = summary._token_bins(np.array([0, 31, 32, 40_000]))
    assert edges[0] == ("0-31", 2) and edges[1] == ("32-63", 1)
    assert edges[-1] == ("32768+", 1)
