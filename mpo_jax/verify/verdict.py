"""What is judged, and what a judgement is.

``wrong`` is said only where both sides were understood and differ. Whatever could not
be compared is ``undecided``: taken for wrong, a right answer in other words would be
trained against.
"""

from __future__ import annotations

import dataclasses

RIGHT, WRONG, UNDECIDED = OUTCOMES = ("right", "wrong", "undecided")

OPTION = "option"
YES_NO = "yes_no"
NUMBER = "number"
TIME = "time"
DATE = "date"
LIST = "list"
MATHS = "maths"
TEXT = "text"
KINDS = (OPTION, YES_NO, NUMBER, TIME, DATE, LIST, MATHS, TEXT)
"""What a true answer may be said to be. ``text`` is the exact words, after
normalisation: other words are wrong."""


@dataclasses.dataclass(frozen=True)
class Truth:
    """The true answer to a question.

    Attributes:
      answer: as the data give it.
      options: texts of the options in order (A, B, …); empty where there are none.
      kind: one of ``KINDS``; empty: found from `answer` and `options`.
    """

    answer: str
    options: tuple[str, ...] = ()
    kind: str = ""

    def __post_init__(self) -> None:
        if self.kind and self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: use one of {KINDS}, or leave it out")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A judgement.

    Attributes:
      outcome: one of ``OUTCOMES``.
      rule: name of the rule that decided, or of what kept all from deciding.
    """

    outcome: str
    rule: str

    @property
    def right(self) -> bool:
        """Is the answer right?"""
        return self.outcome == RIGHT
