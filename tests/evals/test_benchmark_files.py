"""Benchmarks from the files that people have: hub, harness, tables; and broken ones."""

from __future__ import annotations

import base64
import csv
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scored
import test_benchmark_asks as asks

from mpo_jax.evals import registry, sources

PICTURE = b"\x89PNG" + bytes(60)


def _parquet(path: pathlib.Path, *rows: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def _table(path: pathlib.Path, *rows: dict) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def _image() -> dict:
    return {"bytes": PICTURE, "path": "1.png"}


ENCODED = base64.b64encode(PICTURE).decode()


def test_mathvista_of_the_hub_comes_first(tmp_path):
    row = asks.VISTA | {"decoded_image": _image(), "query": "the query"}
    _parquet(tmp_path / "data" / "testmini-00000-of-00001.parquet", row)
    asks.write(tmp_path, "testmini.json", {"2": asks.VISTA | {"pid": "2"}})
    (item,) = scored.read("mathvista", tmp_path)
    assert item.id == "1" and item.images == (PICTURE,)
    assert item.fields["query"] == "the query"
    assert item.fields["skills"] == ("s",) and item.categories["task"] == "t"


def test_mathvista_as_a_table(tmp_path):
    row = {
        "index": 5,
        "question": asks.VISTA_QUERY,
        "choices": "['1', '2']",
        "answer": "2.0",
        "answer_option": "B",
        "question_type": "multi_choice",
        "answer_type": "text",
        "task": "t",
        "skills": "['a', 'b']",
        "precision": "",
        "image": ENCODED,
    }
    _table(tmp_path / "MathVista_MINI.tsv", row)
    (item,) = scored.read("mathvista", tmp_path)
    assert item.options == ("1", "2") and item.images == (PICTURE,)
    assert item.fields["query"] == asks.VISTA_QUERY
    assert item.fields["skills"] == ("a", "b")
    grade = registry.get("mathvista").protocols["vlmevalkit"].grade
    assert grade(item, "B", "direct", scored.TOOLS).points == 1


def test_mathvision_as_a_table(tmp_path):
    row = {
        "index": 7,
        "question": asks.VISION_QUERY,
        "choices": "['x', 'y']",
        "answer": "B",
        "category": "algebra",
        "level": "1",
        "image": ENCODED,
    }
    _table(tmp_path / "MathVision.tsv", row)
    _table(tmp_path / "MathVision_MINI.tsv", row)
    for name in ("mathvision", "mathvision_testmini"):
        (item,) = scored.read(name, tmp_path)
        assert item.question == "Which?\n<image1>"
        for mode in ("direct", "cot"):
            ask = registry.get(name).protocols["vlmevalkit"].ask(item, mode)
            assert ask == asks.CASES["mathvision", "vlmevalkit", mode]


def test_m3cot_of_the_hub(tmp_path):
    _parquet(
        tmp_path / "data" / "test-00000-of-00001.parquet",
        asks.COT3 | {"image": _image(), "split": "test"},
        asks.COT3 | {"image": _image(), "id": "a-2", "answer": "B"},
    )
    one, two = scored.read("m3cot", tmp_path)
    assert (one.answer, two.answer, two.id) == ("A", "B", "a-2")
    assert one.categories == {"domain": "science", "topic": "physics"}
    assert one.images == (PICTURE,)


def test_m3cot_of_internvl_finds_its_pictures(tmp_path):
    row = {
        "image": "data/M3CoT/images/9.png",
        "hint": None,
        "question": "Why?",
        "choices": ["x", "y"],
        "answer": 1,
    }
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "9.png").write_bytes(PICTURE)
    asks.write(tmp_path, "test.jsonl", [row, row | {"image": "else/8.png"}])
    one, two = scored.read("m3cot", tmp_path)
    assert (one.images, two.images) == (("images/9.png",), ("else/8.png",))
    assert (one.id, one.answer, one.categories) == ("0", "B", {})
    assert sources.image_bytes(one.images[0], sources.Folder(tmp_path)) == PICTURE


def test_scienceqa_without_an_image_is_no_item(tmp_path):
    row = {k: v for k, v in asks.SCIENCE.items() if k != "image"}
    _parquet(
        tmp_path / "data" / "test-00000-of-00001.parquet",
        row | {"image": None, "subject": "natural science", "grade": "grade2"},
        row | {"image": _image(), "subject": "natural science", "grade": "grade3"},
    )
    (item,) = scored.read("scienceqa", tmp_path)
    assert (item.id, item.answer, item.categories["grade"]) == ("1", "B", "grade3")


def test_scienceqa_as_a_table(tmp_path):
    row = {"index": 3, "question": "Why?", "hint": "Look.", "A": "x", "B": "y", "C": ""}
    _table(tmp_path / "ScienceQA_TEST.tsv", row | {"answer": "B", "image": ENCODED})
    (item,) = scored.read("scienceqa", tmp_path)
    assert (item.id, item.options, item.answer) == ("3", ("x", "y"), "B")
    ask = registry.get("scienceqa").protocols["vlmevalkit"].ask(item, "direct")
    assert ask == asks.CASES["scienceqa", "vlmevalkit", "direct"]


def test_pope_of_the_hub(tmp_path):
    rows = [
        {
            "id": str(i),
            "question_id": "1",
            "question": "Is there a dog?",
            "answer": answer,
            "image_source": "COCO_1",
            "image": _image(),
            "category": category,
        }
        for i, (answer, category) in enumerate([("Yes", "random"), ("no", "popular")])
    ]
    _parquet(tmp_path / "data" / "test-00000-of-00001.parquet", *rows)
    one, two = scored.read("pope", tmp_path)
    assert (one.id, one.answer, two.id, two.answer) == ("0", "yes", "1", "no")
    assert one.group == two.group == "COCO_1"


def test_mmmu_of_the_hub(tmp_path):
    row = {
        "id": "validation_Art_Theory_1",
        "question": "See <image 1>.",
        "options": "['a cat', 'a dog']",
        "answer": "B",
        "question_type": "multiple-choice",
        "image_1": _image(),
        "image_2": _image(),
    }
    free = row | {
        "id": "validation_Art_Theory_2",
        "options": "[]",
        "answer": "['0.10', '10%']",
        "question_type": "open",
        "image_2": None,
    }
    number = free | {"id": "validation_Art_Theory_3", "answer": "0.10"}
    path = tmp_path / "Art_Theory" / "validation-00000-of-00001.parquet"
    _parquet(path, row, free, number)
    one, two, three = scored.read("mmmu", tmp_path)
    assert one.options == ("a cat", "a dog") and one.images == (PICTURE, PICTURE)
    assert one.categories == {"subject": "Art_Theory", "discipline": "Art and Design"}
    assert (two.answer, two.images, two.options) == (("0.10", "10%"), (PICTURE,), ())
    assert three.answer == "0.10"
    corrected = registry.get("mmmu").protocols["paper"].corrected
    assert corrected is not None
    for item, response, right in (
        (one, "the answer is (B)", 1),
        (one, "a dog", 1),
        (one, "it could be", 0),
        (two, "10%", 1),
        (three, ".1", 1),
    ):
        found = corrected(item, response, "direct", scored.TOOLS)
        assert found.points == right, response


def test_mmmu_as_a_table_without_dev(tmp_path):
    row = {
        "index": 4,
        "question": "What?",
        "A": "x",
        "B": "",
        "answer": "A",
        "split": "validation",
        "category": "Art Theory",
        "image": ENCODED,
    }
    free = row | {"index": 5, "A": "", "answer": "ten"}
    _table(tmp_path / "MMMU_DEV_VAL.tsv", row, row | {"index": 1, "split": "dev"}, free)
    one, two = scored.read("mmmu", tmp_path)
    assert one.categories["subject"] == "Art_Theory" and one.options == ("x",)
    assert (one.fields["kind"], two.fields["kind"]) == ("multiple-choice", "open")
    grade = registry.get("mmmu").protocols["vlmevalkit"].grade
    for response, right in (("it is ten", 1), ("A", 1), ("B", 0), ("twenty", 0)):
        assert grade(two, response, "direct", scored.TOOLS).points == right, response


@pytest.mark.parametrize(
    "name, file, rows, words",
    [
        ("m3cot", "test.jsonl", [asks.COT3 | {"answer": "C"}], "only 2 options"),
        ("m3cot", "test.jsonl", [asks.COT3 | {"answer": "x1"}], "no letter or index"),
        ("m3cot", "test.jsonl", [asks.COT3 | {"choices": "x"}], "no list of options"),
        ("mathvision", "test.jsonl", [{"id": "1"}], "row 1: has no question"),
        ("mathvision", "test.jsonl", [asks.VISION | {"answer": "9"}], "only 2 options"),
        ("mathvista", "testmini.json", {"1": asks.VISTA | {"answer": "3"}}, "none of"),
        ("gsm8k", "test.jsonl", [{"question": "q", "answer": "5"}], "no '#### '"),
        ("math", "math.jsonl", [{"problem": "q", "solution": "5"}], r"no .boxed"),
        ("crpe_relation", "crpe_relation.jsonl", asks.TURNED[:3], "no multiple of 4"),
        (
            *("crpe_relation", "crpe_relation.jsonl"),
            [*asks.TURNED[:3], asks.TURNED[3] | {"image": "2.jpg"}],
            "are no turns of one",
        ),
        (
            *("pope", "POPE.jsonl"),
            [],
            "holds none of: llava_pope_test.jsonl",
        ),
        ("mathvista", "other.json", [], r"hf download AI4Math/MathVista"),
        ("math", "other.json", [], r"gone from the hub"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, file, rows, words):
    asks.write(tmp_path, file, rows)
    with pytest.raises(ValueError, match=words):
        scored.read(name, tmp_path)


def test_every_benchmark_says_where_it_is_from():
    for name in registry.names():
        one = registry.get(name)
        assert one.name == name and one.title and one.protocols
        assert one.source.hub and one.source.files and one.source.licence
        for protocol in one.protocols.values():
            assert protocol.corrected is not None or protocol.judge is not None


def test_unknown_names_are_answered_with_known_ones():
    with pytest.raises(ValueError, match="'mathvista'"):
        registry.get("mathvsta")
    with pytest.raises(ValueError, match="unknown benchmark 'no.such.module'"):
        registry.get("no.such.module")
    with pytest.raises(ValueError, match="does not end in BENCHMARK"):
        registry.get("mpo_jax.evals.choices")


def test_a_module_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_sums.py").write_text(
        "from mpo_jax.evals.benchmarks import gsm8k\nBENCHMARK = gsm8k.BENCHMARK\n"
    )
    package = tmp_path / "my_sets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "my_sums.py").write_text((tmp_path / "my_sums.py").read_text())
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.get("my_sets.my_sums") is registry.get("gsm8k")


def test_groups_of_turns(tmp_path):
    rows = [
        row
        | {"question_id": 10 * i + row["question_id"], "category": category}
        | {"image": f"{i}.jpg"}
        for i, category in enumerate(("subject", "object", "subject"))
        for row in asks.TURNED
    ]
    mixed = [row for turn in range(4) for row in rows[turn::4]]
    (tmp_path / "crpe_relation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items = scored.read("crpe_relation", tmp_path)
    assert [item.group for item in items[::4]] == ["subject 0", "object 0", "subject 1"]
    assert [item.answer for item in items[:4]] == list("ABCD")
    right = {item.id: str(item.answer) for item in items}
    answers = right | {"11": "(B) w", "20": "A man"}
    for protocol, wrong in (("official", {"11", "20"}), ("vlmevalkit", set())):
        found = scored.Scored("crpe_relation", protocol, tmp_path, answers)
        missed = {g.item.id for g in found.graded if not g.grade.verdict.right}
        # B of (B) is no letter in front, and its text stands beside it.
        assert missed == wrong, protocol
        assert found.score == pytest.approx(100 * (3 - len(wrong)) / 3)
        assert found.details["total"]["turns_right"] == 12 - len(wrong)
        assert found.details["subject"]["questions"] == 2
    mended = scored.Scored(
        "crpe_relation", "vlmevalkit", tmp_path, answers, corrected=True
    )
    assert {g.item.id for g in mended.graded if not g.grade.verdict.right} == {"20"}
    assert mended.details["total"]["all_turns_right"] == 2
    (tmp_path / "crpe_relation.jsonl").write_text("\n".join(map(json.dumps, mixed)))
    with pytest.raises(ValueError, match="no turns of one"):
        scored.read("crpe_relation", tmp_path)


def test_a_question_without_all_turns_has_no_score(tmp_path):
    asks.write(tmp_path, "crpe_relation.jsonl", asks.TURNED)
    found = scored.Scored("crpe_relation", "official", tmp_path, {"0": "A", "1": "B"})
    assert found.score != found.score
    assert found.details["total"] == {
        "questions": 0,
        "all_turns_right": 0,
        "turns": 2,
        "turns_right": 2,
    }


@pytest.mark.parametrize(
    "response, released, mended",
    [
        ("5 and 6 is 1200\n#### 1200", 1, 1),
        ("#### 1,200", 1, 1),
        ("#### 1200.00", 0, 1),
        ("#### 5\nno:\n#### 1200 dollars", 0, 1),
        ("The answer is $1,200.", 0, 1),
        ("####", 0, 0),
        ("so\nit is 1200", 0, 0),
    ],
)
def test_gsm8k(tmp_path, response, released, mended):
    item = asks.first(tmp_path, "gsm8k")
    protocol = registry.get("gsm8k").protocols["official"]
    assert protocol.corrected is not None
    assert item.answer == "1200"
    assert protocol.grade(item, response, "cot", scored.TOOLS).points == released
    assert protocol.corrected(item, response, "cot", scored.TOOLS).points == mended


@pytest.mark.parametrize(
    "answer, response, right",
    [
        ("\\frac{1}{2}", "so \\boxed{1/2}", 1),
        ("\\frac12", "\\boxed{0.5}", 1),
        ("\\frac12", "\\boxed{\\frac{2}{4}}", 0),
        ("5", "\\boxed{x=5}", 1),
        ("5", "\\boxed{x+y=5}", 0),
        ("\\sqrt3", "\\boxed{ \\left\\sqrt{3}\\right}", 1),
        ("90", "\\boxed{90^\\circ}", 1),
        ("5", "5", 0),
        ("5", "\\boxed{4} or \\boxed{5", 0),
        ("{a}", "\\boxed{{a}}", 1),
    ],
)
def test_math(tmp_path, answer, response, right):
    asks.write(tmp_path, "math.jsonl", [{"problem": "q", "answer": answer}])
    (item,) = scored.read("math", tmp_path)
    grade = registry.get("math").protocols["official"].grade
    assert grade(item, response, "cot", scored.TOOLS).points == right
