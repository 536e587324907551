"""Which modules a model directory's ``auto_map`` needs; nothing of them is ever run."""

from __future__ import annotations

import ast
import pathlib
from typing import Any

from mpo_jax.convert import files

_NAMING = ("config.json", "tokenizer_config.json", "preprocessor_config.json")


def missing(directory: str | pathlib.Path) -> list[str]:
    """A note for each file of a directory whose ``auto_map`` names absent code.

    Modules that a module imports from beside it count too.
    """
    directory = pathlib.Path(directory)
    notes = []
    for name in _NAMING:
        if not (directory / name).is_file():
            continue
        named = _modules(files.read_json(directory / name).get("auto_map"))
        absent = sorted(_absent(directory, named))
        if absent:
            notes.append(
                f"auto_map of {name} names code that the source does not have "
                f"({', '.join(absent)}), so that transformers cannot load it with "
                "trust_remote_code: put the *.py files of a released model of this "
                "family beside it"
            )
    return notes


def _modules(auto_map: Any) -> set[str]:
    """Module names of an ``auto_map``; those of another repository are not ours."""
    if not isinstance(auto_map, dict):
        return set()
    found = set()
    for value in auto_map.values():
        for reference in value if isinstance(value, list) else [value]:
            if isinstance(reference, str) and "--" not in reference:
                found.add(reference.split(".")[0])
    return found


def _absent(directory: pathlib.Path, modules: set[str]) -> set[str]:
    absent, seen, left = set(), set(), set(modules)
    while left:
        module = left.pop()
        seen.add(module)
        file = directory / f"{module}.py"
        if file.is_file():
            left |= _imported(file) - seen
        else:
            absent.add(file.name)
    return absent


def _imported(file: pathlib.Path) -> set[str]:
    """Modules that a file imports from beside it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()  # of another Python; what it imports is its own matter
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module] if node.module else [a.name for a in node.names]
            found |= {name.split(".")[0] for name in names}
    return found
