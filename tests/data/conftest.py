"""Tokenizers of ``small_tokenizers``, one of each per session."""

from __future__ import annotations

import pathlib

import pytest
import small_tokenizers


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
