"""The original checkpoint layout as a table: one row per kind of tensor.

A row names a tensor of the released files (``InternVLChatModel``), its shape, the
parameters of ours that it fills, and how. Every way is a reshape, a permutation or a
split, so both directions are bit exact. Rows stand in the order of the released state
dict, which decides how files are cut into shards.

Names and shapes follow the released modules; the packing of InternLM2's ``wqkv`` is
``(kv head, G queries + key + value, head dim)`` along its rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from mpo_jax.models.config import InternVLConfig, LanguageConfig, VisionConfig
from mpo_jax.nn import params

Shape = tuple[int, ...]


class Transform(Protocol):
    """Between one tensor of the files and one or more of our parameters."""

    @property
    def hf_shape(self) -> Shape:
        """Shape of the tensor in the files."""
        ...

    @property
    def part_shapes(self) -> tuple[Shape, ...]:
        """Shapes of our parameters, without the layer axis."""
        ...

    def to_parts(self, tensor: np.ndarray) -> tuple[np.ndarray, ...]: ...

    def to_hf(self, parts: tuple[np.ndarray, ...]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Move:
    """Split the axes of a tensor, then permute them.

    Attributes:
      hf_shape: shape in the files.
      split: the same with axes split, e.g. ``(3, heads, head_dim, width)``.
      order: permutation of the split axes that gives our parameter.
    """

    hf_shape: Shape
    split: Shape
    order: Shape

    @property
    def part_shapes(self) -> tuple[Shape, ...]:
        return (tuple(self.split[axis] for axis in self.order),)

    def to_parts(self, tensor: np.ndarray) -> tuple[np.ndarray, ...]:
        return (tensor.reshape(self.split).transpose(self.order),)

    def to_hf(self, parts: tuple[np.ndarray, ...]) -> np.ndarray:
        back = tuple(int(axis) for axis in np.argsort(self.order))
        return parts[0].transpose(back).reshape(self.hf_shape)


@dataclasses.dataclass(frozen=True)
class PackedHeads:
    """InternLM2's ``wqkv``: rows ``(K, G + 2, H)``, to queries, keys and values.

    Query head ``n = k * G + g`` is block ``g`` of group ``k``; key and value are the
    group's last two blocks.

    Attributes:
      heads: query heads ``N``.
      kv_heads: key/value heads ``K``.
      rest: axes after the rows: ``(width,)`` of a weight, ``()`` of a bias.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rest: Shape

    @property
    def hf_shape(self) -> Shape:
        return ((self.heads + 2 * self.kv_heads) * self.head_dim, *self.rest)

    @property
    def part_shapes(self) -> tuple[Shape, ...]:
        kv = (*self.rest, self.kv_heads, self.head_dim)
        return ((*self.rest, self.heads, self.head_dim), kv, kv)

    def to_parts(self, tensor: np.ndarray) -> tuple[np.ndarray, ...]:
        groups = self.heads // self.kv_heads
        rows = (self.kv_heads, groups + 2, self.head_dim)
        blocks = np.moveaxis(tensor.reshape(*rows, *self.rest), (0, 1, 2), (-3, -2, -1))
        query = blocks[..., :groups, :].reshape(self.part_shapes[0])
        return query, blocks[..., groups, :], blocks[..., groups + 1, :]

    def to_hf(self, parts: tuple[np.ndarray, ...]) -> np.ndarray:
        query, key, value = parts
        groups = self.heads // self.kv_heads
        query = query.reshape(*self.rest, self.kv_heads, groups, self.head_dim)
        blocks = np.concatenate(
            [query, key[..., None, :], value[..., None, :]], axis=-2
        )
        return np.moveaxis(blocks, (-3, -2, -1), (0, 1, 2)).reshape(self.hf_shape)


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of tensor.

    Attributes:
      name: its name in the files; ``{layer}`` stands for the layer number.
      paths: the parameters that it fills; a stacked one gets a slice of each layer.
      transform: how.
    """

    name: str
    paths: tuple[str, ...]
    transform: Transform


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that repeat per layer (``layers`` of them), or stand once (None)."""

    rows: tuple[Row, ...]
    layers: int | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of the files: a row at a layer (None where it stands once)."""

    name: str
    row: Row
    layer: int | None

    @property
    def shape(self) -> Shape:
        return self.row.transform.hf_shape

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _vector(name: str, path: str, *shape: int, lead: int = 0) -> Row:
    """A tensor that only gains axes (heads) or loses `lead` leading ones."""
    flat = (math.prod(shape),) if not lead else (*(1,) * lead, *shape)
    return Row(name, (path,), Move(flat, shape, tuple(range(len(shape)))))


def _linear(
    name: str, path: str, out: Shape, inward: Shape, *, bias: bool
) -> tuple[Row, ...]:
    """Torch ``Linear``: weight ``(out, in)`` to kernel ``[*in, *out]``, and bias."""
    hf_shape = (math.prod(out), math.prod(inward))
    num_out, axes = len(out), len(out) + len(inward)
    order = (*range(num_out, axes), *range(num_out))
    move = Move(hf_shape, (*out, *inward), order)
    weight = Row(f"{name}.weight", (f"{path}/kernel",), move)
    if not bias:
        return (weight,)
    return (weight, _vector(f"{name}.bias", f"{path}/bias", *out))


def _norm(name: str, path: str, width: int, *, bias: bool) -> tuple[Row, ...]:
    scale = _vector(f"{name}.weight", f"{path}/scale", width)
    if not bias:
        return (scale,)
    return (scale, _vector(f"{name}.bias", f"{path}/bias", width))


def _vision(cfg: VisionConfig) -> tuple[Group, Group]:
    name, path = "vision_model.embeddings", "vision"
    width, patch = cfg.hidden_size, cfg.patch_size
    tokens = 1 + (cfg.image_size // patch) ** 2
    conv = (width, 3, patch, patch)
    embeddings = (
        _vector(f"{name}.class_embedding", f"{path}/class_embedding", width, lead=2),
        _vector(
            f"{name}.position_embedding",
            f"{path}/position_embedding",
            tokens,
            width,
            lead=1,
        ),
        Row(
            f"{name}.patch_embedding.weight",
            (f"{path}/patch/kernel",),
            Move(conv, conv, (2, 3, 1, 0)),
        ),
        _vector(f"{name}.patch_embedding.bias", f"{path}/patch/bias", width),
    )

    name, path = "vision_model.encoder.layers.{layer}", "vision/layers/blocks"
    heads = (cfg.num_attention_heads, cfg.head_dim)
    hidden = cfg.intermediate_size
    centred = cfg.norm_type == "layer_norm"
    qk_norms: tuple[Row, ...] = ()
    if cfg.qk_normalization:
        for norm in ("q_norm", "k_norm"):
            qk_norms += _norm(
                f"{name}.attn.{norm}", f"{path}/attn/{norm}", width, bias=False
            )
    blocks = (
        _vector(f"{name}.ls1", f"{path}/ls1", width),
        _vector(f"{name}.ls2", f"{path}/ls2", width),
        *_linear(
            f"{name}.attn.qkv",
            f"{path}/attn/qkv",
            (3, *heads),
            (width,),
            bias=cfg.qkv_bias,
        ),
        *qk_norms,
        *_linear(f"{name}.attn.proj", f"{path}/attn/out", (width,), heads, bias=True),
        *_linear(f"{name}.mlp.fc1", f"{path}/fc1", (hidden,), (width,), bias=True),
        *_linear(f"{name}.mlp.fc2", f"{path}/fc2", (width,), (hidden,), bias=True),
        *_norm(f"{name}.norm1", f"{path}/norm1", width, bias=centred),
        *_norm(f"{name}.norm2", f"{path}/norm2", width, bias=centred),
    )
    return Group(embeddings), Group(blocks, cfg.num_hidden_layers)


# Names that differ between InternLM2 files and those of Qwen2 and Llama.
_INTERNLM2_NAMES = {
    "embedding": "model.tok_embeddings",
    "head": "output",
    "out": "attention.wo",
    "gate": "feed_forward.w1",
    "up": "feed_forward.w3",
    "down": "feed_forward.w2",
    "attn_norm": "attention_norm",
    "mlp_norm": "ffn_norm",
}
_LLAMA_NAMES = {
    "embedding": "model.embed_tokens",
    "head": "lm_head",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_DECODER_NAMES = {
    "internlm2": _INTERNLM2_NAMES,
    "qwen2": _LLAMA_NAMES,
    "llama": _LLAMA_NAMES,
}


def _qkv(cfg: LanguageConfig, name: str, path: str) -> tuple[Row, ...]:
    width, head_dim = cfg.hidden_size, cfg.head_dim
    heads, kv_heads = cfg.num_attention_heads, cfg.num_key_value_heads
    if cfg.kind != "internlm2":
        rows: tuple[Row, ...] = ()
        for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            rows += _linear(
                f"{name}.self_attn.{part}_proj",
                f"{path}/attn/{part}",
                (count, head_dim),
                (width,),
                bias=cfg.qkv_bias,
            )
        return rows

    def packed(kind: str, leaf: str, rest: Shape) -> Row:
        paths = tuple(f"{path}/attn/{part}/{leaf}" for part in "qkv")
        transform = PackedHeads(heads, kv_heads, head_dim, rest)
        return Row(f"{name}.attention.wqkv.{kind}", paths, transform)

    weight = packed("weight", "kernel", (width,))
    return (weight, packed("bias", "bias", ())) if cfg.qkv_bias else (weight,)


def _language(cfg: LanguageConfig) -> tuple[Group, ...]:
    names = _DECODER_NAMES[cfg.kind]
    width, hidden, vocab = cfg.hidden_size, cfg.intermediate_size, cfg.vocab_size
    root = "language_model"
    table = Move((vocab, width), (vocab, width), (0, 1))
    embedding = Row(
        f"{root}.{names['embedding']}.weight", ("language/embedding/table",), table
    )

    name, path = f"{root}.model.layers.{{layer}}", "language/layers/blocks"
    heads = (cfg.num_attention_heads, cfg.head_dim)

    def linear(
        key: str, leaf: str, out: Shape, inward: Shape, *, bias: bool = False
    ) -> tuple[Row, ...]:
        return _linear(f"{name}.{names[key]}", f"{path}/{leaf}", out, inward, bias=bias)

    gate = linear("gate", "mlp/gate", (hidden,), (width,))
    up = linear("up", "mlp/up", (hidden,), (width,))
    blocks = (
        *_qkv(cfg, name, path),
        *linear("out", "attn/o", (width,), heads, bias=cfg.out_bias),
        *gate,
        *up,
        *linear("down", "mlp/down", (width,), (hidden,)),
        *_norm(f"{name}.{names['attn_norm']}", f"{path}/attn_norm", width, bias=False),
        *_norm(f"{name}.{names['mlp_norm']}", f"{path}/mlp_norm", width, bias=False),
    )
    tail = (
        *_norm(f"{root}.model.norm", "language/norm", width, bias=False),
        *_linear(
            f"{root}.{names['head']}",
            "language/lm_head",
            (vocab,),
            (width,),
            bias=False,
        ),
    )
    return Group((embedding,)), Group(blocks, cfg.num_hidden_layers), Group(tail)


def groups(cfg: InternVLConfig) -> tuple[Group, ...]:
    """The table of an architecture, in the order of the released state dict."""
    inner, width = cfg.projector_width, cfg.language.hidden_size
    projector = (
        *_norm("mlp1.0", "projector/norm", inner, bias=True),
        *_linear("mlp1.1", "projector/fc1", (width,), (inner,), bias=True),
        *_linear("mlp1.3", "projector/fc2", (width,), (width,), bias=True),
    )
    return *_vision(cfg.vision), *_language(cfg.language), Group(projector)


def tensors(cfg: InternVLConfig) -> Iterator[Tensor]:
    """Every tensor of the files, in the order of the released state dict."""
    for group in groups(cfg):
        if group.layers is None:
            for row in group.rows:
                yield Tensor(row.name, row, None)
            continue
        for layer in range(group.layers):
            for row in group.rows:
                yield Tensor(row.name.format(layer=layer), row, layer)


def hf_shapes(cfg: InternVLConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of the files."""
    return {tensor.name: tensor.shape for tensor in tensors(cfg)}


def check(cfg: InternVLConfig, shapes: Mapping[str, Any]) -> None:
    """Check that the table fills every parameter exactly once, at its shape.

    Args:
      shapes: nested dict of ``ShapeDtypeStruct``, as the model declares it.

    Raises:
      ValueError: naming the parameters, if table and model disagree.
    """
    declared = {path: tuple(leaf.shape) for path, leaf in params.flatten(shapes)}
    filled: dict[str, Shape] = {}
    wrong = []
    for group in groups(cfg):
        lead = () if group.layers is None else (group.layers,)
        for row in group.rows:
            for path, shape in zip(row.paths, row.transform.part_shapes, strict=True):
                if path in filled:
                    wrong.append(f"{path}: filled twice, again by {row.name}")
                filled[path] = (*lead, *shape)
    for path in sorted(declared.keys() | filled.keys()):
        if declared.get(path) != filled.get(path):
            wrong.append(
                f"{path}: the model has {declared.get(path)}, "
                f"the table gives {filled.get(path)}"
            )
    if wrong:
        raise ValueError(
            "model and conversion table disagree:\n  " + "\n  ".join(wrong)
        )
