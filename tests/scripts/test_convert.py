"""Conversion scripts, there and back, through real checkpoints."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from mpo_jax import api, checkpoint, config
from mpo_jax.convert import files, table
from mpo_jax.convert import source as source_lib
from mpo_jax.models import config as model_config

RAW = {
    "vision_config": {
        "hidden_size": 24,
        "num_attention_heads": 3,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "patch_size": 7,
        "image_size": 28,
    },
    "llm_config": {
        "architectures": ["InternLM2ForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


def module(root: pathlib.Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, root / f"scripts/{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def forward(root) -> ModuleType:
    return module(root, "convert_from_hf")


@pytest.fixture(scope="module")
def backward(root) -> ModuleType:
    return module(root, "convert_to_hf")


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    """A model in bfloat16, one tensor kept in float32, with files around it."""
    path = tmp_path / "source"
    path.mkdir()
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(shape).astype(jnp.bfloat16)
        for name, shape in table.hf_shapes(model_config.from_hf(RAW)).items()
    }
    tensors["mlp1.0.bias"] = rng.standard_normal(96).astype(np.float32)
    safetensors_numpy.save_file(tensors, path / files.SINGLE)
    (path / "config.json").write_text(json.dumps(RAW, indent=4))
    (path / "tokenizer.model").write_bytes(b"\0\1\2")
    (path / "modeling_x.py").write_text("raise SystemExit\n")
    (path / "optimizer.pt").write_bytes(b"x")
    return path


def convert(forward: ModuleType, source: pathlib.Path, dst, **options) -> str:
    defaults = {"dtype": "keep", "revision": None, "overwrite": False}
    defaults |= {"new_tokens": []}
    return forward.convert(str(source), dst, **(defaults | options))


def export(backward: ModuleType, source: pathlib.Path, dst, **options) -> str:
    defaults = {"dtype": "keep", "hf_files": None, "overwrite": False}
    defaults |= {"layout": None, "template": "", "verify": False}
    return backward.export(str(source), dst, **(defaults | options))


def assert_same_files(ours: pathlib.Path, theirs: pathlib.Path):
    ours_, theirs_ = (
        safetensors_numpy.load_file(d / files.SINGLE) for d in (ours, theirs)
    )
    assert ours_.keys() == theirs_.keys()
    for name, tensor in theirs_.items():
        assert ours_[name].dtype == tensor.dtype, name
        assert ours_[name].tobytes() == tensor.tobytes(), name
    for name in ("config.json", "tokenizer.model", "modeling_x.py"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


@pytest.mark.parametrize("stored", ["keep", "float32"])
def test_there_and_back_is_bit_equal(forward, backward, source, tmp_path, stored):
    text = convert(forward, source, tmp_path / "ckpt", dtype=stored)
    assert text.endswith(f"dtype {stored}") and "parameters" in text
    kept = sorted(p.name for p in (tmp_path / "ckpt" / "hf").iterdir())
    assert kept == ["config.json", "modeling_x.py", files.DTYPES, "tokenizer.model"]
    export(backward, tmp_path / "ckpt", tmp_path / "back")
    assert_same_files(tmp_path / "back", source)
    assert {p.name for p in (tmp_path / "back").iterdir()} == {
        *("config.json", "modeling_x.py", "tokenizer.model", files.SINGLE)
    }
    # Nothing partial stays behind.
    assert {p.name for p in tmp_path.iterdir()} == {"source", "ckpt", "back"}


def test_training_run(forward, backward, source, tmp_path):
    """The newest checkpoint of a workdir, with the files of what it started from."""
    convert(forward, source, tmp_path / "ckpt")
    loaded = api.InternVL.from_pretrained(tmp_path / "ckpt")
    checkpoints = checkpoint.Checkpoints(
        tmp_path / "run" / "checkpoints", config.CheckpointConfig()
    )
    meta = {"config": {"model": {"path": str(tmp_path / "ckpt")}}}
    for step, factor in ((1, 1.0), (2, 2.0)):
        params = jax.tree.map(lambda x, f=factor: f * x, loaded.params)
        checkpoints.save(step, {"params": params, "loop": {"step": step}}, meta=meta)
    checkpoints.close()
    export(backward, tmp_path / "run", tmp_path / "out", dtype="float32")
    written = safetensors_numpy.load_file(tmp_path / "out" / files.SINGLE)
    for name, tensor in safetensors_numpy.load_file(source / files.SINGLE).items():
        np.testing.assert_array_equal(written[name], 2 * tensor.astype(np.float32))
    assert (tmp_path / "out" / "tokenizer.model").is_file()
    named = tmp_path / "named"
    named.mkdir()
    (named / "config.json").write_text(json.dumps(RAW))
    export(
        backward,
        tmp_path / "run",
        tmp_path / "out2",
        dtype="bfloat16",
        hf_files=str(named),
    )
    assert {p.name for p in (tmp_path / "out2").iterdir()} == {
        *("config.json", files.SINGLE)
    }


def test_dry_runs_write_nothing(forward, backward, source, tmp_path):
    text = convert(forward, source, None)
    lines = text.splitlines()
    names = source_lib.dtypes(source)
    assert len(lines) == len(names) + 1
    assert lines[-1].startswith(f"{len(names)} tensors")
    wqkv = next(line for line in lines if "layers.1.attention.wqkv.weight" in line)
    assert "bfloat16" in wqkv and "32×16" in wqkv
    for part in "qkv":
        assert f"language/layers/blocks/attn/{part}/kernel[1]" in wqkv
    convert(forward, source, tmp_path / "ckpt")
    text = export(backward, tmp_path / "ckpt", None)
    assert all(name in text for name in names)
    assert "config.json, modeling_x.py, tokenizer.model" in text
    assert {p.name for p in tmp_path.iterdir()} == {"source", "ckpt"}


def test_a_wrong_source_leaves_nothing(forward, source, tmp_path):
    tensors = safetensors_numpy.load_file(source / files.SINGLE)
    del tensors["mlp1.3.bias"]
    safetensors_numpy.save_file(tensors, source / files.SINGLE)
    for dst in (None, tmp_path / "ckpt"):
        with pytest.raises(ValueError, match=r"missing mlp1\.3\.bias"):
            convert(forward, source, dst)
    assert {p.name for p in tmp_path.iterdir()} == {"source"}


def test_overwriting(forward, source, tmp_path):
    convert(forward, source, tmp_path / "ckpt")
    with pytest.raises(FileExistsError, match="not empty"):
        convert(forward, source, tmp_path / "ckpt")
    convert(forward, source, tmp_path / "ckpt", dtype="float32", overwrite=True)
    stored = checkpoint.load_metadata(tmp_path / "ckpt")
    assert stored == {"source": str(source), "dtype": "float32"}
    assert {p.name for p in tmp_path.iterdir()} == {"source", "ckpt"}


def run(root: pathlib.Path, name: str, *arguments: str):
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, str(root / "scripts" / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=root,
        timeout=300,
    )


def test_command_lines(root, source, tmp_path):
    """As a user runs them: help, a conversion, an error in one line."""
    text = run(root, "convert_from_hf", "--help").stdout
    for word in ("hub id", "params/", "hf/", "--dry_run", "--dtype=keep", "--src"):
        assert word in text
    done = run(root, "convert_from_hf", f"--src={source}", f"--dst={tmp_path}/ckpt")
    assert done.returncode == 0, done.stderr
    assert "dtype keep" in done.stdout
    done = run(
        root, "convert_to_hf", f"--src={tmp_path}/ckpt", f"--dst={tmp_path}/ckpt"
    )
    assert done.returncode == 1
    error = " ".join((done.stdout + done.stderr).split())
    assert "convert_to_hf.py:" in error and "not empty" in error
    assert "Traceback" not in done.stderr
    assert run(root, "convert_to_hf", f"--src={tmp_path}/ckpt").returncode == 1
