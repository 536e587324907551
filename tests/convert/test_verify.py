"""What --verify notices: tensors, and every field of the written configuration."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest
import small_family
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import numpy as safetensors_numpy

from mpo_jax.convert import files, hf, verify
from mpo_jax.demo import tiny_model
from mpo_jax.models import config, internvl, native_config

LINEAR = {"type": "linear", "factor": 4.0}


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[tuple[str, str], pathlib.Path]:
    """A model of three decoders, in both layouts."""
    root = tmp_path_factory.mktemp("exports")
    words = tiny_model.write_tiny_model(
        root / "tokenizer", corpus=["a b c"], vocab_size=256
    )
    made = {}
    for name in ("internlm2", "qwen3", "phi3"):
        start = root / name
        small_family.original(start, name, words)
        model = internvl.InternVL(config.load(start))
        params = hf.load(start, model, dtype="keep")
        there = root / f"{name}-native"
        hf.save(there, params, model, dtype="keep", source_dir=start, layout="native")
        made |= {(name, "original"): start, (name, "native"): there}
    return made


def changed(source: pathlib.Path, target: pathlib.Path, path: str, value) -> None:
    """A copy with another value at `path` of config.json."""
    shutil.copytree(source, target)
    raw = json.loads((target / "config.json").read_text())
    *sections, last = path.split(".")
    at = raw
    for section in sections:
        at = at[section]
    at[last] = value
    (target / "config.json").write_text(json.dumps(raw))


ORIGINAL = [
    ("internlm2", "llm_config.rope_theta", 5e6),
    ("internlm2", "llm_config.rope_scaling", LINEAR),
    ("internlm2", "llm_config.rope_scaling", {"type": "dynamic", "factor": 3.0}),
    ("internlm2", "llm_config.rope_scaling", None),
    ("internlm2", "llm_config.rms_norm_eps", 1e-5),
    ("internlm2", "llm_config.bias", True),
    ("internlm2", "llm_config.num_attention_heads", 8),
    ("internlm2", "llm_config.num_key_value_heads", 4),
    ("internlm2", "llm_config.num_hidden_layers", 3),
    ("internlm2", "llm_config.max_position_embeddings", 256),
    ("internlm2", "llm_config.architectures", ["LlamaForCausalLM"]),
    ("qwen3", "llm_config.architectures", ["Qwen2ForCausalLM"]),
    ("qwen3", "llm_config.attention_bias", True),
    ("qwen3", "llm_config.head_dim", 4),
    ("phi3", "llm_config.rope_scaling.short_factor", [1.0, 1.25]),
    ("phi3", "llm_config.rope_scaling.long_factor", [1.0, 8.0]),
    ("phi3", "llm_config.original_max_position_embeddings", 32),
    ("internlm2", "vision_config.layer_norm_eps", 1e-5),
    ("internlm2", "vision_config.num_attention_heads", 6),
    ("internlm2", "vision_config.norm_type", "rms_norm"),
    ("internlm2", "vision_config.qkv_bias", False),
    ("internlm2", "vision_config.qk_normalization", True),
    ("internlm2", "vision_config.patch_size", 7),
    ("internlm2", "select_layer", -2),
    ("internlm2", "downsample_ratio", 0.25),
    ("internlm2", "ps_version", "v1"),
    ("internlm2", "force_image_size", 28),
    ("internlm2", "max_dynamic_patch", 3),
    ("internlm2", "template", "Hermes-2"),
]
NATIVE = [
    ("internlm2", "text_config.rope_theta", 5e6),
    ("internlm2", "text_config.rms_norm_eps", 1e-5),
    ("internlm2", "text_config.num_attention_heads", 8),
    ("internlm2", "text_config.attention_bias", True),
    ("qwen3", "text_config.rope_scaling", {"rope_type": "linear", "factor": 4.0}),
    ("qwen3", "text_config.model_type", "qwen2"),
    ("phi3", "text_config.rope_scaling.long_factor", [1.0, 8.0]),
    ("internlm2", "vision_config.layer_norm_eps", 1e-5),
    ("internlm2", "vision_config.attention_bias", False),
    ("internlm2", "vision_config.use_qk_norm", True),
    ("internlm2", "vision_feature_layer", -2),
    ("internlm2", "downsample_ratio", 0.25),
    ("internlm2", "image_seq_length", 16),
    ("internlm2", "image_token_id", 5),
    ("internlm2", "tie_word_embeddings", True),
]


@pytest.mark.parametrize(
    ("layout", "name", "path", "value"),
    [("original", *case) for case in ORIGINAL] + [("native", *case) for case in NATIVE],
)
def test_a_changed_field_is_named(exports, tmp_path, layout, name, path, value):
    """The whole check fails before weights are read, with the field's written name."""
    source = exports[name, layout]
    model = internvl.InternVL(config.load(source))
    assert verify.compare_config(source, model, origin=exports[name, "original"]) == []
    changed(source, tmp_path / "out", path, value)
    with pytest.raises(ValueError) as error:
        verify.check(tmp_path / "out", None, model, origin=source)  # type: ignore[arg-type]
    named = {
        "llm_config.bias": "llm_config.attention_bias",
        "llm_config.original_max_position_embeddings": "llm_config.rope_scaling",
    }
    where = named.get(path) or path
    where = where.removesuffix(".short_factor").removesuffix(".long_factor")
    assert f"config.json: {where} " in str(error.value)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(theta=st.floats(1e3, 1e8), eps=st.floats(1e-7, 1e-2))
def test_any_other_number_is_noticed(exports, tmp_path_factory, theta, eps):
    source = exports["internlm2", "original"]
    model = internvl.InternVL(config.load(source))
    out = tmp_path_factory.mktemp("any")
    raw = json.loads((source / "config.json").read_text())
    raw["llm_config"]["rope_theta"] = theta
    raw["vision_config"]["layer_norm_eps"] = eps
    (out / "config.json").write_text(json.dumps(raw))
    text = "\n".join(verify.compare_config(out, model))
    assert ("llm_config.rope_theta" in text) is (theta != 10000.0)
    assert ("vision_config.layer_norm_eps" in text) is (eps != 1e-6)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("llm_config.rope_theta", 5e6),
        ("vision_config.layer_norm_eps", 0.5),
        ("select_layer", -2),
    ],
)
def test_torch_computes_what_the_export_says(exports, tmp_path, path, value):
    """Without the comparison of fields, the logits of the original layout differ."""
    source = exports["internlm2", "original"]
    model = internvl.InternVL(config.load(source))
    changed(source, tmp_path / "out", path, value)
    difference, _, _ = verify.compare_outputs(tmp_path / "out", model)
    assert difference > 3 * verify.RELATIVE


def test_a_native_model_may_gain_a_template(exports, tmp_path):
    """Then ours names none, and the export has what --template said."""
    source = exports["qwen3", "native"]
    changed(source, tmp_path / "born", f"{native_config.KEPT}.template", None)
    model = internvl.InternVL(config.load(tmp_path / "born"))
    assert model.cfg.template == ""
    named = exports["qwen3", "original"]
    assert verify.compare_config(named, model) == []


def test_verify_of_the_original_layout(exports, tmp_path):
    """Through the table in memory; a wrong tensor is found."""
    shutil.copytree(exports["internlm2", "original"], tmp_path / "model")
    model = internvl.InternVL(config.load(tmp_path / "model"))
    params = hf.load(tmp_path / "model", model)
    fetch = hf.fetch_params(params, model)
    report = verify.check(tmp_path / "model", fetch, model)
    assert report.endswith("verified: 55 tensors")

    name = "language_model.model.layers.1.attention.wqkv.weight"
    tensors = safetensors_numpy.load_file(tmp_path / "model" / files.SINGLE)
    wrong = tensors[name].copy()
    wrong[3, 5] += 1
    safetensors_numpy.save_file(
        tensors | {name: wrong}, tmp_path / "model" / files.SINGLE
    )
    with pytest.raises(ValueError, match="verification failed") as error:
        verify.check(tmp_path / "model", fetch, model)
    last = str(error.value).splitlines()[-1]
    assert last.startswith(f"{name} differs by ")
