"""The notebook API: loading, checks of what is passed in, saving."""

from __future__ import annotations

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import mpo_jax
from mpo_jax import api, checkpoint
from mpo_jax.convert import files, hub, table
from mpo_jax.models import config, vit
from mpo_jax.nn import params as params_lib

TOKEN = 30
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
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    "ps_version": "v2",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> pathlib.Path:
    """A directory as a user downloads it: config, weights in bfloat16, tokenizer."""
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(RAW))
    (path / "added_tokens.json").write_text(json.dumps({api.IMG_CONTEXT: TOKEN}))
    rng = np.random.default_rng(0)
    tensors = {
        name: (0.3 * rng.standard_normal(shape)).astype(jnp.bfloat16)
        for name, shape in table.hf_shapes(config.from_hf(RAW)).items()
    }
    safetensors_numpy.save_file(tensors, path / files.SINGLE)
    return path


@pytest.fixture(scope="module")
def model(directory) -> api.InternVL:
    return api.InternVL.from_pretrained(directory)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    tiles = rng.integers(0, 256, (3, 28, 28, 3), np.uint8)
    image = [TOKEN] * 4
    ids = np.array([[1, *image, *image, 2, 3], [4, 5, 6, 7, *image, 8, 0, 0]])
    mask = np.ones_like(ids)
    mask[1, -2:] = 0
    return ids, mask, tiles


def test_public_name():
    assert mpo_jax.InternVL is api.InternVL


def test_image_features(model, batch):
    tiles = batch[2]
    features = np.asarray(model.image_features(tiles))
    assert features.shape == (3, 4, 16) and features.dtype == np.float32
    # uint8 tiles are normalised on the way; normalised floats are taken as they are.
    floats = (tiles / 255.0 - np.array(vit.MEAN)) / np.array(vit.STD)
    np.testing.assert_allclose(model.image_features(floats), features, atol=1e-5)
    # A tile's features do not depend on its neighbours.
    order = [2, 0, 1]
    np.testing.assert_allclose(
        model.image_features(tiles[order]), features[order], atol=1e-6
    )


def test_logits_read_images_in_order(model, batch):
    ids, mask, tiles = batch
    logits = np.asarray(model.logits(ids, mask, tiles))
    assert logits.shape == (2, 11, 40) and logits.dtype == np.float32
    # Row 0 holds tiles 0 and 1, row 1 tile 2: each row alone gives the same.
    first = np.asarray(model.logits(ids[:1], None, tiles[:2]))
    np.testing.assert_allclose(logits[:1], first, atol=1e-5)
    second = np.asarray(model.logits(ids[1:, :9], None, tiles[2:]))
    np.testing.assert_allclose(logits[1:, :9], second, atol=1e-5)
    # Another order of tiles is another image.
    assert np.abs(model.logits(ids[:1], None, tiles[1::-1]) - first).max() > 1e-2


def test_padding_side_does_not_matter(model):
    ids = np.array([[5, 6, 7, 8]])
    plain = np.asarray(model.logits(ids))
    left = np.array([[0, 0, 5, 6, 7, 8]])
    padded = model.logits(left, (left > 0).astype(int))
    np.testing.assert_allclose(padded[:, 2:], plain, atol=1e-5)


def test_text_only_and_no_tiles(model):
    ids = np.array([[5, 6, 7, 8]])
    none = np.zeros((0, 28, 28, 3), np.uint8)
    np.testing.assert_array_equal(model.logits(ids, None, none), model.logits(ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tiles": slice(0, 2)}, r"12 image tokens \(id 30\), 2 tiles of 4 .* need 8"),
        ({"tiles": None}, r"12 image tokens \(id 30\), 0 tiles"),
        ({"token": 29}, r"0 image tokens \(id 29\), 3 tiles"),
        ({"ids": np.array([[41]])}, r"\[41, 41\], the vocabulary has 40"),
        ({"ids": np.array([[-1]])}, r"\[-1, -1\]"),
        ({"ids": np.array([1])}, r"must be integers \[b, s\]"),
        ({"ids": np.array([[1.0]])}, r"must be integers"),
        ({"ids": np.ones((1, 65), int)}, r"65 tokens long, .* 64"),
        ({"mask": np.ones((2, 3))}, r"attention_mask \(2, 3\)"),
    ],
)
def test_wrong_inputs_are_named(model, batch, change, message):
    ids, mask, tiles = batch
    ids = change.get("ids", ids)
    mask = change.get("mask", mask if "ids" not in change else None)
    if "tiles" in change:
        tiles = None if change["tiles"] is None else tiles[change["tiles"]]
    with pytest.raises(ValueError, match=message):
        model.logits(ids, mask, tiles, img_context_token_id=change.get("token"))


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        (np.zeros((1, 14, 14, 3), np.uint8), r"must be \[n, 28, 28, 3\]"),
        (np.zeros((1, 3, 28, 28), np.float32), r"must be \[n, 28, 28, 3\]"),
        (np.zeros((1, 28, 28, 3), np.int32), "int32: must be uint8"),
    ],
)
def test_wrong_tiles_are_named(model, tiles, message):
    with pytest.raises(ValueError, match=message):
        model.image_features(tiles)


def test_bfloat16(directory, model, batch):
    narrow = api.InternVL.from_pretrained(directory, dtype="bfloat16")
    dtypes = {leaf.dtype for _, leaf in params_lib.flatten(narrow.params)}
    assert dtypes == {jnp.dtype("bfloat16")}
    features = narrow.image_features(batch[2])
    assert features.dtype == jnp.bfloat16
    wide = np.asarray(model.image_features(batch[2]))
    error = np.abs(np.asarray(features, np.float32) - wide).max() / np.abs(wide).max()
    assert 0 < error < 0.05  # 8 bits of mantissa through one block
    with pytest.raises(ValueError, match="dtype='int8'"):
        api.InternVL.from_pretrained(directory, dtype="int8")


def test_save_pretrained(directory, model, tmp_path):
    model.save_pretrained(tmp_path / "out")
    source = {p.name: p.read_bytes() for p in directory.iterdir()}
    written = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert written.keys() == source.keys()
    assert written["config.json"] == source["config.json"]
    ours = safetensors_numpy.load_file(tmp_path / "out" / files.SINGLE)
    theirs = safetensors_numpy.load_file(directory / files.SINGLE)
    assert ours.keys() == theirs.keys()
    assert all(ours[n].tobytes() == theirs[n].tobytes() for n in theirs)
    with pytest.raises(FileExistsError, match="not empty"):
        model.save_pretrained(tmp_path / "out")


def test_replaced_params_are_used(directory, batch):
    changed = api.InternVL.from_pretrained(directory)
    before = np.asarray(changed.logits(batch[0][:1], None, batch[2][:2]))
    kernel = changed.params["language"]["lm_head"]["kernel"]
    changed.params["language"]["lm_head"]["kernel"] = 2 * kernel
    after = np.asarray(changed.logits(batch[0][:1], None, batch[2][:2]))
    np.testing.assert_allclose(after, 2 * before, rtol=1e-5, atol=1e-6)


def _orbax(directory, out, model):
    checkpoint.save_params(out / "params", model.params, metadata={})
    (out / hub.FILES).mkdir()
    files.copy_carried(directory, out / hub.FILES)


@pytest.mark.slow
def test_from_converted_checkpoint(directory, model, batch, tmp_path):
    _orbax(directory, tmp_path, model)
    again = api.InternVL.from_pretrained(tmp_path)
    assert again.img_context_token_id == TOKEN
    np.testing.assert_array_equal(again.logits(*batch), model.logits(*batch))


def test_without_tokenizer(directory, model, batch, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(directory, bare)
    (bare / "added_tokens.json").unlink()
    loaded = api.InternVL.from_pretrained(bare)
    assert loaded.img_context_token_id is None
    with pytest.raises(ValueError, match="pass img_context_token_id"):
        loaded.logits(*batch)
    expected = np.asarray(model.logits(*batch))
    given = loaded.logits(*batch, img_context_token_id=TOKEN)
    np.testing.assert_array_equal(given, expected)
    named = api.InternVL.from_pretrained(bare, img_context_token_id=TOKEN)
    np.testing.assert_array_equal(named.logits(*batch), expected)


def test_what_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a config.json"):
        api.InternVL.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no directory and no model id"):
        api.InternVL.from_pretrained(tmp_path / "absent")


@pytest.mark.slow
def test_generate_ids_go_on_with_a_prompt(model, batch):
    """Greedy, step by step as the logits have it, through images."""
    ids, _, tiles = batch
    (found,) = model.generate_ids(ids[:1], tiles[:2], max_new_tokens=5)
    text = np.concatenate([ids[0], np.zeros(5, np.int64)])[None]
    for place in range(11, 16):
        logits = model.logits(text, None, tiles[:2])
        text[0, place] = int(jnp.argmax(logits[0, place - 1]))
    assert text[0, 11:].tolist() == found
    floats = (tiles[:2] / 255.0 - np.array(vit.MEAN)) / np.array(vit.STD)
    assert model.generate_ids(ids[0], floats, max_new_tokens=5) == [found]
    stopped = model.generate_ids(
        ids[0], tiles[:2], max_new_tokens=5, stop_ids=[found[1]]
    )
    assert stopped == [found[: found.index(found[1]) + 1]]
    three = model.generate_ids(ids[0], tiles[:2], max_new_tokens=5, n=3)
    assert three == [found] * 3
    drawn = model.generate_ids(
        ids[0], tiles[:2], max_new_tokens=5, n=40, temperature=2.0, seed=1
    )
    assert len(drawn) == 40 and len({tuple(one) for one in drawn}) > 20
    again, other = (
        model.generate_ids(
            ids[0], some, max_new_tokens=5, n=40, temperature=2.0, seed=1
        )
        for some in (floats, floats[::-1])
    )
    assert again == drawn != other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": [[1, 2], [3, 4]]}, r"int64 \(2, 2\), must be integers \[s\]"),
        ({"input_ids": [1.5]}, "must be integers"),
        ({"input_ids": []}, "must be integers"),
        ({"input_ids": [1, 40]}, r"\[1, 40\], the vocabulary has 40"),
        ({"input_ids": [1, 2**40]}, "the vocabulary has 40"),
        (
            {"input_ids": [TOKEN] * 4 + [1]},
            "4 image tokens, 0 tiles of 4 tokens need 0",
        ),
        ({"tiles": np.zeros((1, 28, 28, 3), np.uint8)}, "0 image tokens, 1 tiles"),
        ({"tiles": np.zeros((1, 3, 28, 28), np.uint8)}, r"must be \[n, 28, 28, 3\]"),
        ({"input_ids": [1] * 64}, "64 tokens, the longest is 63"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0 admits no token"),
        ({"top_k": -1}, "top_k=-1"),
        ({"n": 0}, "n=0"),
        ({"stop_ids": range(17)}, "stop_ids: 17 of them, at most 16"),
        ({"stop_ids": [-1]}, "stop_ids=-1"),
        ({"seed": 2**63}, "seed=9223372036854775808"),
    ],
)
def test_wrong_arguments_of_generate_ids_are_named(model, change, message):
    given = {"input_ids": [1, 2], "max_new_tokens": 2, **change}
    with pytest.raises(ValueError, match=message):
        model.generate_ids(given.pop("input_ids"), **given)
