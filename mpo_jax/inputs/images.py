"""Images: safe opening and dynamic tiling, byte-equal to the released InternVL.

An image becomes a grid of square tiles whose shape is close to its own, plus one
thumbnail of the whole where there is more than one tile. Normalisation is left to
the device: what leaves here is uint8.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import stat
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image, PngImagePlugin

from mpo_jax import ledger
from mpo_jax.utils import file_kinds, missing_files

T = TypeVar("T")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow formats that may be opened; others have decoders that we need not trust."""

MAX_FILE_BYTES = 1 << 30
"""Larger image files are refused unread."""

MAX_METADATA_BYTES = 1 << 26
"""Text and colour profiles of a PNG, decompressed; pictures edited often have many."""

# Pillow's own limits are 1 MiB for one of them and 64 MiB for all; upstream raises the
# former to 1 GiB, so that such files are read there.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_METADATA_BYTES

_MISSING_ERRNOS = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read an image file as it is.

    Raises:
      BadRecord: ``image_missing``, ``image_unreadable`` (no permission) or
        ``image_too_large`` (more than :data:`MAX_FILE_BYTES`).
      OSError: the file system failed (such as an I/O error); not the record's fault.
    """
    path = os.fspath(path)
    if "\0" in path:
        raise ledger.BadRecord("image_missing", f"image {path!r} holds a NUL byte")
    try:
        status = os.stat(path)
        # A FIFO or device would block or never end, so look before opening.
        if not stat.S_ISREG(status.st_mode):
            detail = f"image {ledger.short(path, 300)} is not a file"
            raise ledger.BadRecord("image_missing", detail)
        if status.st_size > MAX_FILE_BYTES:
            detail = f"image {path!r} has {status.st_size} bytes, the limit is "
            raise ledger.BadRecord("image_too_large", f"{detail}{MAX_FILE_BYTES}")
        with open(path, "rb") as file:
            return file.read()
    except PermissionError as error:
        raise ledger.BadRecord(
            "image_unreadable", f"image {path!r}: {error}"
        ) from error
    except OSError as error:
        if error.errno not in _MISSING_ERRNOS:
            raise
        detail = f"image {ledger.short(path, 300)} {missing_files.why_missing(path)}"
        raise ledger.BadRecord("image_missing", detail) from error


def open_image(
    path: str | os.PathLike[str],
    *,
    max_pixels: int,
    read: Callable[[str], bytes] = read_file,
) -> Image.Image:
    """Open and decode an image file as RGB.

    As upstream: a plain conversion to RGB, first frame only, alpha dropped, EXIF
    orientation not applied. Unlike upstream, which decodes what is left of a
    truncated file, a truncated file is refused.

    Args:
      path: the image file.
      max_pixels: limit on width x height, checked from the header before decoding.
        Pillow has a limit of its own, ``Image.MAX_IMAGE_PIXELS``; a lower one is
        raised to this, for the whole process.
      read: gives the bytes; they may come from elsewhere, or have been read before.

    Raises:
      BadRecord: ``image_missing``, ``image_unreadable`` or ``image_too_large``.
      OSError: as :func:`read_file`.
    """
    return _opened(path, max_pixels, read, lambda image: image.convert("RGB"))


def image_size(
    path: str | os.PathLike[str],
    *,
    max_pixels: int,
    read: Callable[[str], bytes] = read_file,
) -> tuple[int, int]:
    """Width and height of an image file by its header; arguments as :func:`open_image`.

    Raises:
      BadRecord, OSError: as :func:`open_image`, as far as a header shows it.
    """
    return _opened(path, max_pixels, read, lambda image: image.size)


def _opened(
    path: str | os.PathLike[str],
    max_pixels: int,
    read: Callable[[str], bytes],
    use: Callable[[Image.Image], T],
) -> T:
    """What `use` makes of an image of bounded size, every failure as a BadRecord."""
    path = os.fspath(path)
    data = read(path)
    formats: list[str] = list(FORMATS)
    if path.lower().endswith(".tga"):
        formats.append("TGA")  # has no magic number: any bytes may pass as TGA
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            _check_size(path, image.size, max_pixels)
            return use(image)
    except (ledger.BadRecord, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        detail = f"image {path!r}: {error} {_pixel_remedy(max_pixels)}"
        raise ledger.BadRecord("image_too_large", detail) from error
    except Image.UnidentifiedImageError as error:
        detail = f"image {path!r} {_unidentified(data, formats)}"
        raise ledger.BadRecord("image_unreadable", detail) from error
    except Exception as error:  # decoders raise anything on malformed bytes
        detail = f"image {path!r} cannot be decoded: {_words(error)}"
        raise ledger.BadRecord("image_unreadable", detail) from error


def _unidentified(data: bytes, formats: list[str]) -> str:
    """Why Pillow found no format: what the bytes are, or what is wrong with them."""
    if not data:
        return "is empty; fetch the file again"
    kind = file_kinds.of_bytes(data[:64])
    if kind is not None:
        return f"is {kind.name}; {kind.remedy}"
    for name in formats:
        factory, accept = Image.OPEN[name]
        if accept is None or not accept(data[:16]):
            continue
        try:
            factory(io.BytesIO(data), "").close()
        except Exception as error:  # as above; Image.open has swallowed its words
            return f"begins as {name} but cannot be read: {_words(error)}"
    return f"is in none of the formats {', '.join(formats)}; convert it to PNG or JPEG"


def _words(error: Exception) -> str:
    """An error of a decoder, with a remedy where one is known."""
    text = str(error)[:200]
    remedy = ""
    if "truncated" in text.lower():
        remedy = "; the file is incomplete: fetch it again"
    elif "MAX_TEXT" in text:
        remedy = (
            f"; its text or colour profile has more than {MAX_METADATA_BYTES} bytes: "
            "strip it, such as with `mogrify -strip`"
        )
    return f"{type(error).__name__}: {text}{remedy}"


def _check_size(path: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        detail = f"image {path!r} has {width}x{height} pixels"
        raise ledger.BadRecord("image_unreadable", detail)
    if width * height > max_pixels:
        detail = f"image {path!r} has {width}x{height} pixels; "
        detail += _pixel_remedy(max_pixels)
        raise ledger.BadRecord("image_too_large", detail)


def _pixel_remedy(max_pixels: int) -> str:
    option = ledger.option("max_image_pixels")
    return f"the limit is {max_pixels}: raise {option} or shrink the image"


@functools.lru_cache(maxsize=64)
def _candidates(min_num: int, max_num: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) with min_num <= columns * rows <= max_num, small first."""
    if not 1 <= min_num <= max_num:
        raise ValueError(
            f"tile limits must satisfy 1 <= min_num <= max_num, got {min_num=}, "
            f"{max_num=}"
        )
    grids = [
        (columns, rows)
        for columns in range(1, max_num + 1)
        for rows in range(1, max_num // columns + 1)
        if columns * rows >= min_num
    ]
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0])))


def grid(
    width: int, height: int, *, min_num: int, max_num: int, image_size: int
) -> tuple[int, int]:
    """Choose the tile grid whose aspect ratio is nearest to the image's.

    Of grids equally near, a larger one wins if the image has more than half of its
    pixels (upstream ``find_closest_aspect_ratio``, exact float comparison included).

    Args:
      width, height: size of the image in pixels.
      min_num, max_num: limits on the number of tiles, thumbnail not counted.
      image_size: side of a tile in pixels.

    Returns:
      (columns, rows).

    Raises:
      ValueError: a size is not positive or the limits exclude each other.
    """
    if width < 1 or height < 1 or image_size < 1:
        raise ValueError(f"sizes must be positive: {width=}, {height=}, {image_size=}")
    ratio = width / height
    best, best_distance = (1, 1), float("inf")
    for columns, rows in _candidates(min_num, max_num):
        distance = abs(ratio - columns / rows)
        if distance < best_distance:
            best, best_distance = (columns, rows), distance
        elif distance == best_distance:
            if width * height > 0.5 * image_size * image_size * columns * rows:
                best = (columns, rows)
    return best


def tile_count(
    width: int,
    height: int,
    *,
    min_num: int,
    max_num: int,
    image_size: int,
    use_thumbnail: bool,
) -> int:
    """Number of tiles that :func:`tile` gives for an image of this size."""
    columns, rows = grid(
        width, height, min_num=min_num, max_num=max_num, image_size=image_size
    )
    count = columns * rows
    return count + 1 if use_thumbnail and count > 1 else count


def tile(
    image: Image.Image,
    *,
    min_num: int,
    max_num: int,
    image_size: int,
    use_thumbnail: bool,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Cut an RGB image into tiles (upstream ``dynamic_preprocess``).

    The whole image is resized to the grid (bicubic, aspect ratio not kept) and cut
    row by row; the thumbnail is the original resized to one tile.

    Args:
      image: RGB image, see :func:`open_image`.
      min_num, max_num, image_size: see :func:`grid`.
      use_thumbnail: append the thumbnail where there is more than one tile.
      out: where to write, C-contiguous uint8 ``[n, S, S, 3]``; tiles are large, and
        every copy that is spared counts.

    Returns:
      uint8 ``[n, S, S, 3]``, ``S = image_size``, the thumbnail last.

    Raises:
      ValueError: the image is not RGB, `out` has another shape, or as :func:`grid`.
    """
    if image.mode != "RGB":
        raise ValueError(f"tile() needs an RGB image, got mode {image.mode!r}")
    columns, rows = grid(
        *image.size, min_num=min_num, max_num=max_num, image_size=image_size
    )
    size, count = image_size, columns * rows
    thumbnail = use_thumbnail and count > 1
    shape = (count + thumbnail, size, size, 3)
    if out is None:
        out = np.empty(shape, np.uint8)
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype} {out.shape}, the tiles are uint8 {shape}")
    resized = image.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized).reshape(rows, size, columns, size, 3)
    cut = out[:count].reshape(rows, columns, size, size, 3)
    cut[...] = pixels.transpose(0, 2, 1, 3, 4)
    if thumbnail:
        out[count] = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    return out
