"""Units of measure: what they measure and how they convert, exactly."""

from __future__ import annotations

import dataclasses
import functools
import re
from fractions import Fraction

Dimension = tuple[tuple[str, int], ...]
"""What is measured, as powers of base quantities: area is ``(("length", 2),)``."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit, or the name of what is counted.

    Attributes:
      name: as written, one blank between words.
      dimension: what it measures; empty for things that are counted (apples) and for
        words nobody listed.
      scale: how many of the dimension's base units it is.
    """

    name: str
    dimension: Dimension = ()
    scale: Fraction = Fraction(1)

    @property
    def letter(self) -> bool:
        """Is it one letter, which may also be a variable or another unit?"""
        return len(self.name) == 1 and self.name.isascii() and self.name.isalpha()


# quantity: {scale: names}. Names of more than two letters stand for any case.
_TABLE: dict[str, dict[str, str]] = {
    "length": {
        "1/1000000000": "nm nanometer nanometers nanometre nanometres 纳米",
        "1/1000000": "μm um micrometer micrometers micrometre micrometres microns 微米",
        "1/1000": "mm MM millimeter millimeters millimetre millimetres 毫米",
        "1/100": "cm CM cms centimeter centimeters centimetre centimetres 厘米",
        "1/10": "dm decimeter decimeters decimetre decimetres 分米",
        "1": "m meter meters metre metres 米",
        "1000": "km KM Km kms kilometer kilometers kilometre kilometres 千米 公里",
        "0.0254": "in inch inches 英寸",
        "0.3048": "ft foot feet 英尺",
        "0.9144": "yd yds yard yards",
        "1609.344": "mi mile miles 英里",
    },
    "mass": {
        "1/1000000": "mg milligram milligrams 毫克",
        "1/1000": "g gram grams gm 克",
        "1": "kg KG Kg kgs kilogram kilograms kilo kilos 千克 公斤",
        "1000": "t ton tons tonne tonnes 吨",
        "0.45359237": "lb lbs pound pounds",
        "0.028349523125": "oz ounce ounces",
    },
    "time": {
        "1/1000": "ms millisecond milliseconds 毫秒",
        "1": "s sec secs second seconds 秒",
        "60": "min mins minute minutes 分钟",
        "3600": "h hr hrs hour hours 小时 时",
        "86400": "day days 天",
        "604800": "week weeks 周 星期",
    },
    "calendar": {"1": "month months 个月", "12": "year years yr yrs 年"},
    "volume": {  # in cubic metres, see _POWERS_OF_LENGTH
        "1/1000000": "ml mL milliliter milliliters millilitre millilitres cc 毫升",
        "1/1000": "L l liter liters litre litres 升",
    },
    "area": {"10000": "ha hectare hectares 公顷"},
    "angle": {"1": "° degree degrees deg degs 度", "1/60": "arcminute arcminutes"},
    "celsius": {"1": "°C celsius 摄氏度"},
    "fahrenheit": {"1": "°F fahrenheit 华氏度"},
    "radian": {"1": "rad radian radians 弧度"},
    "dollar": {"1": "$ usd dollar dollars 美元", "1/100": "¢ cent cents 美分"},
    "euro": {"1": "€ eur euro euros 欧元"},
    "sterling": {"1": "£ gbp", "1/100": "pence"},
    "yuan": {"1": "元 ¥ yuan rmb cny 人民币 块钱 块", "1/100": "fen"},
    "force": {"1": "N newton newtons 牛顿 牛", "1000": "kN"},
    "energy": {
        "1": "J joule joules 焦耳 焦",
        "1000": "kJ kilojoule kilojoules 千焦",
    },
    "power": {"1": "W watt watts 瓦特 瓦", "1000": "kW kilowatt kilowatts 千瓦"},
    "voltage": {"1": "V volt volts 伏特 伏"},
    "current": {"1": "A amp amps ampere amperes 安培 安", "1/1000": "mA"},
    "resistance": {"1": "Ω ohm ohms 欧姆", "1000": "kΩ"},
    "frequency": {"1": "Hz hertz 赫兹", "1000": "kHz"},
    "pressure": {"1": "Pa pascal pascals 帕", "1000": "kPa"},
}
_POWERS_OF_LENGTH = {"volume": ("length", 3), "area": ("length", 2)}
_SPOKEN = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "km/hr": "km/h", "mps": "m/s"}
_FILLERS = frozenset("unit units 单位 sq square cubic".split())
"""Words that say a unit is meant and not which."""


def _bases() -> dict[str, tuple[Dimension, Fraction]]:
    found = {}
    for quantity, scales in _TABLE.items():
        dimension = (_POWERS_OF_LENGTH.get(quantity, (quantity, 1)),)
        for scale, names in scales.items():
            for name in names.split():
                found[name] = (dimension, Fraction(scale))
    return found


_BASES = _bases()
_POWERS = {"square": 2, "sq": 2, "平方": 2, "cubic": 3, "cu": 3, "立方": 3}
_PART = re.compile(
    r"(square|sq\.?|cubic|cu\.?|平方|立方)?\s*([^\W\d_]+|°[CF]?|[$€£¥¢])"
    r"\s*(squared|cubed)?\s*(?:\^?\{?([23])\}?)?\.?",
    re.IGNORECASE,
)


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Unit | None:
    """A unit of measure: ``cm``, ``square feet``, ``km/h``, ``米每秒``; None where the
    text is none. A mere ``units`` has no dimension and an empty name."""
    text = " ".join(text.split())
    words = text.casefold().split()
    if words and len(words) <= 2 and all(w in _FILLERS for w in words):
        return Unit("")
    text = _SPOKEN.get(text.casefold(), text)
    if len(text) > 40 or not text:
        return None
    parts = re.split(r"\s*(?:/|\bper\b|每)\s*", text)
    powers: dict[str, int] = {}
    scale = Fraction(1)
    for at, part in enumerate(parts):
        found = _read_part(part)
        if found is None:
            return None
        dimension, size = found
        sign = -1 if at else 1
        for quantity, power in dimension:
            powers[quantity] = powers.get(quantity, 0) + sign * power
        scale = scale / size if at else scale * size
    kept = tuple(sorted((q, p) for q, p in powers.items() if p))
    return Unit(text, kept, scale) if kept else None


def _read_part(text: str) -> tuple[Dimension, Fraction] | None:
    match = _PART.fullmatch(text)
    if match is None:
        if text.casefold().startswith(("degrees ", "degree ")):
            return _BASES.get(text.split()[1].casefold())
        return None
    prefix, name, suffix, digit = match.groups()
    base = _BASES.get(name)
    if base is None and len(name) > 2:
        base = _BASES.get(name.casefold())
    if base is None:
        return None
    power = _POWERS[prefix.casefold().rstrip(".")] if prefix else 1
    if suffix or digit:
        if power > 1:
            return None
        power = int(digit) if digit else {"squared": 2, "cubed": 3}[suffix.casefold()]
    dimension, scale = base
    return tuple((q, p * power) for q, p in dimension), scale**power


@functools.lru_cache(maxsize=256)
def ratios(dimension: Dimension) -> frozenset[Fraction]:
    """By what two answers may differ that are the same in other units of
    `dimension`."""
    found = {Fraction(1)}
    for quantity, power in dimension:
        sizes = {size for dim, size in _BASES.values() if dim == ((quantity, 1),)}
        steps = {(a / b) ** power for a in sizes for b in sizes}
        found = {one * step for one in found for step in steps}
        if len(found) > 10_000:
            return frozenset(found)
    return frozenset(found)
