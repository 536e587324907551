"""Held-out drawings as questions, and the page of answers."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

from mpo_jax.demo import answers, dataset


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[answers.Item]:
    root = tmp_path_factory.mktemp("drawn")
    written = dataset.write_dataset(root, num_train=3, num_eval=6, seed=0)
    return answers.items(written["eval_meta"])


def test_questions_are_those_of_the_annotations(asked):
    assert [item.question.id for item in asked] == list(range(6))
    for item in asked:
        (image,) = item.question.images
        assert pathlib.Path(image).is_file()
        assert item.question.question.startswith("<image>\n")
        assert item.truth.lstrip("-").isdecimal() and "/" in item.task


@pytest.mark.parametrize(
    "text, final",
    [
        ("2 + 1 = 3.\nFinal answer: 3", "3"),
        ("Final answer: -12 \n", "-12"),
        ("Final answer: 3\nHmm.", None),  # not the last line
        ("Final answer: three", None),
        ("Final answer: 3.5", None),
        ("", None),
    ],
)
def test_final_answer(text, final):
    assert answers.final_answer(text) == final


def test_accuracy_counts_every_question(asked):
    said = {item.question.id: f"So.\nFinal answer: {item.truth}" for item in asked}
    assert answers.accuracy(asked, said) == {"right": 1.0, "unparsable": 0.0}
    said[0], said[1] = "no idea", f"Final answer: {int(asked[1].truth) + 1}"
    found = answers.accuracy(asked, said)
    assert found == {"right": pytest.approx(4 / 6), "unparsable": pytest.approx(1 / 6)}


def test_page_shows_where_models_differ_first_and_runs_nothing(asked, tmp_path):
    right = {item.question.id: f"Final answer: {item.truth}" for item in asked}
    other = dict(right)
    other[4] = "<script>alert(1)</script>"
    page = tmp_path / "answers.html"
    answers.write_page(page, asked, {"one": right, "two": other}, most=3)
    text = page.read_text("utf-8")
    articles = re.findall(r"<article>.*?</article>", text, flags=re.S)
    assert len(articles) == 3
    assert "two: wrong" in articles[0] and "one: right" in articles[0]
    assert asked[4].question.question.splitlines()[-1] in articles[0]
    assert "<script>" not in text and "default-src 'none'" in text
    assert json.dumps("100.0%")[1:-1] in text and "83.3%" in text
