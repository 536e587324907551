"""Files of benchmarks: what is read of each format, and what is said of bad ones."""

from __future__ import annotations

import csv
import hashlib
import json
import logging as std_logging
import pathlib

import pytest
import table_files
from table_files import picture

from mpo_jax import ledger
from mpo_jax.evals import source_rows, source_tsv, sources

RED, BLUE = picture((200, 30, 30)), picture((30, 30, 200))
SOURCE = sources.Source("org/set", ("a.tsv",), "MIT", notes="val")


def rows(path: pathlib.Path):
    return list(sources.read_rows(path))


def refusal(path: pathlib.Path) -> str:
    with pytest.raises(ValueError) as caught:
        rows(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# Folders


def test_a_benchmark_lies_in_its_folder_or_in_the_data_folder(tmp_path):
    assert sources.folder_of(tmp_path, "pope").path == tmp_path
    (tmp_path / "pope").mkdir()
    assert sources.folder_of(tmp_path, "pope").path == tmp_path / "pope"


def test_the_first_pattern_with_a_file_counts(tmp_path):
    for name in ("b-2.jsonl", "b-1.jsonl", "c.tsv"):
        (tmp_path / name).touch()
    (tmp_path / "a.tsv").mkdir()  # no file
    folder = sources.Folder(tmp_path)
    assert folder.find("a.tsv", "b-*.jsonl", "c.tsv").name == "b-1.jsonl"
    assert [p.name for p in folder.find_all("b-*")] == ["b-1.jsonl", "b-2.jsonl"]


def test_a_missing_file_is_said_with_what_to_do(tmp_path):
    folder = sources.Folder(tmp_path)
    with pytest.raises(sources.MissingSource, match=r"holds none of: a, b\.\*; put it"):
        folder.find("a", "b.*")
    with pytest.raises(sources.MissingSource) as caught:
        folder.find("a", source=SOURCE)
    assert f"hf download org/set --repo-type dataset --local-dir {tmp_path} (val)" in (
        str(caught.value).replace("`", "")
    )
    away = sources.Source("https://x.org/a.zip", (), "")
    with pytest.raises(sources.MissingSource, match="fetch them from https://x.org"):
        folder.find("a", source=away)
    with pytest.raises(sources.MissingSource, match="does not exist"):
        sources.Folder(tmp_path / "no").find("a")


# JSON


def test_json_lines_lists_and_objects_by_key(tmp_path):
    lines = table_files.write_jsonl(tmp_path / "a.jsonl", [{"id": 1}, {"id": "é"}])
    lines.write_bytes(b"\xef\xbb\xbf" + lines.read_bytes() + b"\n")  # mark, blank line
    assert rows(lines) == [{"id": 1}, {"id": "é"}]
    as_json = tmp_path / "lines.json"
    as_json.write_bytes(lines.read_bytes())
    assert rows(as_json) == [{"id": 1}, {"id": "é"}]
    as_list = tmp_path / "list.json"
    as_list.write_text('[{"id": 1},\n {"id": 2}]')
    assert rows(as_list) == [{"id": 1}, {"id": 2}]
    by_key = tmp_path / "keyed.json"
    by_key.write_text('{"7": {"a": 1}, "x": {"a": 2}}')
    assert rows(by_key) == [{"a": 1, "_key": "7"}, {"a": 2, "_key": "x"}]


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "item 2: [1] is no JSON object"),
        ("a.jsonl", b'{"a": "\xff"}\n', "line 1"),
        ("a.jsonl", b'{"a":' + b"[" * 100_000 + b"\n", "nested too deeply"),
        ("a.json", b'[{"a": 1}, 2]', "item 2"),
        ("a.json", b'[{"a": 1}', "fetch it again"),
        ("a.json", b"3", "must be a list of objects"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.json", b"<!DOCTYPE html>", "HTML"),
        ("a.xlsx", b"", "must end in one of .jsonl, .json, .parquet, .tsv"),
    ],
)
def test_bad_json_is_named(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    assert words in refusal(path)


def test_json_has_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(source_rows, "MAX_LINE", 20)
    monkeypatch.setattr(source_rows, "MAX_JSON", 20)
    good = table_files.write_jsonl(tmp_path / "good.jsonl", [{"a": "x" * 8}] * 2)
    assert len(rows(good)) == 2
    long = table_files.write_jsonl(tmp_path / "a.jsonl", [{"a": 1}, {"a": "x" * 20}])
    assert "line 2: has more than 20 bytes" in refusal(long)
    whole = tmp_path / "a.json"
    whole.write_text(json.dumps([{"a": "x" * 20}]))
    assert "a JSON file may have 20; write it in lines" in refusal(whole)


# Parquet


def test_parquet_pictures_are_bytes(tmp_path):
    path = table_files.write_parquet(
        tmp_path / "test-00000-of-00001.parquet",
        {
            "question": [f"q{k}" for k in range(70)],
            "image": [table_files.hub_image(RED, "a.png")] * 69
            + [table_files.hub_image(None, "b.png")],
            "images": [[table_files.hub_image(RED), table_files.hub_image(BLUE)]] * 70,
            "none": [None] * 70,
            "answers": [["a", "b"]] * 70,
        },
    )
    found = rows(path)
    assert [row["question"] for row in found] == [f"q{k}" for k in range(70)]
    assert found[0]["image"] == RED and found[69]["image"] == "b.png"
    assert found[3]["images"] == [RED, BLUE] and found[3]["answers"] == ["a", "b"]
    assert sources.images_of(found[3]) == (RED,)
    assert sources.images_of(found[3], "none", "images") == (RED, BLUE)
    assert sources.images_of(found[3], "none") == ()


def test_bad_parquet_is_named(tmp_path, monkeypatch):
    image = [table_files.hub_image(RED), table_files.hub_image(RED + b"x")]
    path = table_files.write_parquet(tmp_path / "a.parquet", {"image": image})
    monkeypatch.setattr(source_rows, "MAX_IMAGE", len(RED))
    assert "row 2: a picture of" in refusal(path)
    path.write_bytes(path.read_bytes()[:-30])
    assert "after row 0" in refusal(path)


# Tables


def test_a_table_of_vlmevalkit(tmp_path):
    question = 'Two\nlines, a\ttab and "quotes"'
    path = table_files.write_tsv(
        tmp_path / "A.tsv",
        [
            {"index": 3, "question": question, "image": RED, "image_path": "3.png"},
            {"index": 1, "question": "ü", "image": "0", "image_path": "['a', 'b']"},
            {"index": 2, "question": "", "image": 3, "image_path": ""},
            {
                "index": 0,
                "question": "both",
                "image": str([table_files.base64_of(data) for data in (RED, BLUE)]),
                "image_path": "",
            },
        ],
    )
    assert path.stat().st_size > 0
    found = rows(path)
    assert [row["index"] for row in found] == ["3", "1", "2", "0"]
    assert found[0]["question"] == question and found[1]["question"] == "ü"
    assert [row["image"] for row in found] == [RED, [RED, BLUE], RED, [RED, BLUE]]
    assert [row["image_path"] for row in found] == ["3.png", ["a", "b"], "", ""]
    assert sources.images_of(found[1]) == (RED, BLUE)
    assert sources.images_of({**found[1], "image": ""}) == ("a", "b")


def test_large_fields_are_read(tmp_path):
    noise = bytes(range(256)) * 2000  # beyond csv's own limit of 131,072 characters
    csv.field_size_limit(131_072)
    path = table_files.write_tsv(tmp_path / "A.tsv", [{"index": 0, "image": noise}])
    assert rows(path)[0]["image"] == noise


def test_base64_may_be_a_data_uri_or_in_lines(tmp_path):
    text = table_files.base64_of(RED)
    broken = "\n".join([text[:40], text[40:]])
    path = table_files.write_tsv(
        tmp_path / "A.tsv",
        [
            {"index": 0, "image": f"data:image/png;base64,{text}"},
            {"index": 1, "image": broken},
        ],
    )
    assert [row["image"] for row in rows(path)] == [RED, RED]


GOOD = {"index": "0", "question": "q", "image": RED}


@pytest.mark.parametrize(
    "row, words",
    [
        ({"image": "7"}, "row 2: image='7' is neither base64 nor the index of a row"),
        ({"image": "1"}, "row 2: image='1' is neither base64"),  # names itself
        ({"image": "%" + table_files.base64_of(RED)}, "row 2: image is broken base64"),
        ({"image": table_files.base64_of(RED)[:-1]}, "row 2: image is broken base64"),
        ({"image": str([1] * 40)}, "row 2: '[1, 1,"),
        (
            {"image": "[__import__('os').system('touch /tmp/x')" + " " * 60 + "]"},
            "list",
        ),
        ({"image": str(["x"] * 65)}, "a list of 65 pictures"),
        ({"image": RED, "image_path": "[]"}, "a list of 0 pictures"),
    ],
)
def test_a_bad_row_of_a_table_is_named(tmp_path, row, words):
    filled = {"index": "1", "question": "q", "image_path": "", **row}
    first = {**GOOD, "image_path": ""}
    names = list(first)
    path = table_files.write_tsv(
        tmp_path / "A.tsv", [first, {name: filled[name] for name in names}]
    )
    assert words in refusal(path)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "must have a column 'index'"),
        (b"a\tb\n1\t2\n", "must have a column 'index'"),
        (b"index\tindex\n", "none twice"),
        (b"index\tb\n0\tx\n1\n", "row 2: has 1 cells, the header 2"),
        (b'index\tb\n0\tx\n1\t"open\n', "row 2: unexpected end of data"),
        (b"index\tb\n0\t\xff\n", "line 2: is no UTF-8"),
        (b"PK\x03\x04", "a ZIP archive"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, content, words):
    path = tmp_path / "A.tsv"
    path.write_bytes(content)
    assert words in refusal(path)


def test_pictures_of_a_table_have_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(source_rows, "MAX_IMAGE", len(RED) + 2)  # base64 is padded
    path = table_files.write_tsv(
        tmp_path / "A.tsv", [GOOD, {**GOOD, "index": 1, "image": RED + b"more"}]
    )
    assert "row 2: a picture of" in refusal(path)


def test_a_shared_picture_is_decoded_once(tmp_path, monkeypatch):
    more = [{**GOOD, "index": k, "image": "0"} for k in range(1, 9)]
    path = table_files.write_tsv(tmp_path / "A.tsv", [GOOD, *more])
    seen = []
    real = source_tsv.picture
    monkeypatch.setattr(
        source_tsv, "picture", lambda *args: seen.append(1) or real(*args)
    )
    assert {row["image"] for row in rows(path)} == {RED}
    assert len(seen) == 2  # for the row itself, and for all others


def test_md5_is_known_or_warned_of(tmp_path, caplog):
    path = table_files.write_tsv(
        tmp_path / "A.tsv", [{"index": 0, "query": "q", "image": RED}] * 3
    )
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    with caplog.at_level(std_logging.WARNING, "absl"):
        for known in ({"A.tsv": ("0" * 32, digest)}, {"B.tsv": ("0" * 32,)}):
            source = sources.Source("org/set", (), "", md5=known)
            assert sources.check_md5(path, source) == digest
        assert not caplog.records
        source = sources.Source("org/set", (), "", md5={"A.tsv": ("0" * 32,)})
        assert len(list(sources.read_rows(path, source))) == 3
    (record,) = caplog.records
    words = record.getMessage()
    assert digest in words and "has 3 rows" in words and "lacks question" in words


# Pictures


def test_pictures_are_read_below_the_folder(tmp_path):
    folder = sources.Folder(tmp_path / "data")
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "a.png").write_bytes(BLUE)
    (tmp_path / "secret.png").write_bytes(RED)
    assert sources.image_bytes("images/./a.png", folder) == BLUE
    assert sources.image_bytes(RED, folder) == RED
    opened = sources.open_image("images/a.png", folder, max_pixels=10_000)
    assert opened.mode == "RGB" and opened.getpixel((0, 0)) == (30, 30, 200)
    assert sources.open_image(RED, folder, max_pixels=10_000).size == (24, 24)
    for path, reason in [
        ("../secret.png", "image_missing"),
        ("images/../../secret.png", "image_missing"),
        (str(tmp_path / "secret.png"), "image_missing"),
        ("file:///secret.png", "image_missing"),
        ("images/no.png", "image_missing"),
        (".", "image_missing"),
        ("a\0b", "bad_field"),
    ]:
        with pytest.raises(ledger.BadRecord) as caught:
            sources.image_bytes(path, folder)
        assert caught.value.reason == reason, path
    with pytest.raises(ledger.BadRecord, match="image_too_large"):
        sources.open_image(RED, folder, max_pixels=100)


def test_images_of_a_row_are_checked():
    for value in (3, [RED, 3], [""], {"bytes": RED}):
        with pytest.raises(ValueError, match="^image="):
            sources.images_of({"image": value})
