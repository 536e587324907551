"""Benchmarks of short answers: their files, their prompts, their points."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import table_files
from table_files import hub_image, picture

from mpo_jax.evals import registry, sources
from mpo_jax.evals.benchmark import Grade, Item, Tools
from mpo_jax.verify import ladder
from mpo_jax.verify.verdict import UNDECIDED, Truth, Verdict

RED, BLUE = picture((200, 30, 30)), picture((30, 30, 200))
SUFFIX = "Answer the question using a single word or phrase."
COT = (
    "Your task is to answer the question below. Give step by step reasoning before you "
    "answer, and when you're ready to answer, please use the format "
    '"Final answer: .."\n\nQuestion:\n\n'
)
NAMES = ("chartqa", "docvqa", "infovqa", "ocrvqa", "textvqa", "gqa")


def check(prediction: str, truth: Truth) -> Verdict:
    return ladder.decide(prediction, truth) or Verdict(UNDECIDED, "mathematics")


TOOLS = Tools(check)


def read(name: str, folder: pathlib.Path) -> list[Item]:
    return list(registry.get(name).read(sources.Folder(folder)))


def points(name: str, protocol: str, answer: Any, said: str, mode: str = "direct"):
    """Points by the released and by the corrected rule."""
    item = Item("1", "q?", answer, categories={"split": "human"})
    found = registry.get(name).protocols[protocol]
    assert found.corrected is not None
    rules = (found.grade, found.corrected)
    return tuple(
        pytest.approx(rule(item, said, mode, TOOLS).points, abs=1e-9) for rule in rules
    )


# Prompts


@pytest.mark.parametrize(
    "name, tiles, tokens",
    [
        ("chartqa", 12, 100),
        ("docvqa", 18, 100),
        ("infovqa", 24, 100),
        ("ocrvqa", 6, 100),
        ("textvqa", 6, 10),
        ("gqa", 6, 10),
    ],
)
def test_what_internvl_asks(name, tiles, tokens):
    ask = registry.get(name).protocols["paper"].ask
    item = Item("1", "How {many}?", "3")
    direct, cot = ask(item, "direct"), ask(item, "cot")
    assert direct.text == f"How {{many}}? {SUFFIX}"
    assert (direct.max_tiles, direct.max_new_tokens) == (tiles, tokens)
    assert cot.text == f"{COT}How {{many}}?"
    assert (cot.max_tiles, cot.max_new_tokens) == (tiles, 4096)
    assert direct.system is None


@pytest.mark.parametrize(
    "name, tiles",
    [
        *(("chartqa", 12), ("docvqa", 18), ("infovqa", 24), ("ocrvqa", 12)),
        *(("textvqa", 6), ("gqa", 6)),
    ],
)
def test_what_vlmevalkit_asks(name, tiles):
    ask = registry.get(name).protocols["vlmevalkit"].ask
    item = Item("1", "How many?", "3")
    direct, cot = ask(item, "direct"), ask(item, "cot")
    assert direct.text == f"How many?\n{SUFFIX}" and cot.text == f"{COT}How many?"
    for asked in (direct, cot):
        assert (asked.max_tiles, asked.max_new_tokens) == (tiles, 4096)


def test_what_is_asked_about_ai2d():
    item = Item("1", "What eats grass?", "B", options=("fox", "hare"))
    listed = "What eats grass?\nA. fox\nB. hare"
    letter = "Answer with the option's letter from the given choices directly."
    for protocol, tokens in (("paper", 10), ("vlmevalkit", 4096)):
        ask = registry.get("ai2d").protocols[protocol].ask
        direct, cot = ask(item, "direct"), ask(item, "cot")
        assert direct.text == f"{listed}\n{letter}"
        assert (direct.max_new_tokens, direct.max_tiles) == (tokens, 6)
        assert cot.text == f"{COT}{listed}" and cot.max_new_tokens == 4096


# Points


@pytest.mark.parametrize(
    "truth, said, released, corrected",
    [
        ("100", "105", 1, 1),
        ("100", "95.1", 0, 1),  # 4.9 % of the truth, 5.15 % of the answer
        ("100", "105.2", 1, 0),  # and the other way round
        ("0", "0", 1, 1),
        ("3", "0", 0, 0),
        ("0", "3", 0, 0),  # by the released rule 3 is 100 % from 0, not undefined
        ("0.5", "50%", 1, 1),
        ("50", "50%", 0, 0),
        ("2012", "2011", 1, 1),
        ("none", "None", 1, 1),
        ("Yes", "no", 0, 0),
        ("14", " 14.\n", 1, 1),
        (("3", "5"), "5", 1, 1),
        ("Blue", "blue.", 0, 1),
    ],
)
def test_points_of_chartqa(truth, said, released, corrected):
    assert points("chartqa", "paper", truth, said) == (released, corrected)
    correct = points("chartqa", "vlmevalkit", truth, said)
    whole = 0 if truth == "Blue" else corrected
    assert correct == (whole, corrected)


def test_an_answer_like_a_list_is_taken_apart_by_vlmevalkit_alone(tmp_path):
    assert points("chartqa", "paper", "[2010, 2014]", "2014") == (0, 0)
    assert points("chartqa", "vlmevalkit", "[2010, 2014]", "2014") == (1, 0)
    assert points("chartqa", "vlmevalkit", "[up, down]", "up") == (0, 0)  # no literal
    assert points("chartqa", "vlmevalkit", "[up, down]", "[Up, down]") == (1, 1)
    row = {"question": "a?", "answer": "[2010, 2014]", "image": "1.png"}
    table = {"index": 0, "split": "test_human", **row, "image": RED}
    table_files.write_tsv(tmp_path / "tsv" / "ChartQA_TEST.tsv", [table])
    for split in ("human", "augmented"):
        table_files.write_jsonl(tmp_path / "lines" / f"test_{split}.jsonl", [row])
    for name in ("tsv", "lines"):
        assert read("chartqa", tmp_path / name)[0].answer == ("[2010, 2014]",)


def test_a_chain_of_thought_is_read_as_each_harness_reads_it():
    said = "First Answer: 7, then more.\n\nFinal answer: 3"
    assert points("chartqa", "paper", "3", said, "cot") == (0, 1)
    assert points("chartqa", "paper", "7, then more.", said, "cot") == (1, 0)
    assert points("chartqa", "vlmevalkit", "3", said, "cot") == (0, 1)
    assert points("gqa", "vlmevalkit", "yes", "It is.\nFinal answer: yes", "cot") == (
        0,
        1,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", ["paper", "vlmevalkit"])
def test_no_answer_is_wrong(name, protocol):
    item = Item("1", "q", ("0",) * 10 if name == "textvqa" else "")
    found = registry.get(name).protocols[protocol]
    assert found.corrected is not None
    for rule in (found.grade, found.corrected):
        for mode in ("direct", "cot"):
            grade = rule(item, "\n", mode, TOOLS)
            assert grade.points == 0 and not grade.verdict.right
    nothing = found.corrected(item, "Reasons.\nMore.\nFinal answer:", "cot", TOOLS)
    assert nothing.points == 0 and nothing.prediction == ""


def test_points_of_documents():
    for name in ("docvqa", "infovqa"):
        for protocol in ("paper", "vlmevalkit"):
            answer = ("19 March 2002", "March 19")
            near = 1 - 1 / 13
            assert points(name, protocol, answer, "19 march 2001") == (near, near)
            assert points(name, protocol, answer, "xyz") == (0, 0)
            grade = registry.get(name).protocols[protocol].grade
            half = grade(Item("1", "q", "abxy"), "abcd", "direct", TOOLS)
            assert (half.points, half.verdict.right) == (0.5, True)


def test_points_of_textvqa():
    people = ("coca-cola",) * 2 + ("Coke",) * 7 + ("the coke",)
    for said, worth in (("coke!", 1), ("Coca Cola", 0.6), ("pepsi", 0)):
        assert points("textvqa", "paper", people, said) == (worth, worth)
        assert points("textvqa", "vlmevalkit", people, said) == (worth, worth)
    shop = ("john 's",) * 10
    assert points("textvqa", "paper", shop, "John's") == (1, 1)
    assert points("textvqa", "vlmevalkit", shop, "John's") == (0, 1)


def test_points_of_exact_words():
    assert points("ocrvqa", "paper", "Jane Doe", " jane doe") == (1, 1)
    assert points("ocrvqa", "paper", "Jane Doe", "jane doe.") == (0, 1)
    assert points("gqa", "paper", "yes", "Yes.") == (1, 1)
    assert points("gqa", "vlmevalkit", "yes", "Yes.") == (0, 1)
    assert points("gqa", "paper", "yes", "yes it is") == (0, 0)


def test_points_of_ai2d():
    item = Item("1", "q", "B", options=("fox", "hare"))

    def said(protocol: str, answer: str, mode: str = "direct") -> tuple[bool, bool]:
        found = registry.get("ai2d").protocols[protocol]
        assert found.corrected is not None
        grades = [rule(item, answer, mode, TOOLS) for rule in
                  (found.grade, found.corrected)]  # fmt: skip
        return grades[0].verdict.right, grades[1].verdict.right

    assert said("paper", "b") == (True, True)
    assert said("paper", "B.") == (False, True)
    assert said("paper", "hare") == (False, True)
    assert said("paper", "A") == (False, False)
    assert said("paper", "So.\nFinal answer: B", "cot") == (True, True)
    assert said("vlmevalkit", "(B)") == (True, True)
    assert said("vlmevalkit", "The hare") == (True, True)
    assert said("vlmevalkit", "no idea") == (False, False)


def test_chartqa_is_the_mean_of_its_splits():
    items = [Item(str(k), "", "", categories={"split": s}) for k, s in
             enumerate(("human", "augmented", "augmented", "augmented"))]  # fmt: skip
    metric = registry.get("chartqa").protocols["paper"].metric
    score = metric(items, np.array([1.0, 0.0, 0.0, 1.0]))
    assert score(np.ones(4)) == pytest.approx((100 + 100 / 3) / 2)
    assert score(np.array([1.0, 0, 0, 2])) == pytest.approx(100)
    assert np.isnan(score(np.array([0.0, 1, 1, 1])))


# Files


def same_in_all_forms(items: list[list[Item]]) -> None:
    """Items of several forms ask the same and have the same answers and pictures."""
    first = [(item.question, item.answer, item.categories) for item in items[0]]
    for others in items[1:]:
        assert [(i.question, i.answer, i.categories) for i in others] == first


def test_files_of_chartqa(tmp_path):
    rows = {
        "human": [{"question": "a?", "answer": "3", "image": "test/png/1.png"}],
        "augmented": [
            {"question": "b?", "answer": "4", "image": "test/png/1.png"},
            {"question": "c?", "answer": "5%", "image": "test/png/2.png"},
        ],
    }
    lines, tsv, hub = (tmp_path / name for name in ("lines", "tsv", "hub"))
    for split, of in rows.items():
        table_files.write_jsonl(lines / f"test_{split}.jsonl", of)
    flat = [(split, row) for split, of in rows.items() for row in of]
    table_files.write_tsv(
        tsv / "ChartQA_TEST.tsv",
        [
            {"index": 7 + k, "image": RED, "split": f"test_{split}",
             "question": row["question"], "answer": row["answer"]}
            for k, (split, row) in enumerate(flat)
        ],
    )  # fmt: skip
    table_files.write_parquet(
        hub / "data" / "test-00000-of-00001.parquet",
        {
            "type": [f"{split}_test" for split, _ in flat],
            "question": [row["question"] for _, row in flat],
            "answer": [row["answer"] for _, row in flat],
            "image": [hub_image(BLUE)] * 3,
        },
    )
    found = [read("chartqa", folder) for folder in (lines, tsv, hub)]
    same_in_all_forms(found)
    assert [i.id for i in found[0]] == ["human-0", "augmented-0", "augmented-1"]
    assert [i.id for i in found[1]] == ["7", "8", "9"]
    assert [i.id for i in found[2]] == [i.id for i in found[0]]
    assert found[0][1].images == ("test/png/1.png",) == found[0][0].images
    assert found[0][0].group == found[0][1].group != found[0][2].group
    assert found[1][0].images == (RED,) and found[2][2].images == (BLUE,)
    (lines / "test_augmented.jsonl").unlink()
    with pytest.raises(sources.MissingSource, match="test_augmented.jsonl"):
        read("chartqa", lines)


@pytest.mark.parametrize(
    "name, tsv, official, shards",
    [
        ("docvqa", "DocVQA_VAL", "val_v1.0_withQT.json", "DocVQA"),
        ("infovqa", "InfoVQA_VAL", "infographicsVQA_val_v1.0_withQT.json",
         "InfographicVQA"),
    ],
)  # fmt: skip
def test_files_of_documents(tmp_path, name, tsv, official, shards):
    asked = [("17", "a?", ["x", "y z"]), ("19", "b?", ["['z']", "w"])]
    lines = table_files.write_jsonl(
        tmp_path / "lines" / "val.jsonl",
        [
            {"question_id": int(i), "question": q, "answer": a, "image": "p/1.png"}
            for i, q, a in asked
        ],
    )
    table = table_files.write_tsv(
        tmp_path / "tsv" / f"{tsv}.tsv",
        [
            {"index": 0, "question": "a?", "answer": str(asked[0][2]), "image": RED,
             "questionId": "17"},
            {"index": 1, "question": "b?", "answer": str(asked[1][2]), "image": 0,
             "questionId": "19"},
        ],
    )  # fmt: skip
    parquet = table_files.write_parquet(
        tmp_path / "hub" / shards / "validation-00000-of-00002.parquet",
        {
            "questionId": ["17"],
            "question": ["a?"],
            "answers": [asked[0][2]],
            "image": [hub_image(RED)],
            "docId": ["5"],
        },
    )
    table_files.write_parquet(
        parquet.with_name("validation-00001-of-00002.parquet"),
        {
            "questionId": ["19"],
            "question": ["b?"],
            "answers": [asked[1][2]],
            "image": [hub_image(RED)],
            "docId": ["5"],
        },
    )
    whole = tmp_path / "official" / official
    whole.parent.mkdir()
    data = [{"questionId": int(i), "question": q, "answers": a,
             "image": "documents/1.png"} for i, q, a in asked]  # fmt: skip
    whole.write_text(json.dumps({"dataset_name": "x", "data": data}))
    folders = (lines.parent, table.parent, tmp_path / "hub", whole.parent)
    found = [read(name, folder) for folder in folders]
    same_in_all_forms(found)
    for items in found:
        assert [item.id for item in items] == ["17", "19"]
        assert items[0].answer == ("x", "y z")
    assert found[1][1].images == (RED,)  # shared with the row before
    assert found[2][0].group == found[2][1].group == "5"
    assert found[3][0].images == ("documents/1.png",)


def test_files_of_ocrvqa(tmp_path):
    covers: dict[str, Any] = {
        "111": {"imageURL": "http://x/y.gif", "split": 3,
                "questions": ["Who?", "Is it?"], "answers": ["Jane", "Yes"]},
        "222": {"imageURL": "http://x/z.jpg", "split": 1,
                "questions": ["No?"], "answers": ["No"]},
    }  # fmt: skip
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "dataset.json").write_text(json.dumps(covers))
    table_files.write_parquet(
        tmp_path / "hub" / "data" / "test-0.parquet",
        {
            "image_id": ["111"],
            "questions": [["Who?", "Is it?"]],
            "answers": [["Jane", "Yes"]],
            "image": [hub_image(RED)],
        },
    )
    table_files.write_jsonl(
        tmp_path / "lines" / "ocrvqa_test.jsonl",
        [
            {"question_id": 5, "question": "Who?", "answer": "Jane", "image": "a.jpg"},
            {"question_id": 6, "question": "Is it?", "answer": "Yes", "image": "a.jpg"},
        ],
    )
    found = [read("ocrvqa", tmp_path / name) for name in ("official", "hub", "lines")]
    same_in_all_forms(found)
    assert [item.id for item in found[0]] == ["111-0", "111-1"]
    assert found[0][0].images == ("images/111.gif",) and found[1][0].images == (RED,)
    assert [item.id for item in found[2]] == ["5", "6"]
    covers["111"]["answers"].pop()
    (tmp_path / "official" / "dataset.json").write_text(json.dumps(covers))
    with pytest.raises(ValueError, match="row 1: there must be as many answers"):
        read("ocrvqa", tmp_path / "official")


def test_files_of_textvqa(tmp_path):
    people = ["coke"] * 9 + ["['pepsi']"]
    lines = table_files.write_jsonl(
        tmp_path / "lines" / "textvqa_val.jsonl",
        [{"question_id": 34, "question": "a?", "image": "train_images/x.jpg"}],
    )
    annotated = {
        "annotations": [
            {"question_id": 34, "answers": [{"answer": said} for said in people]}
        ]
    }
    beside = lines.with_name("textvqa_val_annotations.json")
    beside.write_text(json.dumps(annotated))
    table_files.write_tsv(
        tmp_path / "tsv" / "TextVQA_VAL.tsv",
        [{"index": 0, "question": "a?", "image": RED, "answer": str(people)}],
    )
    table_files.write_parquet(
        tmp_path / "hub" / "data" / "validation-0.parquet",
        {
            "question_id": [34],
            "question": ["a?"],
            "answers": [people],
            "image": [hub_image(RED)],
            "image_id": ["x"],
        },
    )
    official = tmp_path / "official" / "TextVQA_0.5.1_val.json"
    official.parent.mkdir()
    row = {"question_id": 34, "question": "a?", "answers": people, "image_id": "x"}
    official.write_text(json.dumps({"data": [row]}))
    names = ("lines", "tsv", "hub", "official")
    found = [read("textvqa", tmp_path / name) for name in names]
    same_in_all_forms(found)
    assert found[0][0].answer == tuple(people)
    assert [items[0].id for items in found] == ["34", "0", "34", "34"]
    assert found[3][0].images == ("train_images/x.jpg",) == found[0][0].images
    annotated["annotations"][0]["answers"].pop()
    beside.write_text(json.dumps(annotated))
    with pytest.raises(ValueError, match="has 9 answers, not those of 10 people"):
        read("textvqa", tmp_path / "lines")


def test_files_of_gqa(tmp_path):
    types = {"structural": "verify", "semantic": "obj", "detailed": "exist"}
    (tmp_path / "official").mkdir()
    row = {"question": "a?", "answer": "yes", "imageId": "n1", "types": types}
    (tmp_path / "official" / "testdev_balanced_questions.json").write_text(
        json.dumps({"201": row})
    )
    table_files.write_parquet(
        tmp_path / "hub" / "testdev_balanced_instructions" / "testdev-0.parquet",
        {key: [value] for key, value in {"id": "201", **row}.items()},
    )
    table_files.write_parquet(
        tmp_path / "hub" / "testdev_balanced_images" / "testdev-0.parquet",
        {"id": ["n0", "n1"], "image": [hub_image(BLUE), hub_image(RED)]},
    )
    official, hub = (read("gqa", tmp_path / name) for name in ("official", "hub"))
    same_in_all_forms([official, hub])
    assert official[0].id == hub[0].id == "201"
    assert official[0].images == ("images/n1.jpg",) and hub[0].images == (RED,)
    assert official[0].categories == {"structural": "verify", "semantic": "obj"}
    table_files.write_parquet(
        tmp_path / "hub" / "testdev_balanced_images" / "testdev-0.parquet",
        {"id": ["n0"], "image": [hub_image(BLUE)]},
    )
    with pytest.raises(ValueError, match="no picture with id 'n1'"):
        read("gqa", tmp_path / "hub")
    table_files.write_tsv(
        tmp_path / "tsv" / "GQA_TestDev_Balanced.tsv",
        [{"index": 3, "question": "a?", "answer": "yes", "image": RED}],
    )
    (item,) = read("gqa", tmp_path / "tsv")
    assert (item.id, item.answer, item.images) == ("3", ("yes",), (RED,))


def test_files_of_ai2d(tmp_path):
    letter = "Answer with the option's letter from the given choices directly."
    prompt = f"What eats\ngrass?\nA. a fox\nB. A. hare\n{letter}"
    lines = table_files.write_jsonl(
        tmp_path / "lines" / "test_vlmevalkit.jsonl",
        [{"question_id": 4, "question": prompt, "answer": "B", "image": "0.png"}],
    )
    table_files.write_tsv(
        tmp_path / "tsv" / "AI2D_TEST.tsv",
        [{"index": 4, "question": "What eats\ngrass?", "A": "a fox", "B": "A. hare",
          "answer": "B", "image": RED}],
    )  # fmt: skip
    table_files.write_parquet(
        tmp_path / "hub" / "data" / "test-0.parquet",
        {
            "question": ["What eats\ngrass?"],
            "options": [["a fox", "A. hare"]],
            "answer": ["1"],
            "image": [hub_image(RED)],
        },
    )
    found = [read("ai2d", tmp_path / name) for name in ("lines", "tsv", "hub")]
    same_in_all_forms(found)
    assert found[0][0].options == ("a fox", "A. hare") == found[1][0].options
    assert found[2][0].options == found[0][0].options
    assert [items[0].id for items in found] == ["4", "4", "0"]
    ask = registry.get("ai2d").protocols["paper"].ask
    assert ask(found[0][0], "direct").text == prompt
    for bad in ("No options?", "Out of order?\nB. x\nA. y"):
        table_files.write_jsonl(
            lines, [{"question_id": 4, "question": bad, "answer": "B", "image": "0"}]
        )
        with pytest.raises(ValueError, match="row 1: the question must end"):
            read("ai2d", lines.parent)


@pytest.mark.parametrize("name", [*NAMES, "ai2d"])
def test_what_is_missing_is_said(tmp_path, name):
    with pytest.raises(sources.MissingSource, match="hf download"):
        read(name, tmp_path)


@pytest.mark.parametrize(
    "row, words",
    [
        ({"questionId": 1, "answer": "x"}, "row 1: has no question"),
        ({"questionId": 1, "question": "a"}, "answers=None is no answer"),
        ({"question": "a", "answer": "x"}, "has no questionId or question_id"),
        ({"questionId": 1, "question": "a", "answer": [True]}, "answer=[True]"),
        ({"questionId": 1, "question": "a", "answer": {"b": 1}}, "is no answer"),
        ({"questionId": 1, "question": "a", "answer": ["x"] * 101}, "1 to 100"),
        ({"data": [3]}, "item 1 of data: is no object"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, words):
    table_files.write_jsonl(tmp_path / "val.jsonl", [row])
    with pytest.raises(ValueError) as caught:
        read("docvqa", tmp_path)
    assert words in str(caught.value) and "val.jsonl" in str(caught.value)


def test_a_part_of_a_point_is_right_from_half_on():
    grade = registry.get("textvqa").protocols["paper"].grade
    for others, right in ((1, False), (2, True)):
        people = ("a cat",) * others + tuple(f"dog {k}" for k in range(10 - others))
        found: Grade = grade(Item("1", "q", people), "cat", "direct", TOOLS)
        assert found.verdict.right is right and found.prediction == "cat"
