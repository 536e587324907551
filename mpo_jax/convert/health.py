"""Weights that no training leaves behind: NaN, infinite, or a whole map of zeros.

A download that was cut and filled up with zeros has the right names, shapes and size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpo_jax import sharding
from mpo_jax.nn import params as params_lib

_SHOWN = 5
_PIECE = 65536
# All bits of the exponent, of 16-bit floats by their name; NumPy judges others fast.
_EXPONENT = {"bfloat16": 0x7F80, "float16": 0x7C00}


class Health:
    """Judges the tensors of a conversion as they pass, block by block."""

    def __init__(self) -> None:
        self._bad: dict[str, None] = {}
        self._zero: dict[str, bool] = {}

    def see(self, name: str, block: np.ndarray) -> None:
        """Look at a tensor, or at a part of it; contiguous."""
        mask = _EXPONENT.get(block.dtype.name)
        flat = block.reshape(-1)
        values = flat if mask is None else flat.view(np.uint16)
        for start in range(0, len(values), _PIECE):  # no copy of the size of a block
            piece = values[start : start + _PIECE]
            if mask is None:
                bad = not np.isfinite(piece).all()
            else:
                bad = bool(((piece & mask) == mask).any())
            if bad:
                self._bad[name] = None
                break
        if block.ndim > 1:
            self._zero[name] = self._zero.get(name, True) and not values.any()

    def notes(self) -> list[str]:
        """What to tell the user."""
        found = []
        if self._bad:
            found.append(f"NaN or infinite values in {_names(list(self._bad))}")
        zero = [name for name, holds in self._zero.items() if holds]
        if zero:
            found.append(f"nothing but zeros in {_names(zero)}; {_CUT}")
        return found


_CUT = "was the download complete?"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def check(params: Mapping[str, Any], *, where: str) -> list[str]:
    """Judge loaded parameters, on the devices that hold them.

    Args:
      params: nested dict of arrays; layers are stacked on the first axis.
      where: the place that they come from, for messages.

    Returns:
      Notes for the user: linear maps of zeros.

    Raises:
      ValueError: naming the parameters that hold NaN or infinite values.
    """
    judged = dict(params_lib.flatten(sharding.to_host(_judge(dict(params)))))
    bad = [path for path, (finite, _) in judged.items() if not finite]
    if bad:
        raise ValueError(
            f"{where}: the weights hold NaN or infinite values, in {_names(bad)}; "
            "download or convert them again"
        )
    zero = []
    for path, (_, empty) in judged.items():
        numbers = np.flatnonzero(empty)
        stacked = np.ndim(empty) > 0
        zero += [f"{path}[{n}]" if stacked else path for n in numbers]
    return [f"{where}: nothing but zeros in {_names(zero)}; {_CUT}"] if zero else []


@jax.jit
def _judge(params: dict[str, Any]) -> Any:
    """Per leaf: all finite; and, of linear maps, whether each layer is only zeros."""

    def one(path: tuple[Any, ...], leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith(("/kernel", "/table")):
            empty = jnp.zeros((), bool)
        elif "/blocks/" in name:
            empty = ~jnp.any(leaf, axis=tuple(range(1, leaf.ndim)))
        else:
            empty = ~jnp.any(leaf)
        return jnp.isfinite(leaf).all(), empty

    return jax.tree_util.tree_map_with_path(one, params)
