"""Processes that compile: one a case, as the compiler may abort.

Its options must stand before JAX starts, and some GB of host memory come back. A
module that compiles has a command line, ``python -m MODULE DIRECTORY``: it reads
``case.json`` there, the compiler dumps its programs to ``dump``, and
:func:`write` leaves ``result.json``.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import time
from collections.abc import Callable
from typing import Any

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_TRACEBACK_FILTERING": "off",  # the last line of an error is its message
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server is asked what this machine is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the compiler's lock file guards no device here
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "none",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
# The text of an executable cannot be had for v5p, v6e and tpu7x (asynchronous
# collectives of the SparseCore do not pass jaxlib's verifier); the compiler's own dump
# can, and costs some MB of disk.
_DUMP = "--xla_dump_to={} --xla_dump_hlo_as_text --xla_dump_hlo_module_re={}"


def environment() -> dict[str, str]:
    """Of a process that compiles: our package first, the interpreter's own libtpu.

    Importing jax has noted the libtpu of this interpreter in ``TPU_LIBRARY_PATH``; the
    process may be another interpreter's.
    """
    root = str(pathlib.Path(__file__).parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    found = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}
    for name in ("TPU_LIBRARY_PATH", "JAX_COMPILATION_CACHE_DIR"):
        found.pop(name, None)
    return found


def run(
    module: str,
    case: str,
    directory: pathlib.Path,
    *,
    python: str,
    dumped: str,
    timeout: float,
    enough: Callable[[], bool] = lambda: False,
) -> str:
    """Run a module on a case until it ends or there is enough.

    Args:
      module: dotted name.
      case: JSON.
      directory: empty; of case, dump, log and result.
      python: interpreter that runs it.
      dumped: regular expression of the HLO modules that the compiler writes down.
      enough: asked again and again; once it is true, the process is stopped.

    Returns:
      Why there is no result, should there be none.
    """
    (directory / "case.json").write_text(case, encoding="utf-8")
    flags = {"XLA_FLAGS": _DUMP.format(directory / "dump", dumped)}
    command = [python, "-m", module, str(directory)]
    start = time.monotonic()
    log = directory / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            env=environment() | flags,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            while process.poll() is None:
                if time.monotonic() - start > timeout:
                    return f"no result after {timeout:.0f} s"
                if enough():
                    break
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return _last_words(
        process.returncode, log.read_text(encoding="utf-8", errors="replace")
    )


def _last_words(status: int, log: str) -> str:
    """Why a process died: the failed check of the compiler, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in lines:
        if "Check failed" in line:
            return f"the compiler aborted: {line[line.index('Check failed') :][:300]}"
    last = lines[-1][:300] if lines else "no output"
    return f"process ended with status {status}: {last}"


def write(directory: pathlib.Path, result: dict[str, Any]) -> None:
    """Leave a result for :func:`result`, whole or not at all.

    One with the key ``error`` says that the case itself is wrong.
    """
    temporary = directory / "result.tmp"
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.rename(directory / "result.json")


def result(directory: pathlib.Path) -> dict[str, Any] | None:
    """What the process has left; None if nothing.

    Raises:
      ValueError: if the case itself is wrong.
    """
    file = directory / "result.json"
    if not file.is_file():
        return None
    raw = json.loads(file.read_text(encoding="utf-8"))
    if "error" in raw:
        raise ValueError(raw["error"])
    return raw
