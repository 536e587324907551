"""The checkpoint layouts as tables: one row per kind of tensor.

A row names tensors of the released files, the parameters of ours that they fill, and
how. Every way is a reshape, a permutation, a split or a join, so both directions are
bit exact.

Layouts: ``original`` (``InternVLChatModel``; rows stand in the order of its state dict,
which decides how files are cut into shards), ``native`` (transformers'
``InternVLForConditionalGeneration`` as published in ``-hf`` repositories) and
``native_new`` (the same with the names it has in memory, which newer versions write).
InternLM2 has no class of its own in the native layouts: it stands there under Llama's
names, with ``wqkv`` taken apart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from mpo_jax.convert.transforms import Fused, Move, PackedHeads, Shape, Split, Transform
from mpo_jax.models.config import InternVLConfig, LanguageConfig, VisionConfig
from mpo_jax.nn import params

ORIGINAL, NATIVE, NATIVE_NEW = "original", "native", "native_new"
LAYOUTS = (ORIGINAL, NATIVE, NATIVE_NEW)


@dataclasses.dataclass(frozen=True)
class _Names:
    """What the parts of a model are called in one layout."""

    vision: str
    language: str
    head: str
    projector: tuple[str, str, str]
    class_token: str
    positions: str
    patch: str
    block: str
    attn: str
    attn_out: str
    norms: tuple[str, str]
    scales: tuple[str, str]


_ORIGINAL = _Names(
    vision="vision_model",
    language="language_model.model",
    head="language_model.lm_head",
    projector=("mlp1.0", "mlp1.1", "mlp1.3"),
    class_token="class_embedding",
    positions="position_embedding",
    patch="patch_embedding",
    block="encoder.layers",
    attn="attn",
    attn_out="proj",
    norms=("norm1", "norm2"),
    scales=("ls1", "ls2"),
)
_OUTPUT = "language_model.output"  # InternLM2's head
_NATIVE = _Names(
    vision="vision_tower",
    language="language_model.model",
    head="language_model.lm_head",
    projector=tuple(  # type: ignore[arg-type]
        f"multi_modal_projector.{n}" for n in ("layer_norm", "linear_1", "linear_2")
    ),
    class_token="cls_token",
    positions="position_embeddings",
    patch="patch_embeddings.projection",
    block="encoder.layer",
    attn="attention",
    attn_out="projection_layer",
    norms=("layernorm_before", "layernorm_after"),
    scales=("lambda_1", "lambda_2"),
)
_NAMES = {
    ORIGINAL: _ORIGINAL,
    NATIVE: _NATIVE,
    NATIVE_NEW: dataclasses.replace(
        _NATIVE,
        vision=f"model.{_NATIVE.vision}",
        language="model.language_model",
        head="lm_head",
        projector=tuple(f"model.{n}" for n in _NATIVE.projector),  # type: ignore[arg-type]
    ),
}


def detect(names: Iterable[str]) -> str:
    """Layout that tensor names belong to, by those of the vision tower."""
    names = tuple(names)
    for layout in (NATIVE_NEW, NATIVE):
        if any(name.startswith(f"{_NAMES[layout].vision}.") for name in names):
            return layout
    return ORIGINAL


def tied(names: Collection[str]) -> tuple[str, str] | None:
    """Names of an absent head and of the embedding that may stand for it, or None."""
    layout = _NAMES[detect(names)]
    for parts, head in ((_LLAMA_NAMES, layout.head), (_INTERNLM2_NAMES, _OUTPUT)):
        embedding = f"{layout.language}.{parts['embedding']}.weight"
        if embedding in names:
            weight = f"{head}.weight"
            return None if weight in names else (weight, embedding)
    return None


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of tensor, or several that belong together.

    Attributes:
      names: in the files; ``{layer}`` stands for the layer number.
      paths: the parameters that they fill; a stacked one gets a slice of each layer.
      transform: how.
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]
    transform: Transform


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that repeat per layer (``layers`` of them), or stand once (None)."""

    rows: tuple[Row, ...]
    layers: int | None = None


@dataclasses.dataclass(frozen=True)
class Unit:
    """A row at a layer (None where it stands once): what is read or written at once."""

    row: Row
    layer: int | None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name.format(layer=self.layer) for name in self.row.names)

    @property
    def tensors(self) -> Iterator[Tensor]:
        shapes = self.row.transform.hf_shapes
        for name, shape in zip(self.names, shapes, strict=True):
            yield Tensor(name, shape, self)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of the files."""

    name: str
    shape: Shape
    unit: Unit

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _vector(name: str, path: str, *shape: int, lead: int = 0) -> Row:
    """A tensor that only gains axes (heads) or loses `lead` leading ones."""
    flat = (math.prod(shape),) if not lead else (*(1,) * lead, *shape)
    return Row((name,), (path,), Move(flat, shape, tuple(range(len(shape)))))


def _weight(out: Shape, inward: Shape) -> Move:
    """Torch ``Linear.weight`` ``(out, in)`` to a kernel ``[*in, *out]``."""
    num_out, axes = len(out), len(out) + len(inward)
    order = (*range(num_out, axes), *range(num_out))
    return Move((math.prod(out), math.prod(inward)), (*out, *inward), order)


def _linear(
    name: str, path: str, out: Shape, inward: Shape, *, bias: bool
) -> tuple[Row, ...]:
    """Torch ``Linear``: weight and bias."""
    weight = Row((f"{name}.weight",), (f"{path}/kernel",), _weight(out, inward))
    if not bias:
        return (weight,)
    return (weight, _vector(f"{name}.bias", f"{path}/bias", *out))


def _norm(name: str, path: str, width: int, *, bias: bool) -> tuple[Row, ...]:
    scale = _vector(f"{name}.weight", f"{path}/scale", width)
    if not bias:
        return (scale,)
    return (scale, _vector(f"{name}.bias", f"{path}/bias", width))


def _vision_qkv(cfg: VisionConfig, name: str, path: str, *, fused: bool):
    heads = (3, cfg.num_attention_heads, cfg.head_dim)
    if fused:
        return _linear(
            f"{name}.qkv", f"{path}/qkv", heads, (cfg.hidden_size,), bias=cfg.qkv_bias
        )

    def separate(kind: str, leaf: str, whole: Move) -> Row:
        names = tuple(f"{name}.{part}_proj.{kind}" for part in "qkv")
        return Row(names, (f"{path}/qkv/{leaf}",), Split(whole, 3))

    weight = separate("weight", "kernel", _weight(heads, (cfg.hidden_size,)))
    if not cfg.qkv_bias:
        return (weight,)
    flat = Move((math.prod(heads),), heads, (0, 1, 2))
    return (weight, separate("bias", "bias", flat))


def _vision(cfg: VisionConfig, names: _Names) -> tuple[Group, Group]:
    name, path = f"{names.vision}.embeddings", "vision"
    width, patch = cfg.hidden_size, cfg.patch_size
    tokens = 1 + (cfg.image_size // patch) ** 2
    conv = (width, 3, patch, patch)
    embeddings = (
        _vector(
            f"{name}.{names.class_token}", f"{path}/class_embedding", width, lead=2
        ),
        _vector(
            f"{name}.{names.positions}",
            f"{path}/position_embedding",
            tokens,
            width,
            lead=1,
        ),
        Row(
            (f"{name}.{names.patch}.weight",),
            (f"{path}/patch/kernel",),
            Move(conv, conv, (2, 3, 1, 0)),
        ),
        _vector(f"{name}.{names.patch}.bias", f"{path}/patch/bias", width),
    )

    name = f"{names.vision}.{names.block}.{{layer}}"
    attn, path = f"{name}.{names.attn}", "vision/layers/blocks"
    heads = (cfg.num_attention_heads, cfg.head_dim)
    hidden = cfg.intermediate_size
    centred = cfg.norm_type == "layer_norm"
    qk_norms: tuple[Row, ...] = ()
    if cfg.qk_normalization:
        for norm in ("q_norm", "k_norm"):
            qk_norms += _norm(
                f"{attn}.{norm}", f"{path}/attn/{norm}", width, bias=False
            )
    blocks = (
        _vector(f"{name}.{names.scales[0]}", f"{path}/ls1", width),
        _vector(f"{name}.{names.scales[1]}", f"{path}/ls2", width),
        *_vision_qkv(cfg, attn, f"{path}/attn", fused=names is _ORIGINAL),
        *qk_norms,
        *_linear(
            f"{attn}.{names.attn_out}", f"{path}/attn/out", (width,), heads, bias=True
        ),
        *_linear(f"{name}.mlp.fc1", f"{path}/fc1", (hidden,), (width,), bias=True),
        *_linear(f"{name}.mlp.fc2", f"{path}/fc2", (width,), (hidden,), bias=True),
        *_norm(f"{name}.{names.norms[0]}", f"{path}/norm1", width, bias=centred),
        *_norm(f"{name}.{names.norms[1]}", f"{path}/norm2", width, bias=centred),
    )
    return Group(embeddings), Group(blocks, cfg.num_hidden_layers)


# Names that differ between InternLM2 files and those of the other decoders.
_INTERNLM2_NAMES = {
    "embedding": "tok_embeddings",
    "out": "attention.wo",
    "gate": "feed_forward.w1",
    "up": "feed_forward.w3",
    "down": "feed_forward.w2",
    "attn_norm": "attention_norm",
    "mlp_norm": "ffn_norm",
}
_LLAMA_NAMES = {
    "embedding": "embed_tokens",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}


def _qkv(cfg: LanguageConfig, kind: str, name: str, path: str) -> tuple[Row, ...]:
    width, head_dim = cfg.hidden_size, cfg.head_dim
    heads, kv_heads = cfg.num_attention_heads, cfg.num_key_value_heads
    counts = {"q": heads, "k": kv_heads, "v": kv_heads}

    def joined(name: str, leaf: str, transform: Transform) -> Row:
        return Row((name,), tuple(f"{path}/{p}/{leaf}" for p in counts), transform)

    if kind == "phi3":
        moves = tuple(_weight((n, head_dim), (width,)) for n in counts.values())
        return (joined(f"{name}.self_attn.qkv_proj.weight", "kernel", Fused(moves)),)
    if kind == "internlm2":
        rows = []
        for part, leaf, rest in (("weight", "kernel", (width,)), ("bias", "bias", ())):
            if part == "weight" or cfg.qkv_bias:
                packed = PackedHeads(heads, kv_heads, head_dim, rest)
                rows.append(joined(f"{name}.attention.wqkv.{part}", leaf, packed))
        return tuple(rows)
    rows = []
    for part, count in counts.items():
        rows += _linear(
            f"{name}.self_attn.{part}_proj",
            f"{path}/{part}",
            (count, head_dim),
            (width,),
            bias=cfg.qkv_bias,
        )
    return tuple(rows)


def _language(cfg: LanguageConfig, layout: str) -> tuple[Group, ...]:
    names = _NAMES[layout]
    original = layout == ORIGINAL
    kind = "llama" if cfg.kind == "internlm2" and not original else cfg.kind
    parts = _INTERNLM2_NAMES if kind == "internlm2" else _LLAMA_NAMES
    head = _OUTPUT if kind == "internlm2" else names.head
    width, hidden, vocab = cfg.hidden_size, cfg.intermediate_size, cfg.vocab_size
    embedding = Row(
        (f"{names.language}.{parts['embedding']}.weight",),
        ("language/embedding/table",),
        Move((vocab, width), (vocab, width), (0, 1)),
    )

    name, path = f"{names.language}.layers.{{layer}}", "language/layers/blocks"
    heads = (cfg.num_attention_heads, cfg.head_dim)

    def linear(
        key: str, leaf: str, out: Shape, inward: Shape, *, bias: bool = False
    ) -> tuple[Row, ...]:
        return _linear(f"{name}.{parts[key]}", f"{path}/{leaf}", out, inward, bias=bias)

    def norm(key: str) -> tuple[Row, ...]:
        return _norm(f"{name}.{parts[key]}", f"{path}/{key}", width, bias=False)

    if kind == "phi3":
        half = _weight((hidden,), (width,))
        paths = tuple(f"{path}/mlp/{part}/kernel" for part in ("gate", "up"))
        gated = (Row((f"{name}.mlp.gate_up_proj.weight",), paths, Fused((half, half))),)
    else:
        gated = (
            *linear("gate", "mlp/gate", (hidden,), (width,)),
            *linear("up", "mlp/up", (hidden,), (width,)),
        )
    qk_norms: tuple[Row, ...] = ()
    if cfg.qk_norm:
        for part in ("q_norm", "k_norm"):
            qk_norms += _norm(
                f"{name}.self_attn.{part}",
                f"{path}/attn/{part}",
                cfg.head_dim,
                bias=False,
            )
    out = linear("out", "attn/o", (width,), heads, bias=cfg.out_bias)
    qkv = _qkv(cfg, kind, name, f"{path}/attn")
    blocks = (
        # Phi-3's class declares its output projection first.
        *((*out, *qkv) if kind == "phi3" else (*qkv, *out)),
        *qk_norms,
        *gated,
        *linear("down", "mlp/down", (width,), (hidden,)),
        *norm("attn_norm"),
        *norm("mlp_norm"),
    )
    tail = (
        *_norm(f"{names.language}.norm", "language/norm", width, bias=False),
        *_linear(head, "language/lm_head", (vocab,), (width,), bias=False),
    )
    return Group((embedding,)), Group(blocks, cfg.num_hidden_layers), Group(tail)


def groups(cfg: InternVLConfig, layout: str = ORIGINAL) -> tuple[Group, ...]:
    """The table of an architecture, in the order of the released state dict."""
    names = _NAMES[layout]
    inner, width = cfg.projector_width, cfg.language.hidden_size
    norm, fc1, fc2 = names.projector
    projector = (
        *_norm(norm, "projector/norm", inner, bias=True),
        *_linear(fc1, "projector/fc1", (width,), (inner,), bias=True),
        *_linear(fc2, "projector/fc2", (width,), (width,), bias=True),
    )
    vision, language = _vision(cfg.vision, names), _language(cfg.language, layout)
    return *vision, *language, Group(projector)


def units(
    cfg: InternVLConfig, layout: str = ORIGINAL, *, by_row: bool = False
) -> Iterator[Unit]:
    """Every row at every layer, in the order of the released state dict.

    Args:
      by_row: all layers of a row, then the next row.
    """
    for group in groups(cfg, layout):
        layers = (None,) if group.layers is None else range(group.layers)
        if by_row:
            yield from (Unit(row, layer) for row in group.rows for layer in layers)
        else:
            yield from (Unit(row, layer) for layer in layers for row in group.rows)


def tensors(cfg: InternVLConfig, layout: str = ORIGINAL) -> Iterator[Tensor]:
    """Every tensor of the files, in the same order."""
    for unit in units(cfg, layout):
        yield from unit.tensors


def hf_shapes(cfg: InternVLConfig, layout: str = ORIGINAL) -> dict[str, Shape]:
    """Name and shape of every tensor of the files."""
    return {tensor.name: tensor.shape for tensor in tensors(cfg, layout)}


def check(cfg: InternVLConfig, shapes: Mapping[str, Any]) -> None:
    """Check that each layout fills every parameter exactly once, at its shape.

    Args:
      shapes: nested dict of ``ShapeDtypeStruct``, as the model declares it.

    Raises:
      ValueError: naming the parameters, if table and model disagree.
    """
    declared = {path: tuple(leaf.shape) for path, leaf in params.flatten(shapes)}
    wrong = []
    for layout in LAYOUTS:
        filled: dict[str, Shape] = {}
        for group in groups(cfg, layout):
            lead = () if group.layers is None else (group.layers,)
            for row in group.rows:
                parts = row.transform.part_shapes
                for path, shape in zip(row.paths, parts, strict=True):
                    if path in filled:
                        wrong.append(f"{path}: filled twice, again by {row.names}")
                    filled[path] = (*lead, *shape)
        for path in sorted(declared.keys() | filled.keys()):
            if declared.get(path) != filled.get(path):
                wrong.append(
                    f"{path}: the model has {declared.get(path)}, "
                    f"the {layout} table gives {filled.get(path)}"
                )
    if wrong:
        raise ValueError(
            "model and conversion table disagree:\n  " + "\n  ".join(wrong)
        )
