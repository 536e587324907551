"""A program of several hosts, of which one gets into trouble.

  python tests/hosts_in_trouble.py --trouble=KIND --host=N --workdir=DIR

All hosts wait for each other in a collective, as a training does, while host N raises,
vanishes, freezes or sleeps.
"""

from __future__ import annotations

import os
import pathlib
import signal
import time

import jax
from absl import flags

from mpo_jax import config
from mpo_jax.run import start_check
from mpo_jax.utils import cli, lease, runtime, statuses, watchdog

_TROUBLE = flags.DEFINE_string("trouble", "none", "What happens to the host")
_HOST = flags.DEFINE_integer("host", 1, "Its number")
_HEARTBEAT = flags.DEFINE_integer("heartbeat", 5, "Of hosts.heartbeat_s")
_CONNECT = flags.DEFINE_integer("connect", 300, "Of hosts.connect_s")
_WORKDIR = flags.DEFINE_string("workdir", ".", "Directory of the run")


def _get_into_trouble(kind: str) -> None:
    if kind == "explained":
        raise ValueError("records.jsonl:17: image is broken")
    if kind == "unheard":  # whoever read its output ends meanwhile
        time.sleep(3)
        raise ValueError("records.jsonl:17: image is broken")
    if kind == "missing":
        open("/nowhere/image.png")  # noqa: SIM115
    if kind == "unexpected":
        raise KeyError("a bug")
    if kind == "leaves":
        raise SystemExit(3)
    if kind == "leaves with 0":
        raise SystemExit(0)
    if kind == "no Exception":
        raise GeneratorExit("a bug")
    if kind == "storage":
        raise statuses.TryAgain("the bucket is away")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "frozen":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "vanished":
        workdir = pathlib.Path(_WORKDIR.value)
        workdir.rename(workdir.with_name("away"))
        lease.check()
    if kind == "late":
        time.sleep(4)
    if kind == "busy":  # half as long again as the watchdog waits
        for _ in range(18):
            watchdog.beat()
            time.sleep(0.5)
    if kind == "stuck":
        watchdog.beat("batch 7 of its own loader")
        time.sleep(600)


def main(argv: list[str]) -> None:
    del argv
    cfg = config.RunConfig()
    cfg.hosts.heartbeat_s = _HEARTBEAT.value
    cfg.hosts.connect_s = _CONNECT.value
    runtime.initialise(cfg.hosts)
    ours = jax.process_index() == _HOST.value
    workdir = pathlib.Path(_WORKDIR.value)
    if ours and _TROUBLE.value == "differs":
        cfg.optim.learning_rate = 3e-6
    if ours and _TROUBLE.value == "other keys":
        jax.config.update("jax_default_prng_impl", "rbg")
    if ours and _TROUBLE.value == "unshared":
        workdir = workdir / "elsewhere"
        workdir.mkdir()
        start_check._SEEN_S = 1.0
    with start_check.alone(cfg, workdir), watchdog.armed(workdir, minutes=0.1):
        runtime.barrier("start")
        print("started", flush=True)
        if _TROUBLE.value == "all":
            raise ValueError("the same on all hosts")
        if ours:
            _get_into_trouble(_TROUBLE.value)
        if _TROUBLE.value != "late":
            watchdog.beat("the devices, in step 8")
            runtime.barrier("step")
    print("done", flush=True)


if __name__ == "__main__":
    cli.run(main)
