"""What tests of several converters share."""

from __future__ import annotations

import importlib.util
import pathlib

import pytest

from mpo_jax.demo import tiny_model


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("tokenizer")
    return tiny_model.write_tiny_model(path, corpus=["a b c"], vocab_size=256)


@pytest.fixture(scope="module")
def script(root):
    """``convert_to_hf.export`` as a call of the program makes it."""
    path = root / "scripts/convert_to_hf.py"
    spec = importlib.util.spec_from_file_location("convert_to_hf", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)

    def export(src, dst, **options):
        defaults = {"layout": None, "template": "", "hf_files": None}
        switches = dict.fromkeys(("verify", "adapter", "overwrite"), False)
        values = {"dtype": "float32", **defaults, **switches, **options}
        return loaded.export(str(src), None if dst is None else str(dst), **values)

    return export
