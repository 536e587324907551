"""Forward FLOPs of a packed row as a block-sparse kernel computes it, and of a pair in
two sequences: the counts that ``mpo_jax.models.flops`` is given for them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mpo_jax import types
from mpo_jax.models import config as model_config
from mpo_jax.models import flops


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
) -> flops.Flops:
    """Forward pass of one packed row, padding included, block-sparse attention."""
    counts = flops.of_budget(shape)
    return flops.forward(
        cfg, dataclasses.replace(counts, visible=visited(shape, block))
    )


def two_sequences(
    cfg: model_config.InternVLConfig, *, tokens: float, tiles: float
) -> flops.Flops:
    """Forward pass of a pair as two sequences padded to `tokens`, causal attention.

    Both encode the pair's `tiles`, and the head sees every position.
    """
    visible = tokens * (tokens + 1)
    return flops.forward(cfg, flops.Counts(1, 2 * tiles, 0, tokens, tokens, visible))
