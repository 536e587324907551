"""How the hosts of a run compare: who waits for data, how much memory is used."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import jax

from mpo_jax.utils import peers

STEP, WAIT = "time/step_s", "time/input_wait_s"
_PEAK, _LIMIT = "peak_bytes_in_use", "bytes_limit"
_GIB = 2**30


def compared(line: Mapping[str, float]) -> dict[str, float]:
    """Metrics over hosts, in the first process.

    Hosts step together, so that a slow one shows in what it waits for: its own data.
    What the others have last said may be a line old.

    Args:
      line: of this process.
    """
    others = peers.others()
    if others is None:
        return {}
    mine = {name: line[name] for name in (STEP, WAIT) if name in line}
    if others.number:
        others.say("line", mine)
        return {}
    lines = {0: mine} | others.heard("line")
    found = {}
    for name in (STEP, WAIT):
        values = {host: said[name] for host, said in lines.items() if name in said}
        if values:
            short = name.removeprefix("time/")
            found[f"hosts/{short}_median"] = statistics.median(values.values())
            found[f"hosts/{short}_slowest"] = max(values.values())
            found[f"hosts/{short}_slowest_host"] = float(
                max(values, key=lambda host: values[host])
            )
    return found


def memory() -> dict[str, float]:
    """Most that was used of this process's devices since it began, GiB; {} on CPU."""
    found = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [
        stats["peak_bytes_in_use"] for stats in found if "peak_bytes_in_use" in stats
    ]
    limits = [stats["bytes_limit"] for stats in found if "bytes_limit" in stats]
    values = {}
    if peaks:
        values["memory/peak_gib"] = max(peaks) / _GIB
    if limits:
        values["memory/limit_gib"] = min(limits) / _GIB
    return values
