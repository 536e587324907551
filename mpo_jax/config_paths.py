"""Fields of a run that name files or directories, and where those lie."""

from __future__ import annotations

import copy
import os
from typing import Any, TypeVar

Config = TypeVar("Config")

PATHS = (
    *("model.path", "data.meta", "data.eval_meta", "data.reroot", "data.cache_dir"),
    *(
        "data.local_cache",
        "data.tokenizer",
        "reference.path",
        "reference.cache",
        "compile_cache",
    ),
    "eval.data",
)
"""Dotted names of the fields that hold a path, or may."""


def located(cfg: Config) -> Config:
    """A copy of a ``config.RunConfig`` with every path as :func:`absolute` says."""
    found = copy.deepcopy(cfg)
    for name in PATHS:
        group, _, field = name.rpartition(".")
        section = getattr(found, group) if group else found
        setattr(section, field, absolute(name, getattr(section, field)))
    return found


def absolute(name: str, value: Any) -> Any:
    """The value of a field, absolute and with ``~`` expanded if it is a path."""
    if name not in PATHS or not value or "://" in value:
        return value
    if name == "data.reroot":
        old, equals, new = value.partition("=")
        return old + equals + os.path.expanduser(new)
    path = os.path.expanduser(value)
    hub = name in ("model.path", "reference.path") and not os.path.exists(path)
    none = name == "compile_cache" and value == "none"
    return path if hub or none else os.path.abspath(path)
