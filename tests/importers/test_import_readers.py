"""Files: told by their first bytes, read in bounded memory, damage named."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc

import import_cases as cases
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_mmpr
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo_jax import ledger
from mpo_jax.importers import hub, inputs, readers

RECORDS = [{"question": f"Q {n} é 😀", "n": n} for n in range(5)]


def read(path, max_bytes=1 << 20):
    return list(
        readers.read(str(path), readers.kind_of(str(path)), max_bytes=max_bytes)
    )


@pytest.mark.parametrize(
    "name, data, kind",
    [
        ("a.jsonl", b"".join(json.dumps(r).encode() + b"\n" for r in RECORDS), "lines"),
        (
            "a.json",
            b"\xef\xbb\xbf"
            + b"".join(json.dumps(r).encode() + b"\r\n" for r in RECORDS),
            "lines",
        ),
        ("a.json", json.dumps(RECORDS, ensure_ascii=False).encode(), "list"),
        ("a.jsonl", json.dumps(RECORDS, indent=2).encode("utf-8-sig"), "list"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_first_bytes_say_what_a_file_is(tmp_path, name, data, kind, packed):
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(data) if packed else data)
    assert readers.kind_of(str(path)) == f"JSON {kind}"
    assert read(path) == list(enumerate(RECORDS, 1))


def test_parquet_rows_and_cut_files(tmp_path):
    path = tmp_path / "a.parquet"
    many = [{"n": n, "image": {"bytes": b"\x89" * n, "path": None}} for n in range(100)]
    pq.write_table(pa.Table.from_pylist(many), path)
    assert read(path) == list(enumerate(many, 1))
    latin = pa.array([b"good", b"\xff\xfe"], pa.binary()).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, latin.buffers())
    pq.write_table(pa.table({"q": text}), tmp_path / "latin.parquet")
    (_, first), (_, second) = read(tmp_path / "latin.parquet")
    assert first == {"q": "good"} and second.reason == "bad_field"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="a.parquet, after row 0"):
        read(path)


@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        )
    ),
    st.sampled_from([None, 1]),
    st.integers(1, 40),
)
@settings(deadline=None)
def test_a_list_is_what_json_reads(values, indent, chunk):
    text = json.dumps(values, indent=indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_CHUNK", chunk)
        file = io.BytesIO(text.encode())
        items = [repr(item) for _, item in readers._list(file, "x", 1 << 20)]
    assert items == [repr(item) for item in json.loads(text)]


@pytest.mark.parametrize(
    "text, problem",
    [
        ('[{"a": 1}, {"a": 2', "item 2 of the list: .*the rest cannot be read"),
        ('[{"a": 1}, {"a": "x', "item 2 of the list: Unterminated"),
        ('[{"a": 1}, {a: 2}, ' + "1, " * 99 + "1]", "item 2 of the list: Expecting"),
        ('[{"a": 1}', "the file ends where the list needs ','; is it cut off"),
        ('[{"a": 1},', "item 2 of the list"),
        ('[{"a": 1},]', "item 2 of the list"),
        ('[{"a": 1} {"a": 2}]', "'{' stands where the list needs ','"),
        ("[1] x", "something follows the end of the list"),
        ('["' + "x" * 200_000 + '"]', "longer than 1000; raise --max_record_bytes"),
        ("[" * 100_000, "item 1 of the list: is nested too deeply"),
        ('["\xff"]', "is not UTF-8"),
        ("[" + "1" * 5000 + "]", "item 1 of the list: Exceeds"),
    ],
)
def test_a_broken_list_ends_the_reading_by_name(tmp_path, text, problem):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=problem) as caught:
        read(path, max_bytes=1000)
    assert str(path) in str(caught.value)


def test_a_repeated_key_costs_one_item(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"a": {"b": 1, "b": 2}}, {"a": 1}]')
    (_, first), second = read(path)
    assert isinstance(first, ledger.BadRecord) and "repeated keys b" in first.detail
    assert second == (2, {"a": 1})


@pytest.mark.parametrize(
    "data, problem",
    [
        (b"", "is empty"),
        (b"PK\x03\x04zip", "neither JSON lines, a JSON list nor Parquet"),
        ('{"a": 1}'.encode("utf-16"), "neither JSON lines"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (
            gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-4],
            "gzip file is damaged|cannot be read",
        ),
        (b"\x1f\x8bno gzip", "cannot be read"),
    ],
)
def test_files_that_are_something_else(tmp_path, data, problem):
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=problem):
        read(path)


@pytest.mark.parametrize("kind", ["lines", "list"])
def test_memory_does_not_grow_with_the_file(tmp_path, kind):
    path = tmp_path / "x.json"
    record = {"question": "Q" * 1000}
    text = json.dumps([record] * 5000, indent=0 if kind == "list" else None)
    if kind == "lines":
        text = (json.dumps(record) + "\n") * 5000
    path.write_text(text)
    assert path.stat().st_size > 5_000_000
    tracemalloc.start()
    count = sum(1 for _ in readers.read(str(path), f"JSON {kind}", max_bytes=10_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5000 and peak < 1_000_000


def test_inputs_that_are_not_there(tmp_path):
    for name, problem in [
        ("none.jsonl", "does not exist"),
        ("https://x.org/a.jsonl", "is an address; download it"),
        ("some/none.parquet", "does not exist"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=problem):
            inputs.find([name])
    (source,) = inputs.find(["owner/name"])
    assert (source.name, source.kind) == ("name", "data set of the hub")
    path = tmp_path / "a.json"
    path.write_text("[]")
    with pytest.raises(FileNotFoundError, match="--image_root=none"):
        inputs.find([str(path)], image_root="none")
    with pytest.raises(ValueError, match="--subset and --split choose nothing"):
        inputs.find([str(path)], split="train")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/a.jsonl").write_text("{}")
    twice = str(tmp_path / "b/a.jsonl")
    found = inputs.find([str(path), twice, twice, "owner/b"])
    first = f"{tmp_path.name}_a"
    assert [source.name for source in found] == [first, "b_a", "b_a_2", "b"]


def test_data_sets_of_the_library(tmp_path):
    """A folder of Parquet, one of save_to_disk, and images with metadata."""
    import datasets

    image = tiny_mmpr.write_image(tmp_path / "pictures/a.png")
    features = datasets.Features(
        {"images": datasets.List(datasets.Image())}
        | dict.fromkeys(("prompt", "chosen", "rejected"), datasets.Value("string"))
    )
    row = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    row |= {"images": [{"bytes": image.read_bytes(), "path": None}]}
    data = datasets.Dataset.from_list([row] * 3, features=features)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "disk")
    for split in ("train", "test"):
        data.to_parquet(tmp_path / f"hub/data/{split}-00000-of-00001.parquet")
    for folder in ("disk", "hub"):
        with pytest.raises(ValueError, match="several splits; choose --split from t"):
            list(hub.read(str(tmp_path / folder), subset="", split=""))
        with pytest.raises(ValueError, match="no split 'x'"):
            list(hub.read(str(tmp_path / folder), subset="", split="x"))
        rows = list(hub.read(str(tmp_path / folder), subset="", split="train"))
        assert [number for number, _ in rows] == [1, 2, 3]
        (stored,) = rows[0][1]["images"]
        assert stored["bytes"] == image.read_bytes()  # not decoded, not encoded anew
        out = tmp_path / f"out_{folder}"
        (tally,) = cases.imported(out, tmp_path / folder, split="test")
        assert (tally.layout, tally.written) == ("trl", 3)
        for line in cases.lines(out, folder):
            assert (out / "images" / line["image"]).read_bytes() == image.read_bytes()
    (tmp_path / "pictures/metadata.jsonl").write_text(
        json.dumps({"file_name": "a.png", "question": "Q"}) + "\n"
    )
    ((_, row),) = hub.read(str(tmp_path / "pictures"), subset="", split="")
    assert row["question"] == "Q" and row["image"]["path"] == str(image)
    with pytest.raises(ValueError, match="no/where: datasets cannot open it"):
        list(hub.read("no/where", subset="", split=""))
