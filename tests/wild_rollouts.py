"""Files of rollouts with all that can stand in one, right and wrong."""

from __future__ import annotations

import json
import pathlib
import random
from typing import Any

END = "I count.\n\nFinal answer: "
_SAID = ("5", "five", "5.0", "8", "9", "it depends", "15", "$5$ cm", "答案五", "6")
_BAD = (
    b"\n",
    b"   \r\n",
    b"{\n",
    b"[1]\n",
    b"\xff\xfe\n",
    b'{"id": 3, "respons": "x"}\n',
    b'{"question": "?", "answer": NaN, "response": "5"}\n',
)


def lines_of_prompt(draw: random.Random, number: int) -> list[bytes]:
    """Lines of one prompt, with bad ones among them."""
    kind = draw.choice(["en", "en", "direct", "theirs", "several", "plain"])
    asked: dict[str, Any] = {
        "id": draw.choice([10**6 + number, f"n{number}", f"Frage {number} ä✓"]),
        "question": draw.choice(["How many?", "Wie viele €?", "多少？"]) + f" {number}",
        "answer_gt": "5",
        "source": draw.choice(["geo", "signs", "chart qa", "ü"]),
    }
    if draw.random() < 0.4:
        asked["image"] = "images/a.png"
    if kind in ("en", "direct"):
        asked["format"] = kind
    if kind == "direct":
        asked |= {"options": ["red", "5"], "answer_gt": "B"}
    if kind == "theirs":
        asked |= {"question_orig": "How many?", "prompt_version": "en"}
        image = "<image>\n" if "image" in asked else ""
        asked["question"] = f"{image}Prompt {number}"
    if kind == "several":
        if draw.random() < 0.5:
            del asked["id"]  # the line's number is it
        texts = [
            draw.choice([END, "It is "]) + draw.choice(_SAID)
            for _ in range(draw.randint(1, 5))
        ]
        records = [asked | {"responses": texts}]
    else:
        records = [
            asked | _answer(draw, kind, sample) for sample in range(draw.randint(1, 7))
        ]
    if draw.random() < 0.2:
        records[-1] = records[-1] | {"answer_gt": "7"}  # another truth
    if draw.random() < 0.2:
        records.append(records[0])  # the same sample again
    found = []
    for record in records:
        text = json.dumps(record)
        if draw.random() < 0.5 and "\\ud800" not in text:
            text = json.dumps(record, ensure_ascii=False)
        found += [draw.choice(_BAD)] * (draw.random() < 0.15)
        found.append(text.encode() + draw.choice([b"\n", b"\r\n"]))
    return found


def _answer(draw: random.Random, kind: str, sample: int) -> dict[str, Any]:
    said = draw.choice(["A", "B", "(B) 5", "no"] if kind == "direct" else _SAID)
    found: dict[str, Any] = {
        "sample": sample,
        "response": said if kind == "direct" else END + said,
        "finish_reason": draw.choice(["stop", "stop", "stop", "length"]),
        "tokens": 9,
        "logprob": -1.5,
    }
    if draw.random() < 0.15:
        found["response"] = draw.choice(["", "I know", "I\u2028and", "\ud800"])
    if draw.random() < 0.3:
        del found["finish_reason"], found["logprob"]
    return found


def write(path: pathlib.Path, seed: int, prompts: int, *, cut_off: bool = False):
    """A file of `prompts` prompts; `cut_off` leaves out the last line's end."""
    draw = random.Random(seed)
    lines = [line for n in range(prompts) for line in lines_of_prompt(draw, n)]
    text = b"".join(lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text[:-9] if cut_off else text)
    return path


def contents(folder: pathlib.Path) -> dict[str, bytes | None]:
    """All files below a folder, and its folders as None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
