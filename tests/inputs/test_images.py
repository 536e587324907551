"""Tiling against the reference's bytes; opening against files that lie."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mpo_jax import ledger
from mpo_jax.inputs import images

LIMIT = 89_478_485


def sha(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def save(path, size=(40, 30), mode="RGB", **options):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    image.convert(mode).save(path, **options)
    return path


def refusal(path, *, max_pixels=LIMIT) -> ledger.BadRecord:
    with pytest.raises(ledger.BadRecord) as caught:
        images.open_image(path, max_pixels=max_pixels)
    assert os.path.basename(str(path)) in caught.value.detail
    return caught.value


def test_tiles_equal_every_synthetic_golden(shared):
    folder = shared / "goldens" / "tiling"
    cases = json.loads((folder / "tiling.json").read_text())["cases"]
    assert len(cases) == 17 * 6
    for case in cases:
        image = images.open_image(folder / case["image"], max_pixels=LIMIT)
        policy = {
            key: case[key]
            for key in ("min_num", "max_num", "image_size", "use_thumbnail")
        }
        tiles = images.tile(image, **policy)
        assert tiles.dtype == np.uint8
        assert len(tiles) == case["num_tiles"], case
        assert sha(tiles.tobytes()) == case["tiles_sha256"], case
        assert images.tile_count(*image.size, **policy) == case["num_tiles"]


def test_tiles_equal_every_golden_of_odd_real_images(shared):
    folder = shared / "data" / "images"
    golden = json.loads((folder / "golden_dynamic_preprocess.json").read_text())
    modes = set()
    for name, case in golden["images"].items():
        image = images.open_image(folder / name, max_pixels=LIMIT)
        modes.add(case["mode"])
        assert list(image.size) == case["size"], name
        assert sha(image.tobytes()) == case["rgb_sha256"], name
        for max_num, expected in case["tiles"].items():
            policy: dict[str, Any] = dict(
                min_num=1, max_num=int(max_num), image_size=448, use_thumbnail=True
            )
            assert images.tile_count(*image.size, **policy) == expected["n"], name
            if "sha256" in expected:
                tiles = images.tile(image, **policy)
                hashes = [sha(tile.tobytes())[:16] for tile in tiles]
                assert hashes == expected["sha256"], (name, max_num)
    assert {"I;16", "1", "P", "L", "LA", "RGBA", "CMYK"} <= modes


def test_grids_equal_every_golden(shared):
    path = shared / "data" / "images" / "golden_grids.json"
    golden = json.loads(path.read_text())
    limits = [int(name.removeprefix("max")) for name in golden["columns"][2:]]
    for width, height, *grids in golden["rows"]:
        for max_num, expected in zip(limits, grids, strict=True):
            found = images.grid(
                width, height, min_num=1, max_num=max_num, image_size=448
            )
            assert list(found) == expected, (width, height, max_num)


@pytest.mark.parametrize(
    ("size", "max_num", "expected"),
    [
        ((633, 633), 12, (1, 1)),  # 400689 pixels: not more than half of 2x2 tiles
        ((634, 634), 12, (2, 2)),
        ((1280, 1024), 6, (3, 2)),  # 1.25 lies between 1:1 and 3:2, the larger wins
        ((500, 400), 6, (1, 1)),  # the same, but too small an image
        ((4000, 300), 12, (12, 1)),
        ((300, 4000), 12, (1, 12)),
    ],
)
def test_ties_and_extremes(size, max_num, expected):
    found = images.grid(*size, min_num=1, max_num=max_num, image_size=448)
    assert found == expected


@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    min_num=st.integers(1, 4),
    extra=st.integers(0, 8),
    use_thumbnail=st.booleans(),
)
def test_count_grid_and_tiles_agree(width, height, min_num, extra, use_thumbnail):
    limits = dict(min_num=min_num, max_num=min_num + extra, image_size=8)
    columns, rows = images.grid(width, height, **limits)
    assert min_num <= columns * rows <= min_num + extra
    image = Image.new("RGB", (width, height), (1, 2, 3))
    tiles = images.tile(image, use_thumbnail=use_thumbnail, **limits)
    count = images.tile_count(width, height, use_thumbnail=use_thumbnail, **limits)
    assert tiles.shape == (count, 8, 8, 3)
    assert (tiles == np.array([1, 2, 3])).all()
    assert count == columns * rows + (use_thumbnail and columns * rows > 1)


def test_tiles_are_cut_row_by_row_and_the_thumbnail_is_last():
    quarters = np.array([[10, 20], [30, 40]], np.uint8).repeat(8, 0).repeat(8, 1)
    image = Image.fromarray(quarters).convert("RGB")
    tiles = images.tile(image, min_num=4, max_num=4, image_size=8, use_thumbnail=True)
    assert [int(tile[4, 4, 0]) for tile in tiles[:4]] == [10, 20, 30, 40]
    assert len(np.unique(tiles[4])) > 1


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="min_num=3, max_num=2"):
        images.grid(10, 10, min_num=3, max_num=2, image_size=8)
    with pytest.raises(ValueError, match="height=0"):
        images.grid(10, 0, min_num=1, max_num=2, image_size=8)
    with pytest.raises(ValueError, match="mode 'L'"):
        images.tile(
            Image.new("L", (4, 4)),
            min_num=1,
            max_num=1,
            image_size=8,
            use_thumbnail=False,
        )


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", exif=exif)
    assert images.open_image(path, max_pixels=LIMIT).size == (40, 30)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    path = tmp_path / "a.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    image = images.open_image(path, max_pixels=LIMIT)
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_missing_and_odd_paths(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    save(tmp_path / "plain.png")
    for name in ("none.png", "folder.png", "pipe.png", "plain.png/x.png"):
        assert refusal(tmp_path / name).reason == "image_missing"
    with pytest.raises(ledger.BadRecord, match="NUL"):
        images.open_image("a\0b.png", max_pixels=LIMIT)
    with pytest.raises(ledger.BadRecord, match="image_missing"):
        images.open_image("x" * 5000, max_pixels=LIMIT)


def test_every_truncation_of_a_file_is_refused(tmp_path):
    for kind in ("jpg", "png", "webp", "bmp", "ppm"):
        data = save(tmp_path / f"whole.{kind}").read_bytes()
        for share in (0.0, 0.1, 0.5, 0.9):
            path = tmp_path / f"cut.{kind}"
            path.write_bytes(data[: int(len(data) * share)])
            assert refusal(path).reason == "image_unreadable", (kind, share)


def test_bytes_that_are_no_image_are_refused(tmp_path):
    for name, data in {
        "text.jpg": b"hello",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "picture.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "noise.tga": bytes(range(256)),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert refusal(tmp_path / name).reason == "image_unreadable"


def test_formats_outside_the_list_are_refused(tmp_path):
    path = save(tmp_path / "a.ico")
    assert "is an icon file; convert it to PNG" in refusal(path).detail
    # A Targa image has no signature, so its name must say what it is.
    path = save(tmp_path / "a.tga")
    assert images.open_image(path, max_pixels=LIMIT).size == (40, 30)
    assert refusal(path.rename(tmp_path / "b.png")).reason == "image_unreadable"


@given(st.data())
def test_flipped_bytes_give_an_image_or_a_refusal(tmp_path_factory, data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "PPM"]))
    stream = io.BytesIO()
    Image.new("RGB", (9, 7), "green").save(stream, kind)
    raw = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flip", numbered=True) / "x"
    path.write_bytes(bytes(raw))
    try:
        image = images.open_image(path, max_pixels=1_000_000)
    except ledger.BadRecord as bad:
        assert bad.reason in ("image_unreadable", "image_too_large")
    else:
        assert image.mode == "RGB" and image.width * image.height <= 1_000_000


def bomb(width: int, height: int) -> bytes:
    """A PNG of some dozen bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def test_decompression_bombs_are_refused_from_the_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(100_000, 100_000))
    assert refusal(path).reason == "image_too_large"
    path.write_bytes(bomb(4000, 4000))
    bad = refusal(path, max_pixels=4000 * 4000 - 1)
    assert bad.reason == "image_too_large"
    assert "4000x4000" in bad.detail and "data.max_image_pixels" in bad.detail
    # Within the limit the same file is decoded, and found to lack its pixels.
    assert refusal(path, max_pixels=4000 * 4000).reason == "image_unreadable"


def test_pixel_limit_is_inclusive(tmp_path):
    path = save(tmp_path / "a.png")
    assert images.open_image(path, max_pixels=1200).size == (40, 30)
    assert refusal(path, max_pixels=1199).reason == "image_too_large"


def test_the_limit_may_be_above_that_of_pillow(tmp_path, monkeypatch):
    """Twice Pillow's own limit is refused by it before we are asked."""
    path = save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert images.open_image(path, max_pixels=1200).size == (40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    bad = refusal(path, max_pixels=499)
    assert bad.reason == "image_too_large"
    assert "the limit is 499: raise data.max_image_pixels (--max" in bad.detail


def with_chunk(data: bytes, kind: bytes, content: bytes, *, good: bool = True) -> bytes:
    """A PNG with one more chunk after its header."""
    crc = zlib.crc32(kind + content) ^ (not good)
    size = struct.pack(">I", len(content))
    return data[:33] + size + kind + content + struct.pack(">I", crc) + data[33:]


@pytest.mark.parametrize(
    ("kind", "head"),
    [(b"iCCP", b"icc\0\0"), (b"zTXt", b"Comment\0\0"), (b"iTXt", b"XML\0\1\0\0\0")],
)
def test_long_text_and_colour_profiles_are_read(tmp_path, monkeypatch, kind, head):
    path = save(tmp_path / "a.png")
    plain = images.open_image(path, max_pixels=LIMIT)
    text = zlib.compress(b"x" * (4 << 20))
    path.write_bytes(with_chunk(path.read_bytes(), kind, head + text))
    image = images.open_image(path, max_pixels=LIMIT)
    assert image.tobytes() == plain.tobytes()
    monkeypatch.setattr(images.PngImagePlugin, "MAX_TEXT_CHUNK", 1 << 20)
    bad = refusal(path)
    assert bad.reason == "image_unreadable" and "colour profile" in bad.detail


def test_messages_say_what_is_wrong(tmp_path):
    png = save(tmp_path / "a.png").read_bytes()
    jpeg = save(tmp_path / "a.jpg").read_bytes()
    for name, data, detail in (
        ("cut.jpg", jpeg[:-2], "the file is incomplete: fetch it again"),
        ("cut.png", png[:-40], "the file is incomplete: fetch it again"),
        ("header.png", png[:20], "the file is incomplete: fetch it again"),
        (
            "sum.png",
            with_chunk(png, b"tEXt", b"a\0b", good=False),
            "begins as PNG but cannot be read: SyntaxError: broken PNG file (bad",
        ),
        ("avif.jpg", b"\0\0\0\x1cftypavif" + bytes(99), "is an AVIF image; convert it"),
        ("heic.jpg", b"\0\0\0\x1cftypheic" + bytes(99), "is an HEIC image; convert"),
        ("empty.png", b"", "is empty; fetch the file again"),
        ("page.jpg", b"<!DOCTYPE html><html>", "is an HTML page; the download gave"),
        ("lfs.png", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "perhaps SVG"),
        ("text.png", b"hello", "is in none of the formats JPEG, PNG"),
    ):
        (tmp_path / name).write_bytes(data)
        bad = refusal(tmp_path / name)
        assert bad.reason == "image_unreadable" and detail in bad.detail, bad
        known = not detail.startswith("is in none")
        assert ("none of the formats" in bad.detail) != known


def test_huge_files_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    assert refusal(save(tmp_path / "a.png")).reason == "image_too_large"


def test_tiles_are_written_where_they_are_wanted():
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    )
    how = {"min_num": 1, "max_num": 6, "image_size": 28, "use_thumbnail": True}
    want = images.tile(image, **how)
    room = np.full((len(want) + 2, 28, 28, 3), 7, np.uint8)
    out = room[1:-1]
    assert images.tile(image, **how, out=out) is out
    np.testing.assert_array_equal(out, want)
    assert (room[0] == 7).all() and (room[-1] == 7).all()
    for wrong in (room, out.astype(np.int32), np.empty((28, *out.shape[1:]))):
        with pytest.raises(ValueError, match="out is .* the tiles are uint8"):
            images.tile(image, **how, out=wrong)
    with pytest.raises(ValueError, match="out is"):
        images.tile(image, **how, out=np.asfortranarray(out))


def test_the_bytes_may_come_from_elsewhere(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2), (1, 2, 3)).save(path)
    data = path.read_bytes()
    path.unlink()
    asked = []

    def read(name):
        asked.append(name)
        return data

    image = images.open_image(path, max_pixels=6, read=read)
    assert image.size == (3, 2) and asked == [str(path)]
