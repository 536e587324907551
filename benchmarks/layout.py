"""Tensor names: transformers' InternVL in memory -> released (original) layout."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

_RULES = (
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
)


def to_original(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename the tensors of an InternVL with a Qwen2 or Llama decoder.

    The tower's query, key and value become one matrix; nothing else changes.
    """
    out = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    for name in [n for n in out if ".attn.q_proj." in n]:
        parts = [out.pop(name.replace("q_proj", f"{p}_proj")) for p in "qkv"]
        out[name.replace("q_proj", "qkv")] = np.concatenate(parts)
    return out
