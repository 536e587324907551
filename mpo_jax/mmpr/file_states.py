"""Sizes and times of files: what tells cheaply that an image has changed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent import futures

import numpy as np

ABSENT = -1
"""Size and times of a file that is not there, or cannot be looked at."""

_THREADS = 16  # a network file system answers many questions at once
_CHUNK = 1024


def look(path: str) -> tuple[int, int, int]:
    """Size in bytes, time of the last change of the content, and of anything, in ns."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: no possible path
        return ABSENT, ABSENT, ABSENT
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def look_all(paths: Sequence[str]) -> np.ndarray:
    """As :func:`look_at`, in threads."""
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        return np.concatenate([look_at(()), *pool.map(look_at, chunks)])


def look_at(paths: Sequence[str]) -> np.ndarray:
    """:func:`look` at each of many files: int64 ``[n, 3]``."""
    return np.array([look(path) for path in paths], np.int64).reshape(-1, 3)
