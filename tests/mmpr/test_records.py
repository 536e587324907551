"""meta.json, streaming of lines and the checks of one record."""

from __future__ import annotations

import collections
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo_jax import ledger
from mpo_jax.mmpr import records
from mpo_jax.mmpr.meta import Source

SOURCE = Source(name="s", root="/data/images", annotation="/data/a.jsonl")
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
        ({**GOOD, "image": "a\0b"}, "bad_field", "holds a NUL character"),
        ({**GOOD, "image": "\udcff"}, "bad_field", "surrogate at character 0"),
        ({**drop("image"), "video": "v.mp4"}, "unsupported", "video is 'v.mp4'"),
        ({**GOOD, "system_prompt": "Be"}, "unsupported", "system_prompt is 'Be'"),
    ],
)
def test_bad_records(record, reason, detail):
    with pytest.raises(ledger.BadRecord, match=detail) as caught:
        parse(record, max_bytes=3000 if isinstance(record, dict) else 1000)
    assert caught.value.reason == reason


def test_keys_that_stand_twice():
    twice = b'{"question": "Q?", "chosen": "yes", "chosen": "y", "rejected": "no"}'
    with pytest.raises(ledger.BadRecord, match="'chosen' stands twice"):
        parse(twice)
    notes = b'{"question": "Q?", "chosen": "y", "rejected": "n", "meta": {"a":1,"a":2}}'
    assert parse(notes).chosen == "y"  # not ours to judge


def test_unread_fields_of_good_records_are_counted():
    unread = collections.Counter[str]()
    for record in (
        {**GOOD, "context": "A long story.", "id": 3},
        {**GOOD, "context": "", "margin": 0.5, "x" * 100: 1},
        {**GOOD, "context": "lost with the record", "chosen": ""},
    ):
        line = json.dumps(record).encode()
        try:
            records.parse_record(
                line, source=SOURCE, line_number=1, max_bytes=1000, unread=unread
            )
        except ledger.BadRecord:
            continue
    assert unread == {"context": 1, "margin": 1, "x" * 60: 1}
    for n in range(100):  # names are not hoarded
        line = json.dumps({**GOOD, f"field{n}": "x"}).encode()
        records.parse_record(
            line, source=SOURCE, line_number=1, max_bytes=1000, unread=unread
        )
    assert len(unread) == records.MAX_NOTED + 1 and unread.total() == 103


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


KEYS = (*GOOD, "video", "images", "prompt", "messages", "note", "Image", "system")


@given(st.fixed_dictionaries({}, optional={key: JSON for key in KEYS}))
def test_any_json_gives_a_record_or_a_reason(record):
    try:
        parsed = parse(record, max_bytes=100_000)
    except ledger.BadRecord as bad:
        assert bad.reason in ledger.REASONS and bad.detail
    else:
        assert parsed.question.strip() and parsed.chosen != parsed.rejected
        assert all(path.startswith("/data/images/") for path in parsed.images)
