"""Tiny random models of transformers' own InternVL, every decoder, either tower."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import torch
import transformers
from safetensors import numpy as safetensors_numpy

from mpo_jax import api
from mpo_jax.convert import table

IMAGE_TOKEN = 90
VOCAB, PATCH = 96, 14

TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-2,  # as large as activations, so that every norm shows it
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
PLAIN = {"rope_type": "default", "rope_theta": 1e6}
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0},
    **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    **{"rope_type": "longrope", "rope_theta": 1e4},
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.0, 1.9, 3.1, 6.5],
    "original_max_position_embeddings": 16,
}
# (decoder, large vision tower, fields of the decoder's config)
CASES = {
    "qwen2": ("Qwen2Config", True, {"rope_parameters": PLAIN}),
    "qwen3": (
        "Qwen3Config",
        False,
        {"head_dim": 16, "rope_parameters": PLAIN, "num_key_value_heads": 3},
    ),
    "llama": (
        "LlamaConfig",
        False,
        {"attention_bias": True, "rope_parameters": LLAMA3},
    ),
    "llama-linear": (
        "LlamaConfig",
        True,
        {"rope_parameters": {**PLAIN, "rope_type": "linear", "factor": 3.0}},
    ),
    # One row of the batch is longer than the original length, the other is not.
    "phi3": (
        "Phi3Config",
        False,
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
    ),
}


def build(case: str, *, stored: int = 56):
    """A random transformers model whose position table is for `stored` pixels."""
    name, large_vit, fields = CASES[case]
    torch.manual_seed(0)
    vision = transformers.InternVLVisionConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        attention_bias=not large_vit,
        use_qk_norm=large_vit,
        norm_type="rms_norm" if large_vit else "layer_norm",
        layer_norm_eps=1e-6 if large_vit else 1e-2,
        image_size=[stored, stored],
        patch_size=[PATCH, PATCH],
        use_absolute_position_embeddings=True,
        use_mean_pooling=True,
    )
    # A copy: transformers writes into the dicts that it is given.
    text = getattr(transformers, name)(**json.loads(json.dumps(TEXT | fields)))
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


def convert(model, directory: pathlib.Path, *, tokens: int = 4) -> api.InternVL:
    """Write the model as it is in memory, and load it."""
    tensors = {name: t.detach().numpy() for name, t in model.state_dict().items()}
    assert table.detect(tensors) == table.NATIVE_NEW
    safetensors_numpy.save_file(tensors, directory / "model.safetensors")
    raw = model.config.to_dict() | {"image_seq_length": tokens}
    (directory / "config.json").write_text(json.dumps(raw))
    return api.InternVL.from_pretrained(directory, img_context_token_id=IMAGE_TOKEN)
