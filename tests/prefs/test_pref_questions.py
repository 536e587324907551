"""Questions with truths, and the prompts that are made of them."""

from __future__ import annotations

import json
import re

import pytest
import speaking

from mpo_jax import ledger
from mpo_jax.prefs import asking, prompts, questions
from mpo_jax.prefs.questions import Question
from mpo_jax.verify import formats
from mpo_jax.verify.verdict import Truth


def question(text="How many?", images=(), options=(), kind="", answer="3"):
    return Question(7, text, tuple(images), Truth(answer, tuple(options), kind), "s")


def test_questions_are_read_with_their_truths(tmp_path):
    path = speaking.write_lines(
        tmp_path / "geo.jsonl",
        [
            {"question": "a?", "answer": 3, "image": "x/../a.png"},
            {"id": "b", "question": "b?", "answer_gt": "B", "options": ["r", "s"]},
            {
                **{"id": 9, "question": "c?", "answer": "yes", "kind": "yes_no"},
                **{"image": [str(tmp_path / "p.png"), "q.png"], "source": "other"},
            },
        ],
    )
    found = dict(questions.read(path))
    assert found[1] == Question(1, "a?", ("a.png",), Truth("3"), "geo")
    assert found[2] == Question("b", "b?", (), Truth("B", ("r", "s")), "geo")
    assert found[3] == Question(
        9, "c?", ("p.png", "q.png"), Truth("yes", (), "yes_no"), "other"
    )


@pytest.mark.parametrize(
    "line, reason, said",
    [
        ("[]", "bad_json", r"\[\] is no JSON object"),
        ({"question": "q"}, "bad_field", "no answer_gt, nor an answer"),
        ({"answer": "3"}, "bad_field", "question=None: must be a text"),
        ({"question": " ", "answer": 1}, "bad_field", "question=' ': must be"),
        ({"question": "q", "answer": ""}, "bad_field", "answer='': must be"),
        ({"question": "q", "answer": 1, "img": 2}, "bad_field", "did you mean image"),
        ({"question": "q", "answer": 1, "kind": "x"}, "bad_field", "kind='x': must"),
        ({"question": "q", "answer": 1, "id": True}, "bad_field", "id=True: must be"),
        ({"question": "q", "answer": 1, "source": "../a"}, "bad_field", "source="),
        ({"question": "q", "answer": 1, "image": "../a"}, "image_missing", "below"),
        ({"question": "q", "answer": 1, "image": "http://a"}, "bad_field", "a URL"),
        ({"question": "q", "answer": 1, "options": [[]]}, "bad_field", "options="),
        ({"question": "\ud800", "answer": 1}, "bad_field", "Unicode"),
        ({"id": 1, "question": "q", "answer": 1}, "bad_field", "that of line 1 too"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, reason, said):
    path = tmp_path / "q.jsonl"
    speaking.write_lines(path, [{"id": 1, "question": "q", "answer": 1}])
    with open(path, "a") as file:
        file.write(line if isinstance(line, str) else json.dumps(line))
    (_, good), (number, entry) = questions.read(path)
    assert isinstance(good, Question) and isinstance(entry, ledger.Entry)
    assert (number, entry.line, entry.reason) == (2, 2, reason)
    assert re.search(said, entry.detail)


def test_every_format_has_its_parser_and_holds_the_question():
    assert set(formats.FORMATS) < set(prompts.FORMATS)
    for name in ("background", "visual", "grounded"):
        form = prompts.get_format(name)
        assert form.name == name and form.parse("so\n\nFinal answer: 4") == (
            formats.Parsed("4")
        )
        assert "How many?" in prompts.prompt_of(question(), name)
        assert 'use the format "Final answer: .."' in form.template
    with pytest.raises(ValueError, match="format 'cot': use one of direct, en"):
        prompts.get_format("cot")


@pytest.mark.parametrize("suffix", prompts.INSTRUCTIONS)
def test_instructions_give_way_to_the_format(suffix):
    found = prompts.prompt_of(question(f"How many?\n{suffix}  "), "en")
    assert found == formats.FORMATS["en"].wrap("How many?")
    twice = f"How many? {suffix} {prompts.ASK_SHORT}"
    assert prompts.without_instruction(twice) == "How many?"
    inside = f"{suffix} is what he said. How many?"
    assert prompts.without_instruction(inside) == inside


def test_direct_questions_ask_for_a_bare_answer():
    assert prompts.prompt_of(question(), "direct") == f"How many?\n{prompts.ASK_SHORT}"
    own = f"How many? {prompts.ASK_YES_NO}"
    assert prompts.prompt_of(question(own), "direct") == (
        f"How many?\n{prompts.ASK_YES_NO}"
    )
    assert prompts.prompt_of(question(kind="yes_no"), "direct").endswith("Yes or No.")
    assert prompts.prompt_of(question(options=("r", "s")), "direct") == (
        f"How many?\nA. r\nB. s\n{prompts.ASK_LETTER}"
    )


@pytest.mark.parametrize("listed", ["A. r\nB. s", "(A) r (B) s", "A:r, B:s"])
def test_options_are_listed_once(listed):
    found = prompts.prompt_of(question(f"Which?\n{listed}", options=("r", "s")), "en")
    assert found == formats.FORMATS["en"].wrap(f"Which?\n{listed}")
    half = prompts.prompt_of(question("Which? A. r", options=("r", "s")), "en")
    assert half.endswith("Which? A. r\nA. r\nB. s")


def test_placeholders_go_in_front():
    wrap = formats.FORMATS["en"].wrap
    for text in ("How many?", "<image>\nHow many?", "How many?<image>"):
        found = prompts.prompt_of(question(text, images=["a.png"]), "en")
        assert found == "<image>\n" + wrap("How many?")
    two = question("How many?", images=["a.png", "b.png"])
    assert prompts.prompt_of(two, "en") == "<image>\n<image>\n" + wrap("How many?")
    placed = question("In <image> or <image>?", images=["a.png", "b.png"])
    assert prompts.prompt_of(placed, "en") == wrap("In <image> or <image>?")
    with pytest.raises(ledger.BadRecord, match="1 for 2 '<image>'"):
        prompts.prompt_of(question("<image><image>?", images=["a.png"]), "en")
    with pytest.raises(ledger.BadRecord, match="asks nothing"):
        prompts.prompt_of(question(prompts.ASK_SHORT), "en")


def test_a_question_is_asked_in_all_formats_or_in_none(tmp_path):
    path = speaking.write_lines(
        tmp_path / "q.jsonl",
        [
            {"id": "7", "question": "a?", "answer": 1},
            {"id": 8, "question": "<image>b?", "answer": 1},
            {"id": 7, "question": "c?", "answer": 1},
        ],
    )
    found = list(asking.read(path, ("en", "zh")))
    ids = [one.id for one in found if isinstance(one, asking.Asked)]
    assert ids == ['en:"7"', 'zh:"7"', "en:7", "zh:7"]
    (bad,) = [one for one in found if isinstance(one, ledger.Entry)]
    assert (bad.line, bad.reason) == (2, "image_count")
    for forms, said in (((), "name one or more"), (("en", "en"), "each once")):
        with pytest.raises(ValueError, match=said):
            asking.check_formats(forms)


def test_options_that_the_question_lists_are_its_options(tmp_path):
    text = "Which?\nA. red\nB. blue"
    path = speaking.write_lines(
        tmp_path / "q.jsonl",
        [
            {"question": text, "answer": "B"},
            {"question": text, "answer": "B", "options": []},
        ],
    )
    found = dict(questions.read(path))
    assert found[1].truth == Truth("B", ("red", "blue"))
    assert found[2].truth == Truth("B")  # said to have none
    assert prompts.prompt_of(found[1], "en").count("B. blue") == 1
