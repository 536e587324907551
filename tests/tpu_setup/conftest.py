"""Stand-ins on PATH that record how they are called and play what a test wrote."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

_STAND_IN = """#!{python} -SE
import json, os, sys
name, base = os.path.basename(sys.argv[0]), {base!r}
with open(os.path.join(base, "calls.jsonl"), "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
path = os.path.join(base, "script.json")
with open(path) as file:
    script = json.load(file)
line = " ".join([name, *sys.argv[1:]])
for part, answers in script.items():
    if part in line and answers:
        code, text, *errors = answers.pop(0) if len(answers) > 1 else answers[0]
        with open(path, "w") as file:
            json.dump(script, file)
        sys.stdout.write(text)
        sys.stderr.write("".join(errors))
        sys.exit(code)
"""


class StandIns:
    """A folder of recording programs, first in PATH.

    ``script`` maps a part of a command line to answers ``(exit status, stdout)`` or
    ``(exit status, stdout, stderr)`` in order, the last one repeated; a call that no
    part matches succeeds silently.
    """

    def __init__(self, base: pathlib.Path) -> None:
        self.base = base
        self.bin = base / "bin"
        self.bin.mkdir()
        self.script({})

    def add(self, *names: str) -> None:
        for name in names:
            path = self.bin / name
            path.write_text(
                _STAND_IN.format(python=sys.executable, base=str(self.base))
            )
            path.chmod(0o755)

    def script(self, answers: Mapping[str, Sequence[tuple[int | str, ...]]]) -> None:
        (self.base / "script.json").write_text(json.dumps(answers))

    def calls(self, *names: str) -> list[list[str]]:
        """Words of every call, in order; of these programs only, if any is named."""
        path = self.base / "calls.jsonl"
        if not path.exists():
            return []
        found = [json.loads(line) for line in path.open()]
        return [call for call in found if not names or call[0] in names]

    def run(
        self, argv: Sequence[str | pathlib.Path], **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in argv],
            env={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", **env},
            capture_output=True,
            text=True,
            timeout=500,  # of a busy machine; pytest's own comes after it
        )


@pytest.fixture
def stand_ins(tmp_path: pathlib.Path) -> StandIns:
    return StandIns(tmp_path)


@pytest.fixture
def shell_words() -> Callable[[str], list[str]]:
    """Words that bash makes of a line (shlex does not know ``$'...'``)."""

    def split(line: str) -> list[str]:
        dump = "import json, sys; print(json.dumps(sys.argv[1:]))"
        code = f'words() {{ "$0" -c {json.dumps(dump)} "$@"; }}; words {line}'
        done: Any = subprocess.run(
            ["bash", "-c", code, sys.executable],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return json.loads(done.stdout)

    return split
