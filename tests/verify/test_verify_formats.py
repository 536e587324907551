"""Prompts and the parsers that belong to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo_jax.verify import formats
from mpo_jax.verify.formats import EMPTY, NO_ANSWER, NO_THOUGHT, UNCLOSED

THOUGHT = "<think>2 and 2</think>\n"


@pytest.mark.parametrize("name", ["en", "zh", "en_v2"])
def test_texts_are_the_released_ones(shared, name):
    facts = (shared / "docs" / "internvl_facts.md").read_text(encoding="utf-8")
    for line in formats.FORMATS[name].template.splitlines():
        assert line in facts, line


@pytest.mark.parametrize("name", ["en_r1", "zh_r1"])
def test_last_line_of_thinking_prompts_is_the_released_one(shared, name):
    facts = (shared / "docs" / "internvl_facts.md").read_text(encoding="utf-8")
    assert formats.FORMATS[name].template.splitlines()[-1] in facts


def test_names():
    assert set(formats.FORMATS) == {
        *("direct", "en", "zh", "en_v2", "zh_v2", "en_r1", "zh_r1")
    }
    assert formats.get_format("en").name == "en"
    with pytest.raises(ValueError, match="use one of direct, en, zh"):
        formats.get_format("fr")


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_question_is_put_in_literally(name):
    question = r"Is {x} \1 {question} 5 % of $y$?"
    prompt = formats.FORMATS[name].wrap(question)
    assert prompt.count(question) == 1
    if name == "direct":
        assert prompt == question


def test_a_template_has_one_place_for_the_question():
    for template in ("", "{question}{question}"):
        with pytest.raises(ValueError, match="must hold it once"):
            formats.Format("x", template, formats.FORMATS["en"].parser)


@pytest.mark.parametrize(
    "response, prediction",
    [
        ("One.\n\nFinal answer: 5", "5"),
        ("Final answer: 4\nNo.\nFinal Answer: 5.", "5"),
        ("So:\n\n**Final answer:** B. cat", "B. cat"),
        ("**Final answer: B**", "B"),
        ("**Final Answer**: **B**", "B"),
        ("Final answer:\n\n12 cm", "12 cm"),
        ("Final answer: $\\frac{1}{2}$.", "\\frac{1}{2}"),
        ("Final answer: \\(x^2\\)", "x^2"),
        ("Final answer: the area is \\boxed{\\frac{1}{2}} cm.", "\\frac{1}{2}"),
        ("Final answer: \\boxed{1}, no: \\boxed{2}", "2"),
        ("Final answer:\n\\[\nx = 5\n\\]\nWhich we sought.", "x = 5"),
        ("推理。\n答案: 是", "是"),
        ("推理。\n答案：是。", "是"),
        ("final answer: 3.5", "3.5"),
        ("Final answer: (3, 4)\nNote that it is a point.", "(3, 4)"),
        ("Final answer: 4:30 p.m.", "4:30 p.m"),
    ],
)
def test_the_last_final_answer_is_read(response, prediction):
    for name in ("en", "zh"):
        assert formats.FORMATS[name].parse(response) == formats.Parsed(prediction)


@pytest.mark.parametrize(
    "response, problem",
    [
        ("It is 5.", NO_ANSWER),
        ("The answer is \\boxed{5}", NO_ANSWER),
        ("", NO_ANSWER),
        ("Final answer:", EMPTY),
        ("Final answer: 5\nFinal answer: **", EMPTY),
        ("Final answer: \\boxed{}", EMPTY),
        ("Final answer: \\boxed{\\frac{1}{2}", UNCLOSED),
    ],
)
def test_a_missing_final_answer_is_a_problem(response, problem):
    assert formats.FORMATS["en"].parse(response) == formats.Parsed(None, problem)


BOXES = [
    ("So Answer: \\boxed{5}", "5"),
    ("\\boxed{4} or rather \\boxed{\\frac{1}{\\sqrt{2}}}.", "\\frac{1}{\\sqrt{2}}"),
    ("答案：\\boxed{$12$}", "12"),
    ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
    ("\\boxed {\\text{yes}}", "\\text{yes}"),
    ("$\\boxed{\\boxed{7}}$", "7"),
]


@pytest.mark.parametrize("response, prediction", BOXES)
def test_the_last_box_is_read(response, prediction):
    for name in ("en_v2", "zh_v2"):
        assert formats.FORMATS[name].parse(response) == formats.Parsed(prediction)
    for name in ("en_r1", "zh_r1"):
        parsed = formats.FORMATS[name].parse(THOUGHT + response)
        assert parsed == formats.Parsed(prediction)


@pytest.mark.parametrize(
    "response, problem",
    [
        ("5", NO_ANSWER),
        ("Final answer: 5", NO_ANSWER),
        ("\\boxed5", NO_ANSWER),
        ("\\boxed{4} and \\boxed{5", UNCLOSED),
        ("\\boxed{5\\}", UNCLOSED),
        ("\\boxed{ }", EMPTY),
    ],
)
def test_a_missing_box_is_a_problem(response, problem):
    assert formats.FORMATS["en_v2"].parse(response) == formats.Parsed(None, problem)
    parsed = formats.FORMATS["en_r1"].parse(THOUGHT + response)
    assert parsed == formats.Parsed(None, problem)


@pytest.mark.parametrize(
    "response",
    [
        "\\boxed{5}",
        "<think>hm \\boxed{5}",
        "</think>\\boxed{5}",
        "</think><think>\\boxed{5}",
        "<think>a</think><think>b</think>\\boxed{5}",
    ],
)
def test_one_thought_comes_before_the_answer(response):
    parsed = formats.FORMATS["zh_r1"].parse(response)
    assert parsed == formats.Parsed(None, NO_THOUGHT)


def test_a_box_in_the_thought_is_no_answer():
    parsed = formats.FORMATS["en_r1"].parse("<think>\\boxed{5}</think>So it is.")
    assert parsed == formats.Parsed(None, NO_ANSWER)


def test_direct_takes_all():
    assert formats.FORMATS["direct"].parse(" **B.** \n") == formats.Parsed("**B.**")
    assert formats.FORMATS["direct"].parse(" \n") == formats.Parsed(None, EMPTY)


@pytest.mark.parametrize("name", formats.FORMATS)
@pytest.mark.parametrize(
    "part",
    [
        "Final answer: ",
        "Final answer**",
        "\\boxed{",
        "{",
        "*",
        "<think>",
        "$",
        " \n",
        "}",
    ],
)
def test_a_megabyte_is_read_in_linear_time(name, part):
    # Anything quadratic in 1e6 characters would not end within the test's time limit.
    response = "<think></think>\\boxed{" + part * (1_000_000 // len(part))
    parsed = formats.FORMATS[name].parse(response)
    assert (parsed.prediction is None) == (parsed.problem in formats.PROBLEMS)


@given(st.text(), st.sampled_from(sorted(formats.FORMATS)))
def test_any_response_gives_an_answer_or_a_problem(response, name):
    parsed = formats.FORMATS[name].parse(response)
    assert (parsed.prediction is None) == (parsed.problem in formats.PROBLEMS)
    assert (parsed.prediction is not None) == (parsed.problem == "")
