"""Benchmarks graded by a judge: files, prompts, what is read out of judgements."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest
import table_files
from table_files import base64_of, hub_image, picture

from mpo_jax.evals import benchmark, lines, registry, sheet, sources
from mpo_jax.evals.benchmark import Benchmark, Grade, Item, Judge, Tools
from mpo_jax.verify.verdict import Truth, Verdict

RED = picture()
COT = (
    "Your task is to answer the question below. Give step by step reasoning before you "
    "answer, and when you're ready to answer, please use the format "
    '"Final answer: .."\n\nQuestion:\n\n'
)


def check(prediction: str, truth: Truth) -> Verdict:
    raise AssertionError("the rules beside judges need no verifier")


TOOLS = Tools(check)


def read(name: str, folder: pathlib.Path) -> list[Item]:
    return list(registry.get(name).read(sources.Folder(folder)))


def judge_of(name: str, protocol: str) -> Judge:
    judge = registry.get(name).protocols[protocol].judge
    assert judge is not None
    return judge


@pytest.mark.parametrize(
    "name, protocol, direct, cot, tokens",
    [
        ("mmvet", "paper", "q? ", f"{COT}q?", 1000),
        ("mmvet", "official", "q?", f"{COT}q?", 1024),
        ("mmvet", "vlmevalkit", "q?", "q?\nAnswer the preceding question. ", 4096),
        (
            "llava_bench",
            "paper",
            "q? Please give a detailed answer.",
            f"{COT}q?",
            1000,
        ),
        ("llava_bench", "official", "q?", f"{COT}q?", 1024),
        (
            "llava_bench",
            "vlmevalkit",
            "q?\nAnswer this question in detail.",
            "q?\nAnswer this question in detail.",
            4096,
        ),
        (
            "mmhal",
            "paper",
            "q?",
            "q?\n\nPlease think step by step and output in the following format:\n\n"
            "Rationale:\n{rationale}\nAnswer: {answer}\n\nwhere rationale is the "
            "reasoning process of the given question.",
            1024,
        ),
    ],
)
def test_what_is_asked(name, protocol, direct, cot, tokens):
    ask = registry.get(name).protocols[protocol].ask
    item = Item("1", "q?", "a")
    asked, reasoning = ask(item, "direct"), ask(item, "cot")
    assert (asked.text, asked.max_new_tokens, asked.max_tiles) == (direct, tokens, 6)
    if name == "mmvet" and protocol == "vlmevalkit":
        assert reasoning.text.startswith(cot)
        assert reasoning.text.endswith("considering all relevant information before "
                                       "answering.")  # fmt: skip
        assert r"'Answer: \boxed{$FINAL_ANSWER}'" in reasoning.text
    else:
        assert reasoning.text == cot
    assert reasoning.max_new_tokens == (1024 if name == "mmhal" else 4096)


@pytest.mark.parametrize(
    "name, protocol, model, temperature, tokens",
    [
        ("mmvet", "paper", "gpt-4-0613", 0.0, 3),
        ("mmvet", "vlmevalkit", "gpt-4-1106-preview", 0.0, 3),
        ("llava_bench", "paper", "gpt-4-0613", 0.2, 1024),
        ("llava_bench", "vlmevalkit", "gpt-4-1106-preview", 0.2, 1024),
        ("llava_bench", "official", "gpt-4-0314", 0.2, 1024),
        ("mmhal", "paper", "gpt-4o", 0.0, 1024),
    ],
)
def test_who_judges(name, protocol, model, temperature, tokens):
    judge = judge_of(name, protocol)
    assert (judge.model, judge.temperature, judge.max_new_tokens) == (
        model,
        temperature,
        tokens,
    )


@pytest.mark.parametrize("name", ["mmvet", "llava_bench", "mmhal"])
def test_every_protocol_says_that_its_judge_reads_our_words(name):
    one: Benchmark = registry.get(name)
    for protocol in one.protocols.values():
        assert any("our own words" in note for note in protocol.notes)
        assert any("without a judge" in note for note in protocol.notes)
        for mode in ("direct", "cot"):
            grade = protocol.grade(Item("1", "q", "a"), "  \n", mode, TOOLS)
            assert grade.points == 0 and not grade.verdict.right


# MM-Vet


@pytest.mark.parametrize(
    "text, points, outcome",
    [
        ("0.0", 0.0, "wrong"),
        (" 0.4\n", 0.4, "wrong"),
        ("0.5", 0.5, "right"),
        ("1.0", 1.0, "right"),
        ("1", 1.0, "right"),
        ("1.1", 0.0, "undecided"),
        ("-0.1", 0.0, "undecided"),
        ("0.5 or 0.6", 0.0, "undecided"),
        ("", 0.0, "undecided"),
        ("nan", 0.0, "undecided"),
    ],
)
def test_points_of_mmvets_judge(text, points, outcome):
    grade = judge_of("mmvet", "paper").parse(Item("1", "q", "a"), text)
    assert (grade.points, grade.verdict.outcome) == (points, outcome)


def test_what_mmvets_judge_is_shown():
    item = Item("1", "What is x?", "-1<AND>-5")
    shown = judge_of("mmvet", "paper").prompt(item, "x = {-1}")
    assert shown.endswith("\nWhat is x? | -1 <AND> -5 | x = {-1} | ")
    assert "0.0" in shown and "<OR>" in shown


@pytest.mark.parametrize(
    "truth, said, points",
    [
        ("-1<AND>-5", "x is -1 or -5.", 1.0),
        ("-1<AND>-5", "x = -5", 0.5),
        ("-1<AND>-5", "x = 15", 0.0),
        ("orange<OR>clementine", "It is a clementine.", 1.0),
        ("a<AND>b c<OR>d", "d", 1.0),
        ("42", "142", 0.0),
        ("a long red car", "A red car", 0.0),  # short ones must be there as they are
        ("It is a very long red car on the road", "A red car", 4 / 10),
    ],
)
def test_the_rule_beside_mmvets_judge(truth, said, points):
    grade = registry.get("mmvet").protocols["paper"].grade
    found = grade(Item("1", "q", truth), said, "direct", TOOLS)
    assert found.points == pytest.approx(points)
    assert "true answer" in found.verdict.rule


def test_files_of_mmvet(tmp_path):
    row = {"imagename": "v1_0.png", "question": "q?", "answer": "a",
           "capability": ["ocr", "math"]}  # fmt: skip
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "mm-vet.json").write_text(json.dumps({"v1_0": row}))
    table_files.write_tsv(
        tmp_path / "tsv" / "MMVet.tsv",
        [{"index": 0, "question": "q?", "answer": "a", "category": "ocr,math",
          "image": RED}],
    )  # fmt: skip
    table_files.write_parquet(
        tmp_path / "hub" / "data" / "test-0.parquet",
        {"question_id": ["v1_0"], "question": ["q?"], "answer": ["a"],
         "capability": ["ocr,math"], "image": [hub_image(RED)]},
    )  # fmt: skip
    found = [read("mmvet", tmp_path / name)[0] for name in ("official", "tsv", "hub")]
    assert [item.id for item in found] == ["v1_0", "0", "v1_0"]
    for item in found:
        assert (item.question, item.answer) == ("q?", "a")
        assert item.categories == {
            "capabilities": "math ocr",
            "math": "needed",
            "ocr": "needed",
        }
    assert [item.images for item in found] == [("images/v1_0.png",), (RED,), (RED,)]


# LLaVA-Bench


@pytest.mark.parametrize(
    "text, own, reference, outcome",
    [
        ("8 9\nBoth are fine.", 0.9, 0.8, "right"),
        ("8, 6\n", 0.6, 0.8, "wrong"),
        ("8.5 8.5", 0.85, 0.85, "right"),
        ("8", 0.0, None, "undecided"),
        ("8 9 10", 0.0, None, "undecided"),
        ("8 11", 0.0, None, "undecided"),
        ("Assistant 1: 8", 0.0, None, "undecided"),
        ("nan 8", 0.0, None, "undecided"),
        ("", 0.0, None, "undecided"),
    ],
)
def test_ratings_of_llava_bench(text, own, reference, outcome):
    grade = judge_of("llava_bench", "paper").parse(Item("1", "q", "a"), text)
    assert (grade.points, grade.reference) == (own, reference)
    assert grade.verdict.outcome == outcome


def test_llava_bench_is_a_ratio_of_means():
    judge = judge_of("llava_bench", "paper")
    items = [Item(str(k), "q", "a") for k in range(3)]
    grades = [judge.parse(items[0], text) for text in ("8 4", "10 10", "?")]
    score = benchmark.weighted(judge.metric, items, grades)
    assert score(np.ones(3)) == pytest.approx(100 * (4 + 10) / (8 + 10))
    assert score(np.array([2.0, 1, 5])) == pytest.approx(100 * 18 / 26)
    assert math.isnan(score(np.array([0.0, 0, 1])))
    assert all(benchmark.REFERENCE not in item.fields for item in items)


def test_a_rated_reference_survives_the_file_of_items(tmp_path):
    grade = judge_of("llava_bench", "paper").parse(Item("1", "q", "a"), "8 4\nWhy")
    line = lines.Line(
        benchmark="llava_bench",
        protocol="paper",
        mode="direct",
        id="1",
        answer="text",
        grade=Grade.of("text", False, "rule"),
        judge=lines.Judgement("gpt-4-0613", "8 4\nWhy", grade),
    )
    lines.write(tmp_path / "items.jsonl", [line])
    (found,) = lines.read(tmp_path / "items.jsonl")
    assert found.judge is not None and found.judge.grade == grade
    assert found.grade.reference is None


def test_a_report_measures_by_rated_references():
    judge = judge_of("llava_bench", "paper")
    answers = [
        lines.Line(
            benchmark="llava_bench",
            protocol="paper",
            mode="direct",
            id=str(number),
            answer="text",
            grade=Grade.of("text", False, "rule"),
            judge=lines.Judgement(
                "gpt-4-0613", text, judge.parse(Item("1", "q", "a"), text)
            ),
        )
        for number, text in enumerate(("8 4", "10 10"))
    ]
    found = sheet.Sheet.of([answers], {})
    score = found.weighted(judge.metric, sheet.judged)
    assert score(np.ones(2)) == pytest.approx(100 * 14 / 18)


def test_what_llava_benchs_judge_is_shown():
    item = Item("1", "What?", "the reference", fields={"caption": "a {cat}"})
    shown = judge_of("llava_bench", "paper").prompt(item, "the response")
    places = [shown.index(t) for t in ("a {cat}", "What?", "reference", "response")]
    assert places == sorted(places) and "from 1 to 10" in shown


def test_files_of_llava_bench(tmp_path):
    folder = tmp_path / "official"
    table_files.write_jsonl(
        folder / "questions.jsonl",
        [{"question_id": 0, "image": "001.jpg", "text": "q?", "category": "conv"}],
    )
    table_files.write_jsonl(
        folder / "context.jsonl", [{"image": "001.jpg", "caption": ["one", "two"]}]
    )
    answers = folder / "answers_gpt4.jsonl"
    table_files.write_jsonl(answers, [{"question_id": 0, "text": "ref"}])
    table_files.write_tsv(
        tmp_path / "tsv" / "LLaVABench.tsv",
        [{"index": 0, "question": "q?", "category": "conv", "caption": "one\ntwo",
          "gpt4_ans": "ref", "image": RED}],
    )  # fmt: skip
    table_files.write_parquet(
        tmp_path / "hub" / "data" / "train-0.parquet",
        {"question_id": [0], "question": ["q?"], "category": ["conv"],
         "caption": ["one\ntwo"], "gpt_answer": ["ref"], "image": [hub_image(RED)]},
    )  # fmt: skip
    for place, image in ((folder, "images/001.jpg"), ("tsv", RED), ("hub", RED)):
        (item,) = read("llava_bench", tmp_path / place)
        assert (item.id, item.question, item.answer) == ("0", "q?", "ref")
        assert item.fields == {"caption": "one\ntwo"} and item.images == (image,)
        assert item.categories == {"type": "conv"}
    table_files.write_jsonl(answers, [{"question_id": 1, "text": "ref"}])
    with pytest.raises(ValueError, match="question 0 has no answer in answers_gpt4"):
        read("llava_bench", folder)


# MMHal-Bench


@pytest.mark.parametrize(
    "text, rating, outcome",
    [
        ("Fine.\nRating: 6, very informative", 6, "right"),
        ("rating: 3", 3, "right"),
        ("RATING: 2", 2, "wrong"),
        ("Rating: 0", 0, "wrong"),
        ("Rating: 5 or Rating: 4", 0, "undecided"),
        ("Rating 5", 0, "undecided"),
        ("Rating: 7", 0, "undecided"),
        ("", 0, "undecided"),
    ],
)
def test_ratings_of_mmhal(text, rating, outcome):
    grade = judge_of("mmhal", "paper").parse(Item("1", "q", "a"), text)
    assert grade.points == pytest.approx(rating / 6)
    assert grade.verdict.outcome == outcome


def test_mmhal_is_a_mean_rating():
    judge = judge_of("mmhal", "paper")
    items = [Item(str(k), "q", "a") for k in range(4)]
    texts = ("Rating: 6", "Rating: 3", "Rating: 2", "nothing")
    grades = [judge.parse(item, t) for item, t in zip(items, texts, strict=True)]
    score = benchmark.weighted(judge.metric, items, grades)
    assert score(np.ones(4)) == pytest.approx(11 / 4)


def test_what_mmhals_judge_is_shown():
    item = Item("1", "What?", "a cat", fields={"image_content": "cat, mat"})
    said = "Rationale:\nAnswer: no\nAnswer: a {dog}\n"
    shown = judge_of("mmhal", "paper").prompt(item, said)
    assert shown.rstrip().endswith("### Answer to judge\na {dog}")
    for text in ("cat, mat", "What?", "a cat", "Rating: N"):
        assert text in shown
    grade = registry.get("mmhal").protocols["paper"].grade
    assert grade(item, said, "cot", TOOLS).prediction == "a {dog}"
    assert grade(item, said, "direct", TOOLS).prediction == said.strip()


def test_files_of_mmhal(tmp_path):
    row = {"question": "q?", "gt_answer": "a", "image_content": ["cat", "mat"],
           "image_src": "https://x.org/y/z_o.jpg", "image_id": "z"}  # fmt: skip
    lines_of = [{**row, "image": base64_of(RED)}] * 9
    path = table_files.write_jsonl(
        tmp_path / "lines" / "mmhal-bench_with_image.jsonl", lines_of
    )
    (tmp_path / "official").mkdir()
    template = tmp_path / "official" / "response_template.json"
    template.write_text(json.dumps([row] * 9))
    found = read("mmhal", tmp_path / "lines")
    other = read("mmhal", tmp_path / "official")
    assert [item.id for item in found] == [str(k) for k in range(9)]
    assert found[0].images == (RED,) and other[0].images == ("images/z_o.jpg",)
    assert found[8].categories == found[0].categories == {"type": "attribute"}
    assert found[3].categories == {"type": "counting"}
    assert found[0].fields == {"image_content": "cat, mat"}
    assert [dataclasses.replace(i, images=()) for i in found] == [
        dataclasses.replace(i, images=()) for i in other
    ]
    table_files.write_jsonl(path, [{**row, "image": base64_of(RED)[:-1]}])
    with pytest.raises(ValueError, match="row 1: image is broken base64"):
        read("mmhal", tmp_path / "lines")
    table_files.write_jsonl(path, [{**row, "image_content": "cat"}])
    with pytest.raises(ValueError, match="image_content must be a list"):
        read("mmhal", tmp_path / "lines")
