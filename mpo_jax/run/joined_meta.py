"""Several meta.json files as one: each entry's paths as seen from the new one."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from mpo_jax.generate import results


def join(
    metas: Sequence[tuple[pathlib.Path, int]], target: pathlib.Path
) -> dict[str, Any]:
    """Write all sources of some meta.json files into one.

    Args:
      metas: files with the tile limit of their sources; an entry's own wins.
      target: the new file. Its paths are relative to its folder.

    Returns:
      What is in it.

    Raises:
      ValueError: two files have a source of one name; a source has no records at all.
    """
    joined: dict[str, Any] = {}
    for path, max_tiles in metas:
        for name, entry in json.loads(path.read_text(encoding="utf-8")).items():
            if name in joined:
                raise ValueError(
                    f"{path}: a source is called {name!r}, and so is one of another "
                    "file; name the questions' files so that they differ"
                )
            if not entry.get("length"):
                continue  # training takes no empty source
            moved = {
                key: _moved(entry[key], path.parent, target.parent)
                for key in ("root", "annotation")
            }
            joined[name] = {"max_dynamic_patch": max_tiles, **entry, **moved}
    if not joined:
        files = ", ".join(str(path) for path, _ in metas)
        raise ValueError(f"{files}: there is no pair to train on")
    results.write_json(target, joined)
    return joined


def _moved(path: str, before: pathlib.Path, now: pathlib.Path) -> str:
    return os.path.relpath(os.path.join(before.absolute(), path), now.absolute())
