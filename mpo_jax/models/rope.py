"""Rotary frequencies of the family's decoders, from the fields of a config.

Every rule comes down to data: one frequency per channel pair, a second set for long
sequences where the rule has one, and a factor on cosine and sine. Rules as in
transformers' ``modeling_rope_utils`` (``su`` is Phi-3's earlier name of ``longrope``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

RULES = ("default", "dynamic", "linear", "llama3", "longrope", "su")


@dataclasses.dataclass(frozen=True)
class Rope:
    """What turns positions into angles.

    Attributes:
      frequencies: radians per position of every channel pair (``head_dim / 2``).
      long_frequencies: the same for sequences longer than `original_length`; empty
        where the rule has one set.
      original_length: tokens; a longer sequence takes the long set as a whole.
      scale: factor on cosine and sine.
    """

    frequencies: tuple[float, ...]
    long_frequencies: tuple[float, ...] = ()
    original_length: int = 0
    scale: float = 1.0


def read(
    raw: Mapping[str, Any], *, theta: float, head_dim: int, max_length: int, where: str
) -> Rope:
    """Read ``rope_scaling`` (or ``rope_parameters``, its newer name).

    Dynamic NTK scaling changes nothing up to ``max_position_embeddings``, and longer
    sequences are refused everywhere, so it is the plain rule here.

    Args:
      raw: decoder config.
      where: its name in ``config.json``, for messages.

    Raises:
      ValueError: naming the field, if the rule is unknown or a field of it is wrong.
    """
    name = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    fields: Mapping[str, Any] = raw.get(name) or {}
    field = f"{where}.{name}"
    rule = fields.get("rope_type", fields.get("type", "default"))
    if rule not in RULES:
        raise ValueError(f"{field}={dict(fields)!r}: known rules are {list(RULES)}")
    partial = fields.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise ValueError(f"{where}.partial_rotary_factor={partial}: only 1 is known")
    half = head_dim // 2
    plain = [theta ** (-pair / half) for pair in range(half)]
    if rule in ("default", "dynamic"):
        return Rope(tuple(plain))

    def number(key: str, default: Any = None) -> float:
        value = fields.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{field}.{key}={value!r}: {rule} needs a number above 0")
        return float(value)

    if rule == "linear":
        factor = number("factor")
        return Rope(tuple(f / factor for f in plain))
    # Phi-3 keeps the length beside the rule, and there it counts.
    outside = raw.get("original_max_position_embeddings")
    length = int(outside or number("original_max_position_embeddings", max_length))
    if rule == "llama3":
        return Rope(_llama3(plain, length, number))
    sets = []
    for key in ("short_factor", "long_factor"):
        factors = fields.get(key)
        if not isinstance(factors, list | tuple) or len(factors) != half:
            raise ValueError(f"{field}.{key}: a list of {half} numbers is expected")
        sets.append(tuple(f / float(s) for f, s in zip(plain, factors, strict=True)))
    scale = fields.get("attention_factor")
    if scale is None:
        stretch = number("factor", max_length / length)
        scale = 1.0
        if stretch > 1:
            scale = math.sqrt(1 + math.log(stretch) / math.log(length))
    return Rope(sets[0], sets[1], length, float(scale))


def _llama3(plain: list[float], length: int, number: Any) -> tuple[float, ...]:
    """Long wavelengths are stretched by `factor`, short ones stay, between: blended."""
    factor = number("factor")
    low, high = number("low_freq_factor"), number("high_freq_factor")
    if high <= low:
        raise ValueError(
            f"rope_scaling: high_freq_factor={high} must exceed low_freq_factor={low}"
        )
    out = []
    for frequency in plain:
        turns = length * frequency / (2 * math.pi)
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        out.append((1 - share) * frequency / factor + share * frequency)
    return tuple(out)
