"""What FLOPs depend on, counted in a packed batch: every token, every visible pair."""

from __future__ import annotations

import numpy as np

from mpo_jax import types
from mpo_jax.models import flops
from mpo_jax.nn import roles as roles_lib


def counts(
    batch: types.PackedBatch, shape: types.RowShape, *, tokens_per_tile: int
) -> flops.Counts:
    roles = (shape.prompt_tokens, shape.chosen_tokens, shape.rejected_tokens)
    ids = np.asarray(batch.segment_ids)
    present = ids > 0
    visible = sum(
        int((roles_lib.dense_mask(roles) & (row[:, None] == row) & real[:, None]).sum())
        for row, real in zip(ids, present, strict=True)
    )
    tokens = np.split(present, np.cumsum(roles)[:-1], axis=1)
    prompt, chosen, rejected = (float(part.sum()) for part in tokens)
    tiles = (np.asarray(batch.image_slot) >= 0).sum() / tokens_per_tile
    pairs = float(np.asarray(batch.pair_mask).sum())
    return flops.Counts(pairs, float(tiles), prompt, chosen, rejected, float(visible))
