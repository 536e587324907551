"""Architecture of an InternVL, read from a released ``config.json``.

Missing fields take the defaults of the released configuration *classes*
(``InternVisionConfig`` describes the 6B tower, ``InternVLChatConfig`` defaults to pixel
shuffle v1), never those of another size.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mpo_jax.models import native_config
from mpo_jax.models import rope as rope_lib


@dataclasses.dataclass(frozen=True)
class Kind:
    """Class defaults of a decoder, of the fields that a config may leave out."""

    name: str
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool = False
    bias_field: str = "attention_bias"
    bias: bool = False
    qk_norm: bool = False


DECODERS = {
    # InternVL3-9B stores an InternLM3 under these names.
    "InternLM2ForCausalLM": Kind("internlm2", bias_field="bias", bias=True),
    "Qwen2ForCausalLM": Kind(
        "qwen2", max_position_embeddings=32768, num_key_value_heads=32, qkv_bias=True
    ),
    "Qwen3ForCausalLM": Kind(
        "qwen3",
        max_position_embeddings=32768,
        num_key_value_heads=32,
        head_dim=128,
        qk_norm=True,
    ),
    "LlamaForCausalLM": Kind("llama"),
    "Phi3ForCausalLM": Kind(
        "phi3", rms_norm_eps=1e-5, max_position_embeddings=4096, bias_field=""
    ),
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
# Fields of decoder classes that would change the mathematics, and their neutral value.
_ONLY: tuple[tuple[str, Any], ...] = (
    ("hidden_act", "silu"),
    ("use_sliding_window", False),
    ("mlp_bias", False),
    ("attention_dropout", 0),
    ("resid_pdrop", 0),
    ("embd_pdrop", 0),
)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """InternViT. Defaults are the released class's (6B flavoured)."""

    hidden_size: int = 3200
    num_attention_heads: int = 25
    intermediate_size: int = 12800
    num_hidden_layers: int = 48
    qkv_bias: bool = False
    qk_normalization: bool = True
    norm_type: str = "rms_norm"
    layer_norm_eps: float = 1e-6
    patch_size: int = 14
    image_size: int = 224
    initializer_factor: float = 0.1
    initializer_range: float = 0.02

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """Decoder. ``kind`` names the checkpoint layout; the rest is what differs."""

    kind: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope: rope_lib.Rope
    max_position_embeddings: int
    qkv_bias: bool
    out_bias: bool
    qk_norm: bool
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in ("frequencies", "long_frequencies"):
            found = len(getattr(self.rope, name))
            if found != self.head_dim // 2 and (found or name == "frequencies"):
                raise ValueError(
                    f"rope.{name}: {found} for head_dim={self.head_dim}; half as many "
                    "as channels are needed"
                )


@dataclasses.dataclass(frozen=True)
class InternVLConfig:
    """The whole model, as far as its mathematics and its prompts need it."""

    vision: VisionConfig
    language: LanguageConfig
    image_size: int
    downsample_ratio: float
    ps_version: str
    select_layer: int
    template: str
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool

    def fields(self) -> dict[str, Any]:
        """Every field by its path, e.g. ``{"language.rope_theta": 1e6}``."""
        out: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if dataclasses.is_dataclass(value):
                inner = dataclasses.fields(value)
                out |= {f"{field.name}.{f.name}": getattr(value, f.name) for f in inner}
            else:
                out[field.name] = value
        return out

    @property
    def tokens_per_tile(self) -> int:
        """``I``: language tokens per tile (256 at 448 pixels)."""
        side = self.image_size // self.vision.patch_size
        return int(side**2 * self.downsample_ratio**2)

    @property
    def shuffle(self) -> int:
        """Patches per side that pixel shuffle merges into one token."""
        return int(1 / self.downsample_ratio)

    @property
    def projector_width(self) -> int:
        """Width of the projector's input."""
        return self.vision.hidden_size * self.shuffle**2


def _vision(raw: Mapping[str, Any]) -> VisionConfig:
    fields = {f.name for f in dataclasses.fields(VisionConfig)}
    config = VisionConfig(**{k: v for k, v in raw.items() if k in fields})
    if raw.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"vision_config.hidden_act={raw['hidden_act']!r}: only gelu")
    for name in ("dropout", "attention_dropout"):
        if raw.get(name):
            raise ValueError(f"vision_config.{name}={raw[name]}: only 0 is supported")
    if config.norm_type not in ("layer_norm", "rms_norm"):
        raise ValueError(
            f"vision_config.norm_type={config.norm_type!r}: "
            "only layer_norm and rms_norm are known"
        )
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"vision_config.hidden_size={config.hidden_size} is not a multiple of "
            f"num_attention_heads={config.num_attention_heads}"
        )
    return config


def _language(raw: Mapping[str, Any], where: str) -> LanguageConfig:
    architectures = raw.get("architectures") or [None]
    kind = DECODERS.get(str(architectures[0]))
    if kind is None:
        raise ValueError(
            f"{where}.architectures={architectures!r}: supported are {sorted(DECODERS)}"
        )
    for name, only in _ONLY:
        value = raw.get(name)
        if value is not None and value != only:
            raise ValueError(f"{where}.{name}={value!r}: only {only!r} is supported")
    sizes = {}
    for name in _SIZES:
        if name not in raw:
            raise ValueError(f"{where}.{name} is missing from config.json")
        sizes[name] = int(raw[name])
    heads = sizes["num_attention_heads"]
    kv_heads = int(raw.get("num_key_value_heads") or kind.num_key_value_heads or heads)
    if heads % kv_heads:
        raise ValueError(
            f"{where}.num_attention_heads={heads} is not a multiple of "
            f"num_key_value_heads={kv_heads}"
        )
    max_length = int(raw.get("max_position_embeddings") or kind.max_position_embeddings)
    window = raw.get("sliding_window")
    # Phi-3 applies its window always, the others only where use_sliding_window says so.
    if kind.name == "phi3" and window is not None and window < max_length:
        raise ValueError(
            f"{where}.sliding_window={window} is shorter than "
            f"max_position_embeddings={max_length}: only full attention is supported"
        )
    kinds = set(raw.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        raise ValueError(f"{where}.layer_types holds {sorted(kinds)}: only full ones")
    head_dim = int(
        raw.get("head_dim") or kind.head_dim or sizes["hidden_size"] // heads
    )
    theta = raw.get("rope_theta", (raw.get("rope_parameters") or {}).get("rope_theta"))
    theta = float(10000.0 if theta is None else theta)
    bias = bool(raw.get(kind.bias_field, kind.bias))
    return LanguageConfig(
        kind=kind.name,
        **sizes,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(raw.get("rms_norm_eps", kind.rms_norm_eps)),
        rope_theta=theta,
        rope=rope_lib.read(
            raw, theta=theta, head_dim=head_dim, max_length=max_length, where=where
        ),
        max_position_embeddings=max_length,
        qkv_bias=kind.qkv_bias or bias,
        out_bias=bias and kind.name != "qwen2",
        qk_norm=kind.qk_norm,
        initializer_range=float(raw.get("initializer_range", 0.02)),
    )


def from_hf(raw: Mapping[str, Any]) -> InternVLConfig:
    """Read the content of a ``config.json`` of either layout.

    Fields of no meaning here are ignored.

    Raises:
      ValueError: naming the field, if something is missing or not supported.
    """
    llm = "llm_config"
    if native_config.is_native(raw):
        raw, llm = native_config.to_original(raw), "text_config"
    for name in ("vision_config", "llm_config"):
        if name not in raw:
            raise ValueError(
                f"config.json has no {name!r}; an original-layout InternVL "
                "(InternVLChatModel) or native one (internvl) is expected"
            )
    vision = _vision(raw["vision_config"])
    select_layer = int(raw.get("select_layer", -1))
    if not -vision.num_hidden_layers <= select_layer <= -1:
        raise ValueError(
            f"select_layer={select_layer}: must lie in "
            f"[-{vision.num_hidden_layers}, -1]"
        )
    ps_version = raw.get("ps_version", "v1")
    if ps_version not in ("v1", "v2"):
        raise ValueError(f"ps_version={ps_version!r}: only v1 and v2 are known")
    if raw.get("pad2square"):
        raise ValueError("pad2square=true is not supported")
    return InternVLConfig(
        vision=vision,
        language=_language(raw["llm_config"], llm),
        image_size=int(raw.get("force_image_size") or vision.image_size),
        downsample_ratio=float(raw.get("downsample_ratio", 0.5)),
        ps_version=ps_version,
        select_layer=select_layer,
        template=raw.get("template") or "",
        min_tiles=int(raw.get("min_dynamic_patch", 1)),
        max_tiles=int(raw.get("max_dynamic_patch", 6)),
        use_thumbnail=bool(raw.get("use_thumbnail", False)),
    )


def load(path: str | pathlib.Path) -> InternVLConfig:
    """Read ``config.json`` from a file or from a model directory.

    Raises:
      FileNotFoundError: if it is not there.
      ValueError: if it is not JSON or not supported; names the file.
    """
    file = pathlib.Path(path)
    if file.is_dir():
        file = file / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist; give a model directory with a config.json"
        )
    try:
        return from_hf(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
