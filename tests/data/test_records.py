"""meta.json, streaming of lines and the checks of one record."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo_jax.data import ledger, records

SOURCE = records.Source(name="s", root="/data/images", annotation="/data/a.jsonl")
GOOD = {"image": "x/1.jpg", "question": "Q?", "chosen": "yes", "rejected": "no"}


def parse(record, *, max_bytes=1000, chosen_only=False):
    line = record if isinstance(record, bytes) else json.dumps(record).encode()
    return records.parse_record(
        line,
        source=SOURCE,
        line_number=7,
        max_bytes=max_bytes,
        chosen_only=chosen_only,
    )


def write_meta(folder, entries):
    path = folder / "meta.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    (folder / "a.jsonl").touch()
    return path


# meta.json


def test_real_meta(shared):
    folder = shared / "data" / "pref_mathv_real"
    (source,) = records.load_meta(folder / "meta.json")
    assert source.name == "mathv_testmini_correctness_pairs"
    assert source.root == str(folder.absolute())
    assert source.length == 218 and source.repeat_time == 1
    lines = list(records.iter_lines(source.annotation, max_bytes=100_000))
    assert len(lines) == 218
    for offset, number, line in lines:
        record = records.parse_record(
            line, source=source, line_number=number, max_bytes=100_000
        )
        assert len(record.images) == 1 and record.images[0].startswith(source.root)
        again = records.read_record(
            source, offset, line_number=number, max_bytes=100_000
        )
        assert again == record


def test_meta_fields(tmp_path):
    path = write_meta(
        tmp_path,
        {
            "one/with slash": {"root": "i", "annotation": "a.jsonl"},
            "two": {
                "root": "/absolute",
                "annotation": str(tmp_path / "a.jsonl"),
                "data_augment": False,
                "repeat_time": 0.5,
                "length": 3,
                "max_dynamic_patch": 6,
                "note": "unknown fields are warned of",
            },
        },
    )
    one, two = records.load_meta(path)
    assert one == records.Source(
        name="one/with slash",
        root=str(tmp_path / "i"),
        annotation=str(tmp_path / "a.jsonl"),
    )
    assert (two.root, two.repeat_time, two.length, two.max_tiles) == (
        "/absolute",
        0.5,
        3,
        6,
    )


def test_reroot(tmp_path):
    entries = {
        "a": {"root": "/mnt/c/MMPR/images", "annotation": "/mnt/c/MMPR/a.jsonl"},
        "b": {"root": "/mnt/c/MMPR2", "annotation": "a.jsonl"},
    }
    path = write_meta(tmp_path, entries)
    moved, kept = records.load_meta(path, reroot=f"/mnt/c/MMPR/={tmp_path}")
    assert moved.root == str(tmp_path / "images")
    assert moved.annotation == str(tmp_path / "a.jsonl")
    assert kept.root == "/mnt/c/MMPR2"  # only whole path components match
    assert records.load_meta(path, reroot="/mnt/c/MMPR=.")[0] == moved
    with pytest.raises(FileNotFoundError, match="reroot OLD=NEW"):
        records.load_meta(path)
    with pytest.raises(ValueError, match="must read OLD=NEW"):
        records.load_meta(path, reroot="/mnt/c/MMPR")
    write_meta(tmp_path, {"b": entries["b"]})
    with pytest.raises(ValueError, match="begins with '/elsewhere'"):
        records.load_meta(path, reroot="/elsewhere=/x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": None}, "root must be a path, got None"),
        ({"root": "s3://bucket/x"}, "is a URL"),
        ({"annotation": 3}, "annotation must be a path, got 3"),
        ({"annotation": "a.json"}, "must end in .jsonl"),
        ({"repeat_time": "1"}, "repeat_time must be a number >= 0, got '1'"),
        ({"repeat_time": -1}, "repeat_time must be a number"),
        ({"repeat_time": True}, "repeat_time must be a number"),
        ({"repeat_time": float("nan")}, "repeat_time must be a number"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch must be a whole number >= 1"),
        ({"max_dynamic_patch": 6.0}, "max_dynamic_patch must be a whole number"),
        ({"length": "many"}, "length must be a whole number"),
        ({"data_augment": "no"}, "data_augment must be true or false"),
        ({"data_augment": True}, "source 'math': data_augment is true.*reference"),
        ({"repeat_tme": 1}, "unknown field 'repeat_tme'; is 'repeat_time' meant"),
    ],
)
def test_bad_meta_fields(tmp_path, change, message):
    entry = {"root": ".", "annotation": "a.jsonl", **change}
    path = write_meta(tmp_path, {"math": entry})
    with pytest.raises(ValueError, match=message):
        records.load_meta(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {},}', "not valid JSON.*line 1"),
        ("[" * 100_000, "not valid JSON"),
        ('{"\\ud800": {}}', "not valid JSON.*surrogates"),
        ("[]", "one entry per source"),
        ("{}", "one entry per source"),
        ('{"a": []}', "source 'a': must be an object"),
        ('{"a": {}, "a": {}}', r"repeated keys \['a'\]"),
    ],
)
def test_bad_meta_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        records.load_meta(write_meta(tmp_path, text))


def test_missing_meta(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json"):
        records.load_meta(tmp_path / "none.json")


# Lines


LINE = st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b""))


@given(
    lines=st.lists(LINE, max_size=12),
    end=st.sampled_from([b"\n", b"\r\n"]),
    closed=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=4),
    max_bytes=st.integers(1, 20),
)
def test_ranges_give_every_line_once(
    tmp_path_factory, lines, end, closed, cuts, max_bytes
):
    data = b"".join(line + end for line in lines)
    if lines and lines[-1] and not closed:
        data = data[: -len(end)]
    path = tmp_path_factory.mktemp("lines") / "a"
    path.write_bytes(data)
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut <= len(data))})
    offset, expected = 0, []
    for line in lines:
        expected.append((offset, line[: max_bytes + 1]))
        offset += len(line + end)
    found, count = [], 0
    for start, stop in zip(bounds, bounds[1:], strict=False):
        number = 0
        for offset, number, line in records.iter_lines(
            path, start=start, stop=stop, max_bytes=max_bytes
        ):
            assert start <= offset < stop
            found.append((offset, line, count + number))
        count += number
    assert found == [(o, line, i + 1) for i, (o, line) in enumerate(expected)]
    assert list(records.iter_lines(path, max_bytes=max_bytes)) == [
        (o, i + 1, line) for i, (o, line) in enumerate(expected)
    ]
    with open(path, "rb") as file:
        for offset, line in expected:
            read = records.read_line(file.fileno(), offset, max_bytes=max_bytes)
            assert read == line


def test_a_line_that_takes_many_reads(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"first\n" + b"x" * 100_000 + b"\nlast")
    with open(path, "rb") as file:
        long = records.read_line(file.fileno(), 6, max_bytes=1_000_000)
        assert long == b"x" * 100_000
        cut = records.read_line(file.fileno(), 6, max_bytes=50_000)
        assert cut == b"x" * 50_001
        assert records.read_line(file.fileno(), 100_007, max_bytes=9) == b"last"


def test_streaming_holds_one_line(tmp_path):
    path = tmp_path / "a.jsonl"
    line = json.dumps({**GOOD, "chosen": "y" * 1000}).encode() + b"\n"
    with open(path, "wb") as file:
        for _ in range(25):
            file.write(line * 1000)  # 27 MB in short lines
        file.write(b"z" * 25_000_000 + b"\n")  # and 25 MB in one
        file.write(line)
    tracemalloc.start()
    count = longest = 0
    for _, count, data in records.iter_lines(path, max_bytes=100_000):  # noqa: B007
        longest = max(longest, len(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 25_002
    assert longest == 100_001
    # One line, its copy and the read buffers; the file has 52 MB.
    assert peak < 1_000_000, peak


# Records


def test_good_record():
    record = parse(GOOD)
    assert record.images == ("/data/images/x/1.jpg",)
    assert (record.question, record.chosen, record.rejected) == ("Q?", "yes", "no")
    assert (record.source, record.file, record.line) == ("s", "/data/a.jsonl", 7)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("a.jpg", ("/data/images/a.jpg",)),
        ("./b//a.jpg", ("/data/images/b/a.jpg",)),
        ("b/../a.jpg", ("/data/images/a.jpg",)),
        (["a.jpg", "b.jpg"], ("/data/images/a.jpg", "/data/images/b.jpg")),
        ("", ()),
        ([], ()),
        (None, ()),
    ],
)
def test_image_forms(image, expected):
    assert parse({**GOOD, "image": image}).images == expected


def test_text_only_and_byte_order_mark():
    record = {key: GOOD[key] for key in ("question", "chosen", "rejected")}
    assert parse(record).images == ()
    assert parse(b"\xef\xbb\xbf" + json.dumps(record).encode()).images == ()


def drop(key):
    return {k: v for k, v in GOOD.items() if k != key}


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        (b"{", "bad_json", "line 1 column"),
        (b"[1]", "bad_json", r"not an object: \[1\]"),
        (b"null", "bad_json", "not an object"),
        (b'{"question": "\xff"}', "bad_json", "can't decode byte 0xff"),
        ("{}".encode("utf-16"), "bad_json", "utf-8"),
        (b"[" * 900, "bad_json", "line 1 column"),
        (b"x" * 1001, "line_too_long", "1000 bytes; raise data.max_text_bytes"),
        (drop("question"), "bad_field", "question is missing"),
        (drop("rejected"), "bad_field", "rejected is missing"),
        (
            {**drop("rejected"), "rejectd": "no"},
            "bad_field",
            "is 'rejectd' meant",
        ),
        ({**GOOD, "question": 5}, "bad_field", "question must be text, got 5"),
        ({**GOOD, "chosen": ["a"]}, "bad_field", "chosen must be text"),
        ({**GOOD, "chosen": ""}, "bad_field", "chosen is empty"),
        ({**GOOD, "rejected": " \n"}, "bad_field", "rejected is empty"),
        ({**GOOD, "chosen": "a\ud800"}, "bad_field", "surrogate at character 1"),
        ({**GOOD, "chosen": "no"}, "identical", "both responses are 'no'"),
        ({**GOOD, "image": 3}, "bad_field", "image must be a path"),
        ({**GOOD, "image": False}, "bad_field", "image must be a path"),
        ({**GOOD, "image": {"p": 1}}, "bad_field", "image must be a path"),
        ({**GOOD, "image": ["a", ""]}, "bad_field", "image must be a path"),
        ({**GOOD, "image": ["a"] * 257}, "bad_field", "the limit is 256"),
        ({**GOOD, "image": "../a"}, "image_missing", "below the root '/data/images'"),
        ({**GOOD, "image": "x/../../a"}, "image_missing", "below the root"),
        ({**GOOD, "image": ["a", "/etc/a"]}, "image_missing", "'/etc/a'"),
        ({**GOOD, "image": "."}, "image_missing", "below the root"),
        ({**GOOD, "image": "a\0b"}, "image_missing", "below the root"),
        ({**GOOD, "image": "\udcff"}, "image_missing", "below the root"),
        ({**drop("image"), "video": "v.mp4"}, "unsupported", "video is 'v.mp4'"),
        ({**GOOD, "system_prompt": "Be"}, "unsupported", "system_prompt is 'Be'"),
    ],
)
def test_bad_records(record, reason, detail):
    with pytest.raises(ledger.BadRecord, match=detail) as caught:
        parse(record, max_bytes=3000 if isinstance(record, dict) else 1000)
    assert caught.value.reason == reason


def test_deep_nesting_and_huge_numbers_are_bad_json():
    for line in (b'{"a":' + b"[" * 200_000, b'{"a": ' + b"9" * 5000 + b"}"):
        with pytest.raises(ledger.BadRecord, match="bad_json"):
            parse(line, max_bytes=1_000_000)


def test_chosen_only():
    assert parse(drop("rejected"), chosen_only=True).rejected == ""
    assert parse({**GOOD, "rejected": None}, chosen_only=True).rejected == ""
    assert parse({**GOOD, "rejected": "yes"}, chosen_only=True).rejected == "yes"
    with pytest.raises(ledger.BadRecord, match="rejected must be text"):
        parse({**GOOD, "rejected": 1}, chosen_only=True)
    with pytest.raises(ledger.BadRecord, match="chosen is missing"):
        parse(drop("chosen"), chosen_only=True)


TEXT = st.text("ab /.\\\0\n\ud800", max_size=6)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = SCALAR | st.lists(TEXT | st.lists(SCALAR, max_size=1), max_size=3)


@given(st.fixed_dictionaries({}, optional={key: JSON for key in (*GOOD, "video")}))
def test_any_json_gives_a_record_or_a_reason(record):
    try:
        parsed = parse(record, max_bytes=100_000)
    except ledger.BadRecord as bad:
        assert bad.reason in ledger.REASONS and bad.detail
    else:
        assert parsed.question.strip() and parsed.chosen != parsed.rejected
        assert all(path.startswith("/data/images/") for path in parsed.images)
