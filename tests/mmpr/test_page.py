"""The HTML page."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import re
import shutil

import pytest
import tiny_mmpr
from hypothesis import given
from hypothesis import strategies as st

from mpo_jax.mmpr import page, page_records, shard_writer


def test_pick_lets_sources_take_turns(three_sources):
    assert page_records.pick(three_sources, 100) == list(range(6))
    for seed in range(5):
        picked = page_records.pick(three_sources, 2, seed=seed)
        assert sorted(three_sources.source[picked]) == [0, 1]
    assert page_records.pick(three_sources, 0) == []


def test_marks_are_the_differing_words():
    first, second = page_records.mark_differences("It is <4> cm", "It is <5> cm, so")
    assert first == "It is &lt;<mark>4</mark>&gt; cm"
    assert second == "It is &lt;<mark>5</mark>&gt; cm<mark>, so</mark>"
    first, second = page_records.mark_differences("答案是四", "答案是五")
    assert (first, second) == ("答案是<mark>四</mark>", "答案是<mark>五</mark>")


@given(st.text(max_size=40), st.text(max_size=40))
def test_marked_text_keeps_every_character(first, second):
    for text, marked in zip(
        (first, second), page_records.mark_differences(first, second), strict=True
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


def test_page_is_escaped_balanced_and_self_contained(three_sources):
    text = page.render_page(three_sources, sample=6, title="A <title>")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []  # every tag is closed, in order
    assert tags.tags.count("article") == 6
    assert not {"b>", "i", "link", "iframe"} & set(tags.tags)
    assert "&lt;script&gt;" in text.replace("<mark>", "").replace("</mark>", "")
    assert "default-src 'none'" in text
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and tags.tags.count("script") == 1
    assert len(tags.sources) == 1
    assert tags.sources[0].startswith("data:image/jpeg;base64,")
    assert not re.search(r"(?:src|href)=.?https?:", text)
    assert "1000 more characters" in text
    assert "bad_json: the line is not a JSON object (1)" in text
    assert "a.jsonl:4" in text


def test_changed_files_are_shown_as_such(three_sources):
    path = three_sources.directory.parents[1] / "i.png"
    data = path.read_bytes()
    path.write_bytes(b"gone")
    try:
        text = page.render_page(three_sources, sample=6, title="t")
    finally:
        path.write_bytes(data)
    assert "image_unreadable" in text and "<img" not in text


def kinds_of(text):
    """Line of the record -> its kinds, of every article."""
    found = re.findall(r'data-kinds="([^"]*)"><p class=note>.*?jsonl:(\d+)', text)
    return {int(line): kinds.split("|") for kinds, line in found}


@pytest.fixture
def build(tmp_path_factory, tmp_path):
    tokenizer = tiny_mmpr.write_tokenizer(tmp_path_factory.mktemp("t") / "tokenizer")

    def call(meta):
        return tiny_mmpr.build_index(meta, tmp_path / "out", tokenizer)

    return call


def test_pictures_come_from_shards(build, tmp_path):
    meta = tiny_mmpr.write_good(tmp_path / "data")
    shard_writer.write_shards(meta, tmp_path / "shards")
    shutil.rmtree(tmp_path / "data")
    text = page.render_page(build(tmp_path / "shards"), sample=55, title="t")
    assert text.count("data:image/jpeg") == 20 + 2 * 5
    assert "image_missing" not in text


def test_what_the_page_holds_is_bounded(build, tmp_path, monkeypatch):
    """Records, pictures, entries and their details; the rest is counted."""
    tiny_mmpr.write_image(tmp_path / "i.png", 300, 200)
    lines = [tiny_mmpr.pair(i, image="i.png") for i in range(60)]
    lines += [tiny_mmpr.pair(i, image="/9j/" + "A" * 100_000) for i in range(30)]
    tiny_mmpr.write_lines(tmp_path / "a.jsonl", lines)
    meta = tiny_mmpr.write_meta(tmp_path, {"a": {"root": ".", "annotation": "a.jsonl"}})
    three_sources = build(meta)
    monkeypatch.setattr(page_records, "MAX_RECORDS", 10)
    one = len(page.render_page(three_sources, sample=1, title="t"))
    text = page.render_page(three_sources, sample=1000, title="t")
    assert text.count("<article") == 10 and len(text) < 10 * one
    assert text.count("<td>a</td>") <= page.MAX_ENTRIES + 1 and "and 10 more" in text
    assert len(re.sub(r"data:image\S+", "", text)) < 100_000


def test_the_picture_budget_is_one_for_all_records(build, tmp_path):
    three_sources = build(tiny_mmpr.write_good(tmp_path / "data"))
    pictures = page_records.Pictures(1_000_000, left=1)
    articles = [page_records.article(three_sources, i, [], pictures) for i in range(3)]
    assert [text.count("<img") for text in articles] == [1, 0, 0]
    assert all("the page is full" in text for text in articles[1:])


def test_notable_records_are_shown_whatever_the_sample(build, tmp_path):
    lines = [tiny_mmpr.pair(i) for i in range(200)]
    lines[150] = tiny_mmpr.pair(9, chosen="It is 10.", rejected="The answer  is 9.")
    lines[160] = tiny_mmpr.pair(77, chosen="So</s>")
    lines[170] = tiny_mmpr.pair(5)
    lines[180] = tiny_mmpr.pair(6, chosen="the answer\nis 6.")
    tiny_mmpr.write_lines(tmp_path / "a.jsonl", lines)
    meta = tiny_mmpr.write_meta(tmp_path, {"a": {"root": ".", "annotation": "a.jsonl"}})
    text = page.render_page(build(meta), sample=2, title="t")
    found = kinds_of(text)
    assert found[10] == found[151] == ["text only", "opposite"]
    assert found[161] == ["text only", "chat markers"]
    assert found[6] == found[171] == ["text only", "equal"]
    assert found[7] == found[181] == ["text only", "nearly equal"]
    for kind in ("equal", "nearly equal", "opposite", "chat markers", "text only"):
        assert f'<option value="{kind}">' in text
    assert "opposite: 1 groups, 2 records" in text and "a:10, a:151" in text


def test_a_source_that_gives_nothing_is_on_the_page(build, tmp_path):
    tiny_mmpr.write_lines(tmp_path / "a.jsonl", [tiny_mmpr.pair(1)])
    tiny_mmpr.write_lines(tmp_path / "b.jsonl", [tiny_mmpr.pair(1, image="i.png")] * 2)
    sources = {
        name: {"root": "none", "annotation": f"{name}.jsonl"} for name in ("a", "b")
    }
    text = page.render_page(
        build(tiny_mmpr.write_meta(tmp_path, sources)), sample=2, title="t"
    )
    assert "source &#x27;b&#x27; leaves out 2 of 2 records" in text
    assert "is no folder; correct root in meta.json" in text
    assert '<tr data-source="b"><td>b</td>' in text and '<option value="b">' in text
