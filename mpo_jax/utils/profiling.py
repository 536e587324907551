"""Where the time goes: compile and cache counts, goodput, peak FLOP/s, traces."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax import monitoring

GPU_PEAK = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,  # SXM ("NVIDIA H100 80GB HBM3")
    "A100": 312e12,
}
"""Dense bf16 FLOP/s by what the device kind holds, first match (NVIDIA data sheets)."""

SPENT = ("startup", "input_wait", "compile", "checkpoint", "eval")
"""What a run spends time on without training, as :class:`Clock` names it."""


def peak_flops(device: Any) -> float | None:
    """bf16 FLOP/s of one JAX device, None where it is not known.

    TPU figures are those of JAX's own table, per core times the cores that the device
    has (a v4 or v5p device is a chip of two, a v2 or v3 device one of two).
    """
    kind = getattr(device, "device_kind", "")
    if device.platform == "gpu":
        return next((peak for name, peak in GPU_PEAK.items() if name in kind), None)
    if device.platform != "tpu":
        return None
    from jax.experimental.pallas import tpu

    for version, names in {
        tpu.ChipVersion.TPU_V2: ("TPU v2",),
        tpu.ChipVersion.TPU_V3: ("TPU v3",),
        tpu.ChipVersion.TPU_V4: ("TPU v4",),
        tpu.ChipVersion.TPU_V5E: ("TPU v5 lite", "TPU v5e"),
        tpu.ChipVersion.TPU_V5P: ("TPU v5", "TPU v5p"),
        tpu.ChipVersion.TPU_V6E: ("TPU v6 lite", "TPU v6e"),
        tpu.ChipVersion.TPU_7X: ("TPU7x",),
    }.items():
        if kind in names:
            cores = getattr(device, "num_cores", 1) or 1
            info = tpu.get_tpu_info_for_chip(version, cores)
            return float(info.bf16_ops_per_second) * cores
    return None


_COMPILING = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",  # or loading from the cache
)


class Compiles:
    """Counts compilations of this process from now on; close to stop counting.

    Attributes:
      seconds: spent in the compiler, or in loading from the persistent cache.
      programs: compiled, or loaded from it.
      hits, misses: of the persistent cache; both stay 0 where it is not used.
    """

    def __init__(self) -> None:
        self.seconds, self.programs, self.hits, self.misses = 0.0, 0, 0, 0
        monitoring.register_event_duration_secs_listener(self._duration)
        monitoring.register_event_listener(self._event)

    def _duration(self, event: str, duration_secs: float, **_: Any) -> None:
        if event in _COMPILING:
            self.seconds += duration_secs
            self.programs += event == _COMPILING[1]

    def _event(self, event: str, **_: Any) -> None:
        self.hits += event == "/jax/compilation_cache/cache_hits"
        self.misses += event == "/jax/compilation_cache/cache_misses"

    def close(self) -> None:
        monitoring.unregister_event_duration_listener(self._duration)
        monitoring.unregister_event_listener(self._event)


class Clock:
    """Splits the wall time of a run; what is left over is training.

    Goodput is the share of training in all time since the start. Steps that a crash
    made the run repeat count as training in both processes: goodput is that of this
    process.
    """

    def __init__(self, started: float, compiles: Compiles):
        """`started`: ``time.perf_counter()`` when the program began its work."""
        self._started, self._compiles = started, compiles
        self.spent: dict[str, float] = dict.fromkeys(SPENT, 0.0)
        self.spent["startup"] = time.perf_counter() - started - compiles.seconds
        self.host_to_device_s = 0.0
        self.steps = 0
        self._logged: dict[str, float] = {}

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`, save for what is compiled in it."""
        start, compiled = time.perf_counter(), self._compiles.seconds
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.spent[name] += spent - (self._compiles.seconds - compiled)

    def values(self) -> dict[str, float]:
        """Means per step since the last call, sums since the start, goodput; seconds.

        The sums add up to ``time_s``. Host to device is apart: it overlaps
        with training unless nothing is prefetched, and is then part of the input wait.
        """
        total = time.perf_counter() - self._started
        self.spent["compile"] = self._compiles.seconds
        sums = {f"time/sum_{name}_s": value for name, value in self.spent.items()}
        sums["time/sum_step_s"] = total - sum(self.spent.values())
        now = {
            "input_wait": self.spent["input_wait"],
            "host_to_device": self.host_to_device_s,
            "steps": self.steps,
        }
        before = self._logged
        steps = max(now["steps"] - before.get("steps", 0), 1)
        self._logged = now
        means = {
            f"time/{name}_s": (now[name] - before.get(name, 0.0)) / steps
            for name in ("input_wait", "host_to_device")
        }
        return {
            **means,
            **sums,
            "time_s": total,
            "time/goodput": sums["time/sum_step_s"] / total,
            "time/compile_cache_hits": float(self._compiles.hits),
        }


class Trace:
    """A window of steps traced for xprof (``xprof --logdir=…/profile``)."""

    def __init__(self, directory: pathlib.Path, *, start: int, steps: int):
        """Trace `steps` steps from step `start` (from 1); 0 steps trace nothing."""
        self._directory, self._range = directory, range(start, start + steps)
        self._running = False

    def ask(self, start: int, steps: int) -> None:
        """Trace another window, unless one is under way or still to come."""
        if not self._running and start >= self._range.stop:
            self._range = range(start, start + steps)

    def before(self, step: int) -> None:
        """Call before step `step` (from 1) is dispatched."""
        if step in self._range and not self._running:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """Call after it; the last step of the window is waited for."""
        if self._running and step + 1 not in self._range:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Write what has been traced; also where the run ends inside the window."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


class Rate:
    """Work per second over the steps since the last reset; pauses left out."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self._skip = True
        self.reset()

    def reset(self) -> None:
        """Forget what was measured."""
        self.steps, self.seconds, self.work = 0, 0.0, dict[str, float]()

    def pause(self) -> None:
        """The next step compiles or catches up: it is not measured."""
        self._skip = True

    def step(self, **work: float) -> None:
        """A step is done, and this much work with it."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        if self._skip:
            self._skip = False
            return
        self.steps += 1
        self.seconds += seconds
        for name, value in work.items():
            self.work[name] = self.work.get(name, 0.0) + value

    def per_second(self, name: str) -> float:
        """0.0 while nothing was measured."""
        return self.work.get(name, 0.0) / self.seconds if self.seconds else 0.0
