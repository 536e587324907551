"""Known peaks only; compile counts; wall time split without gaps; trace windows."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from mpo_jax.utils import profiling, runtime


@dataclasses.dataclass
class Device:
    device_kind: str
    platform: str
    num_cores: int = 1


@pytest.mark.parametrize(
    ("kind", "platform", "cores", "teraflops"),
    [
        # Peaks per chip from the vendors' data sheets, for devices that are a chip.
        ("TPU v5 lite", "tpu", 1, 197),
        ("TPU v5p", "tpu", 2, 459),
        ("TPU v5", "tpu", 2, 459),
        ("TPU v6 lite", "tpu", 1, 920),
        ("TPU v4", "tpu", 2, 275),
        ("TPU v3", "tpu", 1, 70),  # a device is one of two cores
        ("TPU7x", "tpu", 1, 1155),
        ("NVIDIA H100 80GB HBM3", "gpu", 1, 989),
        ("NVIDIA H100 PCIe", "gpu", 1, 756),
        ("NVIDIA H200", "gpu", 1, 989),
        ("NVIDIA A100-SXM4-80GB", "gpu", 1, 312),
        ("TPU v99", "tpu", 1, None),
        ("NVIDIA GeForce RTX 2080", "gpu", 1, None),
        ("cpu", "cpu", 1, None),
    ],
)
def test_peaks(kind, platform, cores, teraflops):
    found = profiling.peak_flops(Device(kind, platform, cores))
    assert found == (None if teraflops is None else pytest.approx(teraflops * 1e12))


def test_no_peak_is_invented_for_this_machine():
    assert profiling.peak_flops(jax.devices("cpu")[0]) is None


def test_compiles_are_counted_until_closed():
    compiles = profiling.Compiles()
    jax.jit(lambda x: jnp.sin(x) + 17)(jnp.ones(11)).block_until_ready()
    assert compiles.seconds > 0
    compiles.close()
    before = compiles.seconds
    jax.jit(lambda x: jnp.sin(x) + 18)(jnp.ones(12)).block_until_ready()
    assert compiles.seconds == before


def test_the_sums_are_the_whole_time_and_compiling_counts_once():
    compiles = profiling.Compiles()
    started = time.perf_counter() - 0.05
    clock = profiling.Clock(started, compiles)
    assert clock.spent["startup"] >= 0.05
    with clock.span("input_wait"):
        time.sleep(0.03)
    with clock.span("eval"):
        time.sleep(0.02)
        compiles.seconds += 0.015  # as if something in it were compiled
    with pytest.raises(KeyError), clock.span("checkpoint"):
        raise KeyError
    time.sleep(0.04)  # a step
    clock.steps, clock.host_to_device_s = 2, 0.5
    values = clock.values()
    names = ("startup", "input_wait", "compile", "checkpoint", "eval", "step")
    sums = [values[f"time/sum_{name}_s"] for name in names]
    assert sum(sums) == pytest.approx(values["time_s"], abs=1e-6)
    assert values["time/sum_compile_s"] == 0.015
    assert 0.005 <= values["time/sum_eval_s"] < 0.02 + 0.5
    assert values["time/sum_step_s"] >= 0.04
    assert values["time/goodput"] == pytest.approx(
        values["time/sum_step_s"] / values["time_s"]
    )
    assert values["time/host_to_device_s"] == 0.25  # per step
    assert values["time/input_wait_s"] == values["time/sum_input_wait_s"] / 2
    clock.steps = 3
    later = clock.values()
    assert later["time/input_wait_s"] == 0  # since the last line
    assert later["time/sum_input_wait_s"] == values["time/sum_input_wait_s"]
    compiles.close()


def test_rates_leave_pauses_out():
    rate = profiling.Rate()
    rate.step(pairs=100.0)  # the first one compiles
    assert rate.per_second("pairs") == 0 and rate.steps == 0
    time.sleep(0.02)
    rate.step(pairs=4.0)
    assert 0 < rate.per_second("pairs") <= 4 / 0.02
    rate.pause()
    rate.step(pairs=1e9)
    assert rate.work == {"pairs": 4.0} and rate.steps == 1
    rate.reset()
    assert rate.per_second("pairs") == 0


@pytest.mark.parametrize("end", ["window", "run"])
def test_a_trace_window_leaves_a_trace(tmp_path, end):
    trace = profiling.Trace(tmp_path / "profile", start=2, steps=2)
    started = []
    for step in range(1, 5 if end == "window" else 3):
        trace.before(step)
        started.append(trace._running)
        trace.after(step, jnp.ones(3) + step)
    assert started == [False, True, True, False][: len(started)]
    trace.close()
    files = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(files) == 1 and files[0].stat().st_size > 0


def test_no_window_no_trace(tmp_path):
    trace = profiling.Trace(tmp_path / "profile", start=1, steps=0)
    for step in range(3):
        trace.before(step)
        trace.after(step, None)
    trace.close()
    assert not (tmp_path / "profile").exists()


CACHED = """
import json, sys
import jax, jax.numpy as jnp
from mpo_jax.utils import profiling, runtime

jax.jit(lambda x: x + 1)(jnp.ones(3))  # JAX has decided that there is no cache
runtime.compilation_cache(None if sys.argv[1] == "none" else sys.argv[1])
compiles = profiling.Compiles()
jax.jit(lambda x: jnp.tanh(x) @ x.T)(jnp.ones((3, 4))).block_until_ready()
print(json.dumps([compiles.hits, compiles.misses]))
"""


def run_cached(root, directory, **env):
    done = subprocess.run(
        [sys.executable, "-c", CACHED, str(directory)],
        env={
            "PYTHONPATH": str(root),
            "JAX_PLATFORMS": "cpu",
            "PATH": "",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **env,
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_compilation_cache_works_across_restarts(root, tmp_path):
    first = run_cached(root, tmp_path / "cache")
    assert first[0] == 0 and first[1] > 0
    assert list((tmp_path / "cache").iterdir())
    again = run_cached(root, tmp_path / "cache")
    assert again == [first[1], 0]
    assert run_cached(root, "none") == [0, 0]
    # The environment wins.
    other = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "other")}
    assert run_cached(root, tmp_path / "cache", **other)[1] > 0
    assert list((tmp_path / "other").iterdir())


def test_small_programs_are_not_worth_a_file(monkeypatch):
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    try:
        runtime.compilation_cache(None)
        assert jax.config.jax_persistent_cache_min_compile_time_secs == 1.0
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
