"""Numbers with units, percent and money: read exactly, compared by a policy."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

from mpo_jax.verify import units
from mpo_jax.verify.policy import SIGN_OPTIONAL, Policy
from mpo_jax.verify.units import Unit
from mpo_jax.verify.verdict import RIGHT, UNDECIDED, WRONG, Verdict

_LONGEST = 200
"""Characters of a number with its unit; longer texts are something else."""


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number that was read.

    Attributes:
      value: exactly as written; of 50 %, 50.
      unit: of what; None where nothing is said.
      percent: is it followed by the sign or the word?
      decimals: digits behind the point; None for a fraction.
      glued: does a unit of one letter touch the number? It may be a variable.
      plain: are there digits alone (a year is written so)?
      scale: what a word such as million has multiplied `value` by.
    """

    value: Fraction
    unit: Unit | None = None
    percent: bool = False
    decimals: int | None = None
    glued: bool = False
    plain: bool = False
    scale: int = 1


_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)(?:\.\d*)?|\.\d+)(?![\d])"
_PLAIN = r"\d+(?:\.\d+)?"
_FRACTION = (
    rf"\\frac\s*(?:\{{\s*(?P<n>-?{_PLAIN})\s*\}}|(?P<n1>\d))"
    rf"\s*(?:\{{\s*(?P<d>{_PLAIN})\s*\}}|(?P<d1>\d))"
)
_NUMBER = re.compile(
    r"(?P<whole>\d+)?\s*"
    + _FRACTION
    + rf"|(?:(?P<mixed>\d+)(?: ?\+ ?| ))?(?P<sn>{_PLAIN})"
    rf"\s*/\s*(?P<sd>{_PLAIN})(?![\d.,])"
    rf"|(?P<mantissa>{_DECIMAL})\s*(?:[×·*x]\s*10\s*\^\s*\{{?\s*(?P<power>[+-]?\d{{1,2}})"
    r"(?!\d)\s*\}?|e(?P<e>[+-]?\d{1,2})(?![\d\w.]))"
    r"|10\s*\^\s*\{?\s*(?P<ten>[+-]?\d{1,2})(?!\d)\s*\}?"
    rf"|(?P<decimal>{_DECIMAL})",
    re.IGNORECASE,
)
_PREFIX = re.compile(
    r"(?:(?:≈|about|approximately|approx\.?|around|roughly|大约|约)\s*)?"
    r"(?P<sign>[+-]|minus |negative |负)?\s*"
    r"(?P<money>us\$|\$|€|£|¥|usd|eur|gbp|rmb|cny)?\s*(?P<sign2>-)?",
    re.IGNORECASE,
)
_PERCENT = re.compile(r"(?:%|percent|per cent|pct)", re.IGNORECASE)
_CHINESE_PERCENT = re.compile(r"百分之\s*")

_COMPOUND_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([^\W\d]{1,12})(?: and)?[,. ]*")
_COMPOUND = re.compile(rf"(?:{_COMPOUND_PART.pattern}){{2,4}}")

_WORDS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen"
        " fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()
    )
} | {
    word: 10 * tens
    for tens, word in enumerate(
        "thirty forty fifty sixty seventy eighty ninety".split(), start=3
    )
}
_WORD_NUMBER = re.compile(r"([a-z]+)(?:[- ]([a-z]+))?(?![\w-])", re.IGNORECASE)
_PARTS = {
    part + plural: value
    for value, part in enumerate(
        "third fourth fifth sixth seventh eighth ninth tenth".split(), start=3
    )
    for plural in ("", "s")
} | {"half": 2, "halves": 2, "quarter": 4, "quarters": 4}
_ONES = "|".join(word for word in _WORDS if word != "zero")
_WORD_FRACTION = re.compile(  # "third" alone is a place in a row
    rf"(?:(an?|{_ONES})[- ]({'|'.join(sorted(_PARTS, reverse=True))})|(half))"
    r"(?![\w-])(?! past)",
    re.IGNORECASE,
)
_CHINESE = {c: v for v, c in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_CHINESE_NUMBER = re.compile("[零〇一二两三四五六七八九]?十?[一二三四五六七八九]?")

_SCALES = {
    **{"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9},
    **{"trillion": 10**12, "dozen": 12},
    **{"百": 100, "千": 1000, "万": 10**4, "百万": 10**6, "千万": 10**7, "亿": 10**8},
}
_SCALE = re.compile(
    r"(?:hundred|thousand|million|billion|trillion|dozen)(?![\w-])"
    "|百万|千万|百(?!分)|千(?![米克瓦焦])|万|亿",
    re.IGNORECASE,
)

# A counted thing's name may hold none of these: they would change the number, deny it
# or add another.
_NO_NAMES = frozenset(
    "a about above additional after again all and another any approximately around at"
    " before below between but by case cubed decimal divided dozen each either else"
    " except factorial false fewer for from half halves hundred hundreds if in into is"
    " isn less lots maybe million millions billion billions trillion minus mod modulo"
    " more multiplied nil no none nor not of off or other over pair pairs per percent"
    " percentage perhaps pi plus point possible probably quarter incorrect"
    " quarters radical remainder remaining root score scores short sign sqrt square"
    " squared tens than then third thirds thousand thousands through times to too"
    " triple twice under until up vs was with without wrong xor yes"
    " january february march april may june july august september october november"
    " december jan feb mar apr jun jul aug sep sept oct nov dec monday tuesday"
    " wednesday thursday friday saturday sunday".split()
)
_NAME = re.compile(r"[a-z]{3,20}(?: [a-z]{3,20}){0,2}", re.IGNORECASE)
_CHINESE_NAME = re.compile("[\u4e00-\u9fff]{1,3}")
_NO_CHINESE = frozenset(
    "万亿千百十半倍分之点成折不没非或和与多余几些至到零一二三四五六七八九"
)


def read(text: str) -> Quantity | None:
    """The number that a unified text is, with its unit; None where it is anything
    else or more than that."""
    if len(text) > _LONGEST:
        return None
    text = _without_parentheses(text.strip())
    in_hundred = _CHINESE_PERCENT.match(text)
    if in_hundred:
        text = text[in_hundred.end() :]
    if (compound := _compound(text)) is not None:
        return compound
    prefix = _PREFIX.match(text)
    assert prefix is not None  # everything in it is optional
    text = text[prefix.end() :]
    found = _number(text)
    if found is None or (prefix["sign"] and prefix["sign2"]):
        return None
    value, decimals, end = found
    if prefix["sign"] not in (None, "+") or prefix["sign2"]:
        value = -value
    money = units.read((prefix["money"] or "").lower().replace("us$", "$"))
    return _with_tail(text[:end], text[end:], value, decimals, money, bool(in_hundred))


def _compound(text: str) -> Quantity | None:
    """``2h 48m``, ``5 ft 3 in``, ``3小时20分``: in the unit that stands last."""
    match = _COMPOUND.fullmatch(text)
    if match is None:
        return None
    total, last = Fraction(0), None
    for digits, name in _COMPOUND_PART.findall(text):
        name = name.strip(" ,.")
        if last is not None and last.dimension == (("time", 1),):
            name = {"m": "min", "分": "min", "'": "min"}.get(name, name)
        unit = units.read(name)
        if unit is None or not unit.dimension:
            return None
        if last is not None and (
            unit.dimension != last.dimension or unit.scale >= last.scale
        ):
            return None
        total, last = total + Fraction(digits) * unit.scale, unit
    assert last is not None  # the pattern has two parts at least
    return Quantity(total / last.scale, last)


def _without_parentheses(text: str) -> str:
    while len(text) > 2 and text[0] + text[-1] in ("()", "{}"):
        inner = text[1:-1].strip()
        if "," in inner or any(c in "(){}" for c in inner) and "\\frac" not in inner:
            return text
        text = inner
    return text


def _number(text: str) -> tuple[Fraction, int | None, int] | None:
    """Value, decimals and end of the number at the start of `text`."""
    match = _NUMBER.match(text)
    if match is None:
        return _number_in_words(text)
    found = match.groupdict()
    top, bottom = found["n"] or found["n1"], found["d"] or found["d1"]
    whole = found["whole"]
    if top is None:
        top, bottom, whole = found["sn"], found["sd"], found["mixed"]
    if top is not None:
        denominator = Fraction(bottom)
        if not denominator or (whole and top.startswith("-")):
            return None
        return Fraction(whole or 0) + Fraction(top) / denominator, None, match.end()
    if found["ten"] is not None:
        return Fraction(10) ** int(found["ten"]), None, match.end()
    digits = (found["mantissa"] or found["decimal"]).replace(",", "").replace(" ", "")
    value = Fraction(digits if digits[-1] != "." else digits[:-1])
    power = found["power"] or found["e"]
    if power is not None:
        return value * Fraction(10) ** int(power), None, match.end()
    return value, len(digits.partition(".")[2]), match.end()


def _number_in_words(text: str) -> tuple[Fraction, int | None, int] | None:
    if match := _WORD_FRACTION.match(text):
        top = _WORDS.get((match[1] or "one").casefold(), 1)
        part = (match[2] or match[3]).casefold()
        return Fraction(top, _PARTS[part]), None, match.end()
    match = _WORD_NUMBER.match(text)
    if match and (first := _WORDS.get(match[1].casefold())) is not None:
        second = _WORDS.get((match[2] or "").casefold())
        if second is None:
            return Fraction(first), 0, match.end(1)
        if first >= 20 and first % 10 == 0 and 0 < second < 10:
            return Fraction(first + second), 0, match.end()
        return None
    match = _CHINESE_NUMBER.match(text)
    if not match or not match[0]:
        return None
    head, ten, tail = match[0].partition("十")
    if not ten:
        return (Fraction(_CHINESE[head]), 0, match.end()) if len(head) == 1 else None
    value = 10 * (_CHINESE[head] if head else 1) + (_CHINESE[tail] if tail else 0)
    return Fraction(value), 0, match.end()


def _with_tail(
    number: str,
    tail: str,
    value: Fraction,
    decimals: int | None,
    money: Unit | None,
    percent: bool,
) -> Quantity | None:
    """The quantity of a number and what follows it; None where that is no unit."""
    name, scale = _without_scale(tail.strip())
    value *= scale
    if sign := _PERCENT.match(name):
        name, percent = name[sign.end() :].strip(), True
    if not name:
        plain = number.isdigit() and scale == 1 and not (money or percent)
        return Quantity(value, money, percent, decimals, plain=plain, scale=scale)
    if percent:
        return None
    if name.startswith("-") and name[1:2].isalpha():  # 5-inch
        name = name[1:]
    unit = units.read(name)
    if unit is None and (tail[:1] in " -" or not name.isascii()):
        unit = _counted(name)
    if unit is None or money:
        return None
    glued = unit.letter and not tail.startswith(" ")
    kept = unit if unit.name else None
    return Quantity(value, kept, False, decimals, glued, scale=scale)


def _without_scale(name: str) -> tuple[str, int]:
    match = _SCALE.match(name)
    if match is None:
        return name, 1
    return name[match.end() :].strip(), _SCALES[match[0].casefold()]


def _counted(name: str) -> Unit | None:
    """Apples: a name of one to three words that leaves the number as it is."""
    name = name.strip(" .")
    if _CHINESE_NAME.fullmatch(name):
        return None if any(c in _NO_CHINESE for c in name) else Unit(name)
    if not _NAME.fullmatch(name):
        return None
    for word in name.casefold().split():
        if word in _NO_NAMES or word in _WORDS or re.fullmatch(".+(?:ths?|teen)", word):
            return None
    return Unit(name.casefold())


def compare(said: Quantity, gold: Quantity, policy: Policy) -> Verdict:
    """Is the number that was said the true one?"""
    if said.percent != gold.percent:
        return _compare_percent(said, gold, policy)
    if said.unit is None and gold.unit is None:
        return _compare_values(said, gold, said.value, policy)
    if said.unit is None or gold.unit is None:
        return _compare_one_unit(said, gold, policy)
    return _compare_units(said, said.unit, gold, gold.unit, policy)


def _compare_percent(said: Quantity, gold: Quantity, policy: Policy) -> Verdict:
    signed, bare = (said, gold) if said.percent else (gold, said)
    if bare.unit is not None:
        return Verdict(UNDECIDED, "percent_against_unit")
    if signed.value == 100 * bare.value and bare.value:
        return Verdict(UNDECIDED, "percent_as_share")
    if policy.percent == SIGN_OPTIONAL:
        verdict = _compare_values(said, gold, said.value, policy)
        return dataclasses.replace(verdict, rule="percent")
    return Verdict(WRONG, "percent")


def _compare_one_unit(said: Quantity, gold: Quantity, policy: Policy) -> Verdict:
    unit = said.unit or gold.unit
    assert unit is not None
    if said.glued or gold.glued:
        return Verdict(UNDECIDED, "unit_or_variable")
    verdict = _compare_values(said, gold, said.value, policy)
    if verdict.right:
        if policy.units_optional:
            return Verdict(RIGHT, "number_unit_missing")
        return Verdict(UNDECIDED, "unit_missing")
    if gold.value and said.value / gold.value in units.ratios(unit.dimension):
        return Verdict(UNDECIDED, "unit_missing")
    return verdict


def _compare_units(
    said: Quantity, one: Unit, gold: Quantity, other: Unit, policy: Policy
) -> Verdict:
    if one == other:
        return _compare_values(said, gold, said.value, policy)
    if not (one.dimension and other.dimension):
        if _singulars(one.name) & _singulars(other.name):
            return _compare_values(said, gold, said.value, policy)
        return Verdict(UNDECIDED, "unknown_unit")
    if one.dimension == other.dimension:
        converted = said.value * one.scale / other.scale
        verdict = _compare_values(said, gold, converted, policy)
        if verdict.right and one.scale != other.scale and not policy.convert_units:
            return Verdict(UNDECIDED, "unit_converted")
        return verdict
    if one.letter or other.letter or _vague(one, other):
        return Verdict(UNDECIDED, "unclear_unit")
    return Verdict(WRONG, "unit")


def _singulars(name: str) -> set[str]:
    """What `name` may be the plural of, itself among them."""
    found = {name, name.removesuffix("s"), name.removesuffix("es")}
    return found | {name[:-3] + "y"} if name.endswith("ies") else found


def _vague(one: Unit, other: Unit) -> bool:
    """Degrees of what? Two that are converted by more than a factor?"""
    heat = {"angle", "celsius", "fahrenheit", "radian"}
    days = {"time", "calendar"}
    both = {q for q, _ in one.dimension} | {q for q, _ in other.dimension}
    return both <= heat or both <= days


def _compare_values(
    said: Quantity, gold: Quantity, value: Fraction, policy: Policy
) -> Verdict:
    if value == gold.value:
        return Verdict(RIGHT, "number")
    if policy.relative and not (_year(said) and _year(gold)):
        if abs(value - gold.value) <= policy.tolerance * abs(gold.value):
            return Verdict(RIGHT, "number_tolerance")
    if said.scale != gold.scale and value * gold.scale == gold.value * said.scale:
        return Verdict(UNDECIDED, "scale_missing")
    if _rounds(gold, gold.value, value) or _rounds(said, value, gold.value):
        return Verdict(UNDECIDED, "rounded")
    return Verdict(WRONG, "number")


def _year(quantity: Quantity) -> bool:
    return quantity.plain and 1900 <= quantity.value <= 2099


def _rounds(rounded: Quantity, value: Fraction, exact: Fraction) -> bool:
    """Is `value`, written with two decimals or more, `exact` rounded or cut there?

    It may be the right answer, to the places that the question asked for."""
    if not rounded.decimals or rounded.decimals < 2:
        return False
    return (
        abs(value - exact) < Fraction(1, 10**rounded.decimals)
        and (exact * 10**rounded.decimals).denominator != 1
    )
