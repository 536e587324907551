"""The page on pairs: what it holds and says, and what a browser makes of it."""

from __future__ import annotations

import base64
import hashlib
import html
import html.parser
import json
import re
import shutil

import browsing
import pair_world
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_world import FORMAT, WRONG, judged, pair

from mpo_jax.mmpr import page_records
from mpo_jax.prefs import quality_examples, quality_page

HOSTILE = (
    "</script><script>document.title='owned'</script><!-- <img src=x "
    "onerror=\"document.title='owned'\"> ]]> \u2028\u2029 \\u003c &lt; '\""
)
BIDI = "right\u202e to left\u2066"
BEFORE, BEHIND = "I see a red car. ", "Final answer: 5"

MANIFEST = {
    **{"rollouts": 40, "prompts": 6, "pairs": 5, "left_out": {"bad_json": 2}},
    "roles": {"right": 9, "wrong": 20, "undecided": 7, "format": 4, "truncated": 0},
    "answered": {"all_right": 1, "all_wrong": 2, "mixed": 3, "undecided": 0},
    "accuracy": {"0": 2, "0.1-0.2": 1, "0.2-0.3": 1, "0.7-0.8": 1, "1": 1},
    "filtered_by_accuracy": 1,
    "skipped": {"same_text": 0, "entailed": 3},
    "rules": {"min_accuracy": 0.1, "max_accuracy": 0.9},
    "sources": {
        "a": {"prompts": 4, "prompts, all_wrong": 2, "prompts, mixed": 2},
        "b": {"prompts": 2, "prompts, all_right": 1, "prompts, mixed": 1},
    },
}
SEAM = {"accuracy": 0.61, "low": 0.55, "high": 0.66, "pairs": 400, "at_chance": False}


def example():
    """Two sources and reasons; hostile texts, long ones, and pictures that fail."""
    wrong = judged("5 apples", "wrong", "number", 12)
    right = judged("5", "right", "number", 9)
    both = {"chosen_meta": right, "rejected_meta": wrong}
    return {
        "a" + WRONG: [
            pair(1, BEFORE + BEHIND, BEFORE + "So it is 6.", answer_gt="five", **both),
            pair(
                *(HOSTILE, HOSTILE + " 1", HOSTILE + " 2"),
                image=["none.png", "a.png"],
                question=HOSTILE,
                prompt_version=HOSTILE,
                chosen_meta=judged(HOSTILE, "right", HOSTILE),
                rejected_meta=judged(HOSTILE, HOSTILE, HOSTILE),
            ),
            pair(3, "word " * 20_000, BIDI, image="../up.png"),
        ],
        "b" + WRONG: [pair(4, "It is blue.", "It is green.", **both)],
        "b" + FORMAT: [
            pair(5, "5", "?", rejected_meta=judged(None, "undecided", "no_answer", 1))
        ],
    }


@pytest.fixture
def folder(tmp_path):
    return pair_world.write(tmp_path / "my pairs", example(), MANIFEST)


@pytest.fixture
def written(folder):
    quality_page.write_beside(folder)
    return folder / "report.html"


BREAKS = ("title", "td", "th", "tr", "h1", "h2", "b", "div", "summary", "p", "li")


class Parsed(html.parser.HTMLParser):
    """Tags with their attributes, texts of scripts, and the text beside them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside = tag
            self.scripts += [""] * (tag == "script")

    def handle_endtag(self, tag):
        self.inside = "" if tag == self.inside else self.inside
        self.text += " " * (tag in BREAKS)

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif not self.inside:
            self.text += data


def said(path) -> str:
    return " ".join(Parsed(path.read_text("utf-8")).text.split())


def test_counts_are_those_of_files_and_manifest(written):
    text = said(written)
    assert "5 pairs 4 pairs: wrong 1 pairs: format 6 prompts 40 answers judged" in text
    assert "source wrong format pairs a 3 0 3 b 1 1 2 all 4 1 5" in text
    assert "a 0 2 2 0 4 b 1 0 1 0 2 all 1 2 3 0 6" in text
    assert "2 of 6 prompts. Pairs here are of prompts from 0.1 to 0.9" in text
    for line in (
        "lines that could not be used: bad_json 2",
        "two answers that made no pair: entailed 3",
        "answers on neither side: undecided 7",
        "prompts kept out by accuracy 1",
        "right: number 2 0",
        "wrong: number 0 2",
        "undecided: no_answer 0 1",
        "Not checked. Run scripts/find_overlap.py",
        "Overlap with evaluations was not checked.",
    ):
        assert line in text, line
    assert "same_text" not in text and "manifests count" not in text
    assert "Seam" not in text


def test_the_histogram_is_drawn_and_the_filter_shaded(written):
    text = written.read_text("utf-8")
    assert "<title>0.7-0.8, prompts: 1</title>" in text
    found = re.findall(r'x="([\d.]+)" y="12" width="([\d.]+)"[^>]*fill="#eef3fb"', text)
    ((x, width),) = found
    left = {
        label: float(place)
        for place, label in re.findall(
            r'<rect x="([\d.]+)"[^>]*><title>([\d.-]+), prompts', text
        )
    }
    inside = [k for k, at in left.items() if float(x) < at < float(x) + float(width)]
    assert inside == ["0.2-0.3", "0.3-0.4", "0.4-0.5", "0.5-0.6", "0.6-0.7", "0.7-0.8"]


def test_the_page_loads_nothing_and_runs_its_own_script_alone(written):
    text = written.read_text("utf-8")
    parsed = Parsed(text)
    (policy,) = [a["content"] for _, a in parsed.tags if "http-equiv" in a]
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest())
    assert f"script-src 'sha256-{digest.decode()}'" in str(policy)
    assert str(policy).startswith("default-src 'none'; img-src data:;")
    kinds = [a.get("type") for tag, a in parsed.tags if tag == "script"]
    assert kinds == ["application/json", None]
    assert not any("src" in a or "href" in a for _, a in parsed.tags)
    assert not any(name.startswith("on") for _, a in parsed.tags for name in a)
    assert "\u2028" not in text and "\u202e" not in text


def data_of(path):
    return json.loads(Parsed(path.read_text("utf-8")).scripts[0])


def test_pairs_and_pictures_are_bounded_and_whole(written):
    data = data_of(written)
    by_id = {found["id"]: found for found in data["pairs"]}
    first = by_id["1"]
    assert first["chosen"]["parts"] == [
        ["same", BEFORE],
        ["differs", "Final answer: 5"],
    ]
    assert first["rejected"]["parts"][0] == ["same", BEFORE]
    assert first["rejected"]["prediction"] == "5 apples"
    assert first["chosen"]["characters"] == len(BEFORE + BEHIND)
    assert first["truth"] == "five" and by_id["3"]["truth"] is None
    assert first["verdict"] == "wrong: number" and first["chosen"]["tokens"] == 9
    long = by_id["3"]
    shown = "".join(text for _, text in long["chosen"]["parts"])
    assert len(shown) == page_records.MAX_TEXT and long["chosen"]["more"] == 94_000
    assert long["rejected"]["parts"][-1][1] == "right⟨U+202E⟩ to left⟨U+2066⟩"
    assert "image_missing" in long["image_note"] and not long["images"]
    pictures = data["pictures"]
    assert len(pictures) == 2  # a.png stands once
    notes = [p["note"] for p in pictures if "note" in p]
    assert len(notes) == 1 and "none.png' does not exist" in notes[0]
    assert "1 of 2 pictures of the pairs shown cannot be shown" in said(written)


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_parts_keep_every_character(begin, one, other):
    for text, parts in zip(
        (begin + one, begin + other),
        quality_examples.parts(begin + one, begin + other),
        strict=True,
    ):
        assert "".join(words for _, words in parts) == quality_examples.visible(text)
    sides = quality_examples.parts(begin + one, begin + other)
    same = [[words for kind, words in side if kind == "same"] for side in sides]
    assert same[0] == same[1]


def test_a_common_beginning_without_spaces_is_found():
    begin = "图中有三个红色的圆形" * 5
    (first, *_), _ = quality_examples.parts(begin + "和方形", begin + "没有")
    assert first == ("same", begin)
    assert quality_examples.parts("north", "no")[0] == [("differs", "north")]


def test_dropout_ntp_says_what_the_seam_is(tmp_path):
    lines = [
        {"question": f"q{k}", "chosen": f"a b {k}", "rejected": f"a b c {k}"}
        | {"reason": "dropout_ntp", "variant": "tokens-0.5-without_image"}
        for k in range(30)
    ]
    counts = {"pairs": 31, "dropped": {"cut_off": 4}, "left_out": {"bad_field": 1}}
    folder = pair_world.write(
        tmp_path / "ntp", {"ntp": lines}, {"counts": counts, "seam": SEAM}
    )
    quality_page.write([folder], tmp_path / "page.html")
    text = said(tmp_path / "page.html")
    seam = "around the cut 61.0% [55.0%, 66.0%] of 400 pairs: NOT at chance"
    assert text.count(seam) == 2  # to look at, and in its place
    assert "lines that made no pair: cut_off 4" in text
    assert "lines that could not be used: bad_field 1" in text
    assert "Nobody judged these answers" in text
    assert "No pair tells the final answers of both sides" in text
    assert "The manifests count 31 pairs, the files hold 30" in text
    assert "chosen answers are shorter; the longer one is chosen in 0.0%" in text
    manifest = {"counts": counts | {"pairs": 30}, "seam": SEAM | {"at_chance": True}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    quality_page.write([folder], tmp_path / "page.html")
    text = said(tmp_path / "page.html")
    assert text.count("around the cut") == 1 and "manifests count" not in text
    (folder / "manifest.json").write_text('{"seam": {"accuracy": "x"}}')
    with pytest.raises(ValueError, match="is no seam check; build the folder again"):
        quality_page.write([folder], tmp_path / "page.html")


def test_several_folders_are_told_apart(folder, tmp_path):
    other = pair_world.write(tmp_path / "bare", {"x": [pair(9, "c", "r")]})
    quality_page.write([folder, other], tmp_path / "out" / "page.html")
    text = said(tmp_path / "out" / "page.html")
    assert "Pairs: my pairs, bare" in text
    assert "Left out: my pairs" in text and "Left out: bare The folder has no" in text


def test_overlap_is_told_with_its_removal(folder, tmp_path):
    one = {"line": 1, "id": "4", "question": "How many 4?", "with_id": HOSTILE}
    one |= {"with_question": HOSTILE}
    kinds = {"equal": {"count": 17, "examples": [one]}}
    told = {"input": {"lines": 900, "removed": 17}, "overlap": {"a": {"m": kinds}}}
    (tmp_path / "o.json").write_text(json.dumps(told | {"kept_in": "kept.jsonl"}))
    page = tmp_path / "page.html"
    quality_page.write([folder], page, overlap=str(tmp_path / "o.json"))
    text = said(page)
    assert "17 of 900 questions overlap with an evaluation; the others were" in text
    assert "written to kept.jsonl. Of 1 examples that should be left out, 1" in text
    assert text.count("1 stand in pairs") == 2 and "not checked" not in text.lower()
    assert "a m equal 17 the question is the same" in text
    assert "owned" in text and "owned" not in "".join(
        Parsed(page.read_text()).scripts[1:]
    )
    one["question"] = "Another one, with this id"
    (tmp_path / "o.json").write_text(json.dumps(told))
    quality_page.write([folder], page, overlap=str(tmp_path / "o.json"))
    text = said(page)
    assert "1 examples that should be left out, none stands in a pair" in text
    assert "no file of kept questions was written" in text


def test_options_are_checked_before_work(folder, tmp_path):
    with pytest.raises(ValueError, match="--overlap=x is shown on the page; ask for"):
        quality_page.check(html=False, overlap="x")
    with pytest.raises(OSError, match="none.json"):
        quality_page.check(html=True, overlap=str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match="examples=501: must be from 0 to 500"):
        quality_page.write([folder], tmp_path / "x.html", examples=501)
    with pytest.raises(ValueError, match="input is empty"):
        quality_page.write([], tmp_path / "x.html")


def test_a_page_without_pairs_or_examples(folder, tmp_path):
    quality_page.write([folder], tmp_path / "page.html", examples=0)
    assert data_of(tmp_path / "page.html") == {"pairs": [], "pictures": []}
    shutil.rmtree(folder)
    bare = pair_world.write(folder, {}, {"pairs": 0})
    quality_page.write([bare], tmp_path / "page.html")
    assert "There is no pair." in said(tmp_path / "page.html")


def test_the_size_of_a_page_is_bounded(tmp_path):
    texts = ("a " * 20_000, "b " * 20_000)
    rows = [pair(k, *texts, image=f"{k}.png") for k in range(60)]
    sizes = []
    for number in (30, 60):
        folder = pair_world.write(tmp_path / str(number), {"a" + WRONG: rows[:number]})
        quality_page.write([folder], tmp_path / "page.html", examples=20)
        sizes.append((tmp_path / "page.html").stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 2_000 and sizes[1] < 20 * 20_000 + 60_000


# ---- in a browser --------------------------------------------------------------------


class Seen(html.parser.HTMLParser):
    """What the page shows of pairs."""

    def __init__(self, text: str):
        super().__init__()
        self.title = self.count = self.page = ""
        self.articles: list[str] = []
        self.marked: list[tuple[str, str]] = []
        self.stack: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "article":
            self.articles.append("")
        if tag not in {"img", "meta", "input", "br", "link"}:
            self.stack.append(dict(attrs) | {"tag": tag})

    def handle_endtag(self, tag):
        if tag not in {"img", "meta", "input", "br", "link"}:
            self.stack.pop()

    def handle_data(self, data):
        if [place["tag"] for place in self.stack] == ["html", "head", "title"]:
            self.title += data
        for place in self.stack:
            if place["tag"] == "article":
                self.articles[-1] += data
            elif place.get("id") in ("count", "page"):
                name = str(place["id"])
                setattr(self, name, getattr(self, name) + data)
        kind = self.stack[-1].get("class") if self.stack else None
        if kind in ("same", "differs"):
            self.marked.append((str(kind), data))


@pytest.fixture(scope="module")
def browser():
    return browsing.find()


@pytest.mark.slow
def test_a_browser_shows_pairs_and_hostile_texts_are_inert(written, browser, tmp_path):
    text = browsing.dom(browser, written, tmp_path / "profile")
    seen = Seen(text)
    assert seen.title == "Pairs: my pairs"  # not "owned"
    assert seen.count == "5 of 5 pairs" and len(seen.articles) == 5
    (hostile,) = [a for a in seen.articles if "owned" in a]
    assert hostile.count(HOSTILE) >= 5 and "none.png' does not exist" in hostile
    assert 'src="data:image/jpeg;base64,' in text
    assert ("same", BEFORE) in seen.marked and ("differs", BEHIND) in seen.marked
    (long,) = [a for a in seen.articles if "94,000 more characters" in a]
    assert "right⟨U+202E⟩ to left" in long
    assert "final answer: 5 apples" in "".join(seen.articles)
    assert "12 tokens" in "".join(seen.articles)
    assert "".join(seen.articles).count("true answer: five") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "state, ids",
    [
        ({"reason": "format"}, {"id 5"}),
        ({"source": "b"}, {"id 4", "id 5"}),
        ({"source": "b", "reason": "wrong"}, {"id 4"}),
        ({"verdict": "wrong: number"}, {"id 1", "id 4"}),
        ({"q": "RED car"}, {"id 1"}),
        ({"q": "apples green"}, {"id 4"}),
        ({"reason": "toString"}, set()),
    ],
)
def test_filters_of_the_address(written, browser, tmp_path, state, ids):
    seen = Seen(browsing.dom(browser, written, tmp_path / "profile", **state))
    assert seen.count == f"{len(ids)} of 5 pairs"
    shown = {m for a in seen.articles for m in re.findall(r"id \d(?=<|How|\s|\D)", a)}
    assert len(seen.articles) == len(ids) and ids <= shown


PRESS = """
const choice = document.getElementById("reason");
choice.value = "wrong";
choice.dispatchEvent(new Event("change"));
document.getElementById("on").click();
"""


@pytest.mark.slow
def test_choices_and_pages_are_turned(browser, tmp_path):
    folder = pair_world.write(tmp_path / "p", pair_world.drawn(60))
    quality_page.write_beside(folder)
    path = folder / "report.html"
    wrong = sum(found["reason"] == "wrong" for found in data_of(path)["pairs"])
    assert 20 < wrong < 60
    # A person's script, which the policy must let through for the test.
    text = path.read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(PRESS.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ")
    path.write_text(text.replace("</body>", f"<script>{PRESS}</script></body>"))
    seen = Seen(browsing.dom(browser, path, tmp_path / "profile"))
    assert seen.count == f"{wrong} of 60 pairs"
    assert seen.page == f"page 2 of {-(-wrong // 10)}" and len(seen.articles) == 10
