"""Image paths as people write them; why a file is missing, with what would help."""

from __future__ import annotations

import base64
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo_jax import ledger
from mpo_jax.inputs import images
from mpo_jax.mmpr import image_paths, meta, records

ROOT = meta.Source(name="s", root="/data/images", annotation="/data/a.jsonl")
ANY = meta.Source("s", "/data", "/data/a.jsonl", anywhere=True)
MOVED = meta.Source("s", "/data/images", "/data/a.jsonl", reroot="/mnt/old=/data")
BUCKET = meta.Source("s", "/data/images", "/data/a.jsonl", reroot="s3://b/x=/data")
TOP = meta.Source("s", "/", "/data/a.jsonl")


def refusal(name, source=ROOT) -> ledger.BadRecord:
    with pytest.raises(ledger.BadRecord) as caught:
        image_paths.resolve(name, source)
    return caught.value


@pytest.mark.parametrize(
    ("source", "name", "path"),
    [
        (ROOT, "/data/images/x/a.png", "/data/images/x/a.png"),
        (ROOT, "/data//images/./b/../a.png", "/data/images/a.png"),
        (ROOT, "//data/images/a.png", "/data/images/a.png"),
        (ROOT, "a\\b.png", "/data/images/a\\b.png"),  # a name on Linux
        (ROOT, "..a/b.png", "/data/images/..a/b.png"),
        (ANY, "/elsewhere/a.png", "/elsewhere/a.png"),
        (ANY, "images/a.png", "/data/images/a.png"),
        (TOP, "/elsewhere/a.png", "/elsewhere/a.png"),
        (TOP, "elsewhere/a.png", "/elsewhere/a.png"),
        (MOVED, "/mnt/old/images/a.png", "/data/images/a.png"),
        (MOVED, "/data/images/a.png", "/data/images/a.png"),
        (MOVED, "mnt/old/a.png", "/data/images/mnt/old/a.png"),
        (BUCKET, "s3://b/x/images/a.png", "/data/images/a.png"),
    ],
)
def test_paths_that_are_good(source, name, path):
    assert image_paths.resolve(name, source) == (path,)


@pytest.mark.parametrize(
    ("source", "name", "detail"),
    [
        (ROOT, "/data/a.png", "is absolute and not below the root '/data/images'"),
        (ROOT, "/data/images", "is absolute and not below"),
        (ROOT, "/data/images2/a.png", "is absolute and not below"),
        (ROOT, "/data/images/../a.png", "is absolute and not below"),
        (MOVED, "/mnt/old/a.png", "is absolute and not below"),
        (MOVED, "/mnt/older/images/a.png", "is absolute and not below"),
        (MOVED, "/mnt/old/images/../../a.png", "is absolute and not below"),
        (ANY, "../a.png", "not a file below the root '/data'"),
    ],
)
def test_paths_that_leave_the_root(source, name, detail):
    bad = refusal(name, source)
    assert bad.reason == "image_missing" and detail in bad.detail


PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9).decode()
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(range(256)) * 9).decode()


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("s3://b/x/a.png", "is a URL; .*data.reroot=s3://b/x=/data/images "),
        ("langchao:s3://b/a.png", "is a URL; .*data.reroot=langchao:s3://b=/data/im"),
        ("https://h/a.png?x=1", "is a URL; copy the files below the root"),
        ("gs://b/a.png", "is a URL"),
        (
            "file:///data/images/a.png",
            "is a URL; write the path alone: '/data/images/a",
        ),
        ("['a.png']", r"is a list written as text; write a JSON list: \[\"a.png\"\]"),
        ("['a.png', 'b c.png']", r"write a JSON list: \[\"a.png\", \"b c.png\"\]"),
        ('["a.png"]', r"is a list written as text; .*\[\"a.png\"\]"),
        (PNG, "holds 3084 characters of base64, 'iVBORw0KGgo"),
        (
            JPEG,
            "holds 3080 characters of base64, '/9j/.*; image data belongs in a file",
        ),
        (JPEG * 300, "holds 924000 characters of base64"),
        ("data:image/png;base64," + PNG, "holds 3106 characters of base64"),
        ("é" * 3000, "has 6000 bytes, no path is longer than 4096"),
        (
            {"bytes": "x", "path": None},
            "must be a path or a list of paths.*import_data",
        ),
        ([{"bytes": "x"}], "must be a path or a list of paths.*import_data"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_path(name, detail):
    bad = refusal(name)
    assert bad.reason == "bad_field"
    assert len(bad.detail) < 700
    pytest.raises(ledger.BadRecord, image_paths.resolve, name, ROOT).match(detail)


def test_urls_in_messages_lead_somewhere():
    """The rule that a message names reads the record."""
    bad = refusal("s3://b/x/a.png")
    rule = bad.detail.partition("data.reroot=")[2].split()[0]
    source = meta.Source("s", "/data/images", "/data/a.jsonl", reroot=rule)
    assert image_paths.resolve("s3://b/x/a.png", source) == ("/data/images/a.png",)


PIECES = st.sampled_from(["..", ".", "", "/", "data", "images", "a", "mnt", "old", "é"])


@given(st.lists(PIECES, max_size=9), st.sampled_from([ROOT, MOVED]))
def test_nothing_leaves_the_root(pieces, source):
    name = "/".join(pieces)
    try:
        paths = image_paths.resolve(name, source)
    except ledger.BadRecord:
        return
    for path in paths:
        assert path.startswith("/data/images/") and "/../" not in path + "/"


# Files that are not there


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "B.JPG", unicodedata.normalize("NFD", "café.png")):
        (folder / name).touch()
    (folder / "more.zip").touch()
    (folder / "broken").symlink_to("nowhere")
    return folder


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("none.png", "does not exist: there is no 'none.png' in '{root}'; check root"),
        ("sub/x/y.png", "there is no 'x' in '{root}/sub'"),
        (
            "images/a.png",
            "'{root}/a.png' is there: 'images' stands in root and in image",
        ),
        ("b.jpg", "there is 'B.JPG'; upper"),
        ("a.png, b.png", "if several files are meant, write a JSON list"),
        ("B.jpg", "there is 'B.JPG'; upper and lower case differ"),
        ("café.png", "there is one whose letters are encoded as NFD"),
        ("sub\\a.png", "write / instead of \\"),
        ("a.png ", "the name begins or ends in white space"),
        ("~/a.png", "'~' is not replaced in records"),
        ("$DATA/a.png", "'$DATA' is not replaced in records"),
        ("C:/a.png", "'C:' is a drive of Windows"),
        ("more.zip/a.png", "'{root}/more.zip' is an archive; unpack it"),
        ("other.zip/a.png", "not members of archives"),
        ("a.png/b.png", "'{root}/a.png' is a file, not a folder"),
        ("broken", "is a link to nowhere"),
        ("broken/a.png", "'{root}/broken' is a link to nowhere"),
        ("sub", "is not a file"),
        ("x" * 300, "there is no 'xxx"),
    ],
)
def test_why_a_file_is_missing(root, name, detail):
    source = meta.Source("s", str(root), "a.jsonl")
    (path,) = image_paths.resolve(name, source)
    with pytest.raises(ledger.BadRecord) as caught:
        images.read_file(path)
    assert caught.value.reason == "image_missing"
    assert detail.format(root=root) in caught.value.detail


def test_missing_root_is_named(tmp_path):
    source = meta.Source("s", str(tmp_path / "imgs" / "deep"), "a.jsonl")
    (path,) = image_paths.resolve("a/b.png", source)
    with pytest.raises(ledger.BadRecord, match=f"no 'imgs' in '{tmp_path}'"):
        images.read_file(path)


def test_base64_is_short_everywhere():
    """In the ledger and in an exception, whichever field holds it."""
    record = {"question": "Q?", "chosen": "y", "rejected": "n"}
    for field in ("image", "images", "chosen", "video", "image_base64"):
        line = json.dumps({**record, field: [JPEG * 30]}).encode()
        with pytest.raises(ledger.BadRecord) as caught:
            records.parse_record(line, source=ROOT, line_number=1, max_bytes=1 << 20)
        assert len(caught.value.detail) <= 500
        assert len(str(caught.value)) <= 520
    line = json.dumps({**record, "image": JPEG * 30}).encode()
    with pytest.raises(ledger.BadRecord, match="line_too_long.*it holds base64"):
        records.parse_record(line[:9001], source=ROOT, line_number=1, max_bytes=9000)
    assert len(ledger.BadRecord("bad_json", "x" * 10_000).detail) <= ledger.MAX_DETAIL
