"""Where a model comes from: directories, ids, checkpoints, training runs."""

from __future__ import annotations

import json
import pathlib

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors as hub_errors

from mpo_jax import checkpoint
from mpo_jax.convert import files, hub


def config_at(directory: pathlib.Path) -> pathlib.Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    return directory


@pytest.fixture
def weights(tmp_path) -> pathlib.Path:
    """An Orbax checkpoint (of three numbers) without any HF file."""
    path = tmp_path / "run"
    tree = {"a": np.arange(3.0, dtype=np.float32)}
    meta = {"config": {"model": {"path": str(tmp_path / "start")}}}
    checkpoint.save_params(path / "checkpoints" / "7", tree, metadata=meta)
    return path


def test_a_directory_wins_over_an_id(tmp_path, monkeypatch):
    (tmp_path / "OpenGVLab" / "InternVL2-2B").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("OpenGVLab/InternVL2-2B") == pathlib.Path(
        "OpenGVLab/InternVL2-2B"
    )


@pytest.mark.parametrize(
    "name", ["absent", "/absent/dir", "a/b/c", "../up", "~/model", "a/-b", "x/y\n"]
)
def test_neither_directory_nor_id(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # never called
    with pytest.raises(FileNotFoundError, match="no directory and no model id"):
        hub.resolve(name)


def test_no_name_is_not_the_current_directory():
    with pytest.raises(FileNotFoundError, match="no model is named"):
        hub.resolve("")


def test_an_id_is_fetched_without_pickles(tmp_path, monkeypatch):
    calls = []

    def download(name, **options):
        calls.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.resolve("OpenGVLab/InternVL2-2B", revision="main") == tmp_path
    hub.resolve("OpenGVLab/InternVL2-2B", weights=False)
    (name, options), (_, texts) = calls
    assert name == "OpenGVLab/InternVL2-2B" and options["revision"] == "main"
    assert "*.safetensors" in options["allow_patterns"]
    assert "*.safetensors" not in texts["allow_patterns"]
    wanted = ("config.json", "tokenizer.model", "merges.txt", "modeling_x.py")
    for patterns in (options["allow_patterns"], texts["allow_patterns"]):
        for file in wanted:
            assert any(pathlib.PurePath(file).match(p) for p in patterns), file
        for file in ("pytorch_model.bin", "optimizer.pt", "x.pkl"):
            assert not any(pathlib.PurePath(file).match(p) for p in patterns), file


def test_an_id_that_cannot_be_had(monkeypatch):
    def download(name, **options):
        raise hub_errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(FileNotFoundError, match="OWNER/NAME.*offline"):
        hub.resolve("OWNER/NAME")


def test_locate_hf_directory(tmp_path):
    config_at(tmp_path / "model")
    found = hub.locate(tmp_path / "model")
    assert found == hub.Source("hf", tmp_path / "model", tmp_path / "model")


def test_locate_training_run(tmp_path, weights):
    with pytest.raises(FileNotFoundError, match="no directory"):
        hub.locate(weights)  # what it started from is gone
    config_at(tmp_path / "start")
    newest = weights / "checkpoints" / "7"
    assert hub.locate(weights) == hub.Source("orbax", newest, tmp_path / "start")
    # It may have started from a converted checkpoint.
    (tmp_path / "start" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        hub.locate(weights)
    config_at(tmp_path / "start" / "hf")
    assert hub.locate(weights).files == tmp_path / "start" / "hf"
    # Files that are named win.
    named = config_at(tmp_path / "named")
    assert hub.locate(weights, files=named).files == named


def test_locate_checkpoint_that_names_nothing(tmp_path):
    tree = {"a": np.arange(3.0, dtype=np.float32)}
    checkpoint.save_params(tmp_path / "params", tree, metadata={})
    with pytest.raises(FileNotFoundError, match="name a model directory"):
        hub.locate(tmp_path)
    files = config_at(tmp_path / "hf")
    found = hub.locate(tmp_path)
    assert (found.kind, found.files) == ("orbax", files)


def test_special_token_id(tmp_path):
    token = "<IMG_CONTEXT>"
    assert files.special_token_id(tmp_path, token) is None
    sources = {
        "added_tokens.json": {token: 5},
        "tokenizer_config.json": {"added_tokens_decoder": {"5": {"content": token}}},
        "tokenizer.json": {"added_tokens": [{"id": 5, "content": token}]},
    }
    for name, content in sources.items():
        (tmp_path / name).write_text(json.dumps(content))
        assert files.special_token_id(tmp_path, token) == 5
        assert files.special_token_id(tmp_path, "<other>") is None
        (tmp_path / name).unlink()
    for name, content in sources.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert files.special_token_id(tmp_path, token) == 5
    (tmp_path / "added_tokens.json").write_text(json.dumps({token: 6}))
    with pytest.raises(ValueError, match="disagree"):
        files.special_token_id(tmp_path, token)
    (tmp_path / "added_tokens.json").write_text(json.dumps({token: "five"}))
    with pytest.raises(ValueError, match=r"added_tokens\.json: unexpected"):
        files.special_token_id(tmp_path, token)


def test_special_token_ids_of_real_tokenizers(shared):
    for name, expected in (("internvl2_2b", 92546), ("internvl3", 151667)):
        directory = shared / "data" / "tokenizers" / name
        assert files.special_token_id(directory, "<IMG_CONTEXT>") == expected
