"""Files that are no annotation are named once; single bad lines are left alone."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re

import pytest

from mpo_jax.mmpr import annotations

RECORDS = [{"question": f"Q{n}", "chosen": "yes", "rejected": "no"} for n in range(200)]
LINES = "\n".join(map(json.dumps, RECORDS))
ASIAN = "\n".join(
    json.dumps({**record, "chosen": "这是什么动物？请回答。"}, ensure_ascii=False)
    for record in RECORDS
)
LATIN = "\n".join(
    json.dumps({**record, "question": "Où est l'été, Zoë ?"}, ensure_ascii=False)
    for record in RECORDS
)


def problem(tmp_path, data: bytes) -> str:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="a.jsonl") as caught:
        annotations.check(str(path), "source 's'")
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (json.dumps(RECORDS), "a JSON list; .*jq -c '.\\[\\]'"),
        (json.dumps(RECORDS, indent=1), "a JSON list"),
        ("[\n" + ",\n".join(map(json.dumps, RECORDS[:2])) + "\n]", "a JSON list"),
        (json.dumps(RECORDS[0], indent=1), "objects over many lines"),
        ("\n".join(map(str, RECORDS)), "Python text"),
        (LINES.encode("utf-16"), "encoding UTF-16; .*iconv -f UTF-16"),
        (LINES.encode("utf-16-le"), "encoding UTF-16LE"),
        (LINES.encode("utf-16-be"), "encoding UTF-16BE"),
        (LINES.encode("utf-32"), "encoding UTF-32"),
        (ASIAN.encode("gb18030"), "encoding probably GB18030; .*iconv -f GB18030"),
        (LATIN.encode("cp1252"), "in another encoding than UTF-8"),
        (gzip.compress(LINES.encode(), mtime=0), "compressed with gzip; .*gunzip"),
        (bz2.compress(LINES.encode()), "compressed with bzip2"),
        (lzma.compress(LINES.encode()), "compressed with xz"),
        (b"PK\x03\x04" + bytes(20), "a ZIP archive; unpack it"),
        (b"PAR1" + bytes(20), "a Parquet file"),
        ("version https://git-lfs.github.com/spec/v1\noid 0\n", "a git-lfs pointer"),
        ("\n <!DOCTYPE html>\n<html></html>", "an HTML page"),
        (bytes(500), "filled with NUL bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "",
)
def test_each_is_named(tmp_path, data, name):
    data = data.encode() if isinstance(data, str) else data
    message = problem(tmp_path, data)
    assert re.search(name, message)
    assert "one object per line" in message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        LINES.encode(),
        b"\xef\xbb\xbf" + LINES.encode(),
        ASIAN.encode(),
        ASIAN.encode()[:65_537],  # cut within a character
        LATIN.encode(),
        b"[1]\n" + LINES.encode(),
        b'[{"a": 1}]\n{"question": "\xff"}\n' + LINES.encode(),
        b'{"question": "\xff"}',
        b'{"question": "\xff"}\n' * 3 + LINES.encode(),
        b"null\n{\n",
        ("x" * 70_000).encode(),
    ],
)
def test_single_lines_are_left_to_the_ledger(tmp_path, data):
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    annotations.check(str(path), "source 's'")
