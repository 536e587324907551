"""The pin of a run: each part changes with what it covers, and with nothing else."""

from __future__ import annotations

import dataclasses

import pytest

from mpo_jax.evals import pin
from mpo_jax.evals.benchmark import Ask, Item


def run(**changes) -> pin.Pin:
    item = Item("1", "q", "6", images=("a.png",), options=("x", "y"))
    given = {
        "item": item,
        "ask": Ask("q?", 10),
        "protocol": "paper",
        "decoding": {"temperature": 0.0, "n": 1},
        "scorer": "1",
        "weights": "w",
        "picture": b"picture",
    } | changes
    shared = pin.of_run(
        decoding=given["decoding"], scorer=given["scorer"], weights=given["weights"]
    )
    asked = [
        pin.Asked("cot", item, Ask("first", 5)),
        pin.Asked("cot", given["item"], given["ask"]),
    ]
    own = pin.of_benchmark(
        "sums", given["protocol"], asked, image=lambda image: given["picture"]
    )
    return pin.Pin(shared | own)


def item(**changes) -> Item:
    made = Item("1", "q", "6", images=("a.png",), options=("x", "y"))
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({}, []),
        ({"decoding": {"n": 1, "temperature": 0.0}}, []),  # order of names
        ({"decoding": {"n": 8, "temperature": 0.0}}, ["decoding"]),
        ({"scorer": "2"}, ["scorer"]),
        ({"weights": "v"}, ["weights"]),
        ({"protocol": "official"}, ["protocol/sums"]),
        ({"ask": Ask("q!", 10)}, ["prompts/sums"]),
        ({"ask": Ask("q?", 10, system="be brief")}, ["prompts/sums"]),
        ({"ask": Ask("q?", 11)}, ["tiles/sums"]),
        ({"ask": Ask("q?", 10, max_tiles=12)}, ["tiles/sums"]),
        ({"picture": b"other"}, ["data/sums"]),
        ({"item": item(answer="7")}, ["data/sums"]),
        ({"item": item(answer=("6", "six"))}, ["data/sums"]),
        ({"item": item(options=("y", "x"))}, ["data/sums"]),
        ({"item": item(categories={"a": "b"})}, ["data/sums"]),
        ({"item": item(images=("b.png",))}, []),  # the same picture, moved
        ({"item": item(id="2")}, ["data/sums", "prompts/sums", "tiles/sums"]),
    ],
)
def test_what_differs_is_named(changes, parts):
    one, other = run(), run(**changes)
    assert list(pin.differences(one, other)) == parts
    assert (one.id == other.id) == (not parts)


def test_parts_that_one_lacks_are_named():
    whole = run()
    less = pin.Pin({k: v for k, v in whole.parts.items() if k != "weights"})
    assert pin.differences(less, whole) == {
        "weights": ("absent", whole.parts["weights"])
    }


def test_pins_come_back():
    made = run()
    again = pin.Pin.from_json(made.as_json(), "report.json")
    assert again == made and len(made.id) == 12
    for bad in (None, [], {"id": "x"}, {"parts": {"a": 1}}):
        with pytest.raises(ValueError, match="report.json: pin="):
            pin.Pin.from_json(bad, "report.json")
