"""Released members of the family: architecture by hub id, without network or weights.

Enough of every released ``config.json`` to plan a run; weights are loaded with the one
that comes with them (``models.config.load``). Totals are the published ones, of the
safetensors metadata that each model's page shows.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from mpo_jax.models import config

OWNER = "OpenGVLab"
_STAGES = ("-MPO", "-Instruct", "-Pretrained")

_VIT_300M: dict[str, Any] = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
    "patch_size": 14,
    "image_size": 448,
}
_VIT_6B: dict[str, Any] = {
    "hidden_size": 3200,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "num_hidden_layers": 45,
    "qkv_bias": False,
    "qk_normalization": True,
    "norm_type": "rms_norm",
    "patch_size": 14,
    "image_size": 448,
}


def _language(
    architecture: str,
    layers: int,
    width: int,
    heads: tuple[int, int],
    hidden: int,
    *,
    vocab: int,
    theta: float = 1e6,
    scaling: float | None = None,
    eps: float = 1e-5,
    positions: int = 32768,
) -> dict[str, Any]:
    """``llm_config`` of one decoder; heads are (query, key/value)."""
    raw: dict[str, Any] = {
        "architectures": [architecture],
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "intermediate_size": hidden,
        "vocab_size": vocab,
        "rope_theta": theta,
        "rms_norm_eps": eps,
        "max_position_embeddings": positions,
    }
    if architecture == "InternLM2ForCausalLM":
        raw["bias"] = False  # the released class defaults to True
    if scaling is not None:
        raw["rope_scaling"] = {"type": "dynamic", "factor": scaling}
    return raw


def _internlm2(*sizes: Any, scaling: float = 2.0, theta: float = 1e6) -> dict[str, Any]:
    return _language(
        "InternLM2ForCausalLM", *sizes, vocab=92553, theta=theta, scaling=scaling
    )


def _qwen2(*sizes: Any, vocab: int = 151674) -> dict[str, Any]:
    return _language("Qwen2ForCausalLM", *sizes, vocab=vocab, eps=1e-6)


def _qwen3(*sizes: Any) -> dict[str, Any]:
    return _language(
        "Qwen3ForCausalLM", *sizes, vocab=151936, eps=1e-6, positions=40960
    ) | {"head_dim": 128}


_INTERNLM_1_8B = _internlm2(24, 2048, (16, 8), 8192)
_INTERNLM_7B = _internlm2(32, 4096, (32, 8), 14336)
_INTERNLM_20B = (48, 6144, (48, 8), 16384)
_QWEN_0_5B = (24, 896, (14, 2), 4864)
_QWEN_32B = _qwen2(64, 5120, (40, 8), 27648)
_QWEN_72B = _qwen2(80, 8192, (64, 8), 29568)


@dataclasses.dataclass(frozen=True)
class Member:
    """One released size.

    Attributes:
      name: hub id, without the owner.
      vision, language: ``vision_config`` and ``llm_config``.
      template: chat template that its config names.
      parameters: published total, or None where only a rounded one is known; there
        the vocabulary is the base model's plus the nine tokens that InternVL adds.
    """

    name: str
    vision: dict[str, Any]
    language: dict[str, Any]
    template: str
    parameters: int | None

    @property
    def config_json(self) -> dict[str, Any]:
        """The original-layout ``config.json``, as far as the mathematics needs it."""
        return {
            "vision_config": dict(self.vision),
            "llm_config": dict(self.language),
            "force_image_size": 448,
            "downsample_ratio": 0.5,
            "ps_version": "v2",
            "select_layer": -1,
            "template": self.template,
            "min_dynamic_patch": 1,
            "max_dynamic_patch": 12,
            "use_thumbnail": True,
        }

    @property
    def config(self) -> config.InternVLConfig:
        """The parsed architecture."""
        return config.from_hf(self.config_json)


def _members(
    series: str, template: str, *rows: tuple[str, Any, Any, int | None]
) -> tuple[Member, ...]:
    return tuple(
        Member(f"{series}-{size}", vision, language, template, total)
        for size, vision, language, total in rows
    )


MEMBERS = (
    *_members(
        "InternVL2",
        "internlm2-chat",
        ("2B", _VIT_300M, _INTERNLM_1_8B, 2_205_754_368),
        ("8B", _VIT_300M, _INTERNLM_7B, 8_075_365_376),
        ("26B", _VIT_6B, _internlm2(*_INTERNLM_20B, scaling=3.0), 25_514_186_112),
        (
            "Llama3-76B",
            _VIT_6B,
            _language(
                *("LlamaForCausalLM", 80, 8192, (64, 8), 28672),
                **{"vocab": 128256 + 9, "theta": 5e5, "positions": 8192},
            ),
            None,
        ),
    ),
    *_members(
        "InternVL2",
        "Hermes-2",
        ("1B", _VIT_300M, _qwen2(*_QWEN_0_5B, vocab=151655), 938_158_976),
        (
            "40B",
            _VIT_6B,
            _language(
                *("LlamaForCausalLM", 60, 7168, (56, 8), 20480),
                **{"vocab": 64000 + 9, "theta": 5e6, "positions": 4096},
            ),
            None,
        ),
    ),
    *_members(
        "InternVL2",
        "phi3-chat",
        (
            "4B",  # its rotary factors (longrope) stand in its config.json alone
            _VIT_300M,
            _language(
                *("Phi3ForCausalLM", 32, 3072, (32, 32), 8192),
                **{"vocab": 32020, "theta": 1e4, "positions": 131072},
            ),
            None,
        ),
    ),
    *_members(
        "InternVL2_5",
        "internvl2_5",
        ("1B", _VIT_300M, _qwen2(*_QWEN_0_5B), 938_193_024),
        ("2B", _VIT_300M, _INTERNLM_1_8B, 2_205_754_368),
        ("4B", _VIT_300M, _qwen2(36, 2048, (16, 2), 11008), 3_712_637_952),
        ("8B", _VIT_300M, _INTERNLM_7B, 8_075_365_376),
        (
            "26B",
            _VIT_6B,
            _internlm2(*_INTERNLM_20B, scaling=2.5, theta=5e7),
            25_514_186_112,
        ),
        ("38B", _VIT_6B, _QWEN_32B, 38_388_164_992),
        ("78B", _VIT_6B, _QWEN_72B, 78_408_318_336),
    ),
    *_members(
        "InternVL3",
        "internvl2_5",
        ("1B", _VIT_300M, _qwen2(*_QWEN_0_5B), 938_193_024),
        ("2B", _VIT_300M, _qwen2(28, 1536, (12, 2), 8960), 2_088_957_440),
        ("8B", _VIT_300M, _qwen2(28, 3584, (28, 4), 18944), 7_944_373_760),
        (
            "9B",  # an InternLM3 under InternLM2's names
            _VIT_300M,
            _language(
                *("InternLM2ForCausalLM", 48, 4096, (32, 2), 10240),
                **{"vocab": 128512 + 9, "theta": 5e7, "scaling": 6.0},
            ),
            None,
        ),
        ("14B", _VIT_300M, _qwen2(48, 5120, (40, 8), 13824), 15_117_256_704),
        ("38B", _VIT_6B, _QWEN_32B, 38_388_164_992),
        ("78B", _VIT_6B, _QWEN_72B, 78_408_318_336),
    ),
    *_members(
        "InternVL3_5",
        "internvl2_5",
        ("1B", _VIT_300M, _qwen3(28, 1024, (16, 8), 3072), 1_060_897_792),
        ("2B", _VIT_300M, _qwen3(28, 2048, (16, 8), 6144), 2_348_347_392),
        ("4B", _VIT_300M, _qwen3(36, 2560, (32, 8), 9728), 4_732_489_216),
        ("8B", _VIT_300M, _qwen3(36, 4096, (32, 8), 12288), 8_528_318_464),
        ("14B", _VIT_300M, _qwen3(40, 5120, (40, 8), 17408), 15_119_523_840),
        ("38B", _VIT_6B, _qwen3(64, 5120, (64, 8), 25600), 38_390_405_504),
    ),
)
"""Released models whose decoder ``models.config`` supports."""

_BY_NAME = {member.name: member for member in MEMBERS}


def member(path: str) -> Member | None:
    """Row of this hub id (``OpenGVLab/InternVL2-8B``), or None.

    Weights of another stage (``-MPO``, ``-Instruct``, ``-Pretrained``) have the same
    architecture.
    """
    owner, _, name = path.rpartition("/")
    if owner != OWNER:
        return None
    for stage in _STAGES:
        name = name.removesuffix(stage)
    return _BY_NAME.get(name)


def lookup(path: str) -> config.InternVLConfig | None:
    """Architecture of a model directory or of a released hub id; None if neither.

    A directory wins, and its own ``config.json`` is read.

    Raises:
      FileNotFoundError, ValueError: as ``models.config.load``, for a directory.
    """
    if path and pathlib.Path(path).is_dir():
        return config.load(path)
    found = member(path)
    return None if found is None else found.config
