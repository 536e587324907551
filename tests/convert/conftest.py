"""What tests of several converters share."""

from __future__ import annotations

import pathlib

import pytest

from mpo_jax.demo import tiny_model


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("tokenizer")
    return tiny_model.write_tiny_model(path, corpus=["a b c"], vocab_size=256)
