"""What counts as the same answer where opinions differ."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

SIGN_OPTIONAL, STRICT = PERCENTS = ("sign_optional", "strict")


@dataclasses.dataclass(frozen=True)
class Policy:
    """What is agreed for one source of questions.

    Attributes:
      percent: ``sign_optional``: 50 % and 50 are the same, since a question often
        names the sign itself; ``strict``: they differ. Under neither is 50 % the
        same as 0.5: the two are equal numbers, so that stays undecided.
      relative: numbers are the same within this share of the true one, 0.05 for
        questions on charts. 0: they must be equal. Years always must.
      units_optional: a unit that one side alone gives is taken to be what the other
        means. False: such answers stay undecided.
      convert_units: 5 cm and 50 mm are the same. False: units must be named alike;
        answers that only conversion makes equal stay undecided.
    """

    percent: str = SIGN_OPTIONAL
    relative: float = 0.0
    units_optional: bool = True
    convert_units: bool = True

    def __post_init__(self) -> None:
        if self.percent not in PERCENTS:
            raise ValueError(f"percent={self.percent!r}: use one of {PERCENTS}")
        if not 0 <= self.relative < 1:
            raise ValueError(f"relative={self.relative}: use a share in [0, 1)")

    @property
    def tolerance(self) -> Fraction:
        """`relative` as it is written in decimals, free of binary rounding."""
        return Fraction(str(self.relative))


DEFAULT = Policy()
