"""Steps that write numbers slowly, as a program of their own.

python toy_steps.py WORKDIR '{"start": 1}'
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from typing import Any

from mpo_jax.run import steps

LINES = 40


def make(folder: pathlib.Path, settings: dict[str, Any], below: list[pathlib.Path]):
    """A line at a time, after those that are there; a torn last one is written anew."""
    first = settings["start"] + sum(
        int(line) for path in below for line in path.read_text().split()
    )
    file = folder / "numbers"
    said = file.read_text() if file.exists() else ""
    said = said[: said.rfind("\n") + 1]
    for number in range(said.count("\n"), LINES):
        said += f"{first + number}\n"
        file.write_text(said)
        time.sleep(settings.get("pause", 0.0))
    return {"sum": sum(map(int, said.split()))}


def toys(
    workdir: pathlib.Path, settings: dict[str, Any], *, log: list[str] | None = None
) -> list[steps.Step]:
    """Two steps, and a third one upon both."""

    def step(name: str, *after: str) -> steps.Step:
        folder = workdir / name
        below = [workdir / one / "numbers" for one in after]
        # Pauses do not change what is made.
        counts = {key: settings[key] for key in settings if key != "pause"}

        def run() -> dict[str, Any]:
            if log is not None:
                log.append(name)
            return make(folder, settings, below)

        return steps.Step(name, folder, counts, run, after)

    return [step("one"), step("two"), step("sum", "one", "two")]


def files(workdir: pathlib.Path) -> dict[str, bytes]:
    found = sorted(path for path in workdir.rglob("*") if path.is_file())
    return {str(path.relative_to(workdir)): path.read_bytes() for path in found}


if __name__ == "__main__":
    place = pathlib.Path(sys.argv[1])
    steps.run_steps(toys(place, json.loads(sys.argv[2])), place / "run.lock")
