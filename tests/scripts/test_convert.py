"""Conversion scripts, there and back, through real checkpoints."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import runpy
import subprocess
import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
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


@pytest.mark.slow
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


@pytest.fixture
def run(root, monkeypatch, capsys):
    """A program's exit status and output, as a user's call gives them.

    In this process, as the program itself runs: its flags are parsed, and forgotten
    afterwards.
    """

    def call(name: str, *arguments: str) -> tuple[object, str]:
        path = str(root / "scripts" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        before, parsed = set(flags.FLAGS), flags.FLAGS.is_parsed()
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(path, run_name="__main__")
        finally:
            for flag in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, flag)
            if parsed:
                flags.FLAGS.mark_as_parsed()
        told = capsys.readouterr()
        return ended.value.code, " ".join((told.out + told.err).split())

    return call


@pytest.mark.slow
def test_command_lines(root, run, source, tmp_path):
    """Help, a conversion and back, what is missing, an error in one line."""
    _, text = run("convert_from_hf", "--help")
    for word in ("hub id", "params/", "hf/", "--dry_run", "--dtype=keep", "--src"):
        assert word in text
    code, text = run("convert_from_hf", f"--src={source}", f"--dst={tmp_path}/ckpt")
    assert not code and "dtype keep" in text
    code, text = run("convert_to_hf", f"--src={tmp_path}/ckpt", "--dry_run")
    assert not code and "mlp1.3.bias" in text
    arguments = (f"--src={tmp_path}/ckpt", f"--dst={tmp_path}/back", "--dtype=keep")
    code, text = run("convert_to_hf", *arguments)
    assert not code and "original layout" in text
    assert_same_files(tmp_path / "back", source)
    code, text = run("convert_to_hf", f"--src={tmp_path}/ckpt")
    assert code == 1 and "--dst is missing" in text
    code, text = run("convert_to_hf", *arguments, "--dytpe=keep")
    assert code == 1 and "--dytpe" not in str(sorted(flags.FLAGS))
    code, text = run("convert_from_hf", *arguments[:2], "and", "more")
    assert code == 1 and "is no flag" in text

    arguments = (f"--src={tmp_path}/ckpt", f"--dst={tmp_path}/ckpt")
    program = str(root / "scripts" / "convert_to_hf.py")
    done = subprocess.run(
        [sys.executable, program, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
        cwd=root,
        timeout=300,
    )
    assert done.returncode == 1
    error = " ".join((done.stdout + done.stderr).split())
    assert "convert_to_hf.py:" in error and "not empty" in error
    assert "Traceback" not in done.stderr
