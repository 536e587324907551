"""Manifests: size and checksum of every file of a checkpoint.

They stand beside the files, ``mpo-manifest-I-of-N.json`` of process I: each reads back
the files that it has written, so that no process reads a whole checkpoint and none
waits for another. All N together are the manifest; each appears whole or not at all.
"""

from __future__ import annotations

import base64
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mpo_jax.checkpoint import files as files_lib
from mpo_jax.utils import remote

FORMAT = 1
_NAME = re.compile(r"mpo-manifest-(\d{1,6})-of-(\d{1,6})\.json")
_WRITER = re.compile(r"process_(\d{1,6})(?:/|$)")
_MAX_BYTES = 256 * 2**20
_THREADS = 8

Files = files_lib.Local | files_lib.Remote
Listing = Mapping[str, remote.Stored]
Entry = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the manifests of a checkpoint say.

    Attributes:
      step: of the checkpoint; None where there is no manifest.
      missing: manifests that are not there, of how many; why the checkpoint cannot be
        verified as a whole. "" if all are there.
      files: ``{"size": bytes, kind of checksum: value}`` by path.
      problems: what is wrong with the manifests themselves.
      fingerprint: of their content.
    """

    step: int | None
    missing: str
    files: dict[str, Entry]
    problems: list[str]
    fingerprint: str


def is_manifest(name: str) -> bool:
    """Whether a path within a checkpoint is one of its manifests."""
    return _NAME.fullmatch(name) is not None


def name_of(part: int, parts: int) -> str:
    return f"mpo-manifest-{part}-of-{parts}.json"


def write(files: Files, *, step: int, part: int, parts: int) -> None:
    """Write this process's manifest of a checkpoint that is complete.

    A local file is read back for its checksum; of an object the store's own is taken.

    Args:
      part: number of this process, of `parts`.
    """
    listing = files.listed()
    mine = [
        name
        for name in sorted(listing)
        if not is_manifest(name) and _writer(name, parts) == part
    ]

    def entry(name: str) -> Entry:
        stored = listing[name]
        sums = stored.sums or {files_lib.BLAKE2B: files.digest(name).hexdigest()}
        return {"size": stored.size, **sums}

    body = {
        "format": FORMAT,
        "step": step,
        "part": part,
        "parts": parts,
        "files": dict(zip(mine, _all(entry, mine), strict=True)),
    }
    files.write(name_of(part, parts), _encoded(body))


def _writer(name: str, parts: int) -> int:
    """The process that wrote a file: Orbax names it; else the first."""
    found = _WRITER.search(name)
    return int(found[1]) % parts if found else 0


def _encoded(body: dict[str, Any]) -> bytes:
    def text(value: Any) -> str:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    own = files_lib.blake2b(text(body).encode()).hexdigest()
    return text({files_lib.BLAKE2B: own, "manifest": body}).encode()


def read(files: Files, listing: Listing) -> Manifest:
    """Read the manifests of a checkpoint, whole and undamaged or with problems."""
    names = sorted(filter(is_manifest, listing))
    found: dict[str, Entry] = {}
    problems, bodies = [], []
    seen = files_lib.blake2b()
    for name in names:
        if listing[name].size > _MAX_BYTES:
            problems.append(f"{name}: {listing[name].size} bytes are no manifest")
            continue
        raw = files.read(name, _MAX_BYTES) if listing[name].size else b""
        seen.update(raw)
        body = _decoded(raw)
        if body is None or name_of(body["part"], body["parts"]) != name:
            problems.append(f"{name}: damaged, it is not as it was written")
            continue
        bodies.append(body)
        found |= body["files"]
    present = {tuple(map(int, _groups(name))) for name in names}
    parts = {number for _, number in present}
    steps = {body["step"] for body in bodies}
    if len(parts) > 1 or len(steps) > 1:
        problems.append(f"{', '.join(names)}: manifests of different saves")
    missing = ""
    if not names:
        missing = "it has no manifest"
    elif len(parts) == 1 and (total := parts.pop()) > len(present):
        missing = f"{total - len(present)} of its {total} manifests are missing"
    return Manifest(
        step=min(steps, default=None),
        missing=missing,
        files=found,
        problems=problems,
        fingerprint=seen.hexdigest(),
    )


def _groups(name: str) -> Sequence[str]:
    found = _NAME.fullmatch(name)
    assert found is not None
    return found.groups()


def _decoded(raw: bytes) -> dict[str, Any] | None:
    """Content of a manifest; None unless it is what :func:`write` writes, byte by byte.

    Raises:
      ValueError: if it is sound, and of another version of this program.
    """
    try:
        body = json.loads(raw)["manifest"]
        if _encoded(body) != raw:
            return None
        version = body["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if version != FORMAT:
        raise ValueError(
            f"a manifest has format {version}, this version of mpo-jax reads {FORMAT}; "
            "use the version that wrote the checkpoint"
        )
    return body


def share(manifest: Manifest, *, within: str, part: int, parts: int) -> list[str]:
    """Files that this process compares: all processes' shares are about as long.

    Args:
      within: leaves out files whose path has a folder and begins otherwise.
    """
    names = [n for n in manifest.files if "/" not in n or n.startswith(within)]
    names.sort(key=lambda name: (-int(manifest.files[name]["size"]), name))
    loads, mine = [0] * parts, []
    for name in names:
        lightest = loads.index(min(loads))
        loads[lightest] += int(manifest.files[name]["size"])
        if lightest == part:
            mine.append(name)
    return mine


def compare(
    files: Files,
    listing: Listing,
    manifest: Manifest,
    names: Iterable[str],
    *,
    contents: bool = True,
) -> list[str]:
    """What is wrong with files, one line each.

    Args:
      contents: False compares sizes, and checksums only where a store gives them.

    Raises:
      OSError: if a file is there and cannot be read: that is no damage yet.
    """
    names = list(names)

    def problem(name: str) -> str | None:
        return _problem(files, listing, manifest.files[name], name, contents=contents)

    return [found for found in _all(problem, names) if found is not None]


def _problem(
    files: Files, listing: Listing, entry: Entry, name: str, *, contents: bool
) -> str | None:
    stored = listing.get(name)
    if stored is None:
        return f"{name}: missing"
    if stored.size != entry["size"]:
        return f"{name}: {stored.size} bytes, {entry['size']} were written"
    for kind, value in stored.sums.items():
        if kind in entry:
            return None if value == entry[kind] else f"{name}: another content ({kind})"
    if not contents:
        return None
    try:
        return _content_problem(files, entry, name)
    except FileNotFoundError:
        return f"{name}: missing"


def _content_problem(files: Files, entry: Entry, name: str) -> str | None:
    if files_lib.BLAKE2B in entry:
        same = files.digest(name).hexdigest() == entry[files_lib.BLAKE2B]
    elif "md5Hash" in entry:  # an object of Google's, copied to a disk
        found = files.digest(name, hashlib.md5).digest()
        same = base64.b64encode(found).decode() == entry["md5Hash"]
    else:  # of a store whose checksums cannot be made here: the size must do
        same = True
    return None if same else f"{name}: another content (checksum)"


def _all(work: Callable[[str], Any], names: Sequence[str]) -> list[Any]:
    """Work on files side by side: checksums are made without the interpreter's lock."""
    threads = min(_THREADS, os.cpu_count() or 1, max(len(names), 1))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, names))
