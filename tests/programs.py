"""Where compiled programs of tests stay between runs: ``build/programs``.

Compiling is most of the suite's time. JAX finds a program by its text, flags and
versions, so that a change of the code compiles anew; the folder's name adds what JAX
does not look at, the processor. ``make clean`` drops all of it, and
``JAX_ENABLE_COMPILATION_CACHE=0`` compiles everything. Tests that kill processes, and
those of several processes, keep folders of their own (``small_runs``).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import pathlib
import platform
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent / "build" / "programs"
UNUSED_S = 14 * 86_400


def of_this_machine() -> pathlib.Path:
    """The folder for this processor and compiler."""
    cpu = pathlib.Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    marks = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    marks += [platform.platform(), importlib.metadata.version("jaxlib")]
    return ROOT / hashlib.sha256("\n".join(marks).encode()).hexdigest()[:12]


def drop_unused() -> None:
    """Remove programs that no run has asked for in two weeks."""
    for path in ROOT.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):  # another run tidies up too
            found = path.stat()
            if time.time() - max(found.st_atime, found.st_mtime) > UNUSED_S:
                path.unlink()
