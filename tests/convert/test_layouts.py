"""Original and native layout, there and back, for every decoder of the family.

Transformers loads each native export here, so its loader and its mathematics are the
judge, not our own reader.
"""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
import small_family
from safetensors import numpy as safetensors_numpy

from mpo_jax.convert import files, hf, hub, layouts, settings, table, verify
from mpo_jax.models import config, internvl, native_config


def model_of(directory: pathlib.Path) -> internvl.InternVL:
    return internvl.InternVL(config.load(directory))


@pytest.mark.parametrize("name", small_family.FAMILY)
def test_round_trip_and_torch(tmp_path, tokenizer_files, name):
    """original -> ours -> native -> ours -> original: the same bits; torch agrees."""
    tensors = small_family.original(tmp_path / "start", name, tokenizer_files)
    model = model_of(tmp_path / "start")
    params = hf.load(tmp_path / "start", model, dtype="keep")
    native = tmp_path / "native"
    hf.save(
        native,
        params,
        model,
        dtype="keep",
        source_dir=tmp_path / "start",
        layout="native",
    )
    written = safetensors_numpy.load_file(native / files.SINGLE)
    assert table.detect(written) == table.NATIVE
    raw = json.loads((native / "config.json").read_text())
    assert raw["tie_word_embeddings"] is False
    token = files.special_token_id(tmp_path / "start", "<IMG_CONTEXT>")
    assert raw["image_token_id"] == token

    # Read back, architecture included.
    again = model_of(native)
    assert again.cfg == model.cfg
    report = verify.check(native, hf.fetch_params(params, model), again)
    assert report.endswith(f"verified: {len(written)} tensors")

    back = tmp_path / "back"
    hf.save(
        back,
        hf.load(native, again, dtype="keep"),
        again,
        dtype="keep",
        source_dir=native,
        layout="original",
    )
    assert model_of(back).cfg == model.cfg
    final = safetensors_numpy.load_file(back / files.SINGLE)
    assert final.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert final[key].dtype == tensor.dtype and final[key].shape == tensor.shape
        assert final[key].tobytes() == tensor.tobytes(), key
    # What is not written anew is untouched.
    for file in files.carried_files(tmp_path / "start"):
        if file.name != "config.json":
            assert (back / file.name).read_bytes() == file.read_bytes(), file.name
    start = json.loads((tmp_path / "start" / "config.json").read_text())
    end = json.loads((back / "config.json").read_text())
    assert start.keys() <= end.keys()
    for section in ("vision_config", "llm_config"):
        for key, value in start[section].items():
            assert end[section][key] == value, key


def native_raw(**fields) -> dict:
    return {
        "model_type": "internvl",
        "vision_config": {"image_size": 56, "hidden_size": 24}
        | {"num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 16}
        | fields.pop("vision", {}),
        "text_config": {"model_type": "qwen2", "vocab_size": 96, "hidden_size": 16}
        | {"intermediate_size": 24, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2}
        | fields.pop("text", {}),
        "image_seq_length": 4,
        **fields,
    }


def test_native_class_defaults():
    """What a native config leaves out is the default of the native class."""
    cfg = config.from_hf(native_raw())
    assert (cfg.vision.norm_type, cfg.vision.qkv_bias) == ("layer_norm", False)
    assert not cfg.vision.qk_normalization
    assert cfg.language.max_position_embeddings == 32768
    assert (cfg.ps_version, cfg.template, cfg.max_tiles) == ("v2", "", 12)
    assert cfg.image_size == 56
    assert config.from_hf(native_raw(image_seq_length=9)).image_size == 84


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vision": {"use_mean_pooling": False}}, "vision_config.use_mean_pooling"),
        ({"vision": {"use_mask_token": True}}, "vision_config.use_mask_token"),
        (
            {"vision": {"use_absolute_position_embeddings": False}},
            "vision_config.use_absolute_position_embeddings",
        ),
        ({"vision": {"image_size": [56, 28]}}, "vision_config.image_size"),
        (
            {"vision": {"use_qk_norm": True, "layer_norm_eps": 1e-5}},
            "vision_config.layer_norm_eps",
        ),
        ({"text": {"model_type": "qwen3_moe"}}, "text_config.model_type='qwen3_moe'"),
        ({"text": {"hidden_act": "relu"}}, "text_config.hidden_act"),
        (
            {"text": {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}},
            "yarn",
        ),
        ({"text": {"layer_types": ["sliding_attention"]}}, "text_config.layer_types"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy"),
        ({"vision_feature_layer": [-1, -2]}, "vision_feature_layer"),
        ({"image_seq_length": 5}, "image_seq_length=5"),
    ],
)
def test_native_fields_that_are_not_supported(fields, words):
    with pytest.raises(ValueError) as error:
        config.from_hf(native_raw(**fields))
    assert words in str(error.value)


def test_no_native_form():
    raw = json.loads(json.dumps(native_config.to_original(native_raw())))
    raw["ps_version"] = "v1"
    with pytest.raises(ValueError, match="ps_version='v1'"):
        native_config.from_original(
            raw, config.from_hf(raw), image_token_id=5, dtype="float32"
        )


def test_native_model_without_a_past(tmp_path, tokenizer_files):
    """A downloaded '-hf' model: no kept original, no template, no remote code."""
    small_family.original(tmp_path / "start", "qwen2", tokenizer_files)
    model = model_of(tmp_path / "start")
    params = hf.load(tmp_path / "start", model)
    hf.save(
        tmp_path / "native",
        params,
        model,
        source_dir=tmp_path / "start",
        layout="native",
    )
    shutil.rmtree(tmp_path / "native" / files.KEPT)
    file = tmp_path / "native" / "config.json"
    raw = json.loads(file.read_text())
    del raw[native_config.KEPT]
    file.write_text(json.dumps(raw))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match="--template=internvl2_5"):
        layouts.write_files(
            tmp_path / "native", out, layout="original", kinds={"bfloat16"}
        )
    notes = layouts.write_files(
        tmp_path / "native",
        out,
        layout="original",
        kinds={"bfloat16"},
        settings=settings.Settings(template="internvl2_5"),
    )
    assert any("remote code" in note for note in notes)
    cfg = config.load(out)
    assert cfg.template == "internvl2_5" and cfg.language == model.cfg.language
    assert (out / "tokenizer.json").is_file()
    with pytest.raises(ValueError, match="layout='hf'"):
        layouts.choose("hf", out)


@pytest.mark.parametrize("damage", ["missing", "surplus", "misshapen"])
def test_native_tensors_are_accounted(tmp_path, damage):
    cfg = config.from_hf(native_raw())
    shapes = table.hf_shapes(cfg, table.NATIVE)
    name = "vision_tower.encoder.layer.1.attention.k_proj.weight"
    assert name in shapes
    if damage == "missing":
        del shapes[name]
    elif damage == "surplus":
        name = "vision_tower.layernorm.weight"
        shapes[name] = (24,)
    else:
        shapes[name] = (24, 23)
    safetensors_numpy.save_file(
        {n: np.zeros(s, np.float32) for n, s in shapes.items()},
        tmp_path / files.SINGLE,
    )
    with pytest.raises(ValueError, match=f"{damage} {name}"):
        hf.load(tmp_path, internvl.InternVL(cfg))


@pytest.mark.parametrize("name", ["internlm2-bias", "phi3"])
def test_files_to_files(tmp_path, tokenizer_files, name):
    """From layout to layout without a model in memory, in several files; and back."""
    tensors = small_family.original(tmp_path / "start", name, tokenizer_files)
    model = model_of(tmp_path / "start")
    here = tmp_path / "start"
    for number, layout in enumerate((table.NATIVE, table.ORIGINAL)):
        there = tmp_path / str(number)
        there.mkdir()
        kinds = hf.target_dtypes(model, dtype="keep", source_dir=here, layout=layout)
        layouts.write_files(here, there, layout=layout, kinds=set(kinds.values()))
        with hub.fetching(hub.locate(here), model) as fetch:
            hf.write_weights(
                there, fetch, model, kinds, layout=layout, max_bytes=20_000
            )
        assert len(list(there.glob("*.safetensors"))) > 2
        hf.check_source(there, model_of(there))
        here = there
    final: dict[str, np.ndarray] = {}
    for file in here.glob("*.safetensors"):
        final |= safetensors_numpy.load_file(file)
    assert final.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert final[key].dtype == tensor.dtype and final[key].shape == tensor.shape
        assert final[key].tobytes() == tensor.tobytes(), key
