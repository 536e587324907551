"""Configurations of released models and of slices of them, original layout."""

from __future__ import annotations

from typing import Any

VISION_300M = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "patch_size": 14,
    "image_size": 448,
}
_QWEN2_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151655,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
}
_INTERNLM2_2B = {
    "architectures": ["InternLM2ForCausalLM"],
    "vocab_size": 92553,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32768,
    "bias": False,
}
_INTERNLM2_8B = _INTERNLM2_2B | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
LANGUAGE = {"1b": _QWEN2_05B, "2b": _INTERNLM2_2B, "8b": _INTERNLM2_8B}
"""Decoders of InternVL2-1B, -2B and -8B."""


def released(name: str, **language: Any) -> dict[str, Any]:
    """``config.json`` of InternVL2-1B, -2B or -8B, as far as it shapes the network.

    Args:
      name: ``1b``, ``2b`` or ``8b``.
      language: fields of ``llm_config`` to replace.
    """
    return {
        "architectures": ["InternVLChatModel"],
        "vision_config": dict(VISION_300M),
        "llm_config": LANGUAGE[name] | language,
        "force_image_size": 448,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "Hermes-2" if name == "1b" else "internlm2-chat",
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "use_thumbnail": True,
    }


def slice_of(
    name: str, *, layers: int, vocab_size: int | None = None
) -> dict[str, Any]:
    """A released model with fewer layers and nothing narrower.

    Both towers keep their widths, heads and tokens per tile and get `layers` layers of
    their 24 (or 32). The vocabulary shrinks by the same factor, so that embedding and
    head keep their share of parameters and of arithmetic.

    Args:
      layers: of each tower.
      vocab_size: another vocabulary than that, e.g. the released one: a model whose
        head outweighs its body.
    """
    raw = released(name)
    depth = raw["llm_config"]["num_hidden_layers"]
    vocab_size = vocab_size or round(raw["llm_config"]["vocab_size"] * layers / depth)
    raw["vision_config"]["num_hidden_layers"] = layers
    raw["llm_config"] |= {"num_hidden_layers": layers, "vocab_size": vocab_size}
    return raw
