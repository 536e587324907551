"""Tables for the terminal and JSON files with the machine in words."""

from __future__ import annotations

import json
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> dict[str, Any]:
    """What a figure depends on: processor, cores that this process may use, Python."""
    model = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "processor": model,
        "cores": cores or os.cpu_count(),
        "python": platform.python_version(),
    }


def write(path: str | pathlib.Path, result: dict[str, Any]) -> None:
    """Write a result beside the machine that it was taken on, and say where."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), **result}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten: {path}")
