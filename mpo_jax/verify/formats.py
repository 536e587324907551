r"""How an answer is asked for, paired with how it is read.

A `Format` has both, so that a response is never read by the rules of another prompt.
The texts of ``en``, ``zh`` and ``en_v2`` are the released ones; so are the last lines
of ``en_r1`` and ``zh_r1``. ``zh_v2`` from its second sentence on and the protocols at
the head of ``en_r1`` and ``zh_r1`` are our own words that ask for the same form.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from mpo_jax.verify.text import group_end, unwrap

NO_ANSWER = "no_answer"
EMPTY = "empty"
UNCLOSED = "unclosed"
NO_THOUGHT = "no_thought"
PROBLEMS = (NO_ANSWER, EMPTY, UNCLOSED, NO_THOUGHT)
"""Why a response has no final answer: it names none; names an empty one; stops inside
a box; or has not one thought, closed, before the answer."""

_QUESTION = "{question}"


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What was read from a response.

    Attributes:
      prediction: the final answer; None where there is none.
      problem: one of ``PROBLEMS`` where there is none, else empty.
    """

    prediction: str | None
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Format:
    """A prompt and the parser of what it asks for.

    Attributes:
      name: its key in ``FORMATS``.
      template: holds ``{question}`` once.
      parser: reads a response to it, in time linear in the response's length.
    """

    name: str
    template: str
    parser: Callable[[str], Parsed]

    def __post_init__(self) -> None:
        if self.template.count(_QUESTION) != 1:
            raise ValueError(
                f"template of {self.name!r} holds {_QUESTION} "
                f"{self.template.count(_QUESTION)} times: it must hold it once"
            )

    def wrap(self, question: str) -> str:
        """The prompt for `question`, whose own braces mean nothing."""
        return self.template.replace(_QUESTION, question)

    def parse(self, response: str) -> Parsed:
        """The final answer of a response to `wrap`'s prompt."""
        return self.parser(response)


_TRIGGER = re.compile(r"final answer\**\s?[:：]|答案\**\s?[:：]", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_DISPLAYS = {"\\[": "\\]", "$$": "$$"}


def _parse_direct(response: str) -> Parsed:
    answer = response.strip()
    return Parsed(answer) if answer else Parsed(None, EMPTY)


def _parse_triggered(response: str) -> Parsed:
    """The line behind the last ``Final answer:``, or the display below it."""
    behind = None
    for match in _TRIGGER.finditer(response):
        behind = match.end()
    if behind is None:
        return Parsed(None, NO_ANSWER)
    tail = response[behind:].strip().removeprefix("**").lstrip()
    display = _DISPLAYS.get(tail[:2])
    if display and (end := tail.find(display, 2)) > 0:
        line = tail[: end + 2]
    else:
        line = tail.partition("\n")[0]
    if _BOX.search(line):
        return _parse_boxed(line)
    # **Final answer: 5** leaves its closing mark; pairs are the answer's own.
    line = line.strip()
    if line.count("**") % 2:
        line = line.replace("**", " ")
    return _answer(line)


def _parse_boxed(response: str) -> Parsed:
    """The content of the last box."""
    start = None
    for match in _BOX.finditer(response):
        start = match.end() - 1
    if start is None:
        return Parsed(None, NO_ANSWER)
    end = group_end(response, start)
    if end is None:
        return Parsed(None, UNCLOSED)
    return _answer(response[start + 1 : end - 1])


def _parse_r1(response: str) -> Parsed:
    """The last box behind the one thought."""
    once = response.count("<think>") == response.count("</think>") == 1
    before, _, behind = response.partition("</think>")
    if not once or "<think>" not in before:
        return Parsed(None, NO_THOUGHT)
    return _parse_boxed(behind)


def _answer(text: str) -> Parsed:
    prediction = unwrap(text)
    return Parsed(prediction) if prediction else Parsed(None, EMPTY)


_EN = """\
Your task is to answer the question below. Give step by step reasoning before you \
answer, and when you're ready to answer, please use the format "Final answer: .."

Question:

{question}"""

_ZH = """\
你的任务是回答以下问题。在回答之前，请逐步推理说明您的思路。当你准备好给出答案时，\
请使用以下格式："答案: ..."

问题:

{question}"""

_EN_V2 = """\
{question}
Answer the preceding question. The last line of your response should follow this \
format: 'Answer: \\boxed{$FINAL_ANSWER}' (without quotes), where 'FINAL_ANSWER' is \
your conclusion based on the reasoning provided. If you are uncertain or the problem \
is too complex, make a reasoned guess based on the information provided. Avoid \
repeating steps indefinitely—provide your best guess even if unsure. Think step by \
step logically, considering all relevant information before answering."""

_ZH_V2 = """\
{question}
请回答上述问题。你的回答最后一行应遵循以下格式：“答案：\\boxed{$FINAL_ANSWER}”（不含引号），\
其中“FINAL_ANSWER”是你根据推理得出的结论。如果你不确定或问题过于复杂，\
请根据已有信息作出合理的推测。不要无休止地重复步骤，即使没有把握也请给出最可能的答案。\
请在回答之前考虑所有相关信息，逐步进行推理。"""

_EN_R1 = """\
You are an AI assistant that answers in two parts. First you think the question \
through, step by step, between <think> and </think>: what is asked, what is given, \
each step of the way, and a check of the result.

Then, after </think>, you give a clear and complete solution for the reader, who does \
not see your thoughts.

Use <think> and </think> once each, think before you answer, and end with the final \
answer.
{question}
Please answer the question and put the final answer within \\boxed{}."""

_ZH_R1 = """\
你是一个分两部分作答的人工智能助手。首先，在<think>和</think>之间逐步思考问题：\
问的是什么，已知什么，每一步如何推导，并检验结果。

然后，在</think>之后，为看不到你思考过程的读者给出清晰完整的解答。

<think>和</think>各使用一次，先思考再作答，最后给出最终答案。
{question}
请详细回答这个问题并将最终答案用\\boxed{}包住。"""

FORMATS = {
    form.name: form
    for form in (
        Format("direct", _QUESTION, _parse_direct),
        Format("en", _EN, _parse_triggered),
        Format("zh", _ZH, _parse_triggered),
        Format("en_v2", _EN_V2, _parse_boxed),
        Format("zh_v2", _ZH_V2, _parse_boxed),
        Format("en_r1", _EN_R1, _parse_r1),
        Format("zh_r1", _ZH_R1, _parse_r1),
    )
}
"""Formats by name."""


def get_format(name: str) -> Format:
    """The format called `name`.

    Raises:
      ValueError: there is none; names those there are.
    """
    if name not in FORMATS:
        raise ValueError(f"format {name!r}: use one of {', '.join(FORMATS)}")
    return FORMATS[name]
