"""Figures and the HTML page."""

from __future__ import annotations

import html.parser
import re

import numpy as np
import pytest
import tiny_mmpr
from hypothesis import given
from hypothesis import strategies as st

from mpo_jax.data import index, report


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
    a, b, c = report.summarise(built)
    assert (a.lines, a.kept, a.effective, a.duplicates) == (4, 3, 9, 1)
    assert dict(a.left_out) == {"bad_json": 1} and a.declared == 4
    assert (b.lines, b.kept, b.effective, b.duplicates) == (3, 3, 1, 1)
    assert (c.lines, c.kept, c.effective, c.tiles) == (0, 0, 0, 0.0)
    assert b.tiles == pytest.approx(built.tiles[3:].mean())
    assert a.prompt_tokens == pytest.approx(built.prompt_tokens[:3].mean())
    rows = report.summary_rows([a, b, c])
    assert rows[0][:8] == ["a", "4", "4", "3", "1", "1", "3", "9"]
    assert rows[-1][:8] == ["total", "", "7", "6", "1", "2", "", "10"]
    assert {len(row) for row in rows} == {len(report.SUMMARY_HEAD)}


def test_histograms_count_every_record(built):
    found = report.histograms(built)
    assert set(found) == {"prompt tokens", "chosen tokens", "rejected tokens", "tiles"}
    for bins in found.values():
        assert sum(count for _, count in bins) == len(built)
    assert dict(found["tiles"])["0"] == 5
    label = next(label for label, _ in found["chosen tokens"] if "4096" in label)
    assert label == "4096-8191"
    edges = report._token_bins(np.array([0, 31, 32, 40_000]))
    assert edges[0] == ("0-31", 2) and edges[1] == ("32-63", 1)
    assert edges[-1] == ("32768+", 1)


def test_pick_lets_sources_take_turns(built):
    assert report.pick(built, 100) == list(range(6))
    for seed in range(5):
        picked = report.pick(built, 2, seed=seed)
        assert sorted(built.source[picked]) == [0, 1]
    assert report.pick(built, 0) == []


def test_marks_are_the_differing_words():
    first, second = report.mark_differences("It is <4> cm", "It is <5> cm, so")
    assert first == "It is &lt;<mark>4</mark>&gt; cm"
    assert second == "It is &lt;<mark>5</mark>&gt; cm<mark>, so</mark>"
    first, second = report.mark_differences("答案是四", "答案是五")
    assert (first, second) == ("答案是<mark>四</mark>", "答案是<mark>五</mark>")


@given(st.text(max_size=40), st.text(max_size=40))
def test_marked_text_keeps_every_character(first, second):
    for text, marked in zip(
        (first, second), report.mark_differences(first, second), strict=True
    ):
        plain = marked.replace("<mark>", "").replace("</mark>", "")
        assert plain == html.escape(text)


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open, self.sources = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.sources.append(dict(attrs)["src"])
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_escaped_balanced_and_self_contained(built):
    page = report.render_page(built, sample=6, title="A <title>")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []  # every tag is closed, in order
    assert tags.tags.count("article") == 6
    assert not {"script", "b>", "i", "link", "iframe"} & set(tags.tags)
    assert "&lt;script&gt;" in page.replace("<mark>", "").replace("</mark>", "")
    assert "default-src 'none'" in page
    assert len(tags.sources) == 1
    assert tags.sources[0].startswith("data:image/jpeg;base64,")
    assert not re.search(r"(?:src|href)=.?https?:", page)
    assert "1000 more characters" in page
    assert "bad_json: the line is not a JSON object (1)" in page
    assert "a.jsonl:4" in page


def test_changed_files_are_shown_as_such(built):
    path = built.directory.parents[1] / "i.png"
    data = path.read_bytes()
    path.write_bytes(b"gone")
    try:
        page = report.render_page(built, sample=6, title="t")
    finally:
        path.write_bytes(data)
    assert "image_unreadable" in page and "<img" not in page
