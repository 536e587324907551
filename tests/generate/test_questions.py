"""Questions of a file: what is read, and what every wild line becomes."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpo_jax import ledger
from mpo_jax.generate import questions, requests, results


def read(path: pathlib.Path, content: bytes, **options):
    path.write_bytes(content)
    return list(questions.read(path, **options))


def lines(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


BASE = questions.Base("/data", anywhere=True)


def test_images_lie_below_a_named_root(tmp_path):
    def images(name, **options):
        record = {"id": 1, "question": "q", "image": name}
        return read(tmp_path / "in.jsonl", lines(record), **options)[0][1]

    assert images("/else/a.png").images == ("/else/a.png",)
    assert images("../a.png").images == (str(tmp_path.parent / "a.png"),)
    assert images("b/../a.png", root="/data").images == ("/data/a.png",)
    assert images("/data/a.png", root="/data/").images == ("/data/a.png",)
    for name in ("/else/a.png", "../a.png", "/database/a.png", "b/../../a.png"):
        left_out = images(name, root="/data")
        assert left_out.reason == "image_missing" and "--root=/data" in left_out.detail


def test_every_field(tmp_path):
    record = {
        "id": "a",
        "question": "<image> <image> same?",
        "image": ["x.png", "sub/y.png"],
        "prefix": [4, 5],
        "system": "Be brief.",
        "history": [["q", "a"], ["r", "b"]],
        "seed": -3,
        "note": {"anything": 1},
    }
    found = read(tmp_path / "in.jsonl", lines(record, {"id": 1, "question": ""}))
    full = requests.Question(
        "a",
        "<image> <image> same?",
        (str(tmp_path / "x.png"), str(tmp_path / "sub/y.png")),
        (4, 5),
        "Be brief.",
        (("q", "a"), ("r", "b")),
        -3,
    )
    assert found == [(1, full), (2, requests.Question(1, ""))]
    other = read(tmp_path / "in.jsonl", lines(record), root="/data")
    assert other[0][1].images == ("/data/x.png", "/data/sub/y.png")
    # What is absent may also be written as empty.
    empty = {"id": 2, "question": "q", "image": None, "prefix": None, "seed": None}
    empty |= {"system": None, "history": None}
    assert read(tmp_path / "in.jsonl", lines(empty)) == [(1, requests.Question(2, "q"))]
    for none in ("", []):
        assert questions.parse(lines({**empty, "image": none}), BASE).images == ()


def test_bom_blank_lines_crlf_and_no_last_newline(tmp_path):
    one, two = ({"id": i, "question": "é"} for i in (1, 2))
    content = b"\xef\xbb\xbf" + lines(one).replace(b"\n", b"\r\n") + b"\r\n  \n"
    content += json.dumps(two, ensure_ascii=False).encode()
    found = read(tmp_path / "in.jsonl", content)
    assert [(number, question.id) for number, question in found] == [(1, 1), (4, 2)]
    assert {question.question for _, question in found} == {"é"}


def test_ids_are_told_apart_by_their_type_and_used_once(tmp_path):
    content = lines(*({"id": i, "question": "q"} for i in (1, "1", 1, "a", "a", -1)))
    found = read(tmp_path / "in.jsonl", content)
    kinds = [f.id if isinstance(f, requests.Question) else f.detail for _, f in found]
    assert kinds[:2] == [1, "1"] and kinds[3] == "a" and kinds[5] == -1
    assert kinds[2] == "id=1 is that of line 1 too; ids must differ"
    assert kinds[4] == "id='a' is that of line 4 too; ids must differ"
    assert [number for number, _ in found] == [1, 2, 3, 4, 5, 6]


def test_a_line_that_is_too_long_is_one_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "MAX_LINE_BYTES", 60)
    short = {"id": 1, "question": ""}
    exact = {"id": 2, "question": ""}
    exact["question"] = "x" * (60 - len(json.dumps(exact)))
    long = {"id": 3, "question": "x" * 500}
    for last in (b"", b"\n"):
        content = lines(short, exact, long, {"id": 4, "question": "q"}, long)
        found = read(tmp_path / "in.jsonl", content.rstrip(b"\n") + last)
        assert [number for number, _ in found] == [1, 2, 3, 4, 5]
        assert [getattr(f, "id", None) for _, f in found] == [1, 2, None, 4, None]
        assert "more than 60 bytes" in found[2][1].detail
    ((_, found),) = read(tmp_path / "in.jsonl", lines(exact).rstrip())
    assert found.id == 2


GOOD = {"id": 1, "question": "q"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], r"\[1\] is no JSON object"),
        (None, "None is no JSON object"),
        ({"question": "q"}, "id=None: must be a text or an integer"),
        ({**GOOD, "id": True}, "id=True"),
        ({**GOOD, "id": 1.0}, r"id=1\.0"),
        ({**GOOD, "id": ""}, "id='': must be of 1 to 256 characters"),
        ({**GOOD, "id": "x" * 257}, "id='xxx.*: must be of 1 to 256"),
        ({**GOOD, "id": "a\ud800"}, r"id='a\\ud800': must be Unicode"),
        ({"id": 1}, "question=None: must be a text"),
        ({**GOOD, "question": ["q"]}, r"question=\['q'\]: must be a text"),
        ({**GOOD, "image": 3}, "image=3: must be a path or a list of paths"),
        ({**GOOD, "image": ["a", ""]}, "image="),
        ({**GOOD, "image": ["a", None]}, "image="),
        ({**GOOD, "image": ["a"] * 65}, "image=.*at most 64 paths"),
        (
            {**GOOD, "image": "a\ud800.png"},
            r"image 'a\\ud800.png' holds a lone surrogate",
        ),
        ({**GOOD, "image": "data:image/png;base64,iVBO"}, "image holds .* base64"),
        ({**GOOD, "image": "http://a/b.png"}, "is a URL; fetch it"),
        ({**GOOD, "prefix": 3}, "prefix=3: must be a text or at most 65536 token ids"),
        ({**GOOD, "prefix": [1, True]}, r"prefix=\[1, True\]"),
        ({**GOOD, "prefix": [1.0]}, "prefix="),
        ({**GOOD, "system": 1}, "system=1: must be a text"),
        ({**GOOD, "history": "q"}, "history='q': must be a list of at most 64 pairs"),
        ({**GOOD, "history": [["q"]]}, r"history=\['q'\]"),
        ({**GOOD, "history": [["q", 1]]}, "history="),
        ({**GOOD, "history": [["q", "a"]] * 65}, "history="),
        ({**GOOD, "seed": 2**63}, "seed=9223372036854775808: must be an integer of 64"),
        ({**GOOD, "seed": "1"}, "seed='1'"),
        ({**GOOD, "seed": True}, "seed=True"),
        ({**GOOD, "images": ["a"]}, "'images' is not read; did you mean image"),
        ({"id": 1, "qestion": "q"}, "'qestion' is not read; did you mean question"),
        ({**GOOD, "histroy": []}, "did you mean history"),
    ],
)
def test_wrong_fields_are_named(tmp_path, record, message):
    with pytest.raises(ledger.BadRecord, match=message):
        questions.parse(json.dumps(record).encode(), BASE)


@pytest.mark.parametrize(
    "line", [b"{", b"\xff\xfe{\x00", b"[" * 100_000, b'{"id": ' + b"9" * 5000 + b"}"]
)
def test_what_is_no_json(tmp_path, line):
    found = read(tmp_path / "in.jsonl", line + b"\n" + lines(GOOD))
    assert found[0][1].reason == "bad_json" and found[1][1].id == 1
    assert found[0][1].file.endswith("in.jsonl") and found[0][1].line == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
surrogates = st.text(st.characters(), max_size=4)
records = st.fixed_dictionaries(
    {},
    optional={
        **{name: json_values for name in questions.READ},
        "id": json_values | surrogates | st.integers(0, 3),
        "question": json_values | surrogates,
        "other": json_values,
    },
)
wild = st.one_of(
    st.binary(max_size=30),
    records.map(lambda record: json.dumps(record).encode()),
    st.sampled_from([b"\xef\xbb\xbf{}", b"{}\r", b"NaN", b'{"id": NaN}', b" "]),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(wild, max_size=6))
@example([b'{"id": "\\ud800", "question": "q"}'])
def test_any_file_is_read_to_its_end(tmp_path_factory, content):
    """Each line is a question, an entry or blank; whatever is one can be written."""
    folder = tmp_path_factory.getbasetemp()
    joined = b"\n".join(content)
    found = read(folder / "wild.jsonl", joined)
    expected = [n for n, x in enumerate(joined.split(b"\n"), 1) if x.strip()]
    assert [number for number, _ in found] == expected
    ids = []
    for number, item in found:
        if isinstance(item, ledger.Entry):
            assert item.line == number and item.reason in ledger.REASONS
            json.dumps(dataclasses.asdict(item), ensure_ascii=False).encode()
            continue
        ids.append((type(item.id), item.id))
        for path in item.images:
            path.encode()
        answer = requests.Answer(item.id, 0, "t", "stop", 1, 1, 0.0)
        written = results.line_of(answer, save_tokens=True).encode()
        assert json.loads(written)["id"] == item.id
        requests.seed_of(item, 0)
    assert len(set(ids)) == len(ids)


def test_seeds_depend_on_run_and_id_alone():
    def seed(id, run=0, **fields):
        return requests.seed_of(requests.Question(id, "q", **fields), run)

    assert seed(1) == seed(1) and seed(1, seed=5) == 5
    found = {seed(1), seed("1"), seed(2), seed(1, 1), seed("a"), seed("b")}
    assert len(found) == 6
    assert all(-(2**63) <= value < 2**63 for value in found)
