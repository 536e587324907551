"""What pins a score, as hashes: two runs of one pin differ by nothing but chance.

A pin has parts, so that of two runs it can be said which differs: of each benchmark its
protocol, prompts, tiles and data, and of the run the decoding, the scorer and the
weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mpo_jax.evals.benchmark import Ask, Item
from mpo_jax.evals.sources import Image

WEIGHTS = "weights"
_CHARACTERS = 12
_ABSENT = "absent"


@dataclasses.dataclass(frozen=True)
class Pin:
    """Hashes of all that a score depends on.

    Attributes:
      parts: hex digits by part: ``decoding``, ``scorer``, ``weights``, and of each
        benchmark ``protocol/NAME``, ``prompts/NAME``, ``tiles/NAME``, ``data/NAME``.
    """

    parts: Mapping[str, str]

    @property
    def id(self) -> str:
        """Short name of the whole."""
        return digest(dict(sorted(self.parts.items())))

    def as_json(self) -> dict[str, Any]:
        """For ``report.json``."""
        return {"id": self.id, "parts": dict(self.parts)}

    @classmethod
    def from_json(cls, value: Any, where: str) -> Pin:
        """Of what :meth:`as_json` made.

        Args:
          where: begins the message.

        Raises:
          ValueError: it is something else.
        """
        parts = value.get("parts") if isinstance(value, dict) else None
        good = isinstance(parts, dict) and all(
            isinstance(part, str) for part in parts.values()
        )
        if not isinstance(parts, dict) or not good:
            raise ValueError(f"{where}: pin={str(value)[:80]!r}: expected its parts")
        return cls(parts)


@dataclasses.dataclass(frozen=True)
class Asked:
    """One question of a run.

    Attributes:
      mode: that it is asked in.
    """

    mode: str
    item: Item
    ask: Ask


def of_run(*, decoding: Any, scorer: Any, weights: str) -> dict[str, str]:
    """Parts that all benchmarks share.

    Args:
      decoding: JSON-able; how answers are drawn (temperature, seed, n, dtype, …).
      scorer: JSON-able; versions of the verifier and of the rules.
      weights: fingerprint of the model.
    """
    return {
        "decoding": digest(decoding),
        "scorer": digest(scorer),
        WEIGHTS: digest(weights),
    }


def of_benchmark(
    name: str,
    protocol: str,
    asked: Iterable[Asked],
    *,
    image: Callable[[Image], bytes],
) -> dict[str, str]:
    """Parts of one benchmark.

    Args:
      name: of the benchmark.
      protocol: its name, and whatever else tells it from others.
      asked: all questions, in order; read once.
      image: bytes of a picture, or their hash.
    """
    prompts, tiles, data = (hashlib.sha256() for _ in range(3))
    for one in asked:
        which = [one.mode, one.item.id]
        ask, item = one.ask, one.item
        prompts.update(_bytes([*which, ask.text, ask.system]))
        tiles.update(_bytes([*which, ask.max_tiles, ask.max_new_tokens]))
        pictures = [hashlib.sha256(image(each)).hexdigest() for each in item.images]
        answer = list(item.answer) if isinstance(item.answer, tuple) else item.answer
        # `fields` hold what a benchmark likes, perhaps no JSON: what of them matters
        # is in the prompt, or in the truth.
        content = [item.question, answer, list(item.options), item.group]
        categories = sorted(item.categories.items())
        data.update(_bytes([*which, *content, categories, pictures]))
    return {
        f"protocol/{name}": digest(protocol),
        f"prompts/{name}": prompts.hexdigest()[:_CHARACTERS],
        f"tiles/{name}": tiles.hexdigest()[:_CHARACTERS],
        f"data/{name}": data.hexdigest()[:_CHARACTERS],
    }


def differences(first: Pin, second: Pin) -> dict[str, tuple[str, str]]:
    """Parts that differ, with both hashes; ``absent`` for a part that one lacks."""
    names = sorted({*first.parts, *second.parts})
    pairs = {
        name: (first.parts.get(name, _ABSENT), second.parts.get(name, _ABSENT))
        for name in names
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def digest(value: Any) -> str:
    """Hash of a JSON-able value; the order of its names does not matter."""
    return hashlib.sha256(_bytes(value)).hexdigest()[:_CHARACTERS]


def _bytes(value: Any) -> bytes:
    # Each is one line of ASCII, so that two updates cannot be taken for another two.
    return json.dumps(value, sort_keys=True, allow_nan=False).encode("ascii") + b"\n"
