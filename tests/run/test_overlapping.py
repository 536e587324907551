"""scripts/find_overlap.py's work: two files, a report, the lines that stay."""

from __future__ import annotations

import json

import numpy as np
import pytest
import speaking
from PIL import Image

from mpo_jax.run import overlapping

SHORT = "What is shown here?"


@pytest.fixture
def place(tmp_path):
    """Items of an evaluation, and questions of which some are theirs."""
    (tmp_path / "eval").mkdir()
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
        image = Image.fromarray(pixels).resize((200, 150), Image.Resampling.BICUBIC)
        image.save(tmp_path / "eval" / f"{number}.png")
        if number:
            half = image.resize((100, 75))
            half.save(tmp_path / "pictures" / f"{number}.jpg")
    Image.fromarray(rng.integers(0, 256, (50, 50, 3), np.uint8)).save(
        tmp_path / "pictures" / "own.png"
    )
    speaking.write_lines(
        tmp_path / "eval" / "items.jsonl",
        [
            {"benchmark": "m", "id": "m1", "question": SHORT, "images": ["1.png"]},
            {"benchmark": "m", "id": "m2", "question": "Text alone?", "images": []},
            {"benchmark": "m", "id": "m3", "question": 3, "images": []},
        ],
    )
    speaking.write_lines(
        tmp_path / "eval" / "chart.jsonl",
        [{"id": 5, "question": "<image>\nHow high?", "image": "2.png"}],
    )
    return tmp_path


QUESTIONS = [
    {"id": "x", "question": "Something else?", "image": "1.jpg", "source": "geo"},
    {"question": "text ALONE", "chosen": "kept fields"},
    {"question": SHORT, "image": "own.png"},
    {"question": "Mine?", "image": ["own.png", "2.jpg"]},
    {"question": "Gone?", "image": "none.png"},
    {"question": "Mine too?", "image": "own.png", "note": 1},
    [3],
]


def found_in(place, **options):
    given = speaking.write_lines(place / "in.jsonl", QUESTIONS)
    return overlapping.find(
        given,
        str(place / "pictures"),
        [place / "eval" / "items.jsonl", place / "eval" / "chart.jsonl"],
        place / "out" / "report.json",
        **{"kept": None, **options},
    )


def test_planted_overlap_is_found_and_left_out(place):
    report = found_in(place, kept=place / "kept.jsonl")
    assert report == json.loads((place / "out" / "report.json").read_text())
    assert report["evaluations"] == {
        **{"items": {"m": 2, "chart": 1}, "left_out": {"bad_field": 1}},
        **{"unreadable_images": {}, "flat_images": 0},
    }
    assert report["input"] == {
        **{"lines": 7, "kept": 3, "removed": 3, "left_out": {"bad_json": 1}},
        "unreadable_images": {"image_missing": 1},
    }
    counts = {
        (source, where, kind): told["count"]
        for source, evaluations in report["overlap"].items()
        for where, kinds in evaluations.items()
        for kind, told in kinds.items()
    }
    assert counts == {
        ("geo", "m", "image"): 1,
        ("in", "m", "equal"): 1,
        ("in", "m", "same_text_other_image"): 1,
        ("in", "chart", "image"): 1,
    }
    assert report["kept_in"] == "kept.jsonl"
    (example,) = report["overlap"]["geo"]["m"]["image"]["examples"]
    assert example == {
        **{"line": 1, "id": "x", "question": "Something else?"},
        **{"with_id": "m1", "with_question": SHORT},
    }
    assert speaking.read_lines(place / "kept.jsonl") == [
        QUESTIONS[2],
        *QUESTIONS[4:6],
    ]


def test_without_kept_nothing_but_the_report_is_written(place):
    before = {path.name for path in place.iterdir()}
    assert found_in(place)["kept_in"] is None
    assert {path.name for path in place.iterdir()} == before | {"in.jsonl", "out"}


def test_examples_are_bounded(place, monkeypatch):
    monkeypatch.setattr(overlapping, "MAX_EXAMPLES", 2)
    given = speaking.write_lines(
        place / "many.jsonl", [{"question": "Text alone?"}] * 5
    )
    report = overlapping.find(
        given, "", [place / "eval" / "items.jsonl"], place / "r.json", kept=None
    )
    told = report["overlap"]["many"]["m"]["equal"]
    assert told["count"] == 5 and len(told["examples"]) == 2


def test_an_evaluation_without_questions_is_refused(place):
    empty = speaking.write_lines(place / "eval" / "empty.jsonl", [{"id": 1}])
    with pytest.raises(ValueError, match="empty.jsonl has no question; a line is"):
        overlapping.evaluation([empty], overlapping.Sight())
