"""Low-rank adapters of linear maps (LoRA, arXiv 2106.09685): what has one, and how.

A linear map with kernel ``W`` gets ``A [*in, r]`` and ``B [r, *out]`` and computes
``x W + scale · (x A) B``; the product ``A B`` never exists in training. As in PEFT,
``A`` is drawn uniformly from ``±1 / sqrt(inputs)`` (torch's Kaiming-uniform with
a = √5) and ``B`` is 0, so that the model starts as its base.

No dropout on ``x``, which the released trainer sets to 0.05: the policy would differ
from its reference before the first update, and a mask over tokens would have to follow
them through packing, micro-batches and meshes, none of which changes a loss here.

Written by hand: the library for this in JAX, Qwix, traces calls of a Flax module and
puts its parameters into that. Parameters are nested dicts here, and layers are stacked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container
from typing import Any

import jax

A, B = "lora_a", "lora_b"
SHARED_A = {"k": "q", "v": "q", "up": "gate"}
"""Map to map: the first uses the second's ``A``, where both are one weight in released
files."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapter of one linear map.

    Attributes:
      rank: ``r``.
      scale: factor of its product (PEFT's ``lora_alpha / r``).
      shares_a: ``A`` is that of the map named by :data:`SHARED_A`.
    """

    rank: int
    scale: float
    shares_a: bool = False


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Adapters of a layer stack's linear maps.

    Attributes:
      rank: 0 where there are none.
      scale: see :class:`Lora`.
      targets: names of the maps.
      sharing: of these, those that use the ``A`` of another (:data:`SHARED_A`).
    """

    rank: int = 0
    scale: float = 1.0
    targets: tuple[str, ...] = ()
    sharing: tuple[str, ...] = ()

    def of(self, name: str) -> Lora | None:
        """Adapter of a map, None where it has none."""
        if not self.rank or name not in self.targets:
            return None
        return Lora(self.rank, self.scale, shares_a=name in self.sharing)


NONE = Adapters()


def init_a(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Uniform in ``±1 / sqrt(inputs)``; `shape` is ``[*in, r]``."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def is_adapter(path: str) -> bool:
    """Does a parameter's path end in ``lora_a`` or ``lora_b``?"""
    return path.rsplit("/", 1)[-1] in (A, B)


def paths(kernel: str, present: Container[str]) -> tuple[str, str] | None:
    """Paths of the ``A`` and ``B`` that belong to a kernel; None where it has none.

    Args:
      present: paths of all parameters.
    """
    layer, _, leaf = kernel.rpartition("/")
    b = f"{layer}/{B}"
    if leaf != "kernel" or b not in present:
        return None
    if f"{layer}/{A}" in present:
        return f"{layer}/{A}", b
    owner, _, name = layer.rpartition("/")
    return f"{owner}/{SHARED_A[name]}/{A}", b
