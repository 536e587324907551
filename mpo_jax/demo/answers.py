"""The held-out drawings as questions: what a model says, how much of it is right."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

from mpo_jax.generate import requests
from mpo_jax.utils import atomic

_FINAL = re.compile(r"Final answer: *(-?\d+)\s*$")

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 76em;
  padding: 0 1em; color: #222; }
article { border: 1px solid #bbb; border-radius: 6px; margin: 1.2em 0; padding: 1em;
  display: grid; grid-template-columns: 170px 1fr 1fr; gap: 1em; }
img { width: 160px; image-rendering: pixelated; border: 1px solid #ddd; }
h3 { margin: 0 0 .4em; font-size: 1em; grid-column: 1 / -1; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6em; }
.right { background: #f1faf1; } .wrong { background: #fdf3f2; }
.note { color: #777; font-size: 90%; }
table { border-collapse: collapse; } td, th { border: 1px solid #ccc;
  padding: .25em .6em; text-align: right; } td:first-child { text-align: left; }
"""


@dataclasses.dataclass(frozen=True)
class Item:
    """A held-out question.

    Attributes:
      truth: the right answer.
      task: what kind of question it is.
    """

    question: requests.Question
    truth: str
    task: str


def items(meta: str | pathlib.Path) -> list[Item]:
    """Questions of a drawn data set (``dataset.write_dataset``), in order."""
    meta = pathlib.Path(meta)
    found = []
    for entry in json.loads(meta.read_text("utf-8")).values():
        with open(meta.parent / entry["annotation"], encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                image = str(meta.parent / entry["root"] / record["image"])
                question = requests.Question(len(found), record["question"], (image,))
                found.append(Item(question, record["answer_gt"], record["task"]))
    return found


def final_answer(text: str) -> str | None:
    """The number after ``Final answer:`` in the last line; None if there is none."""
    match = _FINAL.search(text)
    return match[1] if match else None


def accuracy(asked: Sequence[Item], said: Mapping[int | str, str]) -> dict[str, float]:
    """Shares of all questions: ``right``, and ``unparsable`` (no final answer)."""
    finals = [(item, final_answer(said[item.question.id])) for item in asked]
    right = sum(final == item.truth for item, final in finals)
    return {
        "right": right / len(asked),
        "unparsable": sum(final is None for _, final in finals) / len(asked),
    }


def write_page(
    path: pathlib.Path,
    asked: Sequence[Item],
    said: Mapping[str, Mapping[int | str, str]],
    *,
    most: int = 60,
) -> None:
    """A page with drawings and answers, those first on which the models differ.

    Args:
      said: answers by question, of each model by its name (two of them).
      most: questions shown.
    """

    def verdicts(item: Item) -> list[bool]:
        return [
            final_answer(answers[item.question.id]) == item.truth
            for answers in said.values()
        ]

    order = sorted(asked, key=lambda item: len(set(verdicts(item))) == 1)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(
            f"<td>{share:.1%}</td>" for share in accuracy(asked, answers).values()
        )
        + "</tr>"
        for name, answers in said.items()
    )
    shown = "".join(_article(item, said) for item in order[:most])
    text = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; "
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>Answers</title><style>{_STYLE}</style>"
        f"<h1>Answers to {len(asked)} held-out questions</h1>"
        "<table><tr><th></th><th>right</th><th>without a final answer</th></tr>"
        f"{rows}</table><p class=note>{min(most, len(order))} of them; first those on "
        f"which the two differ. Greedy.</p>{shown}</html>"
    )
    atomic.write_whole(path, lambda temporary: _write(temporary, text))


def _write(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _article(item: Item, said: Mapping[str, Mapping[int | str, str]]) -> str:
    (image,) = item.question.images
    data = base64.b64encode(pathlib.Path(image).read_bytes()).decode("ascii")
    question = item.question.question.replace("<image>\n", "")
    sides = []
    for name, answers in said.items():
        answer = answers[item.question.id]
        kind = "right" if final_answer(answer) == item.truth else "wrong"
        sides.append(
            f"<div class='text {kind}'><b>{html.escape(name)}: {kind}</b>\n"
            f"{html.escape(answer)}</div>"
        )
    return (
        f"<article><h3>{html.escape(question.splitlines()[-1])} "
        f"<span class=note>({html.escape(item.task)}; right: "
        f"{html.escape(item.truth)})</span></h3>"
        f"<img alt='drawing' src='data:image/png;base64,{data}'>{''.join(sides)}"
        "</article>"
    )
