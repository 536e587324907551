"""Times of day, dates and ratios, all of which mathematics mistakes for numbers."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

from mpo_jax.verify.verdict import RIGHT, TIME, UNDECIDED, WRONG, Verdict


@dataclasses.dataclass(frozen=True)
class Clock:
    """A time of day.

    Attributes:
      seconds: since midnight, by the hour as it is written.
      half: ``am``, ``pm``, or empty where nothing says it.
    """

    seconds: int
    half: str = ""

    @property
    def readings(self) -> frozenset[int]:
        """Seconds since midnight that may be meant."""
        hours = self.seconds // 3600
        noon = 12 * 3600
        if self.half:
            early = self.seconds - noon if hours == 12 else self.seconds
            return frozenset({early + noon if self.half == "pm" else early})
        if hours == 0 or hours > 12:
            return frozenset({self.seconds})
        return frozenset({self.seconds, (self.seconds + noon) % (2 * noon)})


_CLOCK = re.compile(
    r"(?P<before>上午|下午|早上|晚上|凌晨|中午)?\s*(?P<h>\d{1,2})"
    r"(?:\s*(?P<mark>[:.])\s*(?P<m>\d{2})(?:\s*:\s*(?P<s>\d{2}))?"
    r"|\s*[点时](?:\s*(?P<cm>\d{1,2})\s*分|(?P<sharp>整)?))?"
    r"\s*(?P<half>[ap]\.?\s?m\.?)?(?P<oclock>\s*o'?clock)?",
    re.IGNORECASE,
)
_EARLY = {"上午": "am", "早上": "am", "凌晨": "am", "下午": "pm", "晚上": "pm"}


def read_clock(text: str) -> Clock | None:
    """A time of day: ``10:30``, ``10:30 am``, ``22:30:15``, ``3 o'clock``,
    ``下午3点20分``; None for anything else, a number alone too."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    found = match.groupdict()
    chinese = any(c in text for c in "点时")
    if not (found["m"] or found["half"] or found["oclock"] or chinese):
        return None
    hours = int(found["h"])
    minutes, seconds = int(found["m"] or found["cm"] or 0), int(found["s"] or 0)
    half = (found["half"] or "").lower().replace(".", "").replace(" ", "")
    half = half or _EARLY.get(found["before"] or "", "")
    if hours > 23 or minutes > 59 or seconds > 59:
        return None
    if found["mark"] == "." and not half:
        return None
    if half and not found["before"] and not 1 <= hours <= 12:
        return None
    if hours > 12:
        half = ""
    return Clock(3600 * hours + 60 * minutes + seconds, half)


def compare_clocks(said: Clock, gold: Clock) -> Verdict:
    """Without am or pm on one side the half of the day is open, unless the hour
    says it."""
    if said == gold or (said.readings == gold.readings):
        return Verdict(RIGHT, "time")
    if said.readings & gold.readings:
        bare, full = (gold, said) if said.half else (said, gold)
        if not bare.half and full.half == "am" and full.readings == {bare.seconds}:
            return Verdict(RIGHT, "time")  # as a clock of 24 hours says it
        return Verdict(UNDECIDED, "half_of_day")
    return Verdict(WRONG, "time")


@dataclasses.dataclass(frozen=True)
class Date:
    """A date, or a part of one; None is what was not said."""

    year: int | None
    month: int
    day: int | None


_MONTHS = {
    name[:3]: month
    for month, name in enumerate(
        "january february march april may june july august september october"
        " november december".split(),
        start=1,
    )
}
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?"
    r"|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_WEEKDAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+)?(?:the\s+)?"
_DATES = tuple(
    re.compile(_WEEKDAY + form, re.IGNORECASE)
    for form in (
        rf"{_DAY}(?:\s+of)?[\s-]+{_MONTH}(?:,?[\s-]+{_YEAR})?",
        rf"{_MONTH}\s+{_DAY}(?:,?\s+{_YEAR})?",
        rf"{_MONTH},?\s+{_YEAR}(?P<day>)",
        rf"{_YEAR}\s*([-/.])\s*(?P<month>\d{{1,2}})\s*\2\s*(?P<day>\d{{1,2}})",
        rf"{_YEAR}\s*年\s*(?P<month>\d{{1,2}})\s*月(?:\s*(?P<day>\d{{1,2}})\s*[日号])?",
        r"(?P<year>)(?P<month>\d{1,2})\s*月\s*(?P<day>\d{1,2})\s*[日号]",
    )
)
_SLASHED = re.compile(r"(\d{1,2})\s*([-/.])\s*(\d{1,2})\s*\2\s*(\d{4})")


def read_dates(text: str) -> tuple[Date, ...]:
    """The dates that a text can mean: none, one, or two for ``03/04/2001``."""
    for form in _DATES:
        if match := form.fullmatch(text):
            found = match.groupdict()
            month = found["month"].lower()[:3]
            number = _MONTHS[month] if month.isalpha() else int(month)
            year, day = found["year"], found["day"]
            date = Date(int(year) if year else None, number, int(day) if day else None)
            return (date,) if _exists(date) else ()
    if match := _SLASHED.fullmatch(text):
        one, other, year = int(match[1]), int(match[3]), int(match[4])
        both = {Date(year, one, other), Date(year, other, one)}
        return tuple(sorted(filter(_exists, both), key=lambda date: date.month))
    return ()


def _exists(date: Date) -> bool:
    return 1 <= date.month <= 12 and (date.day is None or 1 <= date.day <= 31)


def compare_dates(said: tuple[Date, ...], gold: tuple[Date, ...]) -> Verdict:
    """Right where each side means one and the same date."""
    if len(said) == len(gold) == 1 and said == gold:
        return Verdict(RIGHT, "date")
    if any(_may_agree(one, other) for one in said for other in gold):
        return Verdict(UNDECIDED, "date_unclear")
    return Verdict(WRONG, "date")


def _may_agree(one: Date, other: Date) -> bool:
    pairs = zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    return all(a == b or a is None or b is None for a, b in pairs)


_RATIO = re.compile(r"(\d+(?:\.\d+)?)((?:\s*:\s*\d+(?:\.\d+)?)+)")


def read_ratio(text: str) -> tuple[Fraction, ...] | None:
    """Terms of a ratio such as ``1:2`` or ``3 : 4 : 5``."""
    text = re.sub(r"(?<=\d) to (?=\d)", ":", text)
    if len(text) > 100 or not _RATIO.fullmatch(text):
        return None
    return tuple(Fraction(term.strip()) for term in text.split(":"))


def compare_ratios(said: tuple[Fraction, ...], gold: tuple[Fraction, ...]) -> Verdict:
    """The same terms are right; multiples of them may have to be in lowest terms."""
    if said == gold:
        return Verdict(RIGHT, "ratio")
    if len(said) != len(gold):
        return Verdict(UNDECIDED, "ratio_length")
    crossed = zip(said, gold, strict=True)
    if all(s * gold[0] == g * said[0] for s, g in crossed):
        return Verdict(UNDECIDED, "ratio_not_reduced")
    return Verdict(WRONG, "ratio")


def compare_ratio_with_number(
    ratio: tuple[Fraction, ...], number: Fraction
) -> Verdict | None:
    """1:4 and 1/4 are the same share; 3 may be one side of 3:1 alone, and anything
    else may be meant otherwise."""
    share = ratio[0] / ratio[1] if len(ratio) == 2 and ratio[1] else None
    if share == number and number.denominator > 1:
        return Verdict(RIGHT, "ratio_as_share")
    return Verdict(UNDECIDED, "ratio_against_number")


def compare(said: str, gold: str, kind: str) -> Verdict | None:
    """Judge two unified texts that both are times, dates or ratios; else None."""
    clocks = read_clock(said), read_clock(gold)
    ratios = read_ratio(said), read_ratio(gold)
    if clocks[0] and clocks[1]:
        verdict = compare_clocks(clocks[0], clocks[1])
        if kind != TIME and ratios[0] and ratios[1] and not verdict.right:
            as_ratio = compare_ratios(ratios[0], ratios[1])
            return as_ratio if as_ratio.outcome == UNDECIDED else verdict
        return verdict
    dates = read_dates(said), read_dates(gold)
    if dates[0] and dates[1]:
        return compare_dates(dates[0], dates[1])
    if ratios[0] and ratios[1]:
        return compare_ratios(ratios[0], ratios[1])
    return None
