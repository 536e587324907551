"""Names of fields: what is read, what is a note, what must not vanish."""

from __future__ import annotations

import json
import pathlib

import pytest

from mpo_jax import ledger
from mpo_jax.mmpr import meta, record_fields

GOOD = {"question": "Q?", "chosen": "yes", "rejected": "no"}


def check(record, *, chosen_only=False):
    return record_fields.check(record, chosen_only=chosen_only)


def refusal(record, **options):
    with pytest.raises(ledger.BadRecord) as caught:
        check(record, **options)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize(
    "name",
    [
        "images",
        "image_path",
        "Image",
        "imagePath",
        "img",
        "img_path",
        "image_url",
        "imgs",
    ]
    + ["pictures", "image_base64", "imge", "IMAGES", "image_file", "input_image"]
    + ["image_names", "photo", " image "],
)
@pytest.mark.parametrize("value", ["a.png", ["a.png"], [{"bytes": "x"}]])
def test_pictures_under_another_name(name, value):
    reason, detail = refusal({**GOOD, name: value})
    assert reason == "bad_field"
    assert f"unknown field {name!r}; is 'image' meant (a path or a list" in detail
    assert check({**GOOD, name: value[:0]}) == []


def test_pictures_beside_image():
    record = {**GOOD, "image": "a.png"}
    assert check({**record, "image_url": "https://x/a.png"}) == ["image_url"]
    assert check({**record, "image_id": "a.jpg"}) == []
    assert refusal({**GOOD, "image_id": "a.jpg"})[0] == "bad_field"
    # Whatever a field is called, its pictures must not vanish.
    for value in ("x/a b.JPG", ["a.png"], [{"path": "a.webp", "bytes": None}]):
        reason, detail = refusal({**GOOD, "media": value})
        assert reason == "bad_field" and "'media'; is 'image' meant" in detail
        assert check({**record, "media": value}) == ["media"]
    assert check({**GOOD, "media": "It ends in .png, they say", "source": "a.png"})
    reason, detail = refusal({**record, "images": ["a.png", "b.png"]})
    assert reason == "bad_field" and "Beside 'image', remove it" in detail
    assert refusal({**record, "Image": "b.png"})[0] == "bad_field"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("video", "v.mp4"),
        ("videos", ["v.mp4"]),
        ("video_path", "v.mp4"),
        ("frames", ["1.png"]),
        ("audios", ["a.wav"]),
        ("history", [["a", "b"]]),
        ("system", "Be brief."),
        ("system_prompt", "Be brief."),
        ("systemMessage", "Be brief."),
        ("messages", [{"role": "user", "content": "x"}]),
        ("conversations", [{"from": "human", "value": "x"}]),
        ("tools", "[]"),
        ("rejected_images", ["b.png"]),
        ("chosenImage", "b.png"),
        ("image_rejected", "b.png"),
    ],
)
def test_what_cannot_be_trained_on(name, value):
    for record in (GOOD, {**GOOD, "image": "a.png"}):
        reason, detail = refusal({**record, name: value})
        assert reason == "unsupported"
        assert detail.startswith(f"{name} is {ledger.short(value)}: not supported")
    for empty in (None, "", " ", [], {}, False):
        assert check({**GOOD, name: empty}) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("prompt", "question"),
        ("Query", "question"),
        ("instruction", "question"),
        ("quesion", "question"),
        ("Question", "question"),
        ("choosen", "chosen"),
        ("chosenResponse", "chosen"),
        ("rejected_response", "rejected"),
        ("reject", "rejected"),
    ],
)
def test_texts_under_another_name(name, meant):
    reason, detail = refusal({**GOOD, name: "text"})
    assert reason == "bad_field"
    assert f"unknown field {name!r}; is {meant!r} meant? Beside" in detail
    renamed = {key: value for key, value in GOOD.items() if key != meant}
    reason, detail = refusal({**renamed, name: "text"})
    by_layout = {"prompt": "layout 'trl'", "instruction": "layout 'alpaca'"}
    assert reason == "bad_field"
    assert by_layout.get(name, f"is {name!r} meant") in detail


def test_rejected_is_nothing_to_sft():
    names = ("rejected_response", "rejectd", "rejected_images", "rejected_messages")
    record = {"question": "Q?", "chosen": "yes", **dict.fromkeys(names, ["x"])}
    assert set(check(record, chosen_only=True)) <= set(names)
    assert refusal(record)[0] == "bad_field"
    assert refusal({**record, "choosen": "y"}, chosen_only=True)[0] == "bad_field"


def test_other_fields_are_named_and_kept():
    notes = {
        "id": 3, "answer_gt": "6", "chosen_meta": {"video": 1}, "chosen_model": "m",
        "image_id": "7", "image_size": [2, 3], "width": 2, "question_id": "q",
        "question_orig": "Q", "idx": 1, "ds_name": "x", "length": 9,
    }  # fmt: skip
    assert check({**GOOD, **notes}) == []
    others = {"context": "c", "margin": 0.5, "num_images": 1, "question_text": "Q"}
    others |= {"chosen_by": "me", "image_w": 3, "response": "raw", "text": "t"}
    assert check({**GOOD, **others}) == list(others)


def test_real_data_has_no_unread_field(shared: pathlib.Path):
    folder = shared / "data" / "pref_mathv_real" / "annotations"
    path = folder / "mathv_testmini_correctness_pairs.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        assert check(json.loads(line)) == []


C, R = "A cat.", "A dog."
ASK = {"role": "user", "content": "What?"}


@pytest.mark.parametrize(
    ("layout", "record"),
    [
        ("swift", {"messages": [ASK], "rejected_response": R, "images": ["a"]}),
        ("swift", {"query": "Q", "response": C, "rejected_response": R}),
        ("trl", {"prompt": "Q", "chosen": C, "rejected": R, "images": ["a"]}),
        ("trl", {"prompt": [ASK], "chosen": [ASK], "rejected": [ASK]}),
        ("trl", {"chosen": [ASK], "rejected": [ASK]}),
        ("sharegpt", {"conversations": [ASK], "chosen": ASK, "rejected": ASK}),
        ("alpaca", {"instruction": "Q", "input": "", "chosen": C, "rejected": R}),
        ("internvl", {"conversations": [ASK], "image": "a.png"}),
        ("rlhfv", {"text": '{"question": "Q"}', "image": "a.png"}),
    ],
)
def test_layouts_of_others_name_their_importer(layout, record):
    reason, detail = refusal(record)
    assert reason == "bad_field"
    assert f"scripts/import_data.py --layout={layout}" in detail


def test_the_tables_of_the_documentation_are_whole():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if "|" in line]
    for name in (*record_fields.READ, *meta.FIELDS, *ledger.REASONS):
        assert f"`{name}`" in rows, name
