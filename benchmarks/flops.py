"""Arithmetic of one packed row and of one pair in two sequences, by formula.

Multiply-accumulates count as two. Only matrix products count; the backward pass is
twice the forward one, and nothing is added for recomputation.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mpo_jax import types
from mpo_jax.models import config as model_config


@dataclasses.dataclass(frozen=True)
class Flops:
    """Forward FLOPs by part."""

    vision: float
    language: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.vision + self.language + self.attention + self.head


def tile_flops(cfg: model_config.InternVLConfig) -> float:
    """Vision tower, pixel shuffle and projector, one tile, forward."""
    vision, width = cfg.vision, cfg.vision.hidden_size
    patches = (cfg.image_size // vision.patch_size) ** 2
    positions = patches + 1
    matmuls = 4 * width**2 + 2 * width * vision.intermediate_size
    layer = 2 * positions * matmuls + 4 * positions**2 * width
    embedding = 2 * patches * 3 * vision.patch_size**2 * width
    inner, outer = cfg.projector_width, cfg.language.hidden_size
    projector = 2 * cfg.tokens_per_tile * (inner * outer + outer**2)
    return vision.num_hidden_layers * layer + embedding + projector


def token_flops(cfg: model_config.InternVLConfig) -> float:
    """Decoder layers without attention scores and head, one token, forward."""
    lang = cfg.language
    query = lang.num_attention_heads * lang.head_dim
    key = lang.num_key_value_heads * lang.head_dim
    attention = lang.hidden_size * (2 * query + 2 * key)
    mlp = 3 * lang.hidden_size * lang.intermediate_size
    return 2 * lang.num_hidden_layers * (attention + mlp)


def score_flops(cfg: model_config.InternVLConfig, pairs: float) -> float:
    """Attention of all decoder layers over `pairs` (query, key) pairs, forward."""
    lang = cfg.language
    width = lang.num_attention_heads * lang.head_dim
    return 4 * width * lang.num_hidden_layers * pairs


def visited(shape: types.RowShape, block: int) -> int:
    """(query, key) pairs in blocks that a block-sparse kernel visits.

    A block is visited if the static mask of roles is true anywhere in it; segment ids
    are run-time data and skip nothing.
    """
    starts = np.arange(0, shape.tokens, block)
    ends = np.minimum(starts + block, shape.tokens)
    borders = (shape.prompt_tokens, shape.prompt_tokens + shape.chosen_tokens)
    total = 0
    for q0, q1 in zip(starts.tolist(), ends.tolist(), strict=True):
        for k0, k1 in zip(starts.tolist(), ends.tolist(), strict=True):
            if k0 >= q1:
                continue
            only_rejected = q0 >= borders[1]
            only_chosen = k0 >= borders[0] and k1 <= borders[1]
            if not (only_rejected and only_chosen):
                total += (q1 - q0) * (k1 - k0)
    return total


def row(
    cfg: model_config.InternVLConfig, shape: types.RowShape, *, block: int = 512
) -> Flops:
    """Forward pass of one packed row, padding included, block-sparse attention."""
    return Flops(
        vision=shape.tiles * tile_flops(cfg),
        language=shape.tokens * token_flops(cfg),
        attention=score_flops(cfg, visited(shape, block)),
        head=2
        * shape.response_tokens
        * cfg.language.hidden_size
        * cfg.language.vocab_size,
    )


def two_sequences(
    cfg: model_config.InternVLConfig,
    *,
    tokens: float,
    tiles: float,
    labels: float | None = None,
) -> Flops:
    """Forward pass of a pair as two sequences of `tokens` each, causal attention.

    Args:
      tokens: length that each of the two is padded to.
      tiles: tiles of the pair; both sequences encode them.
      labels: positions that the head sees, of both; None is every position.
    """
    positions = 2 * tokens if labels is None else labels
    return Flops(
        vision=2 * tiles * tile_flops(cfg),
        language=2 * tokens * token_flops(cfg),
        attention=score_flops(cfg, tokens * (tokens + 1)),
        head=2 * positions * cfg.language.hidden_size * cfg.language.vocab_size,
    )
