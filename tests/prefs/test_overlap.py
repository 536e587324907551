"""Overlap with evaluations: texts by words and numbers, pictures by their look."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mpo_jax.prefs import image_hash, overlap

LONG = (
    "A train leaves the station at {} km/h while a second train, which is {} m long, "
    "leaves the next station in the other direction; when do they meet each other?"
)


def kinds(question, *items, looks=(), has_image=False):
    held = overlap.Evaluation()
    for number, (text, seen) in enumerate(items):
        held.add(overlap.Item("bench", str(number), text, bool(seen)), seen)
    found = held.find(question, looks, has_image=has_image or bool(looks))
    return [(one.kind, one.item.id) for one in found]


def test_writing_does_not_matter():
    items = [("What's the area of triangle ABC?", ())]
    same = "<image>\nwhat s the  AREA of triangle\nＡＢＣ"
    assert kinds(same, *items) == [("equal", "0")]
    assert kinds(f"{same}\n<image1>", *items) == [("equal", "0")]
    assert kinds("What is the area of square PQ?", *items) == []


def test_a_changed_word_is_near():
    text = "In the diagram the two chords cross at right angles; find the radius of it"
    assert kinds(text.replace("find", "give"), (text, ())) == [("near", "0")]
    assert kinds("Find the radius of the circle in the figure", (text, ())) == []


@pytest.mark.parametrize(
    "text, one, other",
    [
        ("Find the sum of 12 and {} in the table of this page", "30", "31"),
        ("What is the value of x {} 5 in the second figure?", "+", "-"),
        ("Which row has the number {} in this table of values?", "5.9", "5 9"),
        ("Is {} a list of rising numbers, as in the first row?", "3, 4", "4, 3"),
    ],
)
def test_other_numbers_are_another_question(text, one, other):
    ours, theirs = text.format(one), text.format(other)
    parts = [overlap.grams(overlap.normalised(t).plain) for t in (ours, theirs)]
    assert overlap.jaccard(*parts) >= overlap.MIN_JACCARD or one == "5.9"
    assert kinds(ours, (theirs, ())) == []
    assert kinds(ours, (ours, ())) == [("equal", "0")]
    one_word = ours.replace("in", "on", 1)
    assert kinds(one_word, (ours, ())) == [("near", "0")]


def test_a_long_question_with_other_numbers_is_the_same():
    items = [(LONG.format(80, 200), ())]
    assert kinds(LONG.format(95, 310), *items) == [("renumbered", "0")]
    changed = LONG.format(95, 310).replace("second", "slow")
    assert kinds(changed, *items) == []


def test_the_candidates_miss_nothing_that_is_near():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(400)]
    held = overlap.Evaluation()
    texts = [" ".join(rng.choice(words, 14)) for _ in range(300)]
    for number, text in enumerate(texts):
        held.add(overlap.Item("bench", str(number), text, False), ())
    checked = 0
    for number, text in enumerate(texts):
        parts = text.split()
        parts[int(rng.integers(14))] = "other"
        changed = " ".join(parts)
        share = overlap.jaccard(overlap.grams(text), overlap.grams(changed))
        found = held.find(changed, (), has_image=False)
        checked += share >= overlap.MIN_JACCARD
        assert [f.item.id for f in found] == (
            [str(number)] if share >= overlap.MIN_JACCARD else []
        )
    assert checked > 50


def test_jaccard_is_that_of_sets():
    a, b = "the quick brown fox", "the quick brown dog"
    sets = [{t[i : i + 5] for i in range(len(t) - 4)} for t in (a, b)]
    wanted = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert overlap.jaccard(overlap.grams(a), overlap.grams(b)) == pytest.approx(wanted)
    assert len(overlap.grams("ab")) == len(overlap.grams("")) == 1


def drawing(seed: int) -> Image.Image:
    """Lines on white: what geometry benchmarks show."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (240, 160), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        points = [tuple(map(int, rng.integers(10, (230, 150)))) for _ in range(2)]
        draw.line(points, fill="black", width=3)
    return image


def photo(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
    return small.resize((240, 180), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, quality: int = 60) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


@pytest.mark.parametrize("make", [drawing, photo])
def test_a_picture_is_known_in_another_encoding_and_size(make):
    looks = image_hash.Looks()
    for number in range(100):
        looks.add(number, image_hash.look(make(number)))
    assert len(looks) == 100
    for number in range(100):
        image = make(number)
        for changed in (encoded(image), image.resize((150, 100)), image):
            assert looks.alike(image_hash.look(changed)) == number
    for number in range(100, 300):
        assert looks.alike(image_hash.look(make(number))) is None


def test_every_hash_within_four_bits_is_a_candidate():
    rng = np.random.default_rng(0)
    base = image_hash.look(photo(0))
    for _ in range(200):
        flips = [1 << int(b) for b in rng.choice(64, 5, replace=False)]
        looks = image_hash.Looks()
        looks.add(7, image_hash.Look(base.hash ^ sum(flips[:4]), base.grey))
        assert looks.alike(base) == 7
        looks = image_hash.Looks()
        looks.add(7, image_hash.Look(base.hash ^ sum(flips), base.grey))
        assert looks.alike(base) is None


def test_one_colour_is_no_picture():
    assert image_hash.look(Image.new("RGB", (50, 50), "white")) is None
    held = overlap.Evaluation()
    held.add(overlap.Item("bench", "0", "q", True), [None])
    assert held.flat == 1
    assert held.find("r", [None], has_image=True) == []


def test_a_short_question_needs_its_picture():
    ours, theirs = image_hash.look(photo(1)), image_hash.look(photo(2))
    short, long = "How many are there?", LONG.format(1, 2)
    assert kinds(short, (short, [theirs]), looks=[ours]) == [
        ("same_text_other_image", "0")
    ]
    assert kinds(short, (short, [ours]), looks=[ours]) == [
        *(("image", "0"), ("equal", "0")),
    ]
    assert kinds(short, (short, [theirs]), (short, ()), looks=[ours]) == [
        ("equal", "1")
    ]
    assert kinds(short, (short, [theirs])) == [("equal", "0")]
    assert kinds(long, (long, [theirs]), looks=[ours]) == [("equal", "0")]
    assert kinds("Another?", (short, [ours]), looks=[ours]) == [("image", "0")]
    for kind in overlap.MEANING:
        removes = overlap.Found(kind, overlap.Item("b", "0", "q", False)).removes
        assert removes == (kind != "same_text_other_image")
