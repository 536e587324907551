"""Model FLOPs of the packed layout by formula, and of the duplicated one.

Two FLOPs per multiply-add of every matrix product; norms, softmax, rotary embeddings,
the loss and the optimiser are left out (below 1 %).

**MFU** (model FLOPs utilisation) is ``training(...).total / (seconds × chips × peak)``:
the products that the mathematics of the true tokens needs, forward and backward once,
over what the chips could do in that time at their bf16 peak. Not counted as useful:
padding of rows and tiles, recomputation (rematerialisation), attention to tokens that
the mask hides. So MFU falls with worse packing; a figure that counts whole budgets,
common for dense text, is higher by about 1 / fill.

All counts may be of a pair, a row, a batch or a mean; FLOPs are linear in them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpo_jax import config, types
from mpo_jax.models.config import InternVLConfig
from mpo_jax.nn import lora, params


@dataclasses.dataclass(frozen=True)
class Trained:
    """What an update trains, as far as FLOPs depend on it.

    Attributes:
      vision, projector, language, head: are the weights of a part trained? `language`
        is the decoder without its head.
      vision_layers: share of the tower's layers, the last ones, that are trained while
        the rest is frozen.
      vision_adapters, language_adapters: parameters of adapters in layers that run.
    """

    vision: bool = True
    projector: bool = True
    language: bool = True
    head: bool = True
    vision_layers: float = 0.0
    vision_adapters: int = 0
    language_adapters: int = 0


ALL = Trained()


def of_run(
    cfg: config.ModelConfig, model: InternVLConfig, shapes: Mapping[str, Any]
) -> Trained:
    """What a run trains.

    Args:
      shapes: nested dict of the run's parameters.
    """
    layers = model.vision.num_hidden_layers
    used = layers + model.select_layer + 1

    def adapters(part: str) -> int:
        return sum(
            leaf.size
            for path, leaf in params.flatten(shapes[part])
            if lora.is_adapter(path)
        )

    return Trained(
        vision=not cfg.freeze_vision,
        projector=not cfg.freeze_projector,
        language=not cfg.freeze_language,
        head=not cfg.freeze_language or cfg.train_head,
        vision_layers=cfg.train_vision_layers / used,
        vision_adapters=adapters("vision") * used // layers,
        language_adapters=adapters("language"),
    )


@dataclasses.dataclass(frozen=True)
class Counts:
    """What FLOPs depend on.

    Attributes:
      pairs: preference pairs.
      tiles: image tiles.
      prompt, chosen, rejected: tokens, image tokens included.
      visible: (query, key) pairs of tokens under the mask, per head and layer.
    """

    pairs: float
    tiles: float
    prompt: float
    chosen: float
    rejected: float
    visible: float

    @property
    def tokens(self) -> float:
        """Language tokens."""
        return self.prompt + self.responses

    @property
    def responses(self) -> float:
        """Positions that reach the language-model head."""
        return self.chosen + self.rejected

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            *(
                getattr(self, field.name) + getattr(other, field.name)
                for field in dataclasses.fields(self)
            )
        )

    def __mul__(self, times: float) -> Counts:
        return Counts(*(times * value for value in dataclasses.astuple(self)))


def of_pairs(prompt: Any, chosen: Any, rejected: Any, *, tiles: Any) -> Counts:
    """Counts of pairs from their lengths, exact.

    Args:
      prompt, chosen, rejected: tokens of each pair, scalar or ``[n]``.
      tiles: tiles of each pair, scalar or ``[n]``.
    """
    p, c, r, m = np.broadcast_arrays(
        *(np.asarray(x, np.float64) for x in (prompt, chosen, rejected, tiles))
    )
    visible = p * (p + 1) / 2 + (c + r) * p + (c * (c + 1) + r * (r + 1)) / 2
    sums = (float(x.sum()) for x in (m, p, c, r, visible))
    return Counts(float(p.size), *sums)


def of_totals(
    *, pairs: float, prompt: float, chosen: float, rejected: float, tiles: float
) -> Counts:
    """Counts of a batch of which only totals are known.

    Attention is that of equally long pairs, usually less than the true one (it grows
    with the square of lengths), by a few per cent of all FLOPs at most.
    """
    if not pairs:
        return Counts(0, tiles, prompt, chosen, rejected, 0)
    return (
        of_pairs(prompt / pairs, chosen / pairs, rejected / pairs, tiles=tiles / pairs)
        * pairs
    )


def of_budget(shape: types.RowShape, *, attention: str = "visible") -> Counts:
    """Counts of a full row, padding included: what the devices compute.

    Args:
      attention: ``visible`` counts what the static mask shows (causal, rejected never
        sees chosen); ``blocks`` whole blocks of roles; ``square`` every pair.

    Raises:
      ValueError: on another name.
    """
    p, c, r = shape.prompt_tokens, shape.chosen_tokens, shape.rejected_tokens
    if attention == "visible":
        visible = of_pairs(p, c, r, tiles=0).visible
    elif attention == "blocks":
        visible = float(p * p + c * (p + c) + r * (p + r))
    elif attention == "square":
        visible = float(shape.tokens**2)
    else:
        raise ValueError(f"attention={attention!r}: use visible, blocks or square")
    return Counts(shape.pairs, shape.tiles, p, c, r, visible)


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs by part; attention apart, because kernels compute it."""

    patches: float = 0.0
    vision: float = 0.0
    vision_attention: float = 0.0
    projector: float = 0.0
    language: float = 0.0
    language_attention: float = 0.0
    head: float = 0.0
    adapters: float = 0.0

    @property
    def total(self) -> float:
        """All parts."""
        return sum(dataclasses.astuple(self))

    @property
    def attention(self) -> float:
        """Products of queries, keys and values in both towers."""
        return self.vision_attention + self.language_attention

    def __add__(self, other: Flops) -> Flops:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Flops(*(a + b for a, b in pairs))

    def scale(self, factors: Flops) -> Flops:
        """Part by part."""
        pairs = zip(
            dataclasses.astuple(self), dataclasses.astuple(factors), strict=True
        )
        return Flops(*(a * b for a, b in pairs))


def forward(cfg: InternVLConfig, counts: Counts) -> Flops:
    """FLOPs of one forward pass (log-probs of the responses)."""
    vit, llm = cfg.vision, cfg.language
    side = cfg.image_size // vit.patch_size
    patches, seen = side * side, side * side + 1  # with the class token
    width, hidden = vit.hidden_size, vit.intermediate_size
    vit_layers = vit.num_hidden_layers + cfg.select_layer + 1
    query = llm.num_attention_heads * llm.head_dim
    keys = llm.num_key_value_heads * llm.head_dim
    block = llm.hidden_size * (2 * query + 2 * keys + 3 * llm.intermediate_size)
    projector = cfg.projector_width * llm.hidden_size + llm.hidden_size**2
    layers, tiles = llm.num_hidden_layers, counts.tiles
    return Flops(
        patches=2 * tiles * patches * 3 * vit.patch_size**2 * width,
        vision=2 * tiles * vit_layers * seen * (4 * width**2 + 2 * width * hidden),
        vision_attention=4 * tiles * vit_layers * seen**2 * width,
        projector=2 * tiles * cfg.tokens_per_tile * projector,
        language=2 * counts.tokens * layers * block,
        language_attention=4 * counts.visible * layers * query,
        head=2 * counts.responses * llm.hidden_size * llm.vocab_size,
    )


def passes(trained: Trained = ALL) -> Flops:
    """Forward and backward of each part, in units of its forward pass.

    A product's backward is one product for its input, needed if something below is
    trained, and one for its weight, needed if it is trained itself. So everything
    counts three times, save for patches (pixels have no gradient) and frozen parts.
    """
    own = 1.0 if trained.vision else trained.vision_layers
    through = 1.0 if trained.vision_adapters else own
    below = bool(through) or trained.projector
    inside = below or trained.language or bool(trained.language_adapters)
    return Flops(
        patches=1 + trained.vision,
        vision=1 + own + through,
        vision_attention=1 + 2 * through,
        projector=1 + trained.projector + below,
        language=1 + trained.language + inside,
        language_attention=1 + 2 * inside,
        head=1 + trained.head + inside,
        adapters=3,
    )


def training(cfg: InternVLConfig, counts: Counts, *, trained: Trained = ALL) -> Flops:
    """Model FLOPs of an update: forward and backward once, nothing recomputed."""
    seen = (cfg.image_size // cfg.vision.patch_size) ** 2 + 1
    adapters = 2 * (
        trained.vision_adapters * counts.tiles * seen
        + trained.language_adapters * counts.tokens
    )
    products = dataclasses.replace(forward(cfg, counts), adapters=adapters)
    return products.scale(passes(trained))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One pair in the packed and in the duplicated layout.

    Tokens are those that pass the decoder, tiles those that pass the vision tower, and
    head positions those for which logits exist, policy and reference together.
    """

    tokens: float
    tiles: float
    head_positions: float
    policy: float
    reference: float

    @property
    def flops(self) -> float:
        """Training pass and reference pass."""
        return self.policy + self.reference


def packed_pair(
    cfg: InternVLConfig,
    prompt: float,
    chosen: float,
    rejected: float,
    *,
    tiles: float,
    trained: Trained = ALL,
    reference: bool = True,
) -> Comparison:
    """The pair as it is trained here: prompt and images once, reference cached once."""
    counts = of_pairs(prompt, chosen, rejected, tiles=tiles)
    times = 1 + reference
    return Comparison(
        tokens=times * counts.tokens,
        tiles=times * counts.tiles,
        head_positions=times * counts.responses,
        policy=training(cfg, counts, trained=trained).total,
        reference=forward(cfg, counts).total if reference else 0.0,
    )


def duplicated_pair(
    cfg: InternVLConfig,
    prompt: float,
    chosen: float,
    rejected: float,
    *,
    tiles: float,
    trained: Trained = ALL,
    reference: bool = True,
) -> Comparison:
    """The pair as two sequences: prompt and images twice, logits at every position.

    That is the layout of the usual DPO trainers: ``prompt + chosen`` and ``prompt +
    rejected``, each through policy and reference, in every step.
    """
    none = Counts(0, 0, 0, 0, 0, 0)
    counts = sum(
        (
            of_pairs(prompt, length, 0, tiles=tiles)
            for length in ((chosen, rejected) if rejected else (chosen,))
        ),
        none,
    )
    # Every position reaches the head: as if all tokens were response tokens.
    whole = dataclasses.replace(counts, prompt=0.0, chosen=counts.tokens, rejected=0.0)
    times = 1 + reference
    return Comparison(
        tokens=times * whole.tokens,
        tiles=times * whole.tiles,
        head_positions=times * whole.tokens,
        policy=training(cfg, whole, trained=trained).total,
        reference=forward(cfg, whole).total if reference else 0.0,
    )


def mfu(flops: float, *, seconds: float, chips: int, peak: float) -> float:
    """Model FLOPs utilisation, a share of 1.

    Args:
      flops: ``training(...).total`` of the true counts of all devices' batch.
      seconds: wall time of the step.
      chips: chips (not cores) of the run.
      peak: bf16 FLOP/s of one chip.
    """
    return flops / (seconds * chips * peak)
