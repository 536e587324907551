"""The small copy keeps all that data sees of a model, and shrinks all the rest."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from mpo_jax.demo import shrink, tiny_model
from mpo_jax.inputs import tokenizer
from mpo_jax.models import config as model_config
from mpo_jax.models import internvl
from mpo_jax.nn import params

WEIGHTS = {
    *("model-00001-of-00002.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "flax_model.msgpack", "old.pt", "tf_model.h5"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    """A directory as one downloads it, with large widths and files of weights."""
    path = tiny_model.write_tiny_model(
        tmp_path_factory.mktemp("source"),
        corpus=["How many red circles are there?"] * 9,
        vocab_size=300,
    )
    file = path / "config.json"
    raw = json.loads(file.read_text("utf-8"))
    raw["llm_config"] |= {"hidden_size": 2048, "num_hidden_layers": 24, "head_dim": 128}
    raw["llm_config"] |= {"num_attention_heads": 16, "num_key_value_heads": 8}
    raw["vision_config"] |= {"hidden_size": 1024, "num_hidden_layers": 24}
    raw["note"] = "größer"
    file.write_text(json.dumps(raw), encoding="utf-8")
    (path / "modeling_internvl_chat.py").write_text("raise SystemExit('executed')\n")
    (path / "examples").mkdir()
    (path / "examples" / "image.txt").write_text("not copied")
    for name in WEIGHTS:
        (path / name).write_bytes(b"weights")
    return path


def _json(path: pathlib.Path) -> dict:
    return json.loads((path / "config.json").read_text("utf-8"))


def _changes(old: object, new: object, prefix: str = "") -> set[str]:
    """Dotted names of the JSON fields in which two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {
            name
            for key in old | new
            for name in _changes(old.get(key), new.get(key), f"{prefix}{key}.")
        }
    return set() if old == new else {prefix.rstrip(".")}


def test_only_widths_and_depths_change(source, tmp_path):
    target = shrink.shrink(source, tmp_path / "small", width=32, layers=3)
    assert _changes(_json(source), _json(target)) == {
        *(f"llm_config.{n}" for n in ("hidden_size", "intermediate_size", "head_dim")),
        *("llm_config.num_hidden_layers", "llm_config.num_attention_heads"),
        *("llm_config.num_key_value_heads", "vision_config.hidden_size"),
        *("vision_config.intermediate_size", "vision_config.num_hidden_layers"),
    }  # the vision tower had 4 heads before
    old, new = model_config.load(source), model_config.load(target)
    assert (new.language.hidden_size, new.language.num_hidden_layers) == (32, 3)
    assert (new.language.head_dim, new.vision.head_dim) == (8, 8)
    for name in ("image_size", "tokens_per_tile", "template", "ps_version"):
        assert getattr(new, name) == getattr(old, name)
    assert new.language.vocab_size == old.language.vocab_size
    assert new.language.max_position_embeddings == old.language.max_position_embeddings


def test_every_file_but_weights_is_copied_as_it_is(source, tmp_path):
    target = shrink.shrink(source, tmp_path / "small")
    names = {p.name for p in source.iterdir() if p.is_file()}
    assert {p.name for p in target.iterdir()} == names - WEIGHTS
    assert WEIGHTS < names
    for path in target.iterdir():
        if path.name != "config.json":
            assert path.read_bytes() == (source / path.name).read_bytes()
    made = tokenizer.load_tokenizer(target)
    assert made.vocab_size == tokenizer.load_tokenizer(source).vocab_size


def test_the_copy_is_a_model(source, tmp_path):
    target = shrink.shrink(source, tmp_path / "small")
    small = internvl.InternVL(model_config.load(target))
    large = internvl.InternVL(model_config.load(source))
    assert params.count(small.shapes) < 300_000
    assert params.count(large.shapes) > 300_000_000


def test_a_released_model_shrinks(shared, tmp_path):
    source = shared / "data" / "tokenizers" / "internvl2_2b"
    target = shrink.shrink(source, tmp_path / "small")
    cfg = model_config.load(target)
    assert cfg.language.vocab_size == tokenizer.load_tokenizer(target).vocab_size
    assert (cfg.template, cfg.tokens_per_tile) == ("internlm2-chat", 256)
    # Two embeddings of 92,553 x 64 are nearly all of it.
    size = params.count(internvl.InternVL(cfg).shapes)
    assert size == pytest.approx(2 * 92553 * 64, rel=0.06)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 20}, "width=20 must be a multiple of 2 . heads=8"),
        ({"kv_heads": 3}, "heads=4 must be a multiple of kv_heads=3"),
        ({"layers": 0}, "layers=0 must be at least 1"),
        ({"width": -64}, "width=-64 must be at least 1"),
        ({"kv_heads": 0}, "kv_heads=0 must be at least 1"),
    ],
    ids=str,
)
def test_sizes_that_do_not_divide(source, tmp_path, sizes, message):
    with pytest.raises(ValueError, match=message):
        shrink.shrink(source, tmp_path / "small", **sizes)
    assert not (tmp_path / "small").exists()


def test_nothing_is_written_over(source, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty; name a new directory"):
        shrink.shrink(source, tmp_path)
    with pytest.raises(FileExistsError):
        shrink.shrink(source, source)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_source_that_is_no_model_is_named(tmp_path):
    source, target = tmp_path / "source", tmp_path / "small"
    with pytest.raises(FileNotFoundError, match="give a model directory"):
        shrink.shrink(source, target)
    source.mkdir()
    for text in ("{", '{"model_type": "llama"}'):
        (source / "config.json").write_text(text)
        with pytest.raises(ValueError, match="source/config.json: "):
            shrink.shrink(source, target)
    assert not target.exists()


def test_the_script_does_the_same(source, root, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, str(root / "scripts" / "shrink_model.py")),
            *(f"--src={source}", f"--dst={tmp_path / 'by_script'}"),
            *("--width=32", "--layers=1"),
        ],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "model.init=random" in done.stderr
    expected = shrink.shrink(source, tmp_path / "by_call", width=32, layers=1)
    for path in expected.iterdir():
        written = tmp_path / "by_script" / path.name
        assert written.read_bytes() == path.read_bytes()
