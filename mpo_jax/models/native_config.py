"""``config.json`` of the transformers-native layout, to and from the original one.

The original layout says more (template, tiling, which LLM class), so a native file that
we write keeps the original content under :data:`KEPT`; transformers carries unknown
keys along, also when it saves the model again. Where both speak, native wins.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

KEPT = "internvl_chat_config"
"""Key of a native config under which the original content is kept."""

# Class defaults of InternVLVisionConfig, and the names of the original layout.
_VISION: tuple[tuple[str, str, Any], ...] = (
    ("hidden_size", "hidden_size", 1024),
    ("num_hidden_layers", "num_hidden_layers", 24),
    ("num_attention_heads", "num_attention_heads", 16),
    ("intermediate_size", "intermediate_size", 4096),
    ("attention_bias", "qkv_bias", False),
    ("use_qk_norm", "qk_normalization", False),
    ("norm_type", "norm_type", "layer_norm"),
    ("layer_norm_eps", "layer_norm_eps", 1e-6),
    ("layer_scale_init_value", "initializer_factor", 0.1),
    ("initializer_range", "initializer_range", 0.02),
    ("hidden_act", "hidden_act", "gelu"),
    ("hidden_dropout_prob", "dropout", 0.0),
    ("attention_dropout", "attention_dropout", 0.0),
)
_VISION_ONLY: tuple[tuple[str, Any], ...] = (
    ("use_absolute_position_embeddings", True),
    ("use_mean_pooling", True),  # false adds a final norm
    ("use_mask_token", False),
    ("projection_dropout", 0.0),
    ("num_channels", 3),
)
_TOP_ONLY: tuple[tuple[str, Any], ...] = (
    ("projector_hidden_act", "gelu"),
    ("vision_feature_select_strategy", "default"),
)
# model_type of text_config, and the class that the original layout names.
TEXT = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
_TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps"),
    *("max_position_embeddings", "original_max_position_embeddings"),
    *("initializer_range", "hidden_act", "mlp_bias", "attention_bias"),
    *("attention_dropout", "resid_pdrop", "embd_pdrop"),
    *("sliding_window", "use_sliding_window", "layer_types", "partial_rotary_factor"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)


def is_native(raw: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of the native layout.

    An original one may have a `text_config` too: newer versions write it beside.
    """
    if raw.get("model_type") == "internvl":
        return True
    return "text_config" in raw and "llm_config" not in raw


def _only(raw: Mapping[str, Any], fields: tuple[tuple[str, Any], ...], where: str):
    for name, only in fields:
        value = raw.get(name, only)
        if value != only:
            raise ValueError(f"{where}{name}={value!r}: only {only!r} is supported")


def _square(value: Any, field: str) -> int:
    sides = value if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"{field}={value!r}: only squares are supported")
    return int(sides[0])


def _to_vision(raw: Mapping[str, Any]) -> dict[str, Any]:
    _only(raw, _VISION_ONLY, "vision_config.")
    out = {theirs: raw.get(ours, default) for ours, theirs, default in _VISION}
    if out["qk_normalization"] and out["layer_norm_eps"] != 1e-6:
        raise ValueError(
            f"vision_config.layer_norm_eps={out['layer_norm_eps']} with use_qk_norm: "
            "transformers computes these norms with 1e-6 and all others with this value"
        )
    out["image_size"] = _square(raw.get("image_size", 448), "vision_config.image_size")
    out["patch_size"] = _square(raw.get("patch_size", 14), "vision_config.patch_size")
    return out


def _to_text(raw: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    kind = raw.get("model_type", "qwen2")
    architecture = TEXT.get(str(kind))
    if architecture is None:
        raise ValueError(
            f"text_config.model_type={kind!r}: supported are {sorted(TEXT)}"
        )
    out = {name: raw[name] for name in _TEXT_FIELDS if raw.get(name) is not None}
    rope = dict(raw.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", raw.get("rope_theta"))
    if theta is not None:
        out["rope_theta"] = theta
    scaling = dict(raw.get("rope_scaling") or rope)
    rule = scaling.pop("rope_type", None) or scaling.get("type")
    scaling.pop("type", None)
    plain = {k: v for k, v in scaling.items() if k != "partial_rotary_factor"}
    if rule not in (None, "default") or plain:
        out["rope_scaling"] = {"type": rule, **scaling}
    if architecture == "LlamaForCausalLM" and kept.get("architectures") == [
        "InternLM2ForCausalLM"
    ]:
        architecture, kind = "InternLM2ForCausalLM", "internlm2"
        out["bias"] = bool(out.pop("attention_bias", False))
        out.pop("head_dim", None)
    return {"architectures": [architecture], "model_type": kind, **out}


def to_original(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The original-layout content of a native ``config.json``.

    Without a kept original, the tiling is that of every released model, and there is
    no template: the native layout does not name one.

    Raises:
      ValueError: naming the field, if something has no counterpart.
    """
    for name in ("vision_config", "text_config"):
        if not isinstance(raw.get(name), Mapping):
            raise ValueError(f"config.json has no {name!r}")
    _only(raw, _TOP_ONLY, "")
    vision = _to_vision(raw["vision_config"])
    layer = raw.get("vision_feature_layer", -1)
    if not isinstance(layer, int):
        raise ValueError(f"vision_feature_layer={layer!r}: one layer is expected")
    ratio = float(raw.get("downsample_ratio", 0.5))
    # The processor's tile size is not in this file, but the tokens of a tile are.
    tokens = int(raw.get("image_seq_length", 256))
    side = math.isqrt(tokens)
    patches = side / ratio
    if side**2 != tokens or patches != int(patches):
        raise ValueError(
            f"image_seq_length={tokens} is no square grid at downsample_ratio={ratio}"
        )
    kept = raw.get(KEPT)
    base: dict[str, Any] = copy.deepcopy(dict(kept)) if isinstance(kept, dict) else {}
    native_born = not base
    text = _to_text(raw["text_config"], base.get("llm_config") or {})
    derived = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "vision_config": {"model_type": "intern_vit_6b", **vision},
        "llm_config": text,
        "force_image_size": int(patches) * vision["patch_size"],
        "downsample_ratio": ratio,
        "ps_version": "v2",
        "select_layer": layer,
        "tie_word_embeddings": False,
    }
    if native_born:
        derived |= {
            "dynamic_image_size": True,
            "use_thumbnail": True,
            "min_dynamic_patch": 1,
            "max_dynamic_patch": 12,
            "pad2square": False,
        }
        dtype = raw.get("dtype", raw.get("torch_dtype"))
        if dtype is not None:
            derived["torch_dtype"] = dtype
        return derived
    return _overlay(base, derived)


def _overlay(base: dict[str, Any], derived: Mapping[str, Any]) -> dict[str, Any]:
    """`base`, with what `derived` says; what `derived` does not know stays."""
    for name, value in derived.items():
        if isinstance(value, Mapping) and isinstance(base.get(name), dict):
            if name != "rope_scaling":
                _overlay(base[name], value)
            elif scaling_rule(base[name]) != scaling_rule(value):
                base[name] = dict(value)
        else:
            base[name] = value
    return base


def scaling_rule(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """A scaling rule without its synonyms and without what stands elsewhere too."""
    out = {k: v for k, v in scaling.items() if k not in _SYNONYMS}
    rule = scaling.get("rope_type", scaling.get("type"))
    return out | {"type": {"su": "longrope"}.get(str(rule), rule)}


_SYNONYMS = (
    *("type", "rope_type", "rope_theta", "partial_rotary_factor"),
    "original_max_position_embeddings",
)


def from_original(
    raw: Mapping[str, Any], cfg: Any, *, image_token_id: int, dtype: str
) -> dict[str, Any]:
    """The native content of an original-layout ``config.json``.

    Args:
      raw: content of the file.
      cfg: the same, parsed (``InternVLConfig``): class defaults are written out.
      image_token_id: id of ``<IMG_CONTEXT>``.
      dtype: of the weights.

    Raises:
      ValueError: if the architecture has no native form; names the field.
    """
    if cfg.ps_version != "v2":
        raise ValueError(
            f"ps_version={cfg.ps_version!r} has no transformers-native form (v2 only); "
            "export the original layout"
        )
    vision, text = cfg.vision, cfg.language
    if vision.qk_normalization and vision.layer_norm_eps != 1e-6:
        raise ValueError(
            f"vision_config.layer_norm_eps={vision.layer_norm_eps} with "
            "qk_normalization: transformers computes these norms with 1e-6"
        )
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "torch_dtype": dtype,
        "vision_config": {
            "architectures": ["InternVLVisionModel"],
            "model_type": "internvl_vision",
            **{
                ours: getattr(vision, theirs, default)
                for ours, theirs, default in _VISION
            },
            **dict(_VISION_ONLY),
            "image_size": [vision.image_size] * 2,
            "patch_size": [vision.patch_size] * 2,
            "torch_dtype": dtype,
        },
        "text_config": {**_from_text(raw["llm_config"], text), "torch_dtype": dtype},
        "image_token_id": image_token_id,
        "image_seq_length": cfg.tokens_per_tile,
        "downsample_ratio": cfg.downsample_ratio,
        **dict(_TOP_ONLY),
        "vision_feature_layer": cfg.select_layer,
        # Transformers' default is true and would tie two different tensors.
        "tie_word_embeddings": False,
        KEPT: copy.deepcopy(dict(raw)),
    }


def _from_text(raw: Mapping[str, Any], text: Any) -> dict[str, Any]:
    kind = "llama" if text.kind == "internlm2" else text.kind
    out = {name: raw[name] for name in _TEXT_FIELDS if raw.get(name) is not None}
    out |= {
        name: getattr(text, name)
        for name in _TEXT_FIELDS
        if hasattr(text, name) and name not in ("head_dim", "attention_bias")
    }
    out["hidden_act"] = "silu"
    if kind in ("llama", "qwen3"):
        out["head_dim"] = text.head_dim
        out["attention_bias"] = text.out_bias
    elif text.head_dim != text.hidden_size // text.num_attention_heads:
        out["head_dim"] = text.head_dim
    if kind == "phi3":
        out["sliding_window"] = None  # longer than any sequence, or it was refused
    out["rope_theta"] = text.rope_theta
    scaling = dict(raw.get("rope_scaling") or {})
    rule = scaling.pop("rope_type", None) or scaling.get("type", "default")
    scaling.pop("type", None)
    if rule != "default":
        rule = "longrope" if rule == "su" else rule
        out["rope_scaling"] = {"rope_type": rule, **scaling}
        if text.rope.original_length:
            length = text.rope.original_length
            out["rope_scaling"]["original_max_position_embeddings"] = length
    return {
        "architectures": [TEXT[kind]],
        "model_type": kind,
        **out,
        "tie_word_embeddings": False,
    }
