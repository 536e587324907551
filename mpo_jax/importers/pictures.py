"""Images of a record: files that stay where they are, and bytes that get a file.

A value is a path, bytes, base64 text, a data URL or an object ``{bytes, path}`` as the
``datasets`` library stores it. Nothing is fetched from a network.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import io
import os
import pathlib
import re
import stat
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from mpo_jax import ledger
from mpo_jax.importers import messages
from mpo_jax.inputs import images

BESIDE, ANYWHERE, STORED = "root", "absolute", "stored"
"""Kinds of place: below the image root, elsewhere on this machine, in the folder of
the import."""

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_FORMATS = (*images.FORMATS, "TGA")
_EXTENSIONS = {kind: f".{kind.lower()}" for kind in _FORMATS} | {
    "JPEG": ".jpg",
    "TIFF": ".tif",
}


@dataclasses.dataclass
class Pictures:
    """Turns the images of records into paths of MMPR.

    Attributes:
      folder: where images that come as bytes are written, named by their hash; None
        checks them and writes nothing.
      max_pixels: larger images are refused before they are decoded.
      copy: also copy images that are files.
    """

    folder: pathlib.Path | None
    max_pixels: int
    copy: bool = False

    def place(self, values: Sequence[Any], root: str) -> tuple[str, list[str]]:
        """Find a record's images, or store them.

        Args:
          values: as the record has them.
          root: absolute folder that relative paths are below.

        Returns:
          Kind of place, and paths relative to it: to `root` for :data:`BESIDE`, to
          ``/`` for :data:`ANYWHERE`, to `folder` for :data:`STORED`. All images of a
          record are in one place; bytes draw files along.

        Raises:
          BadRecord: ``bad_field``, ``image_missing``, ``image_unreadable`` or
            ``image_too_large``.
        """
        if not values:  # needs a root nevertheless, one that is there
            return BESIDE if os.path.isdir(root) else STORED, []
        found = [_read(value, root) for value in values]
        if self.copy or any(isinstance(item, bytes) for item in found):
            return STORED, [self._store(item, n) for n, item in enumerate(found, 1)]
        paths = [item for item in found if isinstance(item, str)]
        for path in paths:
            _check_file(path)
        if all(_below(path, root) for path in paths):
            return BESIDE, [os.path.relpath(path, root) for path in paths]
        return ANYWHERE, [os.path.relpath(path, "/") for path in paths]

    def _store(self, item: str | bytes, number: int) -> str:
        """Write an image under its hash, once; returns the path below the folder."""
        label = item if isinstance(item, str) else f"image {number} of the record"
        data = images.read_file(item) if isinstance(item, str) else item
        if len(data) > images.MAX_FILE_BYTES:
            detail = f"{label}: {len(data)} bytes, the limit is {images.MAX_FILE_BYTES}"
            raise ledger.BadRecord("image_too_large", detail)
        digest = hashlib.sha256(data).hexdigest()
        stem = f"{digest[:2]}/{digest}"
        if self.folder is not None:
            for extension in _EXTENSIONS.values():
                if (self.folder / (stem + extension)).exists():
                    return stem + extension
        images.open_image(label, max_pixels=self.max_pixels, read=lambda _: data)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            name = stem + _EXTENSIONS[str(image.format)]
        if self.folder is not None:
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        return name


def _read(value: Any, root: str) -> str | bytes:
    """Absolute path of an image file, or the bytes of an image."""
    if isinstance(value, Mapping):
        inner = next(
            (
                value[key]
                for key in ("bytes", "path", "url", "image")
                if value.get(key) is not None
            ),
            None,
        )
        if inner is None or isinstance(inner, Mapping):
            raise messages.bad(
                "image", f"has no bytes and no path: {messages.short(value)}"
            )
        return _read(inner, root)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str) or not value:
        raise messages.bad(
            "image",
            f"must be a path, bytes or {{bytes, path}}: {messages.short(value)}",
        )
    if value.startswith("data:"):
        return _data_url(value)
    if _BASE64.fullmatch(value):
        data = _decoded(value)
        if data is not None and data.startswith(_MAGIC):
            return data
    if value.startswith("file://"):
        value = urllib.parse.unquote(urllib.parse.urlsplit(value).path)
    if "://" in value:
        detail = (
            f"image: {messages.short(value)} is an address; nothing is fetched here. "
            "Download the images and give their folder with --image_root"
        )
        raise ledger.BadRecord("image_missing", detail)
    return os.path.normpath(os.path.join(root, value))


def _data_url(value: str) -> bytes:
    head, _, body = value.partition(",")
    data = _decoded(urllib.parse.unquote(body)) if head.endswith(";base64") else None
    if data is None:
        detail = f"image: {messages.short(value)} is not a data URL in base64"
        raise ledger.BadRecord("image_unreadable", detail)
    return data


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def _check_file(path: str) -> None:
    """As the index will find it; decoding is left to the index."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        regular = False
    if not regular:
        detail = (
            f"image: {messages.short(path)} is not a file; paths are relative to "
            "--image_root (the folder of the input where it is not given)"
        )
        raise ledger.BadRecord("image_missing", detail)


def _below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")
