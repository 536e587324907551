"""Questions with truths as ``generate`` reads them: one for each format."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence

from mpo_jax import ledger
from mpo_jax.prefs import prompts, questions
from mpo_jax.prefs.questions import Question


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question in one format.

    Attributes:
      question: the question with its truth.
      form: name of the format.
      prompt: what is sent.
    """

    question: Question
    form: str
    prompt: str

    @property
    def id(self) -> str:
        """Unique over questions and formats; 7 and "7" are two questions."""
        return f"{self.form}:{json.dumps(self.question.id, ensure_ascii=False)}"

    @property
    def line(self) -> str:
        """For ``generate.questions``."""
        found: dict[str, object] = {"id": self.id, "question": self.prompt}
        if self.question.images:
            found["image"] = list(self.question.images)
        return json.dumps(found, ensure_ascii=False) + "\n"


def read(
    path: str | pathlib.Path, forms: Sequence[str], *, root: str = ""
) -> Iterator[Asked | ledger.Entry]:
    """Every question of a file in every format, question by question.

    Args:
      path, root: as of ``questions.read``.
      forms: names of formats.

    Yields:
      What is asked, or why a line is left out; a question is asked in all formats or
      in none.
    """
    for number, question in questions.read(path, root=root):
        if isinstance(question, ledger.Entry):
            yield question
            continue
        try:
            yield from [
                Asked(question, form, prompts.prompt_of(question, form))
                for form in forms
            ]
        except ledger.BadRecord as error:
            yield questions.entry(path, number, error)


def check_formats(forms: Sequence[str]) -> None:
    """Check that formats are some, known and named once.

    Raises:
      ValueError: they are not.
    """
    if not forms or len(set(forms)) < len(forms):
        raise ValueError(f"format={','.join(forms)}: name one or more, each once")
    for form in forms:
        prompts.get_format(form)
