"""Tokenizers of ``small_tokenizers``, one of each per session."""

from __future__ import annotations

import pathlib

import pytest
import small_tokenizers
import tiny_mmpr

from mpo_jax.data import index


@pytest.fixture(scope="session")
def internlm2_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return small_tokenizers.write_internlm2(
        tmp_path_factory.mktemp("tokenizers") / "internlm2"
    )


@pytest.fixture(scope="session")
def qwen2_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return small_tokenizers.write_qwen2(tmp_path_factory.mktemp("tokenizers") / "qwen2")


@pytest.fixture(scope="session")
def phi3_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return small_tokenizers.write_phi3(tmp_path_factory.mktemp("tokenizers") / "phi3")


@pytest.fixture(scope="session")
def merging_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """InternLM2 with a piece that joins the header's newline to what follows."""
    path = tmp_path_factory.mktemp("tokenizers") / "merging"
    return small_tokenizers.write_internlm2(path, extra=("th", "\nth"))


@pytest.fixture(scope="session")
def make_phi3():
    """:func:`small_tokenizers.write_phi3`, for tests that change its configuration."""
    return small_tokenizers.write_phi3


@pytest.fixture(scope="session")
def make_sentencepiece():
    """:func:`small_tokenizers.sentencepiece_model`."""
    return small_tokenizers.sentencepiece_model


@pytest.fixture(scope="session")
def three_sources(tmp_path_factory):
    """An index of three sources; `a` repeats a record of its own, `b` one of `a`."""
    folder = tmp_path_factory.mktemp("report")
    tokenizer = tiny_mmpr.write_tokenizer(folder / "tokenizer")
    tiny_mmpr.write_image(folder / "i.png", 90, 40)
    tiny_mmpr.write_lines(
        folder / "a.jsonl",
        [tiny_mmpr.pair(1), tiny_mmpr.pair(1), tiny_mmpr.pair(2), b"broken <b>line"],
    )
    evil = "<script>alert(1)</script>"
    tiny_mmpr.write_lines(
        folder / "b.jsonl",
        [
            tiny_mmpr.pair(1),
            tiny_mmpr.pair(5, image="i.png", chosen=evil, question='Q" & <i>?'),
            tiny_mmpr.pair(6, chosen="z" * 7000),
        ],
    )
    (folder / "c.jsonl").touch()
    sources = {
        name: {"root": ".", "annotation": f"{key}.jsonl", **more}
        for name, key, more in [
            ("a", "a", {"repeat_time": 3, "length": 4}),
            ("<b>", "b", {"repeat_time": 0.5}),
            ("c", "c", {}),
        ]
    }
    return index.build_index(
        tiny_mmpr.write_meta(folder, sources),
        folder / "out",
        tokenizer_path=tokenizer,
        policy=tiny_mmpr.POLICY,
        workers=1,
    )
