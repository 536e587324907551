"""Image paths as records write them: to files below the root, or to a plain refusal.

Joining is lexical: links below the root are the user's, ``..`` is the file's. What
people also write (URLs, base64, lists as text) is no path and is refused as such.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from mpo_jax import ledger
from mpo_jax.mmpr import meta, places
from mpo_jax.utils import located, objects

MAX_IMAGES = 256
"""Images per record; a line of a megabyte could otherwise name 200,000."""

MAX_PATH = 4096
"""Bytes of a path; Linux opens no longer one."""

_MAGIC_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")  # PNG, JPEG, GIF, WebP
_BASE64 = re.compile(r"[A-Za-z0-9+/=_\-\s]{60,}")
FILES = (
    "image data belongs in a file of its own, and its path in the record; "
    "scripts/import_data.py writes both"
)
"""What to do about image data in a record."""


def resolve(value: Any, source: meta.Source) -> tuple[str, ...]:
    """Absolute paths of the images that a record names.

    Args:
      value: of the field ``image``; None, "" and [] mean that there are none.
      source: of the record; its root is joined, its reroot applied to absolute paths.

    Returns:
      Normalised paths or addresses below the root, in order.

    Raises:
      BadRecord: ``bad_field`` for what is no path, ``image_missing`` for a path that
        does not lie below the root.
    """
    if value is None or value == "" or value == []:
        return ()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name for name in names
    ):
        hint = f"; {FILES}" if isinstance(value, dict) or _has_dict(value) else ""
        raise ledger.BadRecord(
            "bad_field",
            f"image must be a path or a list of paths, got {ledger.short(value)}{hint}",
        )
    if len(names) > MAX_IMAGES:
        detail = f"image lists {len(names)} files, the limit is {MAX_IMAGES}"
        raise ledger.BadRecord("bad_field", detail)
    return tuple(_below_root(name, source) for name in names)


def holds_base64(line: bytes) -> bool:
    """Whether a line seems to have image data in a text."""
    starts = [f'"{magic}' for magic in (*_MAGIC_BASE64, "data:image/")]
    return any(start.encode() in line for start in starts)


def _has_dict(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _below_root(name: str, source: meta.Source) -> str:
    problem = no_path(name)
    if problem is not None:
        raise ledger.BadRecord("bad_field", f"image {problem}")
    path = name
    if path.startswith("/") or "://" in path:
        path = places.moved(path, source.reroot)
    if "://" in path:
        if objects.is_store(path):
            path = located.normal(path)
            if source.anywhere or path.startswith(source.root.rstrip("/") + "/"):
                return path
        raise ledger.BadRecord("bad_field", f"image {_url(path, source.root)}")
    path = os.path.normpath(path)
    if os.path.isabs(path):
        path = "/" + path.lstrip("/")  # POSIX keeps two leading slashes
        if source.anywhere or path.startswith(source.root.rstrip("/") + "/"):
            return path
        raise ledger.BadRecord(
            "image_missing",
            f"image {ledger.short(name, 300)} is absolute and not below the root "
            f"{source.root!r}; name a root in meta.json that holds it ('' takes any "
            f"absolute path), or replace its beginning with "
            f"{ledger.option('reroot', 'OLD=NEW')}",
        )
    if path.split("/")[0] in ("..", "."):
        raise ledger.BadRecord(
            "image_missing",
            f"image {ledger.short(name, 300)} is not a file below the root "
            f"{source.root!r}; name a root in meta.json that holds it",
        )
    if "://" in source.root:
        return located.join(source.root, path)
    return os.path.join(source.root, path)


def no_path(name: str) -> str | None:
    """Why a text can be no path (a sentence about an image), None where it can."""
    is_data = name.startswith(_MAGIC_BASE64) and _BASE64.fullmatch(name[:4096])
    if name.startswith("data:") or is_data:
        return f"holds {len(name)} characters of base64, {name[:24]!r}...; {FILES}"
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError as error:
        return f"{ledger.short(name)} holds a lone surrogate at character {error.start}"
    if "\0" in name:
        return f"{ledger.short(name)} holds a NUL character, which no path can"
    if size > MAX_PATH:
        return (
            f"has {size} bytes, no path is longer than {MAX_PATH}: "
            f"{ledger.short(name)}; {FILES}"
        )
    listed = re.fullmatch(r"\s*\[\s*(['\"]).*\1\s*\]\s*", name, re.DOTALL)
    if listed:
        written = json.dumps(name.split(listed[1])[1::2], ensure_ascii=False)
        return (
            f"{ledger.short(name)} is a list written as text; write a JSON list: "
            f"{written[:200]}"
        )
    return None


def _url(path: str, root: str) -> str:
    scheme, _, rest = path.partition("://")
    shown = ledger.short(path, 300)
    if scheme == "file":
        return f"{shown} is a URL; write the path alone: {'/' + rest.lstrip('/')!r}"
    folder = path.rpartition("/")[0]
    rule = ledger.option("reroot", f"{folder}={root}")
    return (
        f"{shown} is a URL; copy the files below the root and write paths relative to "
        f"it, or give {rule}"
    )
