"""Parity with transformers' own InternVL (torch, CPU, float32), a second reference.

A tiny random model is built there, its state dict renamed here to the original layout,
written, and read by the strict loader. Errors are relative to the largest value.
"""

from __future__ import annotations

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors import numpy as safetensors_numpy

from mpo_jax import api
from mpo_jax.convert import hf
from mpo_jax.models import internvl

IMAGE_TOKEN = 90
VOCAB, PATCH = 96, 14
# Reached on XLA CPU: 1.0e-6 and 3.4e-6; the bounds leave room for other CPUs.
LOGITS = 5e-6
GRADIENT = 1e-5
ARCHITECTURES = {
    "internlm2": "InternLM2ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
}


def build(kind: str, *, large_vit: bool, stored: int):
    """A random transformers model whose position table is for `stored` pixels."""
    torch.manual_seed(0)
    vision = transformers.InternVLVisionConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        attention_bias=not large_vit,
        use_qk_norm=large_vit,
        norm_type="rms_norm" if large_vit else "layer_norm",
        layer_norm_eps=1e-6,
        image_size=[stored, stored],
        patch_size=[PATCH, PATCH],
        use_absolute_position_embeddings=True,
        use_mean_pooling=True,
    )
    text_class = (
        transformers.Qwen2Config if kind == "qwen2" else transformers.LlamaConfig
    )
    text = text_class(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    model = transformers.InternVLForConditionalGeneration(config).eval().float()
    with torch.no_grad():  # the initial biases, norms and scales would hide mistakes
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            weight.copy_(1 + 0.3 * noise if "norm" in name else 0.15 * noise)
    return model


def to_original(
    tensors: dict[str, np.ndarray], *, kind: str, heads: int, kv_heads: int
) -> dict[str, np.ndarray]:
    """Rename (and join) tensors of the in-memory layout to the original layout."""
    rules = [
        (r"^model\.vision_tower\.", "vision_model."),
        (r"embeddings\.cls_token", "embeddings.class_embedding"),
        (r"embeddings\.position_embeddings", "embeddings.position_embedding"),
        (r"patch_embeddings\.projection", "patch_embedding"),
        (r"encoder\.layer\.", "encoder.layers."),
        (r"attention\.projection_layer", "attn.proj"),
        (r"(?<=\d)\.attention\.(q_norm|k_norm|[qkv]_proj)", r".attn.\1"),
        (r"layernorm_before", "norm1"),
        (r"layernorm_after", "norm2"),
        (r"lambda_", "ls"),
        (r"^model\.multi_modal_projector\.layer_norm", "mlp1.0"),
        (r"^model\.multi_modal_projector\.linear_1", "mlp1.1"),
        (r"^model\.multi_modal_projector\.linear_2", "mlp1.3"),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head", "language_model.lm_head"),
    ]
    if kind == "internlm2":
        rules += [
            (r"embed_tokens", "tok_embeddings"),
            (r"language_model\.lm_head", "language_model.output"),
            (r"self_attn\.o_proj", "attention.wo"),
            (r"mlp\.gate_proj", "feed_forward.w1"),
            (r"mlp\.up_proj", "feed_forward.w3"),
            (r"mlp\.down_proj", "feed_forward.w2"),
            (r"input_layernorm", "attention_norm"),
            (r"post_attention_layernorm", "ffn_norm"),
        ]
    out = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    for name in [n for n in out if ".attn.q_proj." in n]:
        parts = [out.pop(name.replace("q_proj", f"{p}_proj")) for p in "qkv"]
        out[name.replace("q_proj", "qkv")] = np.concatenate(parts)
    if kind == "internlm2":
        for name in [n for n in out if ".self_attn.q_proj." in n]:
            q, k, v = (out.pop(name.replace("q_proj", f"{p}_proj")) for p in "qkv")
            head_dim, width = q.shape[0] // heads, q.shape[1]
            rows = []
            for group in range(kv_heads):
                each = heads // kv_heads
                rows.append(q[group * each * head_dim : (group + 1) * each * head_dim])
                rows.append(k[group * head_dim : (group + 1) * head_dim])
                rows.append(v[group * head_dim : (group + 1) * head_dim])
            packed = np.concatenate(rows)
            assert packed.shape == ((heads + 2 * kv_heads) * head_dim, width)
            out[name.replace("self_attn.q_proj", "attention.wqkv")] = packed
    return out


def original_config(model, *, kind: str, size: int) -> dict:
    """The original-layout config.json that describes the same model."""
    vision, text = model.config.vision_config, model.config.text_config
    names = ("hidden_size", "num_attention_heads", "intermediate_size")
    shared = (*names, "num_hidden_layers")
    return {
        "architectures": ["InternVLChatModel"],
        "vision_config": {name: getattr(vision, name) for name in shared}
        | {
            "patch_size": PATCH,
            "image_size": vision.image_size[0],
            "qkv_bias": vision.attention_bias,
            "qk_normalization": vision.use_qk_norm,
            "norm_type": vision.norm_type,
        },
        "llm_config": {name: getattr(text, name) for name in shared}
        | {
            "architectures": [ARCHITECTURES[kind]],
            "vocab_size": VOCAB,
            "num_key_value_heads": text.num_key_value_heads,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "bias": False,
        },
        "force_image_size": size,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
    }


def convert(model, directory: pathlib.Path, *, kind: str, size: int) -> api.InternVL:
    """Write the model in the original layout and load it."""
    tensors = {name: t.detach().numpy() for name, t in model.state_dict().items()}
    tensors = to_original(tensors, kind=kind, heads=6, kv_heads=2)
    tensors = {name: np.ascontiguousarray(t) for name, t in tensors.items()}
    safetensors_numpy.save_file(tensors, directory / "model.safetensors")
    raw = original_config(model, kind=kind, size=size)
    (directory / "config.json").write_text(json.dumps(raw))
    return api.InternVL.from_pretrained(directory, img_context_token_id=IMAGE_TOKEN)


def batch(*, per_tile: int, tiles: tuple[int, int], size: int):
    """Two sequences with several tiles each, padded left and right."""
    rng = np.random.default_rng(2)
    rows = []
    for count, tail in zip(tiles, (9, 4), strict=True):
        text = [rng.integers(1, IMAGE_TOKEN, n) for n in (3, tail)]
        image = np.full(count * per_tile, IMAGE_TOKEN)
        rows.append(np.concatenate([text[0], image, text[1]]))
    length = max(len(row) for row in rows) + 2
    ids, mask = np.zeros((2, length), np.int64), np.zeros((2, length), np.int64)
    left, right = rows
    ids[0, -len(left) :], mask[0, -len(left) :] = left, 1
    ids[1, : len(right)], mask[1, : len(right)] = right, 1
    pixels = rng.standard_normal((sum(tiles), size, size, 3)).astype(np.float32)
    return ids, mask, pixels


def torch_logits(model, ids, mask, pixels):
    # Positions follow the mask, so that left padding is position-correct.
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    return model(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        position_ids=torch.from_numpy(positions),
        pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
    ).logits


def error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def test_logits(tmp_path):
    """Llama names, 6B-style tower, through the public function."""
    reference = build("llama", large_vit=True, stored=56)
    ours = convert(reference, tmp_path, kind="llama", size=56)
    ids, mask, pixels = batch(per_tile=4, tiles=(2, 1), size=56)
    with torch.no_grad():
        expected = torch_logits(reference, ids, mask, pixels).numpy()
    real = mask.astype(bool)
    assert np.abs(expected[real]).max() > 1
    assert error(ours.logits(ids, mask, pixels)[real], expected[real]) < LOGITS


@pytest.mark.parametrize(("kind", "large_vit"), [("internlm2", False), ("qwen2", True)])
def test_logits_and_gradients(tmp_path, kind, large_vit):
    reference = build(kind, large_vit=large_vit, stored=56)
    ours = convert(reference, tmp_path, kind=kind, size=56)
    ids, mask, pixels = batch(per_tile=4, tiles=(2, 1), size=56)
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((*ids.shape, VOCAB)).astype(np.float32)
    weights *= mask[:, :, None]

    expected_logits = torch_logits(reference, ids, mask, pixels)
    (expected_logits * torch.from_numpy(weights)).sum().backward()
    expected = to_original(
        {n: p.grad.numpy() for n, p in reference.named_parameters()},
        kind=kind,
        heads=6,
        kv_heads=2,
    )

    is_image = ids == IMAGE_TOKEN
    slot = np.where(is_image, np.cumsum(is_image).reshape(ids.shape) - 1, -1)
    compute = internvl.Compute(dtype=jnp.float32, remat="none")

    def loss(params):
        logits = ours.model.logits(
            params,
            jnp.asarray(ids, jnp.int32),
            jnp.asarray(mask),
            jnp.asarray(slot),
            jnp.asarray(pixels),
            compute=compute,
        )
        return jnp.sum(logits * weights), logits

    # Compiling is nearly all the time of this test; run time does not matter.
    quick = {"xla_backend_optimization_level": 0}
    step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=quick)
    (_, logits), gradient = step(ours.params)
    real = mask.astype(bool)
    assert error(logits[real], expected_logits.detach().numpy()[real]) < LOGITS
    got = dict(hf.to_hf(gradient, ours.model))
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert error(tensor, expected[name]) < GRADIENT, name


def test_other_image_size_than_stored(tmp_path):
    """Position embeddings of 56 pixels, interpolated to 84, as torch does."""
    reference = build("qwen2", large_vit=False, stored=56)
    ours = convert(reference, tmp_path, kind="qwen2", size=84)
    assert ours.cfg.tokens_per_tile == 9
    vision = ours.model.declared.merge(ours.params).vision

    table = vision.position_embedding[...]
    grid = (
        torch.from_numpy(np.array(table[1:])).reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    )
    bigger = torch.nn.functional.interpolate(
        grid, size=(6, 6), mode="bicubic", align_corners=False
    )
    expected = bigger.permute(0, 2, 3, 1).reshape(36, -1).numpy()
    positions = np.asarray(vision.positions())
    np.testing.assert_array_equal(positions[0], np.asarray(table[0]))
    assert error(positions[1:], expected) < 1e-6

    ids, mask, pixels = batch(per_tile=9, tiles=(1, 2), size=84)
    with torch.no_grad():
        logits = torch_logits(reference, ids, mask, pixels).numpy()
    real = mask.astype(bool)
    assert error(ours.logits(ids, mask, pixels)[real], logits[real]) < LOGITS
