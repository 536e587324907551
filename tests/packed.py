"""Random packed batches for tests of the step: small, with every awkward case."""

from __future__ import annotations

import json
import pathlib

import numpy as np

from mpo_jax import types
from mpo_jax.models import config as model_config
from mpo_jax.packing import assembly

VOCAB, IMG = 64, 5
SIZE, TOKENS_PER_TILE = 28, 1
SHAPE = types.RowShape(
    prompt_tokens=24, chosen_tokens=20, rejected_tokens=20, tiles=6, pairs=3
)


def tiny_config(**language: object) -> model_config.InternVLConfig:
    """A two-layer InternVL2 over 28-pixel tiles, one token each."""
    return model_config.from_hf(
        {
            "vision_config": {
                "hidden_size": 32,
                "num_attention_heads": 2,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "qkv_bias": True,
                "qk_normalization": False,
                "norm_type": "layer_norm",
                "image_size": SIZE,
                "patch_size": 14,
                "initializer_range": 0.1,
            },
            "llm_config": {
                "architectures": ["Qwen2ForCausalLM"],
                "vocab_size": VOCAB,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "rope_theta": 1e4,
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 4096,
                "initializer_range": 0.1,
                **language,
            },
            "force_image_size": SIZE,
            "ps_version": "v2",
            "template": "internvl2_5",
        }
    )


def example(rng: np.random.Generator, *, tiles: int | None = None) -> types.Example:
    """A random pair; its prompt holds the image tokens of 0 to 2 tiles."""
    tiles = int(rng.integers(0, 3)) if tiles is None else tiles
    text = rng.integers(6, VOCAB, int(rng.integers(2, 5)))
    prompt = np.concatenate([text[:1], np.full(tiles * TOKENS_PER_TILE, IMG), text[1:]])
    last = rng.integers(6, VOCAB)

    def side() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = rng.integers(6, VOCAB, int(rng.integers(2, 7))).astype(np.int32)
        tokens = np.concatenate([[last], labels[:-1]]).astype(np.int32)
        mask = np.ones(len(labels), bool)
        mask[0] = rng.random() < 0.7  # a first label that is not trained
        return tokens, labels, mask

    chosen, rejected = side(), side()
    return types.Example(
        prompt.astype(np.int32),
        *chosen,
        *rejected,
        tiles=rng.integers(0, 256, (tiles, SIZE, SIZE, 3), np.uint8),
        num_tiles=tiles,
    )


def batch(
    rows: list[list[types.Example]],
    *,
    shape: types.RowShape = SHAPE,
    refs: dict[int, tuple[float, float]] | None = None,
    ids: list[list[int]] | None = None,
) -> types.PackedBatch:
    """Assemble rows; records are numbered in order unless `ids` says otherwise."""
    if ids is None:
        counter = iter(range(10_000))
        ids = [[next(counter) for _ in row] for row in rows]
    logps = None
    if refs is not None:
        logps = [
            np.array([refs[i] for i in row], np.float32).reshape(-1, 2) for row in ids
        ]
    return assembly.assemble_batch(
        rows,
        shape,
        img_context_id=IMG,
        tokens_per_tile=TOKENS_PER_TILE,
        image_size=SIZE,
        record_ids=[np.array(row, np.int64) for row in ids],
        ref_logps=logps,
    )


def write_json(path: pathlib.Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
