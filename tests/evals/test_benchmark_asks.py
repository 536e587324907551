"""What every protocol of a benchmark asks, letter by letter, tiles and lengths."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import scored

from mpo_jax.evals import registry
from mpo_jax.evals.benchmark import MODES, Ask, Item

COT = (
    "Your task is to answer the question below. Give step by step reasoning before you "
    "answer, and when you're ready to answer, please use the format "
    '"Final answer: .."\n\nQuestion:\n\n'
)
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
STEPS = (
    'Please solve the problem step by step and put your answer in one "\\boxed{}". If '
    'it is a multiple choice question, only one letter is allowed in the "\\boxed{}".\n'
)

VISTA = {
    "pid": "1",
    "question": "How {much}?",
    "choices": ["1", "2"],
    "unit": "g",
    "precision": None,
    "answer": "2",
    "question_type": "multi_choice",
    "answer_type": "text",
    "metadata": {"task": "t", "skills": ["s"]},
    "image": "images/1.jpg",
}
VISTA_QUERY = (
    "Hint: Please answer the question and provide the correct option letter, e.g., A, "
    "B, C, D, at the end.\nQuestion: How {much}? (Unit: g)\nChoices:\n(A) 1\n(B) 2"
)
VISION = {
    "id": "7",
    "question": "Which?\n<image1>",
    "options": ["x", "y"],
    "answer": "B",
    "level": 1,
    "subject": "algebra",
    "image": "images/7.jpg",
}
VISION_QUERY = (
    "Hint: Please answer the question and provide the correct option letter, e.g., A, "
    "B, C, D, at the end.\nQuestion: Which?\n<image1>\nChoices:\n(A) x\n(B) y"
)
COT3 = {
    "id": "a-1",
    "question": "Why?",
    "choices": ["x", "y"],
    "context": "Look.",
    "answer": "A",
    "image": "images/a-1.png",
    "domain": "science",
    "topic": "physics",
}
SCIENCE = {
    "image": "1.png",
    "hint": "Look.",
    "question": "Why?",
    "choices": ["x", "y"],
    "answer": 1,
}
LISTED = "Look.\nWhy?\nA. x\nB. y"
TURNED = [
    {
        "question_id": i,
        "image": "1.jpg",
        "category": "subject",
        "text": f"Who?\nA. {a}\nB. {b}\nC. {c}\nD. {d}{LETTER}",
        "correct_option": "ABCD"[i],
    }
    for i, (a, b, c, d) in enumerate(["wxyz", "zwxy", "yzwx", "xyzw"])
]
WHO = "Who?\nA. w\nB. x\nC. y\nD. z"
POPE = {
    "question_id": 1,
    "image": "1.jpg",
    "text": "Is there a dog?" + SHORT,
    "category": "random",
}
MMMU = "answer_dict_val.json"

CASES: dict[tuple[str, str, str], Ask] = {
    ("mathvista", "paper", "direct"): Ask(VISTA_QUERY, 4096),
    ("mathvista", "paper", "cot"): Ask(COT + VISTA_QUERY, 4096),
    ("mathvista", "vlmevalkit", "direct"): Ask(VISTA_QUERY, 4096),
    ("mathvista", "vlmevalkit", "cot"): Ask(COT + VISTA_QUERY, 4096),
    ("mathvista", "official", "direct"): Ask(VISTA_QUERY, 4096),
    ("mathvista", "official", "cot"): Ask(COT + VISTA_QUERY, 4096),
    ("mathvision", "vlmevalkit", "direct"): Ask(VISION_QUERY, 4096),
    ("mathvision", "vlmevalkit", "cot"): Ask(
        COT + "Which?\n<image1>\n(A) x\n(B) y", 4096
    ),
    ("mathvision", "official", "direct"): Ask(
        f"Which?\n<image1>\n(A) x\n(B) y\n{SHORT}", 4096
    ),
    ("mathvision", "official", "cot"): Ask(
        f"{STEPS}Which?\n<image1>\n(A) x\n(B) y\n", 4096
    ),
    ("m3cot", "paper", "direct"): Ask(LISTED + LETTER, 100),
    ("m3cot", "paper", "cot"): Ask(COT + LISTED, 4096),
    ("m3cot", "official", "direct"): Ask(
        "[Context]\nLook.\n\n[Question]\nWhy?\n[Choices]\n(A) x\n(B) y\n", 100
    ),
    ("m3cot", "official", "cot"): Ask(
        "[Context]\nLook.\n\n[Question]\nWhy?\n[Choices]\n(A) x\n(B) y\n\n"
        "Let's think step-by-step!",
        4096,
    ),
    ("scienceqa", "paper", "direct"): Ask(LISTED + LETTER, 100),
    ("scienceqa", "paper", "cot"): Ask(COT + LISTED, 4096),
    ("scienceqa", "vlmevalkit", "direct"): Ask(LISTED + LETTER, 4096),
    ("scienceqa", "vlmevalkit", "cot"): Ask(COT + "Why?\nA. x\nB. y", 4096),
    ("pope", "paper", "direct"): Ask("Is there a dog?" + SHORT, 100),
    ("pope", "paper", "cot"): Ask(COT + "Is there a dog?", 4096),
    ("pope", "vlmevalkit", "direct"): Ask("Is there a dog?", 4096),
    ("pope", "vlmevalkit", "cot"): Ask(COT + "Is there a dog?", 4096),
    ("pope", "official", "direct"): Ask("Is there a dog?", 100),
    ("pope", "official", "cot"): Ask(COT + "Is there a dog?", 4096),
    ("crpe_relation", "vlmevalkit", "direct"): Ask(WHO + LETTER, 4096),
    ("crpe_relation", "vlmevalkit", "cot"): Ask(COT + WHO, 4096),
    ("crpe_relation", "official", "direct"): Ask(WHO + LETTER, 100),
    ("crpe_relation", "official", "cot"): Ask(COT + WHO, 4096),
    ("gsm8k", "official", "direct"): Ask(
        'How?\nWrite the number that is the answer in the form "#### 42", and nothing '
        "else.",
        100,
    ),
    ("gsm8k", "official", "cot"): Ask(
        "How?\nThink step by step, then write the number that is the answer on a last "
        'line of its own, in the form "#### 42".',
        4096,
    ),
    ("math", "official", "direct"): Ask(
        "How?\nPut the answer within \\boxed{}, no words.", 100
    ),
    ("math", "official", "cot"): Ask(
        "How?\nPlease reason step by step, and put your final answer within \\boxed{}.",
        4096,
    ),
}
FILES: dict[str, tuple[str, Any]] = {
    "mathvista": ("testmini.json", {"1": VISTA}),
    "mathvision": ("test.jsonl", [VISION]),
    "m3cot": ("test.jsonl", [COT3]),
    "scienceqa": ("scienceqa_test_img.jsonl", [SCIENCE]),
    "crpe_relation": ("crpe_relation.jsonl", TURNED),
    "gsm8k": ("test.jsonl", [{"question": "How?", "answer": "x\n#### 1,200"}]),
    "math": ("math.jsonl", [{"problem": "How?", "solution": "\\boxed{2}"}]),
    "pope": ("llava_pope_test.jsonl", [POPE]),
}


def write(folder: pathlib.Path, name: str, content: Any) -> None:
    if name.endswith(".jsonl"):
        content = "\n".join(map(json.dumps, content))
    else:
        content = json.dumps(content)
    (folder / name).write_text(content, encoding="utf-8")


def first(folder: pathlib.Path, benchmark: str) -> Item:
    write(folder, *FILES[benchmark])
    if benchmark == "pope":
        label = {"image": "1.jpg", "text": "Is there a dog?", "label": "no"}
        write(folder, "coco_pope_random.json", label)
    return scored.read(benchmark, folder)[0]


@pytest.mark.parametrize("benchmark, protocol, mode", CASES)
def test_ask(tmp_path, benchmark, protocol, mode):
    item = first(tmp_path, benchmark)
    ask = registry.get(benchmark).protocols[protocol].ask(item, mode)
    assert ask == CASES[benchmark, protocol, mode]


def test_no_protocol_is_left_out():
    asked = {(name, protocol) for name, protocol, _ in CASES}
    for name in {name for name, _ in asked}:
        one = registry.get(name)
        assert {p for n, p in asked if n == name} == set(one.protocols)
        assert one.modes == MODES


def _mmmu(options=("x", "y"), images=1) -> Item:
    return Item(
        id="validation_Art_1",
        question="See <image 1>. What?",
        answer="A",
        options=tuple(options),
        images=tuple(b"%d" % i for i in range(images)),
        fields={"kind": "multiple-choice" if options else "open"},
    )


WHAT = "See <image 1>. What?"
NUMBERED = "Image-1: <image>\nImage-2: <image>\n"


@pytest.mark.parametrize(
    "protocol, mode, item, ask",
    [
        ("paper", "direct", _mmmu(), Ask(f"{WHAT}\nA. x\nB. y{LETTER}", 10)),
        ("official", "direct", _mmmu(), Ask(f"{WHAT}\nA. x\nB. y{LETTER}", 10)),
        ("paper", "direct", _mmmu(()), Ask(WHAT + SHORT, 10)),
        ("paper", "cot", _mmmu(()), Ask(COT + WHAT, 4096)),
        ("paper", "direct", _mmmu((), 2), Ask(NUMBERED + WHAT + SHORT, 10, 7)),
        ("vlmevalkit", "direct", _mmmu(), Ask(f"{WHAT}\nA. x\nB. y{LETTER}", 4096, 12)),
        (
            *("vlmevalkit", "direct", _mmmu((), 2)),
            Ask(f"{NUMBERED}{WHAT}\nAnswer the question directly.", 4096, 24),
        ),
        ("vlmevalkit", "cot", _mmmu(), Ask(f"{COT}{WHAT}\nA. x\nB. y", 4096, 12)),
        ("vlmevalkit", "cot", _mmmu((), 7), Ask("", 4096, 63)),  # 64 // 7 each
    ],
)
def test_ask_of_mmmu(protocol, mode, item, ask):
    found = registry.get("mmmu").protocols[protocol].ask(item, mode)
    assert (found.max_new_tokens, found.max_tiles) == (
        ask.max_new_tokens,
        ask.max_tiles,
    )
    assert found.text == ask.text or not ask.text


@pytest.mark.parametrize(
    "answer_type, precision, words",
    [
        ("integer", None, "requiring an integer answer and provide the final value, "
         "e.g., 1, 2, 3, at the end."),
        ("float", 1.0, "requiring a floating-point number with one decimal place and "
         "provide the final value, e.g., 1.2, 1.3, 1.4, at the end."),
        ("float", "2", "requiring a floating-point number with two decimal places and "
         "provide the final value, e.g., 1.23, 1.34, 1.45, at the end."),
        ("list", None, "requiring a Python list as an answer and provide the final "
         "list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end."),
    ],
)  # fmt: skip
def test_hints_of_mathvista(tmp_path, answer_type, precision, words):
    row = VISTA | {
        "answer_type": answer_type,
        "question_type": "free_form",
        "precision": precision,
        "choices": None,
        "unit": None,
    }
    write(tmp_path, "testmini.json", {"1": row})
    item = scored.read("mathvista", tmp_path)[0]
    query = f"Hint: Please answer the question {words}\nQuestion: How {{much}}?"
    ask = registry.get("mathvista").protocols["paper"].ask(item, "direct")
    assert ask.text == query


def test_letters_alone_are_no_options_to_the_authors_of_mathvision(tmp_path):
    write(tmp_path, "test.jsonl", [VISION | {"options": ["A", "B"]}])
    item = scored.read("mathvision", tmp_path)[0]
    ask = registry.get("mathvision").protocols["official"].ask(item, "direct")
    assert ask.text == f"Which?\n<image1>\n{SHORT}"
