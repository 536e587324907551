"""A byte-level tokenizer and a small MMPR folder, good and broken, for tests."""

from __future__ import annotations

import json
import pathlib
import struct
import zlib
from typing import Any

import numpy as np
import tokenizers
from PIL import Image

from mpo_jax.mmpr import examples, index

POLICY = examples.EncodePolicy(
    template="Hermes-2",
    image_size=28,
    tokens_per_tile=4,
    min_tiles=1,
    max_tiles=4,
    use_thumbnail=True,
    max_image_pixels=1_000_000,
)


def write_tokenizer(folder: pathlib.Path) -> pathlib.Path:
    """Write a tokenizer with one token per byte."""
    folder.mkdir(parents=True)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, [])
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens(special)
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_image(
    path: pathlib.Path, width: int = 40, height: int = 40, *, seed: int = 0
) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of some dozen bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def pair(number: int, **change: Any) -> dict[str, Any]:
    """A good text-only record."""
    return {
        "question": f"Question {number}?",
        "chosen": f"The answer is {number}.",
        "rejected": f"It is {number + 1}.",
        **change,
    }


def write_lines(path: pathlib.Path, lines: list[Any]) -> pathlib.Path:
    """Write records (objects) and raw lines (bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for line in lines:
            raw = line if isinstance(line, bytes) else json.dumps(line).encode()
            file.write(raw + b"\n")
    return path


def write_meta(folder: pathlib.Path, entries: dict[str, dict[str, Any]]):
    path = folder / "meta.json"
    path.write_text(json.dumps(entries))
    return path


def build_index(
    meta: pathlib.Path, out: pathlib.Path, tokenizer: pathlib.Path, **options: Any
) -> index.Index:
    """``index.build_index`` under :data:`POLICY`, in this process unless told else."""
    options = {"policy": POLICY, "workers": 1, **options}
    return index.build_index(meta, out, tokenizer_path=tokenizer, **options)


def write_good(folder: pathlib.Path) -> pathlib.Path:
    """Three sources of good records; returns meta.json."""
    for number in range(4):
        write_image(folder / f"images/{number}.png", 40 + 30 * number, seed=number)
    write_lines(
        folder / "single.jsonl",
        [pair(i, image=f"{i % 4}.png") for i in range(20)],
    )
    write_lines(
        folder / "multi.jsonl",
        [
            pair(i, image=["0.png", "3.png"], question=f"<image>\n<image>\n{i}?")
            for i in range(5)
        ],
    )
    write_lines(folder / "text.jsonl", [pair(i) for i in range(30)])
    return write_meta(
        folder,
        {
            "single": {
                "root": "images",
                "annotation": "single.jsonl",
                "max_dynamic_patch": 6,
            },
            "multi": {
                "root": "images",
                "annotation": "multi.jsonl",
                "repeat_time": 2.5,
            },
            "text": {"root": ".", "annotation": "text.jsonl", "repeat_time": 0.3},
        },
    )


def write_broken(folder: pathlib.Path) -> tuple[pathlib.Path, list[tuple[int, str]]]:
    """One source where nearly every line is broken.

    Returns:
      meta.json and the ledger that must come out: (line, reason) in order.
    """
    root = folder / "images"
    good = write_image(root / "good.png")
    (root / "cut.png").write_bytes(good.read_bytes()[:200])
    (root / "bomb.png").write_bytes(png_bomb(100_000, 100_000))
    (root / "text.png").write_bytes(b"no image at all")
    write_image(folder / "outside.png")
    kept = "kept"
    lines: list[tuple[Any, str]] = [
        (pair(0, image="good.png"), kept),
        (b"{not json", "bad_json"),
        (b'["a list"]', "bad_json"),
        (b'{"question": "\xff\xfe"}', "bad_json"),
        (b'{"a": ' + b"[" * 50_000, "bad_json"),
        ({"question": "Q", "chosen": "A"}, "bad_field"),
        (pair(1, chosen=7), "bad_field"),
        (pair(2, rejected=""), "bad_field"),
        (pair(3, chosen=" \n "), "bad_field"),
        (pair(4, image={"path": "good.png"}), "bad_field"),
        (b"", "blank"),
        (pair(5, image="none.png"), "image_missing"),
        (pair(6, image="../outside.png"), "image_missing"),
        (pair(7, image=str(folder / "outside.png")), "image_missing"),
        (pair(8, image="cut.png"), "image_unreadable"),
        (pair(9, image="text.png"), "image_unreadable"),
        (pair(10, image="bomb.png"), "image_too_large"),
        (pair(11, image="good.png", chosen="A <IMG_CONTEXT>"), "smuggled_token"),
        (pair(12, question="</img> Q"), "smuggled_token"),
        (pair(13, chosen="same", rejected="same"), "identical"),
        (pair(14, image=["good.png"] * 2, question="<image> one?"), "image_count"),
        (pair(15, chosen="x" * 2_000_000), "line_too_long"),
        (pair(16, video="v.mp4"), "unsupported"),
        (pair(17, image=["good.png"] * 2, question="<image><image>Q"), kept),
        (pair(18), kept),
        (pair(19, images=["good.png"]), "bad_field"),
        (pair(20, question="<image> Q"), "image_count"),
        (pair(21, chosen="A<|im_end|>"), "chat_marker"),
        (pair(22, history=[["Q", "A"]]), "unsupported"),
        (pair(23, image="s3://bucket/good.png"), "bad_field"),
    ]
    write_lines(folder / "broken.jsonl", [line for line, _ in lines])
    meta = write_meta(folder, {"b": {"root": "images", "annotation": "broken.jsonl"}})
    expected = [
        (number, reason)
        for number, (_, reason) in enumerate(lines, 1)
        if reason not in (kept, "blank")
    ]
    return meta, expected
