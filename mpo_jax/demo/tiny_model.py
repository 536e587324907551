"""Write a tiny InternVL directory, as one would download it, but without weights.

The layout is the original one (``InternVLChatModel``: 300M-style vision tower, Qwen2
language model), so that a tiny run walks the same path as an 8B run: the config is
read, the tokenizer loaded and the weights initialised or converted by the same code.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import tokenizers

from mpo_jax.inputs import template as templates
from mpo_jax.inputs import tokenizer

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Qwen2's own, in the order of their ids; InternVL's come after them."""
# Qwen2's split of text before BPE; single digits, so numbers are read digit by digit.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MEAN = [0.485, 0.456, 0.406]
_STD = [0.229, 0.224, 0.225]


def write_tiny_model(
    out_dir: str | pathlib.Path,
    *,
    corpus: Iterable[str],
    vocab_size: int = 1024,
    template: str = "internvl2_5",
    image_size: int = 112,
    patch_size: int = 14,
    vision_hidden: int = 96,
    vision_mlp: int = 192,
    vision_layers: int = 3,
    vision_heads: int = 4,
    hidden: int = 128,
    mlp: int = 256,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    vision_init: float = 0.02,
    init: float = 0.05,
) -> pathlib.Path:
    """Train a tokenizer on `corpus` and write it with a matching ``config.json``.

    The same arguments give the same bytes. ``llm_config.vocab_size`` is the number of
    tokens that were really made, special ones included.

    Args:
      out_dir: folder, made if absent; files of these names are replaced.
      corpus: texts; the frame of the chat template is added, so that it is few tokens.
      vocab_size: upper bound on ordinary tokens (256 of them are the bytes).
      template: chat template that config.json names.
      image_size: side of a tile in pixels.
      patch_size: side of a vision patch in pixels; four patches make one image token.
      vision_hidden, vision_mlp, vision_layers, vision_heads: vision transformer.
      hidden, mlp, layers, heads, kv_heads: language model.
      vision_init, init: standard deviation of initial weights in the two towers. The
        released models' 0.02 suits a width of thousands; at 128 it only delays.

    Raises:
      ValueError: sizes that do not divide, fewer than 256 tokens, unknown template.
      FileExistsError: `out_dir` holds weights; a new tokenizer would not fit them.
    """
    _check_divides("image_size", image_size, "2 * patch_size", 2 * patch_size)
    _check_divides("vision_hidden", vision_hidden, "vision_heads", vision_heads)
    _check_divides("hidden", hidden, "2 * heads (rotary pairs)", 2 * heads)
    _check_divides("heads", heads, "kv_heads", kv_heads)
    if vocab_size < 256:
        raise ValueError(f"vocab_size={vocab_size} must be at least 256, the bytes")
    out_dir = pathlib.Path(out_dir)
    weights = sorted(out_dir.glob("*.safetensors"))
    if weights:
        raise FileExistsError(
            f"{weights[0]} was made with the tokenizer that lies beside it; "
            "choose another out_dir"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    bpe = _train_bpe([*corpus, *_frame(template)], vocab_size=vocab_size)
    total = _write_tokenizer(out_dir, bpe)
    vision_config = _vision_config(
        image_size=image_size,
        patch_size=patch_size,
        hidden=vision_hidden,
        mlp=vision_mlp,
        layers=vision_layers,
        heads=vision_heads,
        init=vision_init,
    )
    llm_config = _llm_config(
        bpe,
        vocab_size=total,
        hidden=hidden,
        mlp=mlp,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        init=init,
    )
    config = _chat_config(vision_config, llm_config, template=template)
    _write_json(out_dir / "config.json", config)
    stop = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    ids = [bpe.token_to_id(token) for token in stop]
    _write_json(out_dir / "generation_config.json", {"eos_token_id": ids})
    _write_json(out_dir / "preprocessor_config.json", _preprocessor(image_size))
    return out_dir


def _vision_config(
    *,
    image_size: int,
    patch_size: int,
    hidden: int,
    mlp: int,
    layers: int,
    heads: int,
    init: float,
) -> dict[str, Any]:
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",  # upstream's name for every size
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_channels": 3,
        "image_size": image_size,
        "patch_size": patch_size,
        "hidden_act": "gelu",
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "qk_normalization": False,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "drop_path_rate": 0.0,
        # 1.0 where the big models have 0.1: LayerScale must not mute a tower that
        # learns from nothing within a few hundred steps.
        "initializer_factor": 1.0,
        "initializer_range": init,
        "torch_dtype": "float32",
        "use_bfloat16": False,
        "use_flash_attn": False,
    }


def _llm_config(
    bpe: tokenizers.Tokenizer,
    *,
    vocab_size: int,
    hidden: int,
    mlp: int,
    layers: int,
    heads: int,
    kv_heads: int,
    init: float,
) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
        "initializer_range": init,
        "bos_token_id": bpe.token_to_id("<|endoftext|>"),
        "eos_token_id": bpe.token_to_id("<|im_end|>"),
        "use_sliding_window": False,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def _chat_config(
    vision_config: dict[str, Any], llm_config: dict[str, Any], *, template: str
) -> dict[str, Any]:
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "template": template,
        "force_image_size": vision_config["image_size"],
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 1,
        "pad2square": False,
        "hidden_size": llm_config["hidden_size"],
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "vision_config": vision_config,
        "llm_config": llm_config,
    }


def _preprocessor(image_size: int) -> dict[str, Any]:
    return {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "crop_size": image_size,
        "size": image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
        "image_mean": _MEAN,
        "image_std": _STD,
    }


def _frame(name: str) -> list[str]:
    """Text that the chat template puts around every question."""
    frame = templates.get_template(name)
    headers = (frame.system, frame.user, frame.assistant, frame.separator)
    return [frame.system_message, *(h.split("|>")[-1] for h in headers)]


def _train_bpe(texts: Iterable[str], *, vocab_size: int) -> tokenizers.Tokenizer:
    """Byte-level BPE as Qwen2's, special tokens after the ordinary ones."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.normalizer = tokenizers.normalizers.NFC()
    split = tokenizers.Regex(_SPLIT)
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(split, behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(
                add_prefix_space=False, use_regex=False
            ),
        ]
    )
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer=trainer)
    added = [
        tokenizers.AddedToken(token, special=True, normalized=False)
        for token in SPECIAL_TOKENS + tokenizer.ADDED_TOKENS
    ]
    bpe.add_special_tokens(added)
    return bpe


def _write_tokenizer(out_dir: pathlib.Path, bpe: tokenizers.Tokenizer) -> int:
    """Write the files of a Qwen2 tokenizer; return the number of tokens."""
    bpe.model.save(str(out_dir))  # vocab.json, merges.txt
    added = {bpe.token_to_id(t): t for t in SPECIAL_TOKENS + tokenizer.ADDED_TOKENS}
    flags = {"lstrip": False, "normalized": False, "rstrip": False}
    flags |= {"single_word": False, "special": True}
    extra = [token for token in added.values() if token != "<|endoftext|>"]
    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(index): {"content": token, **flags} for index, token in added.items()
        },
        "additional_special_tokens": extra,
        "add_prefix_space": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": 32768,
    }
    special_tokens_map = {
        "additional_special_tokens": extra,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    _write_json(out_dir / "tokenizer_config.json", tokenizer_config)
    _write_json(out_dir / "special_tokens_map.json", special_tokens_map)
    ids = {token: index for index, token in added.items()}
    _write_json(out_dir / "added_tokens.json", ids)
    return bpe.get_vocab_size(with_added_tokens=True)


def _check_divides(name: str, value: int, of: str, divisor: int) -> None:
    if divisor <= 0 or value <= 0 or value % divisor:
        raise ValueError(
            f"{name}={value} must be a positive multiple of {of}={divisor}"
        )


def _write_json(path: pathlib.Path, value: object) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, "utf-8")
