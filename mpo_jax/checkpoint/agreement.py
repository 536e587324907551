"""What all processes decide together about checkpoints."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np

from mpo_jax.utils import runtime

_BYTES = 8192


def gathered(own: dict[str, Any]) -> list[dict[str, Any]]:
    """JSON objects of all processes, in their order, in every process.

    The list under ``problems`` is cut to what fits into some kilobytes; ``count`` is
    its length before.
    """
    own = {**own, "count": len(own["problems"])}
    if jax.process_count() == 1:
        return [own]
    from jax.experimental import multihost_utils

    problems = list(own["problems"])
    while len(encoded := json.dumps({**own, "problems": problems}).encode()) > _BYTES:
        problems.pop()
    padded = np.zeros(_BYTES, np.uint8)
    padded[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row.tobytes().rstrip(b"\0")) for row in everyone]


def numbers(own: list[int]) -> list[int]:
    """The first process's list, in every process."""
    length = int(runtime.agreed(np.array(len(own), np.int32)))
    padded = np.zeros(length, np.int32)
    if runtime.is_main():
        padded[:] = own
    return [int(n) for n in runtime.agreed(padded)]
