"""A model that takes the answer out of a response, where a harness asks one to.

The released prompts are examples and a task; these are our own words for the same task
with examples of our own, so that scores by this judge are close to, not those of, the
harness's.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mpo_jax.evals import corrected
from mpo_jax.evals.benchmark import Grade, Item, Judge
from mpo_jax.verify.verdict import UNDECIDED, Verdict

OWN_PROMPT = (
    "the extraction prompt of the judge is in our own words, with examples of our own"
)

_TASK = """\
Below are a question and what a model replied to it. Write down the answer that the \
reply arrives at, in the form that the hint of the question asks for, and nothing \
else: no words around it, no unit, no reasoning of your own. For a question with \
choices write the letter of the one that the reply picks. If it arrives at no answer, \
write None.

"""
_EXAMPLE = "{question}\n\nModel response: {response}\n\nExtracted answer: {answer}\n\n"
_EXAMPLES = (
    (
        "Hint: Please answer the question requiring an integer answer and provide the "
        "final value, e.g., 1, 2, 3, at the end.\nQuestion: How many windows does the "
        "house have?",
        "I see three windows upstairs and two beside the door, five in all.",
        "5",
    ),
    (
        "Hint: Please answer the question requiring a floating-point number with one "
        "decimal place and provide the final value, e.g., 1.2, 1.3, 1.4, at the end.\n"
        "Question: What is the slope of the line?",
        "It rises by 3 over a run of 2, so the slope is 1.5.",
        "1.5",
    ),
    (
        "Hint: Please answer the question requiring a Python list as an answer and "
        "provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.\n"
        "Question: Which years have the lowest bars?",
        "The bars of 1998 and 2001 are the lowest.",
        "[1998, 2001]",
    ),
    (
        "Hint: Please answer the question and provide the correct option letter, e.g., "
        "A, B, C, D, at the end.\nQuestion: Which shape has the larger area?\n"
        "Choices:\n(A) the square\n(B) the circle",
        "The circle covers more squares of the grid than the square does.",
        "B",
    ),
    (
        "Hint: Please answer the question requiring an integer answer and provide the "
        "final value, e.g., 1, 2, 3, at the end.\nQuestion: How old is the man on the "
        "left?",
        "I cannot tell anything about people in this picture.",
        "None",
    ),
)
_LABEL = re.compile(r"\s*(?:extracted answer\s*[:：])?\s*", re.IGNORECASE)


def judge(
    model: str,
    question: Callable[[Item], str],
    grade: Callable[[Item, str], Grade],
    max_new_tokens: int,
) -> Judge:
    """Extraction by a model, then a rule.

    Args:
      question: of an item, with its hint and choices.
      grade: of an item and the extracted answer.
    """

    def prompt(item: Item, response: str) -> str:
        shown = "".join(
            _EXAMPLE.format(question=q, response=r, answer=a) for q, r, a in _EXAMPLES
        )
        last = _EXAMPLE.format(question=question(item), response=response, answer="")
        return _TASK + shown + last.rstrip()

    def parse(item: Item, text: str) -> Grade:
        lines = text[_LABEL.match(text).end() :].splitlines()  # type: ignore[union-attr]
        said = lines[0].strip() if lines else ""
        if not said:
            return Grade("", Verdict(UNDECIDED, "judge says nothing"), 0.0)
        if said.rstrip(".") == "None":
            return corrected.unparsed()
        return grade(item, said)

    return Judge(model, prompt, parse, max_new_tokens=max_new_tokens)
