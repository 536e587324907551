"""Whether a checkpoint without a manifest can be read as a whole.

Orbax finds damage while it loads, on the process that meets it, and then the others
wait. So it is looked for beforehand: what must be there, and every array, which is read
and dropped. That finds what is cut, missing or no longer decodes, not a flipped bit.
"""

from __future__ import annotations

import itertools
import json
import posixpath
from collections.abc import Iterator
from typing import Any

import tensorstore

from mpo_jax.checkpoint import manifest as manifest_lib
from mpo_jax.utils import remote

CHECKPOINT = "_CHECKPOINT_METADATA"
TREE = "_METADATA"
_STORE = "manifest.ocdbt"
_ARRAYS = ("jax.Array", "np.ndarray", "scalar")  # Orbax's names
_MAX_BYTES = 256 * 2**20


def structure(
    files: manifest_lib.Files, listing: manifest_lib.Listing, *, within: str
) -> list[str]:
    """What is missing or empty or no JSON, of what a checkpoint of trees must have.

    Args:
      within: only the tree in this folder (``params/``); "" takes all.
    """
    problems: list[str] = []
    top = _json(files, listing, CHECKPOINT, problems)
    items = top.get("item_handlers")
    if not problems and not (isinstance(items, dict) and items):
        problems.append(f"{CHECKPOINT}: names no trees")
    for item in sorted(items) if isinstance(items, dict) else ():
        if not f"{item}/".startswith(within):
            continue
        tree = _json(files, listing, f"{item}/{TREE}", problems)
        if tree and not isinstance(tree.get("tree_metadata"), dict):
            problems.append(f"{item}/{TREE}: names no arrays")
        store = listing.get(f"{item}/{_STORE}")
        if store is None or not store.size:
            problems.append(f"{item}/{_STORE}: {'empty' if store else 'missing'}")
    return problems


def _json(
    files: manifest_lib.Files,
    listing: manifest_lib.Listing,
    name: str,
    problems: list[str],
) -> dict[str, Any]:
    stored = listing.get(name)
    if stored is None or not stored.size:
        problems.append(f"{name}: {'empty' if stored else 'missing'}")
        return {}
    try:
        found = json.loads(files.read(name, _MAX_BYTES))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        problems.append(f"{name}: damaged, it is no JSON object")
        return {}
    return found


def arrays(
    directory: Any,
    files: manifest_lib.Files,
    listing: manifest_lib.Listing,
    *,
    part: int,
    parts: int,
) -> list[str]:
    """Read this process's share of the arrays, a chunk at a time; what went wrong.

    Args:
      directory: of the checkpoint, whose :func:`structure` is sound.
    """
    problems = []
    for name in sorted(listing):
        item, _, rest = name.partition("/")
        if rest != TREE:
            continue
        described = json.loads(files.read(name, _MAX_BYTES))
        wanted = sorted(_leaves(described))
        for path in wanted[part::parts]:
            try:
                _read(directory, item, path, zarr3=bool(described.get("use_zarr3")))
            except (ValueError, OSError) as error:  # all that TensorStore raises
                text = " ".join(str(error).split())
                problems.append(f"{item}/{path}: cannot be read ({text[:200]})")
    return problems


def _leaves(described: dict[str, Any]) -> Iterator[str]:
    """Names of the arrays of a tree in its store."""
    for leaf in described["tree_metadata"].values():
        if leaf.get("value_metadata", {}).get("value_type") in _ARRAYS:
            yield ".".join(str(key["key"]) for key in leaf["key_metadata"])


def _read(directory: Any, item: str, path: str, *, zarr3: bool) -> None:
    base = str(directory) if remote.is_remote(directory) else directory.as_uri()
    store: Any = tensorstore.open(
        {
            "driver": "zarr3" if zarr3 else "zarr",
            "kvstore": {
                "driver": "ocdbt",
                "base": posixpath.join(base, item, ""),
                "path": f"{path}/",
            },
        },
        open=True,
        read=True,
    ).result()
    sizes = store.chunk_layout.read_chunk.shape or store.shape  # a scalar has none
    ranges = [
        range(0, whole, max(size, 1))
        for whole, size in zip(store.shape, sizes, strict=True)
    ]
    for corner in itertools.product(*ranges):
        piece = tuple(
            slice(start, min(start + size, whole))
            for start, size, whole in zip(corner, sizes, store.shape, strict=True)
        )
        store[piece].read().result()
