"""Programs of several real processes that find each other."""

from __future__ import annotations

import concurrent.futures
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(
    command: Sequence[str],
    count: int,
    *,
    env: Mapping[str, str] | None = None,
    of_last: Mapping[str, str] | None = None,
    **options,
) -> list[subprocess.Popen]:
    """Start a command `count` times, as the hosts of one run with a device each.

    Args:
      of_last: environment of the last process alone.
    """
    address = f"localhost:{free_port()}"
    common = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    return [
        subprocess.Popen(
            list(command),
            env={
                **os.environ,
                **common,
                "MPO_COORDINATOR": address,
                "MPO_NUM_PROCESSES": str(count),
                "MPO_PROCESS_ID": str(number),
                **(env or {}),
                **(of_last or {} if number == count - 1 else {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        for number in range(count)
    ]


def ended(
    processes: Sequence[subprocess.Popen], *, timeout: float = 180
) -> list[tuple[int, str]]:
    """Status and output of each, once all have ended.

    Side by side: one whose output fills its pipe would wait for its reader, and the
    others for it.
    """

    def read(process: subprocess.Popen) -> str:
        return process.communicate(timeout=timeout)[0]

    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        try:
            outputs = list(pool.map(read, processes))
        finally:
            for process in processes:
                process.kill()
    statuses = [process.returncode for process in processes]
    return list(zip(statuses, outputs, strict=True))
