"""Benchmarks by name: a module of ``benchmarks/`` is one, and so is a module of yours.

A benchmark's name is its module's. One from elsewhere is named by its dotted module,
say ``my_package.my_benchmark``; either ends in ``BENCHMARK = Benchmark(...)``.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil

from mpo_jax import fields
from mpo_jax.evals import benchmarks
from mpo_jax.evals.benchmark import Benchmark


def names() -> tuple[str, ...]:
    """Those that come with the project, by alphabet."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__)))


def get(name: str) -> Benchmark:
    """A benchmark.

    Raises:
      ValueError: there is none of this name; says which are like it.
    """
    known = names()
    if name in known:
        name = f"{benchmarks.__name__}.{name}"
    elif "." not in name or not _exists(name):
        raise ValueError(fields.no_such("benchmark", name, known))
    found = getattr(importlib.import_module(name), "BENCHMARK", None)
    if not isinstance(found, Benchmark):
        raise ValueError(f"module {name} does not end in BENCHMARK = Benchmark(...)")
    return found


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # no parent package, or a name like "a..b"
        return False
