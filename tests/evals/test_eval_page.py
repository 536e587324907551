"""The page to look at items: what it holds, and what a browser makes of it."""

from __future__ import annotations

import html.parser
import json
import pathlib
import re

import browsing
import graded_lines
import pytest
from graded_lines import grade, line
from PIL import Image

from mpo_jax.evals import modes, page, page_items, report
from mpo_jax.evals.lines import Unanswered
from mpo_jax.evals.report_run import Run
from mpo_jax.evals.scores import Draws

HOSTILE = (
    "</script><script>document.title='owned'</script><!-- <img src=x "
    "onerror=\"document.title='owned'\"> ]]> \u2028\u2029 \ud800 \\u003c &lt; </pre>"
)

SHOWN = HOSTILE.replace("\ud800", "\ufffd")


def example(folder: pathlib.Path) -> tuple[Run, Run]:
    """A run and its base: two benchmarks, every kind of answer, hostile texts."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "images" / "a #1?.png")
    lines = []
    for i, (direct, cot) in enumerate(
        [("right", "wrong"), ("wrong", "right"), ("wrong", "wrong"), ("right", "right")]
    ):
        fields = {"images": ("images/a #1?.png",), "categories": {"kind": f"k{i % 2}"}}
        lines.append(line(f"s{i}", direct, **fields))
        lines.append(line(f"s{i}", cot, mode="cot", finish_reason="length", **fields))
    hostile = line(
        HOSTILE,
        "undecided",
        benchmark="traps",
        answer=HOSTILE,
        question=HOSTILE,
        options=(HOSTILE, "b"),
        truth=(HOSTILE, "c"),
        group=HOSTILE,
        categories={HOSTILE: HOSTILE, "__proto__": "polluted"},
        images=("images/<b>.png",),
        grade=grade("undecided", HOSTILE, HOSTILE),
        corrected=grade("right", HOSTILE, HOSTILE),
        judge=graded_lines.judgement("right", HOSTILE),
    )
    lines.append(hostile)
    for k in range(3):
        lines.append(
            line(
                "sampled",
                "right" if k else "wrong",
                benchmark="traps",
                mode="cot",
                sample=k,
                answer="" if k == 2 else f"sample {k}: 6",
                grade=grade("right" if k else "wrong", "" if k == 2 else str(k)),
                logprob=-1.5 if k == 1 else -3.0,
                tokens=3,
            )
        )
    failed = [Unanswered("traps", "paper", "direct", "lost", f"endpoint: {HOSTILE}")]
    base = [line("s0", "wrong"), line("s1", "wrong", answer=HOSTILE)]
    return Run(HOSTILE, lines, failed), Run("base", base)


def known():
    return {
        "sums": graded_lines.benchmark("sums", size=9),
        "traps": graded_lines.benchmark("traps", notes=(HOSTILE,)),
    }


@pytest.fixture
def written(tmp_path) -> pathlib.Path:
    folder = tmp_path / "work dir"
    folder.mkdir()
    run, base = example(folder)
    report.write(folder, run, known(), base=base, draws=Draws(resamples=20))
    return folder / "report.html"


class Parsed(html.parser.HTMLParser):
    """Tags with their attributes, and the texts of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "script"

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data


def test_hostile_texts_do_not_leave_their_place(written):
    text = written.read_text("utf-8")
    parsed = Parsed(text)
    assert [attrs.get("type") for tag, attrs in parsed.tags if tag == "script"] == [
        None,
        "application/json",
        None,
    ]
    items = json.loads(parsed.scripts[1])
    ids = ["s0", "s1", "s2", "s3", SHOWN, "sampled", "lost"]
    assert [item["id"] for item in items] == ids
    assert items[4]["answers"]["direct"][0]["text"] == SHOWN
    assert "\u2028" not in parsed.scripts[1]
    images = [attrs["src"] for tag, attrs in parsed.tags if tag == "img"]
    assert images and all(str(src).startswith("plots/") for src in images)
    assert not any(name.startswith("on") for _, attrs in parsed.tags for name in attrs)


def test_the_page_loads_nothing_from_elsewhere(written):
    parsed = Parsed(written.read_text("utf-8"))
    policies = [attrs["content"] for _, attrs in parsed.tags if "http-equiv" in attrs]
    (policy,) = policies
    assert str(policy).startswith("default-src 'none'; img-src 'self' file:;")
    assert "unsafe-inline'" not in str(policy).split("script-src")[1]
    for _, attrs in parsed.tags:
        for name in ("src", "href"):
            assert not re.match(r"[a-z]+:|//", attrs.get(name) or "")


def test_long_texts_are_cut_and_counted():
    run = Run("r", [line("1", answer="a" * (page_items.MAX_TEXT + 1_234))])
    (entry,) = page_items.entries(run, modes.modes(run.lines), None)
    said = entry["answers"]["direct"][0]["text"]
    assert said.endswith("a … 1,234 more characters")
    assert len(said) < page_items.MAX_TEXT + 40


def chunked(folder: pathlib.Path, count: int, **limits: int) -> pathlib.Path:
    run = Run(
        "many", [line(f"i{k}", "right" if k % 3 else "wrong") for k in range(count)]
    )
    found = modes.modes(run.lines)
    built = report.build(run, found, known(), draws=Draws(resamples=20))
    path = folder / "report.html"
    page.write(path, page_items.entries(run, found, None), built, [], **limits)
    return path


def test_many_items_are_in_files_beside_the_page(tmp_path):
    path = chunked(tmp_path, 40, chunk_bytes=5_000)
    files = sorted(file.name for file in tmp_path.glob("*.js"))
    assert len(files) > 2 and files[0] == "report_items_000.js"
    named = [attrs.get("src") for tag, attrs in Parsed(path.read_text()).tags]
    assert [name for name in named if name] == files
    assert all((tmp_path / file).stat().st_size < 5_100 for file in files)
    path = chunked(tmp_path, 20, chunk_bytes=5_000)
    assert len(list(tmp_path.glob("*.js"))) < len(files)
    chunked(tmp_path, 2)
    assert not list(tmp_path.glob("*.js"))  # none of an earlier report stays


def test_what_a_page_does_not_hold_is_said(tmp_path):
    path = chunked(tmp_path, 40, max_bytes=5_000)
    text = path.read_text()
    (said,) = re.findall(r"holds no more: (\d+) further items", text)
    assert len(json.loads(Parsed(text).scripts[1])) + int(said) == 40


# ---- in a browser ------------------------------------------------------------------


class Seen(html.parser.HTMLParser):
    """Texts of the elements that tests look at."""

    def __init__(self, text: str):
        super().__init__()
        self.title, self.count, self.rows = "", "", []
        self.sides: dict[str, str] = {}
        self.item = ""
        self.scores_open = False
        self.selected: list[str] = []
        self.stack: list[dict[str, str | None]] = []
        self.void = {"img", "meta", "input", "br", "link"}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs) | {"tag": tag}
        if tag == "li" and found.get("role") == "option":
            self.rows.append("")
            if found.get("aria-selected") == "true":
                self.selected.append("")
        if found.get("id") == "about":
            self.scores_open = "open" in found
        if tag not in self.void:
            self.stack.append(found)

    def handle_endtag(self, tag):
        if tag not in self.void:
            self.stack.pop()

    def handle_data(self, data):
        for place in self.stack:
            if place["tag"] == "title":
                self.title += data
            elif place.get("id") == "count":
                self.count += data
            elif place["tag"] == "article":
                self.item += data
            elif place.get("role") == "option":
                self.rows[-1] += data
                if place.get("aria-selected") == "true":
                    self.selected[-1] += data
            if "data-mode" in place:
                mode = str(place["data-mode"])
                self.sides[mode] = self.sides.get(mode, "") + data


@pytest.fixture(scope="module")
def browser():
    return browsing.find()


def see(browser: str, path: pathlib.Path, tmp_path, **state: str) -> Seen:
    return Seen(browsing.dom(browser, path, tmp_path / "profile", **state))


@pytest.mark.slow
def test_a_browser_shows_items_and_hostile_texts_are_inert(written, browser, tmp_path):
    text = browsing.dom(browser, written, tmp_path / "profile")
    seen = Seen(text)
    assert seen.title.startswith("Evaluation of </script>")  # not "owned"
    assert seen.count == "7 of 7 items" and len(seen.rows) == 7
    assert seen.scores_open
    assert "✓✗s0  2 + 4?" in seen.rows[0]
    assert "It is 6." in seen.sides["direct"] and "cut off" in seen.sides["cot"]
    assert "baseright" not in seen.sides["direct"] and "answer of the base" in seen.item
    assert 'src="images/a%20%231%3F.png"' in text  # and it was found:
    assert "no picture at" not in seen.item

    seen = see(browser, written, tmp_path, benchmark="traps")
    assert seen.title.startswith("Evaluation of </script>")
    assert seen.count == "3 of 7 items"
    assert seen.sides["direct"].count(SHOWN) >= 4
    assert "no picture at images/<b>.png" in seen.item
    assert f"{SHOWN}  |  c" in seen.item and f"A. {SHOWN}" in seen.item
    assert "__proto__: polluted" in seen.item


@pytest.mark.slow
@pytest.mark.parametrize(
    "state, ids",
    [
        ({"filter": "direct_right_cot_wrong", "benchmark": "sums"}, ["s0"]),
        ({"filter": "direct_wrong_cot_right"}, ["s1"]),
        ({"filter": "both_wrong"}, ["s2"]),
        ({"filter": "rule_not_corrected"}, ["</scr"]),
        ({"filter": "empty"}, ["sampled"]),
        ({"filter": "failed"}, ["lost"]),
        ({"filter": "gained"}, ["s0"]),
        ({"filter": "toString"}, ["s0", "s1", "s2", "s3", "</scr", "sampled", "lost"]),
        ({"q": "SAMPLE 1:"}, ["sampled"]),
        ({"category": '["kind","k1"]'}, ["s1", "s3"]),
        ({"filter": "both_wrong", "benchmark": "traps"}, []),
    ],
)
def test_filters_of_the_address(written, browser, tmp_path, state, ids):
    seen = see(browser, written, tmp_path, **state)
    assert seen.count == f"{len(ids)} of 7 items"
    assert len(seen.rows) == len(ids)
    assert all(id in row for id, row in zip(ids, seen.rows, strict=True))
    assert bool(seen.sides) == bool(ids)
    assert not seen.scores_open


def press(path: pathlib.Path, script: str) -> None:
    """Let the page do something after it has started."""
    text = path.read_text("utf-8")
    (nonce,) = set(re.findall(r'nonce="([0-9a-f]+)"', text))
    more = f'<script nonce="{nonce}">{script}</script></body>'
    path.write_text(text.replace("</body>", more), "utf-8")


KEYS = """
for (const key of ["j", "j", "ArrowRight", "k", "j", "ArrowLeft"])
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
"""


@pytest.mark.slow
def test_what_was_extracted_is_marked_as_a_word(browser, tmp_path):
    given = [
        line("1", answer="It is e; boxed", grade=grade("wrong", "e")),
        line("1", mode="cot", answer="boxed", grade=grade("wrong", "e")),
    ]
    run = Run("r", given)
    report.write(tmp_path, run, known(), draws=Draws(resamples=20))
    text = browsing.dom(browser, tmp_path / "report.html", tmp_path / "profile")
    assert "It is <mark>e</mark>; boxed" in text and text.count("<mark>") == 1


@pytest.mark.slow
def test_keys_move_from_item_to_item(written, browser, tmp_path):
    press(written, KEYS)
    seen = see(browser, written, tmp_path, benchmark="sums")
    assert len(seen.selected) == 1 and "s2" in seen.selected[0]
    assert seen.item.startswith("s2")


@pytest.mark.slow
def test_samples_can_be_looked_at(written, browser, tmp_path):
    press(written, "document.querySelectorAll('.samples button')[1].click();")
    seen = see(browser, written, tmp_path, q="sampled")
    assert "sample 1: 6" in seen.sides["cot"] and "sample 0" not in seen.sides["cot"]
    assert "picked bybest" in seen.sides["cot"]


@pytest.mark.slow
def test_a_browser_opens_ten_thousand_items(browser, tmp_path):
    path = chunked(tmp_path, 10_000, chunk_bytes=1 << 19)
    assert len(list(tmp_path.glob("*.js"))) >= 5
    seen = see(browser, path, tmp_path, filter="wrong", item='["sums","i9999"]')
    assert seen.count == "3334 of 10000 items"
    assert len(seen.rows) == 3_334 % 200  # the last page
    assert "i9999" in seen.selected[0]
