"""Which compiler plans: an interpreter with its jax and libtpu, and whether it is the
one that slices install.

Slices install what ``tpu_setup/locks`` pins for their Python. Another libtpu makes
another program, which may need more memory or not compile at all.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence

from mpo_jax.plan import child
from mpo_jax.utils import slices

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")
"""What a compiled program depends on beside our code."""

_ASK = """
import importlib.metadata, json, platform, sys
found = {"python": ".".join(platform.python_version_tuple()[:2])}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = ""
print(json.dumps(found))
"""


@dataclasses.dataclass(frozen=True)
class Compiler:
    """An interpreter that compiles, in processes of its own.

    Attributes:
      executable: its path.
      python: its version, two numbers, which names its lock.
      versions: of :data:`PACKAGES`, in that order.
    """

    executable: str
    python: str
    versions: tuple[str, ...]

    def version(self, package: str) -> str:
        """Installed version of one of :data:`PACKAGES`."""
        return self.versions[PACKAGES.index(package)]

    def to_dict(self) -> dict[str, str]:
        """Versions by name; where it lies is nobody else's business."""
        packages = dict(zip(PACKAGES, self.versions, strict=True))
        return {"python": self.python, **packages}


def label(versions: dict[str, str]) -> str:
    """What people read of :meth:`Compiler.to_dict`."""
    return "libtpu {libtpu} (jax {jax}, Python {python})".format(**versions)


@functools.cache
def of(executable: str = sys.executable) -> Compiler:
    """The compiler of an interpreter, as that itself sees it.

    Raises:
      ValueError: if it does not run, or lacks a package.
    """
    try:
        done = subprocess.run(
            [executable, "-c", _ASK, *PACKAGES],
            env=child.environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(f"{executable} does not run as Python: {error}") from error
    found = json.loads(done.stdout)
    absent = [name for name in PACKAGES if not found[name]]
    if absent:
        raise ValueError(
            f"{executable} has no {', '.join(absent)}; install what plans: "
            "pip install -e '.[plan]' (Linux on x86)"
        )
    return Compiler(
        executable, found["python"], tuple(found[name] for name in PACKAGES)
    )


def by_generation(words: Sequence[str]) -> dict[str, Compiler]:
    """Compilers of ``GENERATION=EXECUTABLE`` each.

    Raises:
      ValueError: on an unknown generation, one that is named twice, and as :func:`of`.
    """
    known = [generation.name for generation in slices.GENERATIONS]
    found: dict[str, Compiler] = {}
    for word in words:
        generation, _, executable = word.partition("=")
        if generation not in known or not executable or generation in found:
            raise ValueError(
                f"{word!r}: write GENERATION=PYTHON, each generation once, with "
                f"GENERATION one of {', '.join(known)} and PYTHON an interpreter"
            )
        found[generation] = of(os.path.abspath(executable))
    return found


def unlike_lock(compiler: Compiler, locks: pathlib.Path) -> str:
    """What slices install instead, in one line; empty where it is the same.

    Args:
      locks: directory with a ``tpu-PYTHON.txt`` for every Python.

    Raises:
      ValueError: if a lock does not pin one of :data:`PACKAGES`.
    """
    lock = locks / f"tpu-{compiler.python}.txt"
    if not lock.is_file():
        return (
            f"warning: {label(compiler.to_dict())} plans, and no slice installs it: "
            f"there is no {lock.name} in {locks.name}/; take a Python that has a lock"
        )
    ours, pinned = compiler.to_dict(), _pinned(lock)
    others = [name for name in PACKAGES if ours[name] != pinned[name]]
    if not others:
        return ""
    plans = ", ".join(f"{name} {ours[name]}" for name in others)
    installed = " ".join(f"{name}=={pinned[name]}" for name in others)
    return (
        f"warning: {plans} plans, but slices install {installed} ({lock.name}), so "
        f"memory and times there may differ: {compiler.executable} -m pip install "
        f"{installed}"
    )


def _pinned(lock: pathlib.Path) -> dict[str, str]:
    """Versions of :data:`PACKAGES` in a lock."""
    entries = re.findall(
        r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.M
    )
    pinned = {name.lower(): version for name, version in entries}
    absent = [name for name in PACKAGES if name not in pinned]
    if absent:
        raise ValueError(f"{lock} does not pin {', '.join(absent)}; make locks")
    return {name: pinned[name] for name in PACKAGES}
