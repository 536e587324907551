"""Visual arithmetic: drawn images, questions, right and wrong chains of thought.

Topics, each a 112x112 RGB drawing whose features lie on the 14-pixel patch
grid, so that a small vision transformer can learn to read them within minutes:

- ``count``: squares and circles in two colours on a 3x3 grid,
- ``chart``: three bars of integer height 1-6 against grid lines,
- ``geometry``: one rectangle on a unit grid, with discs beside it, in any colours;
- ``prices``: the same drawings; what a square or a unit costs stands in the question,
  so that an answer takes two multiplications.

Every question reduces to a few small integers read off the image, the *readings*.
They are drawn uniformly first and the image is built around them. Misread values come
from the same range, so a misreading looks as plausible as the truth to anybody who
does not see the image: the preference cannot be learned from the text alone.

Images of the two splits are disjoint by construction: a digest of everything that is
drawn decides to which split an image may belong.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from mpo_jax.verify import formats

IMAGE_SIZE = 112
CELL = 14
"""Pixels of one vision patch; every drawn edge lies near a multiple of it."""
TOPICS = ("count", "chart", "geometry")
"""Those that take turns where none are named."""
ALL_TOPICS = (*TOPICS, "prices")
SPLITS = ("train", "eval")
EVAL_BUCKETS = 32
"""Out of 256 digest values, those that belong to the eval split."""

REJECTED_KINDS = {
    "perception": 0.4,
    "continuation": 0.25,
    "arithmetic": 0.25,
    "format": 0.1,
}
"""Share of each kind of rejected response.

``perception``: one value is misread, the arithmetic after it is consistent.
``continuation``: the first half of the readings is shared, the rest is made up, as a
model does that continues without the image (the paper's DropoutNTP).
``arithmetic``: read right, computed wrong.
``format``: right up to the last line, which holds no final answer.
"""

HEDGES = (
    "That is the result.",
    "This settles it.",
    "So this must be it.",
    "Now it is quite clear.",
)

COLOURS = {
    "red": (214, 39, 40),
    "blue": (31, 90, 200),
    "green": (38, 140, 60),
    "orange": (240, 140, 20),
    "purple": (130, 70, 170),
    "teal": (20, 150, 160),
}
_INK = (60, 60, 60)
_GRID = (205, 205, 205)

Readings = tuple[int, ...]

_PRICED = ((1, 6), (1, 6), (2, 6))
"""Ranges of width, height and price."""

SHIFT = 3
"""Pixels by which the grid of a geometry drawing may be off the patches, each way."""
MAX_DISCS = 3
"""Discs beside the rectangle of a geometry drawing."""


@dataclasses.dataclass(frozen=True)
class _Scene:
    """Everything that is drawn of a geometry question.

    Attributes:
      box: left, top, width and height of the rectangle, in units of the grid.
      fill, paper: RGB of the rectangle and of what is behind it.
      shift: of the grid, in pixels, to the right and down.
      discs: column, row and RGB of each.
    """

    box: tuple[int, ...]
    fill: tuple[int, ...]
    paper: tuple[int, ...]
    shift: tuple[int, ...]
    discs: tuple[tuple, ...]


@dataclasses.dataclass(frozen=True)
class Item:
    """One preference pair with its drawing.

    Attributes:
      topic: one of :data:`ALL_TOPICS`.
      task: what is asked, e.g. ``count/total``.
      image: RGB, :data:`IMAGE_SIZE` square.
      asked: the question alone.
      question: MMPR prompt text, ``<image>`` placeholder and instruction included.
      chosen, rejected: chains of thought of three or four lines.
      imagined: a chain of thought on readings that are made up.
      rejected_kind: key of :data:`REJECTED_KINDS`.
      answer: the right final answer.
      readings: the integers that must be read off the image, or the question.
    """

    topic: str
    task: str
    image: Image.Image
    asked: str
    question: str
    chosen: str
    rejected: str
    imagined: str
    rejected_kind: str
    answer: int
    readings: Readings


@dataclasses.dataclass(frozen=True)
class _Task:
    """A question about one topic.

    Attributes:
      name: ``topic/kind``.
      questions: phrasings, all with the same meaning; ``{2}`` is the third reading,
        which then stands in the question and not in the image.
      ranges: inclusive range of each reading, in the order in which they are written.
      valid: whether readings can occur together in one image.
      given: so many last readings stand in the question, and nobody gets them wrong.
      solve: right result of the last computation.
      write: lines of reasoning, given readings and the (perhaps wrong) result.
      scene: what is drawn, given readings: its repr determines every pixel.
    """

    name: str
    questions: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]
    solve: Callable[[Readings], int]
    write: Callable[[Readings, int], list[str]]
    scene: Callable[[Readings, np.random.Generator], Any]
    valid: Callable[[Readings], bool] = lambda readings: True
    given: int = 0

    @property
    def seen(self) -> int:
        """Readings that must be read off the image: the first ones."""
        return len(self.ranges) - self.given


def draw_item(
    index: int, *, seed: int, split: str, topics: Sequence[str] = TOPICS
) -> Item:
    """Make pair `index` of a split; a function of its arguments alone.

    Topics take turns, so any run of consecutive indices is balanced.

    Args:
      index: number of the pair, from 0.
      seed: seed of the data set.
      split: ``train`` or ``eval``; no image occurs in both, whatever the seeds.
      topics: that take turns.

    Raises:
      ValueError: negative `index` or `seed`, unknown `split` or topic.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must be >= 0, got {index} and {seed}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if not topics or not set(topics) <= set(ALL_TOPICS):
        raise ValueError(f"topics must be some of {ALL_TOPICS}, got {topics!r}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    topic = topics[index % len(topics)]
    tasks = _tasks()[topic]
    task = tasks[rng.integers(len(tasks))]
    while True:  # one image in eight belongs to eval: 8 turns on average there
        readings = _sample(task, rng)
        scene = task.scene(readings, rng)
        if _split_of(topic, scene) == split:
            break
    kinds = list(REJECTED_KINDS)
    kind = kinds[rng.choice(len(kinds), p=list(REJECTED_KINDS.values()))]
    question = task.questions[rng.integers(len(task.questions))].format(*readings)
    return Item(
        topic=topic,
        task=task.name,
        image=_RENDER[topic](scene),
        asked=question,
        question="<image>\n" + formats.get_format("en").wrap(question),
        chosen=_respond(task, readings, task.solve(readings)),
        rejected=_reject(task, readings, kind, rng),
        imagined=_imagine(task, readings, rng),
        rejected_kind=kind,
        answer=task.solve(readings),
        readings=readings,
    )


def _respond(task: _Task, readings: Readings, result: int) -> str:
    return "\n".join([*task.write(readings, result), f"Final answer: {result}"])


def _reject(
    task: _Task, readings: Readings, kind: str, rng: np.random.Generator
) -> str:
    """Write a rejected response of one kind; its final answer is wrong or missing."""
    truth = task.solve(readings)
    if kind == "perception":
        misread = _misreadings(task, readings)
        readings = misread[rng.integers(len(misread))]
        return _respond(task, readings, task.solve(readings))
    if kind == "continuation":
        continued = _continuations(task, readings)
        readings = continued[rng.integers(len(continued))]
        return _respond(task, readings, task.solve(readings))
    if kind == "arithmetic":
        slips = [truth + slip for slip in (-2, -1, 1, 2) if truth + slip >= 0]
        return _respond(task, readings, slips[rng.integers(len(slips))])
    lines = task.write(readings, truth)
    return "\n".join([*lines, HEDGES[rng.integers(len(HEDGES))]])


def _imagine(task: _Task, readings: Readings, rng: np.random.Generator) -> str:
    """A consistent response on any readings, as one writes who sees no image."""
    readings = _sample(task, rng)[: task.seen] + readings[task.seen :]
    return _respond(task, readings, task.solve(readings))


def _sample(task: _Task, rng: np.random.Generator) -> Readings:
    """Uniform over the valid readings."""
    while True:
        readings = tuple(int(rng.integers(low, high + 1)) for low, high in task.ranges)
        if task.valid(readings):
            return readings


def _misreadings(task: _Task, readings: Readings) -> list[Readings]:
    """All readings with exactly one value wrong and, with it, the answer."""
    truth = task.solve(readings)
    changed = (
        readings[:i] + (value,) + readings[i + 1 :]
        for i, (low, high) in enumerate(task.ranges[: task.seen])
        for value in range(low, high + 1)
        if value != readings[i]
    )
    return [r for r in changed if task.valid(r) and task.solve(r) != truth]


def _continuations(task: _Task, readings: Readings) -> list[Readings]:
    """All readings with another answer that share the first half, rounded up.

    Where that half fixes the answer (nine red shapes leave no room for a blue one),
    the shared part is shorter.
    """
    truth, seen = task.solve(readings), task.seen
    for kept in range((seen + 1) // 2, -1, -1):
        values = (range(low, high + 1) for low, high in task.ranges[kept:seen])
        whole = (
            readings[:kept] + rest + readings[seen:]
            for rest in itertools.product(*values)
        )
        found = [r for r in whole if task.valid(r) and task.solve(r) != truth]
        if found:
            return found
    raise AssertionError(f"every reading of {task.name} has the answer {truth}")


def _split_of(topic: str, scene: Any) -> str:
    digest = hashlib.blake2b(repr((topic, scene)).encode(), digest_size=1).digest()
    return "eval" if digest[0] < EVAL_BUCKETS else "train"


@functools.cache
def _tasks() -> dict[str, tuple[_Task, ...]]:
    return {
        "count": (
            _count_task("total", None),
            _count_task("red", "red"),
            _count_task("blue", "blue"),
            _difference_task(),
        ),
        "chart": (
            *(_sum_task(a, b) for a, b in itertools.combinations(range(3), 2)),
            _range_task(),
        ),
        "geometry": (_perimeter_task(), _area_task()),
        "prices": (_fence_task(), _tiles_task()),
    }


def _count_task(kind: str, colour: str | None) -> _Task:
    what = "shapes" if colour is None else f"{colour} shapes"

    def write(r: Readings, result: int) -> list[str]:
        return [
            f"The rows hold {r[0]}, {r[1]} and {r[2]} {what}.",
            f"{r[0]} + {r[1]} + {r[2]} = {result}.",
        ]

    def scene(r: Readings, rng: np.random.Generator) -> tuple:
        rows = []
        for value in r:
            if colour is None:
                reds = int(rng.integers(value + 1))
                rows.append((reds, value - reds))
            else:
                other = int(rng.integers(3 - value + 1))
                rows.append((value, other) if colour == "red" else (other, value))
        return _place_shapes(rows, rng)

    return _Task(
        name=f"count/{kind}",
        questions=(
            f"How many {what} are there in the picture?",
            f"What is the number of {what} in the grid?",
        ),
        ranges=((0, 3),) * 3,
        solve=sum,
        write=write,
        scene=scene,
    )


def _difference_task() -> _Task:
    def totals(r: Readings) -> tuple[int, int]:
        return sum(r[:3]), sum(r[3:])

    def write(r: Readings, result: int) -> list[str]:
        red, blue = totals(r)
        return [
            f"Red: {r[0]} + {r[1]} + {r[2]} = {red}.",
            f"Blue: {r[3]} + {r[4]} + {r[5]} = {blue}.",
            f"{max(red, blue)} - {min(red, blue)} = {result}.",
        ]

    return _Task(
        name="count/difference",
        questions=(
            "What is the difference between the numbers of red and blue shapes?",
            "By how many do the red and the blue shapes differ in number?",
        ),
        ranges=((0, 3),) * 6,  # red shapes of rows 1-3, then blue ones
        valid=lambda r: all(r[i] + r[i + 3] <= 3 for i in range(3)),
        solve=lambda r: abs(totals(r)[0] - totals(r)[1]),
        write=write,
        scene=lambda r, rng: _place_shapes(list(zip(r[:3], r[3:], strict=True)), rng),
    )


def _sum_task(first: int, second: int) -> _Task:
    a, b = "ABC"[first], "ABC"[second]

    def write(r: Readings, result: int) -> list[str]:
        return [
            f"Bar {a} is {r[0]} high and bar {b} is {r[1]} high.",
            f"{r[0]} + {r[1]} = {result}.",
        ]

    def scene(r: Readings, rng: np.random.Generator) -> tuple:
        heights = [int(value) for value in rng.integers(1, 7, size=3)]
        heights[first], heights[second] = r
        return _colour_bars(heights, rng)

    return _Task(
        name=f"chart/sum_{a}{b}".lower(),
        questions=(
            f"What is the sum of bars {a} and {b}?",
            f"How much are bar {a} and bar {b} together?",
        ),
        ranges=((1, 6),) * 2,
        solve=sum,
        write=write,
        scene=scene,
    )


def _range_task() -> _Task:
    def write(r: Readings, result: int) -> list[str]:
        return [
            f"The bars are {r[0]}, {r[1]} and {r[2]} high.",
            f"The highest is {max(r)} and the lowest is {min(r)}.",
            f"{max(r)} - {min(r)} = {result}.",
        ]

    return _Task(
        name="chart/range",
        questions=(
            "What is the highest bar minus the lowest bar?",
            "By how much is the highest bar above the lowest bar?",
        ),
        ranges=((1, 6),) * 3,
        solve=lambda r: max(r) - min(r),
        write=write,
        scene=_colour_bars,
    )


def _perimeter_task() -> _Task:
    def write(r: Readings, result: int) -> list[str]:
        half = r[0] + r[1]
        return [
            "The perimeter is twice the sum of width and height.",
            f"The width is {r[0]}. The height is {r[1]}.",
            f"{r[0]} + {r[1]} = {half}, and 2 x {half} = {result}.",
        ]

    return _Task(
        name="geometry/perimeter",
        questions=(
            "What is the perimeter of the rectangle in units of the grid?",
            "How long is the outline of the rectangle in units of the grid?",
        ),
        ranges=((1, 6),) * 2,
        solve=lambda r: 2 * (r[0] + r[1]),
        write=write,
        scene=_place_rectangle,
    )


def _area_task() -> _Task:
    def write(r: Readings, result: int) -> list[str]:
        return [
            "The area is the product of width and height.",
            f"The width is {r[0]}. The height is {r[1]}.",
            f"{r[0]} x {r[1]} = {result}.",
        ]

    return _Task(
        name="geometry/area",
        questions=(
            "What is the area of the rectangle in squares of the grid?",
            "How many squares of the grid does the rectangle cover?",
        ),
        ranges=((1, 6),) * 2,
        solve=lambda r: r[0] * r[1],
        write=write,
        scene=_place_rectangle,
    )


def _fence_task() -> _Task:
    def write(r: Readings, result: int) -> list[str]:
        half = r[0] + r[1]
        return [
            "The cost is the perimeter times the price.",
            f"The width is {r[0]}. The height is {r[1]}.",
            f"{r[0]} + {r[1]} = {half}, and 2 x {half} = {2 * half}.",
            f"{2 * half} x {r[2]} = {result}.",
        ]

    return _Task(
        name="prices/fence",
        questions=(
            "One unit of fence costs {2} coins. What does a fence around the "
            "rectangle cost?",
            "A fence has a price of {2} coins per unit. How many coins does it take to "
            "put it around the rectangle?",
        ),
        ranges=_PRICED,
        given=1,
        solve=lambda r: 2 * (r[0] + r[1]) * r[2],
        write=write,
        scene=lambda r, rng: _place_rectangle(r[:2], rng),
    )


def _tiles_task() -> _Task:
    def write(r: Readings, result: int) -> list[str]:
        area = r[0] * r[1]
        return [
            "The cost is the area times the price.",
            f"The width is {r[0]}. The height is {r[1]}.",
            f"{r[0]} x {r[1]} = {area}.",
            f"{area} x {r[2]} = {result}.",
        ]

    return _Task(
        name="prices/tiles",
        questions=(
            "One square costs {2} coins. What do the squares of the rectangle cost?",
            "A square has a price of {2} coins. How many coins does it take to buy the "
            "rectangle?",
        ),
        ranges=_PRICED,
        given=1,
        solve=lambda r: r[0] * r[1] * r[2],
        write=write,
        scene=lambda r, rng: _place_rectangle(r[:2], rng),
    )


def _place_shapes(
    rows: Sequence[tuple[int, int]], rng: np.random.Generator
) -> tuple[tuple[str, ...], ...]:
    """3x3 cells from (red, blue) per row: ``""`` or e.g. ``"red circle"``."""
    grid = []
    for reds, blues in rows:
        colours = ["red"] * reds + ["blue"] * blues
        forms = ["circle" if round_ else "square" for round_ in rng.integers(2, size=3)]
        cells = [f"{c} {f}" for c, f in zip(colours, forms, strict=False)]
        cells += [""] * (3 - len(cells))
        grid.append(tuple(cells[i] for i in rng.permutation(3)))
    return tuple(grid)


def _colour_bars(heights: Sequence[int], rng: np.random.Generator) -> tuple:
    """(height, colour) of bars A, B and C; colours differ."""
    names = list(COLOURS)
    picks = rng.permutation(len(names))[: len(heights)]
    return tuple((int(h), names[i]) for h, i in zip(heights, picks, strict=True))


def _place_rectangle(size: Readings, rng: np.random.Generator) -> _Scene:
    """A rectangle of a size in units, and what a reader must not mind.

    The place, the colours, where the grid begins, and discs beside the rectangle: some
    10^12 drawings of each size.
    """
    width, height = size
    box = (int(rng.integers(1, 8 - width)), int(rng.integers(1, 8 - height)))
    free = [
        (x, y)
        for x, y in itertools.product(range(8), repeat=2)
        if not (box[0] <= x < box[0] + width and box[1] <= y < box[1] + height)
    ]
    discs = rng.choice(len(free), size=int(rng.integers(MAX_DISCS + 1)), replace=False)
    return _Scene(
        box=(*box, width, height),
        fill=_free_colour(rng),
        paper=tuple(int(255 - tint) for tint in rng.integers(0, 24, size=3)),
        shift=tuple(int(by) for by in rng.integers(-SHIFT, SHIFT + 1, size=2)),
        discs=tuple((*free[i], _free_colour(rng)) for i in discs),
    )


def _free_colour(rng: np.random.Generator) -> tuple[int, ...]:
    """Any colour that stands out from paper and ink."""
    hue, saturation, value = rng.integers([0, 60, 55], [360, 101, 91])
    return ImageColor.getrgb(f"hsv({hue}, {saturation}%, {value}%)")


# Rendering -------------------------------------------------------------------------


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(11)  # bundled with Pillow: no system font needed


def _canvas(
    paper: tuple[int, ...] = (255, 255, 255),
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), paper)
    return image, ImageDraw.Draw(image)


def _render_count(scene: tuple) -> Image.Image:
    image, draw = _canvas()
    side = 2 * CELL  # a cell is 2x2 patches
    for row, col in itertools.product(range(3), repeat=2):
        x, y = CELL + side * col, CELL + side * row
        draw.rectangle((x, y, x + side, y + side), outline=_GRID)
    for row, col in itertools.product(range(3), repeat=2):
        if not scene[row][col]:
            continue
        colour, form = scene[row][col].split()
        x, y = CELL + side * col, CELL + side * row
        box = (x + 4, y + 4, x + side - 4, y + side - 4)
        if form == "circle":
            draw.ellipse(box, fill=COLOURS[colour])
        else:
            draw.rectangle(box, fill=COLOURS[colour])
    return image


def _render_chart(scene: tuple) -> Image.Image:
    image, draw = _canvas()
    base, left, right = IMAGE_SIZE - CELL, CELL, IMAGE_SIZE - CELL
    for tick in range(1, 7):
        y = base - CELL * tick
        draw.line((left, y, right, y), fill=_GRID)
        draw.text((left - 4, y), str(tick), fill=_INK, font=_font(), anchor="rm")
    for i, (height, colour) in enumerate(scene):
        x = left + 2 * CELL * i
        top = base - CELL * height
        draw.rectangle((x + 5, top, x + 2 * CELL - 4, base), fill=COLOURS[colour])
        centre = (x + CELL, base + 7)
        draw.text(centre, "ABC"[i], fill=_INK, font=_font(), anchor="mm")
    draw.line((left, CELL, left, base), fill=_INK)
    draw.line((left, base, right, base), fill=_INK)
    return image


def _render_geometry(scene: _Scene) -> Image.Image:
    image, draw = _canvas(scene.paper)
    right, down = scene.shift
    left, top, width, height = scene.box
    box = [
        *(CELL * left + right, CELL * top + down),
        *(CELL * (left + width) + right, CELL * (top + height) + down),
    ]
    draw.rectangle(box, fill=scene.fill)
    for x, y, colour in scene.discs:
        x, y = CELL * x + right, CELL * y + down
        draw.ellipse((x + 3, y + 3, x + CELL - 3, y + CELL - 3), fill=colour)
    for at in range(0, IMAGE_SIZE + CELL, CELL):  # over the fill: units can be counted
        draw.line((at + right, 0, at + right, IMAGE_SIZE), fill=_GRID)
        draw.line((0, at + down, IMAGE_SIZE, at + down), fill=_GRID)
    draw.rectangle(box, outline=_INK, width=2)
    return image


_RENDER: dict[str, Callable[[Any], Image.Image]] = {
    "count": _render_count,
    "chart": _render_chart,
    "geometry": _render_geometry,
    "prices": _render_geometry,
}
