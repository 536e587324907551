"""The drawn world: determinism, right and wrong answers, no cue in the text."""

from __future__ import annotations

import collections
import hashlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo_jax.demo import drawings

FINAL = re.compile(r"\nFinal answer: (\d+)$")
EQUATION = re.compile(r"((?:\d+ [-+x] )+\d+) = (\d+)")


def _items(count: int, *, seed: int = 0, split: str = "train") -> list[drawings.Item]:
    return [drawings.draw_item(i, seed=seed, split=split) for i in range(count)]


@pytest.fixture(scope="module")
def items() -> list[drawings.Item]:
    return _items(900)


def _final(text: str) -> int | None:
    match = FINAL.search(text)
    return int(match[1]) if match else None


def _wrong_equations(text: str) -> int:
    """Equations of a chain of thought that do not hold."""
    wrong = 0
    for left, right in EQUATION.findall(text):
        value, *rest = left.split()
        total = int(value)
        for sign, number in zip(rest[::2], rest[1::2], strict=True):
            step = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}[sign]
            total = step(total, int(number))
        wrong += total != int(right)
    return wrong


def _shapes(image: np.ndarray, colour: str) -> int:
    """Cells of the 3x3 grid whose centre has a colour, read from the pixels."""
    centres = image[28:112:28, 28:112:28][:3, :3]
    return int((centres == drawings.COLOURS[colour]).all(-1).sum())


def _bars(image: np.ndarray) -> list[int]:
    """Heights of the bars in units, read from the pixels."""
    colours = list(drawings.COLOURS.values())
    columns = [image[:, 28 * (i + 1)] for i in range(3)]
    inks = [sum((c == ink).all(-1).sum() for ink in colours) for c in columns]
    return [round(ink / drawings.CELL) for ink in inks]


def _rectangle(image: np.ndarray) -> tuple[int, int]:
    """Width and height of the rectangle in units, read from its outline."""
    ink = (image == drawings._INK).all(-1)
    across, down = np.flatnonzero(ink.any(0)), np.flatnonzero(ink.any(1))
    spans = [int(found[-1] - found[0]) for found in (across, down)]
    return tuple(round(span / drawings.CELL) for span in spans)


def test_same_arguments_same_item_and_other_seed_other_item():
    one, two = _items(6), _items(6)
    for a, b in zip(one, two, strict=True):
        assert a.image.tobytes() == b.image.tobytes()
        assert (a.question, a.chosen, a.rejected) == (b.question, b.chosen, b.rejected)
    other = _items(6, seed=1)
    assert all(
        a.image.tobytes() != b.image.tobytes() for a, b in zip(one, other, strict=True)
    )


def test_every_topic_task_and_kind_occurs(items):
    tasks = collections.Counter(item.task for item in items)
    assert set(tasks) == {
        *("count/total", "count/red", "count/blue", "count/difference"),
        *("chart/sum_ab", "chart/sum_ac", "chart/sum_bc", "chart/range"),
        *("geometry/perimeter", "geometry/area"),
    }
    assert min(tasks.values()) > 50
    topics = collections.Counter(item.topic for item in items)
    assert topics == dict.fromkeys(drawings.TOPICS, 300)
    kinds = collections.Counter(item.rejected_kind for item in items)
    for kind, share in drawings.REJECTED_KINDS.items():
        # 900 draws: 4 standard deviations are at most 4 * sqrt(.24 / 900) = 0.065.
        assert abs(kinds[kind] / len(items) - share) < 0.065


def test_the_right_answer_can_be_read_off_the_pixels(items):
    """An independent reader of the image agrees with answer and chosen response."""
    for item in items:
        image = np.asarray(item.image)
        assert image.shape == (112, 112, 3) and image.dtype == np.uint8
        topic, kind = item.task.split("/")
        if topic == "count":
            red, blue = _shapes(image, "red"), _shapes(image, "blue")
            answers = {"total": red + blue, "red": red, "blue": blue}
            seen = answers.get(kind, abs(red - blue))
        elif topic == "chart":
            heights = _bars(image)
            if kind == "range":
                seen = max(heights) - min(heights)
            else:
                seen = sum(heights["abc".index(letter)] for letter in kind[-2:])
        else:
            width, height = _rectangle(image)
            seen = width * height if kind == "area" else 2 * (width + height)
        assert item.answer == seen, item.task
        assert _final(item.chosen) == seen


def test_chosen_is_a_correct_chain_of_thought(items):
    for item in items:
        assert 2 <= item.chosen.count("\n") <= 3
        assert EQUATION.search(item.chosen) and not _wrong_equations(item.chosen)


def test_rejected_is_wrong_in_the_way_that_its_kind_says(items):
    for item in items:
        kind, rejected = item.rejected_kind, item.rejected
        assert rejected != item.chosen
        if kind == "format":
            assert "inal answer" not in rejected
            assert rejected.splitlines()[:-1] == item.chosen.splitlines()[:-1]
            assert rejected.splitlines()[-1] in drawings.HEDGES
            continue
        assert _final(rejected) is not None and _final(rejected) != item.answer
        assert _wrong_equations(rejected) == (1 if kind == "arithmetic" else 0)
        if kind == "arithmetic":
            assert rejected.splitlines()[0] == item.chosen.splitlines()[0]
        if kind == "continuation":
            chosen = re.findall(r"\d", item.chosen)
            shared = len(item.readings) // 2
            assert chosen[:shared] == re.findall(r"\d", rejected)[:shared]


def test_nine_red_shapes_still_leave_a_wrong_continuation():
    task = next(t for t in drawings._tasks()["count"] if t.name == "count/difference")
    found = drawings._continuations(task, (3, 3, 3, 0, 0, 0))
    assert found and all(r[:2] == (3, 3) and task.solve(r) != 9 for r in found)


def test_text_alone_does_not_tell_a_misreading(items):
    """Misread values have the distribution of true ones, and lengths are equal.

    Both are uniform over the same range by construction; the bound of 0.12 on the
    difference of two shares is 4 standard deviations at 400 draws or more.
    """
    blind = [
        *(
            item
            for item in items
            if item.rejected_kind in ("perception", "continuation")
        )
    ]
    sums = [i for i in blind if i.task.startswith(("chart/sum", "geometry"))]
    first = re.compile(r"\d")
    for side in (0, 1):
        chosen = collections.Counter(first.findall(i.chosen)[side] for i in sums)
        rejected = collections.Counter(first.findall(i.rejected)[side] for i in sums)
        for value in "123456":
            difference = (chosen[value] - rejected[value]) / len(sums)
            assert abs(difference) < 0.12
    lengths = np.array([(len(i.chosen), len(i.rejected)) for i in blind])
    assert abs(np.diff(lengths.mean(0))[0]) < 0.3  # characters, of about 70


def test_no_image_lies_in_both_splits_whatever_the_seeds():
    digests = {
        split: {
            hashlib.sha256(item.image.tobytes()).digest()
            for seed in (0, 1)
            for item in _items(300, seed=seed, split=split)
        }
        for split in drawings.SPLITS
    }
    assert not digests["train"] & digests["eval"]
    # Almost all images differ; of counts there are the fewest.
    assert min(len(found) for found in digests.values()) > 520


def test_no_drawing_of_a_rectangle_comes_twice():
    """Some 10^12 drawings of a size, though it has few places."""
    rng = np.random.default_rng(0)
    scenes = [drawings._place_rectangle((3, 2), rng) for _ in range(10_000)]
    assert len({repr(scene) for scene in scenes}) == 10_000
    assert len({scene.box for scene in scenes}) == 4 * 5
    for scene in scenes[:300]:
        left, top, width, height = scene.box
        inside = {
            (x, y) for x in range(left, left + width) for y in range(top, top + height)
        }
        discs = [(x, y) for x, y, _ in scene.discs]
        assert not inside & set(discs) and len(set(discs)) == len(discs)


def test_topics_can_be_chosen_and_unknown_ones_are_named():
    items = [
        drawings.draw_item(i, seed=0, split="train", topics=("chart", "geometry"))
        for i in range(4)
    ]
    assert [item.topic for item in items] == ["chart", "geometry"] * 2
    with pytest.raises(ValueError, match="topics.*'maps'"):
        drawings.draw_item(0, seed=0, split="train", topics=("maps",))


def test_prices_stand_in_the_question_and_nobody_gets_them_wrong():
    for index in range(300):
        item = drawings.draw_item(index, seed=0, split="train", topics=("prices",))
        width, height = _rectangle(np.asarray(item.image))
        price = int(re.findall(r"\d+", item.asked.replace("One", ""))[0])
        amount = 2 * (width + height) if "fence" in item.task else width * height
        assert item.readings == (width, height, price)
        assert item.answer == amount * price == _final(item.chosen)
        assert not _wrong_equations(item.chosen) and not _wrong_equations(item.imagined)
        for said in (item.rejected, item.imagined):
            factors = re.findall(r"\d+ x (\d+) = \d+\.", said)
            assert factors[-1] == str(price)
        assert _final(item.rejected) != item.answer


def test_an_imagined_chain_is_consistent_and_does_not_know_the_image(items):
    """It is right about as often as a guess: below 40 %, where readings repeat."""
    finals = [_final(item.imagined) for item in items]
    assert all(final is not None for final in finals)
    assert not any(_wrong_equations(item.imagined) for item in items)
    right = sum(f == item.answer for f, item in zip(finals, items, strict=True))
    assert 0 < right / len(items) < 0.4


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 2**32), st.sampled_from(drawings.SPLITS))
def test_any_seed_and_index_gives_a_proper_pair(index, seed, split):
    item = drawings.draw_item(index, seed=seed, split=split)
    assert item.topic == drawings.TOPICS[index % 3]
    assert item.question.startswith("<image>\nYour task is to answer")
    assert item.question.count("<image>") == 1
    assert _final(item.chosen) == item.answer != _final(item.rejected)


@pytest.mark.parametrize(
    "arguments",
    [
        {"index": -1, "seed": 0, "split": "train"},
        {"index": 0, "seed": -3, "split": "train"},
        {"index": 0, "seed": 0, "split": "test"},
    ],
    ids=["index", "seed", "split"],
)
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match="-1|-3|'test'"):
        drawings.draw_item(arguments.pop("index"), **arguments)
