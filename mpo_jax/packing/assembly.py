"""Row assembly: examples of plan rows -> the arrays of a :class:`PackedBatch`.

The layout is role-major, every region padded at its end::

    [ prompts of pairs 1..q | chosen 1..q | rejected 1..q ]    T_p + T_c + T_r tokens

Pair ``k`` (from 1) has segment id ``k`` in all three regions. Its prompt has the
positions ``0..p-1``; both responses go on from ``p``, for each begins with the last
prompt token. Worked example: ``docs/packing.md``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpo_jax.types import Example, PackedBatch, RowShape


def assemble_batch(
    rows: Sequence[Sequence[Example]],
    shape: RowShape,
    *,
    img_context_id: int,
    tokens_per_tile: int,
    image_size: int,
    record_ids: Sequence[np.ndarray],
    ref_logps: Sequence[np.ndarray] | None = None,
) -> PackedBatch:
    """NumPy arrays of a batch of rows.

    Rows are written straight into the batch: a batch of tiles is large (0.6 MB per
    tile of 448 pixels) and worth copying only once.

    Args:
      rows: the pairs of each row, in plan order; a row of none is a padding row.
      shape: budgets of a row.
      img_context_id: token that stands for one image feature.
      tokens_per_tile: ``I``, image tokens per tile.
      image_size: ``S``, side of a tile in pixels.
      record_ids: per row integer ``[q]``, one per pair.
      ref_logps: per row float ``[q, 2]``, reference log-probs (chosen, rejected) in
        nats.

    Raises:
      ValueError: a budget is exceeded, an example contradicts itself, or its image
        tokens do not match its tiles; the text names the record.
    """
    b, m, s = len(rows), shape.tiles, image_size
    batch = PackedBatch(
        tokens=np.zeros((b, shape.tokens), np.int32),
        positions=np.zeros((b, shape.tokens), np.int32),
        segment_ids=np.zeros((b, shape.tokens), np.int32),
        labels=np.zeros((b, shape.response_tokens), np.int32),
        label_mask=np.zeros((b, shape.response_tokens), np.bool_),
        image_slot=np.full((b, shape.prompt_tokens), -1, np.int32),
        tiles=np.zeros((b, m, s, s, 3), np.uint8),
        pair_mask=np.zeros((b, shape.pairs), np.bool_),
        record_ids=np.full((b, shape.pairs), -1, np.int32),
        ref_logps=(
            None if ref_logps is None else np.zeros((b, shape.pairs, 2), np.float32)
        ),
    )
    for i, examples in enumerate(rows):
        ids = np.asarray(record_ids[i])
        if len(ids) != len(examples):
            raise ValueError(f"{len(examples)} examples with {len(ids)} record ids")
        _write_row(
            batch,
            i,
            examples,
            shape,
            ids=ids,
            img_context_id=img_context_id,
            tokens_per_tile=tokens_per_tile,
        )
        if ref_logps is not None:
            _write_ref_logps(batch.ref_logps[i], ids, np.asarray(ref_logps[i]))
    return batch


def _write_row(
    batch: PackedBatch,
    i: int,
    examples: Sequence[Example],
    shape: RowShape,
    *,
    ids: np.ndarray,
    img_context_id: int,
    tokens_per_tile: int,
) -> None:
    prompt = chosen = rejected = tile = 0
    if len(examples) > shape.pairs:
        raise ValueError(
            f"record {ids[shape.pairs]} is pair {shape.pairs + 1} of a row of "
            f"{shape.pairs} pairs; the plan was made for another row shape"
        )
    for k, (record, example) in enumerate(zip(ids.tolist(), examples, strict=True)):
        _check_example(
            example,
            record,
            img_context_id=img_context_id,
            tokens_per_tile=tokens_per_tile,
            tile_shape=batch.tiles.shape[2:],
        )
        p, m = len(example.prompt), example.num_tiles
        _check_budget(record, "prompt_tokens", prompt + p, shape.prompt_tokens)
        _check_budget(record, "tiles", tile + m, shape.tiles)
        region = slice(prompt, prompt + p)
        batch.tokens[i, region] = example.prompt
        batch.positions[i, region] = np.arange(p)
        batch.segment_ids[i, region] = k + 1
        # The row's k-th image token takes the k-th feature of the row's tiles; a
        # pair's tiles are packed at `tile`, so its features begin there as well.
        where = prompt + np.flatnonzero(example.prompt == img_context_id)
        batch.image_slot[i, where] = tile * tokens_per_tile + np.arange(len(where))
        batch.tiles[i, tile : tile + m] = example.tiles
        prompt, tile = prompt + p, tile + m

        for name, start, limit, used in (
            ("chosen", 0, shape.chosen_tokens, chosen),
            ("rejected", shape.chosen_tokens, shape.rejected_tokens, rejected),
        ):
            tokens = getattr(example, f"{name}_tokens")
            n = len(tokens)
            _check_budget(record, f"{name}_tokens", used + n, limit)
            label = slice(start + used, start + used + n)
            token = slice(
                shape.prompt_tokens + label.start, shape.prompt_tokens + label.stop
            )
            batch.tokens[i, token] = tokens
            batch.positions[i, token] = p + np.arange(n)
            batch.segment_ids[i, token] = k + 1
            batch.labels[i, label] = getattr(example, f"{name}_labels")
            batch.label_mask[i, label] = getattr(example, f"{name}_mask")
        chosen += len(example.chosen_tokens)
        rejected += len(example.rejected_tokens)
        batch.pair_mask[i, k] = True
        batch.record_ids[i, k] = record


def _write_ref_logps(out: np.ndarray, ids: np.ndarray, ref_logps: np.ndarray) -> None:
    if ref_logps.shape != (len(ids), 2):
        raise ValueError(
            f"reference log-probs of records {ids.tolist()} have shape "
            f"{ref_logps.shape}, expected {(len(ids), 2)}"
        )
    bad = np.flatnonzero(~np.isfinite(ref_logps).all(axis=1))
    if len(bad):
        raise ValueError(
            f"reference log-probs of record {ids[bad[0]]} are {ref_logps[bad[0]]}; "
            "the reference cache is incomplete or broken, rerun cache_reference"
        )
    out[: len(ids)] = ref_logps


def _check_budget(record: int, name: str, used: int, limit: int) -> None:
    if used > limit:
        raise ValueError(
            f"record {record}: {name} of its row come to {used}, the row shape holds "
            f"{limit}; the record is longer than the index says (its files have "
            "changed: start again) or the plan was made for another row shape"
        )


def _check_example(
    example: Example,
    record: int,
    *,
    img_context_id: int,
    tokens_per_tile: int,
    tile_shape: tuple[int, ...],
) -> None:
    for name in ("chosen", "rejected"):
        tokens = getattr(example, f"{name}_tokens")
        labels = getattr(example, f"{name}_labels")
        mask = getattr(example, f"{name}_mask")
        if not len(tokens) == len(labels) == len(mask):
            raise ValueError(
                f"record {record}: {name} has {len(tokens)} tokens, {len(labels)} "
                f"labels and a mask of {len(mask)}"
            )
        if len(labels) and labels.min() < 0:
            raise ValueError(
                f"record {record}: {name} has the label {labels.min()}; untrained "
                "positions carry the next token and a False mask"
            )
        if (tokens == img_context_id).any():
            raise ValueError(
                f"record {record}: the {name} response holds an image token "
                f"(id {img_context_id}); image tokens belong in the prompt"
            )
    tiles = example.tiles
    if tiles.shape != (example.num_tiles, *tile_shape) or tiles.dtype != np.uint8:
        raise ValueError(
            f"record {record}: tiles are {tiles.dtype} {tiles.shape}, expected uint8 "
            f"{(example.num_tiles, *tile_shape)}"
        )
    image_tokens = int(np.count_nonzero(example.prompt == img_context_id))
    if image_tokens != example.num_tiles * tokens_per_tile:
        raise ValueError(
            f"record {record}: {image_tokens} image tokens in the prompt, but "
            f"{example.num_tiles} tiles of {tokens_per_tile} tokens"
        )
