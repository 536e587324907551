"""The tiny model directory: tokenizer files, config, refusal of bad sizes."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo_jax.demo import dataset, tiny_model
from mpo_jax.inputs import template, tokenizer
from mpo_jax.mmpr import examples, records
from mpo_jax.mmpr.meta import load_meta
from mpo_jax.models import config as model_config

FILES = (
    *("config.json", "generation_config.json", "preprocessor_config.json"),
    *("vocab.json", "merges.txt", "added_tokens.json"),
    *("tokenizer_config.json", "special_tokens_map.json"),
)
NAMES = tiny_model.SPECIAL_TOKENS + tokenizer.ADDED_TOKENS


@pytest.fixture(scope="module")
def meta(tmp_path_factory) -> pathlib.Path:
    out_dir = tmp_path_factory.mktemp("demo")
    return dataset.write_dataset(out_dir, num_train=120, num_eval=9, seed=0)["meta"]


@pytest.fixture(scope="module")
def model(meta, tmp_path_factory) -> pathlib.Path:
    out_dir = tmp_path_factory.mktemp("model")
    return tiny_model.write_tiny_model(out_dir, corpus=dataset.corpus(meta))


@pytest.fixture(scope="module")
def qwen(model) -> transformers.PreTrainedTokenizerBase:
    return transformers.Qwen2Tokenizer.from_pretrained(model, local_files_only=True)


def _json(path: pathlib.Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def test_directory_is_what_a_download_holds_but_for_weights(model):
    assert sorted(path.name for path in model.iterdir()) == sorted(FILES)


def test_same_corpus_same_bytes(model, meta, tmp_path):
    again = tiny_model.write_tiny_model(tmp_path, corpus=dataset.corpus(meta))
    for name in FILES:
        assert (again / name).read_bytes() == (model / name).read_bytes(), name


def test_transformers_finds_every_special_token(model, qwen):
    added = _json(model / "added_tokens.json")
    assert list(added) == list(NAMES)
    first = len(_json(model / "vocab.json"))
    assert list(added.values()) == list(range(first, first + len(NAMES)))
    for name, index in added.items():
        assert qwen(name).input_ids == [index]
        assert qwen(f"a{name}b").input_ids[1] == index
        assert index in qwen.all_special_ids
    assert (qwen.eos_token, qwen.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert qwen.bos_token is None
    config = _json(model / "config.json")
    assert config["llm_config"]["vocab_size"] == len(qwen) == first + len(NAMES)
    stop = _json(model / "generation_config.json")["eos_token_id"]
    assert qwen.decode(stop) == "<|im_start|><|im_end|><|endoftext|>"


def test_corpus_and_frame_are_few_tokens_and_come_back(meta, qwen):
    texts = list(dataset.corpus(meta))
    for text in texts:
        ids = qwen(text).input_ids
        assert qwen.decode(ids) == text
        # Words and their spaces are one token, digits and signs one each.
        assert len(ids) < 60
    system = template.get_template("internvl2_5").system_message
    assert len(qwen(system).input_ids) == 6  # cut at its punctuation only


def test_length_is_no_cue(meta, qwen):
    """Chosen and rejected have the same number of tokens on average, of about 31."""
    lengths: dict[str, list[tuple[int, int]]] = {}
    for entry in _json(meta).values():
        for line in (meta.parent / entry["annotation"]).read_text().splitlines():
            record = json.loads(line)
            pair = [
                len(qwen(record[side]).input_ids) for side in ("chosen", "rejected")
            ]
            lengths.setdefault(record["rejected_kind"], []).append((pair[0], pair[1]))
    for kind, pairs in lengths.items():
        chosen, rejected = np.mean(pairs, axis=0)
        assert abs(chosen - rejected) < 0.7, kind


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=80))
def test_any_text_round_trips_up_to_unicode_normalisation(qwen, text):
    normal = qwen.backend_tokenizer.normalizer.normalize_str(text)
    assert qwen.decode(qwen(text).input_ids) == normal


def test_sizes_in_config_and_token_count(model):
    config = _json(model / "config.json")
    vision, language = config["vision_config"], config["llm_config"]
    assert config["architectures"] == ["InternVLChatModel"]
    assert language["architectures"] == ["Qwen2ForCausalLM"]
    side = config["force_image_size"] // vision["patch_size"]
    assert (side * config["downsample_ratio"]) ** 2 == 16
    assert vision["image_size"] == config["force_image_size"] == 112
    assert (vision["norm_type"], vision["qkv_bias"]) == ("layer_norm", True)
    assert vision["qk_normalization"] is False
    assert language["num_attention_heads"] == 2 * language["num_key_value_heads"]
    assert (config["template"], config["ps_version"]) == ("internvl2_5", "v2")
    assert (config["min_dynamic_patch"], config["max_dynamic_patch"]) == (1, 1)
    read = model_config.load(model)
    assert read.language.vocab_size == language["vocab_size"]
    assert (read.language.kind, read.image_size, read.max_tiles) == ("qwen2", 112, 1)
    assert read.vision.initializer_factor == 1.0


def test_every_pair_becomes_an_example_with_the_loader(model, meta):
    """Data set, tokenizer and config together, through the project's own reader."""
    loaded = tokenizer.load_tokenizer(model)
    config = _json(model / "config.json")
    policy = examples.EncodePolicy(
        template=config["template"],
        image_size=config["force_image_size"],
        tokens_per_tile=16,
        min_tiles=config["min_dynamic_patch"],
        max_tiles=config["max_dynamic_patch"],
        use_thumbnail=config["use_thumbnail"],
        max_image_pixels=112 * 112,
    )
    count = 0
    for source in load_meta(meta):
        lines = records.iter_lines(source.annotation, max_bytes=10_000)
        for _, number, line in lines:
            record = records.parse_record(
                line, source=source, line_number=number, max_bytes=10_000
            )
            example = examples.build_example(record, loaded, policy=policy)
            assert example.num_tiles == 1 and example.tiles.shape == (1, 112, 112, 3)
            ids = example.chosen_labels[example.chosen_mask]
            assert loaded.decode(ids) == record.chosen
            assert (example.prompt == loaded.img_context_id).sum() == 16
            assert len(example.prompt) < 110
            count += 1
    assert count == 120


def test_a_directory_with_weights_is_left_alone(tmp_path):
    np.savez(tmp_path / "x.npz")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileExistsError, match="model.safetensors.*out_dir"):
        tiny_model.write_tiny_model(tmp_path, corpus=["text"])
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    "sizes, named",
    [
        ({"image_size": 100}, "image_size=100"),
        ({"vision_hidden": 98}, "vision_hidden=98"),
        ({"hidden": 132}, "hidden=132"),
        ({"kv_heads": 3}, "kv_heads.*=3"),
        ({"kv_heads": 0}, "kv_heads.*=0"),
        ({"vocab_size": 200}, "vocab_size=200"),
        ({"template": "internvl2_6"}, "internvl2_5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_impossible_sizes_are_named(tmp_path, sizes, named):
    with pytest.raises(ValueError, match=named):
        tiny_model.write_tiny_model(tmp_path / "m", corpus=["text"], **sizes)
    assert not (tmp_path / "m" / "config.json").exists()


def test_sizes_are_what_was_asked_for(tmp_path):
    path = tiny_model.write_tiny_model(
        tmp_path,
        corpus=["some words"],
        vocab_size=300,
        template="Hermes-2",
        image_size=56,
        patch_size=28,
        vision_hidden=32,
        vision_mlp=48,
        vision_layers=2,
        vision_heads=2,
        hidden=64,
        mlp=80,
        layers=1,
        heads=8,
        kv_heads=4,
        vision_init=0.03,
        init=0.04,
    )
    config = _json(path / "config.json")
    vision, language = config["vision_config"], config["llm_config"]
    keys = "hidden_size intermediate_size num_hidden_layers num_attention_heads".split()
    assert [vision[key] for key in keys] == [32, 48, 2, 2]
    assert [language[key] for key in keys] == [64, 80, 1, 8]
    assert (vision["patch_size"], language["num_key_value_heads"]) == (28, 4)
    assert (config["force_image_size"], config["template"]) == (56, "Hermes-2")
    assert vision["initializer_range"] == 0.03
    assert language["initializer_range"] == 0.04
    assert language["vocab_size"] == 300 + len(NAMES)
    assert _json(path / "preprocessor_config.json")["size"] == 56
