"""Stochastic depth of the vision tower (drop path), drawn for packed tiles."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mpo_jax import types


def of_batch(
    batch: types.PackedBatch,
    key: Array,
    *,
    rate: float,
    num_layers: int,
    tokens_per_tile: int,
) -> Float[Array, "L 2 B M"]:
    """Factors of every tile of packed rows, see :func:`factors`."""
    rows, num_tiles = batch.tiles.shape[:2]
    owner, number = tile_owners(
        batch.image_slot,
        batch.segment_ids[:, : batch.image_slot.shape[1]],
        num_tiles=num_tiles,
        tokens_per_tile=tokens_per_tile,
    )
    record = jnp.take_along_axis(batch.record_ids, jnp.maximum(owner - 1, 0), axis=1)
    drawn = factors(
        key, record.reshape(-1), number.reshape(-1), rate=rate, num_layers=num_layers
    )
    return drawn.reshape(num_layers, 2, rows, num_tiles)


def tile_owners(
    image_slot: Int[Array, "B U"],
    segment_ids: Int[Array, "B U"],
    *,
    num_tiles: int,
    tokens_per_tile: int,
) -> tuple[Int[Array, "B M"], Int[Array, "B M"]]:
    """Which pair a packed tile belongs to, and its number within the pair.

    Returns:
      Segment id of each tile (0 is padding) and its running number in that segment.
    """
    tile = jnp.where(image_slot >= 0, image_slot // tokens_per_tile, -1)
    numbers = jnp.arange(num_tiles)[None, None, :]
    owner = jnp.max(
        jnp.where(tile[:, :, None] == numbers, segment_ids[:, :, None], 0), axis=1
    )
    same = owner[:, :, None] == owner[:, None, :]
    earlier = jnp.tril(jnp.ones((num_tiles, num_tiles), bool), -1)[None]
    return owner, jnp.sum(same & earlier, axis=2)


def rates(rate: float, num_layers: int) -> Float[Array, " L"]:
    """Stochastic depth per layer: linear from 0 at the first to `rate` at the last."""
    return jnp.linspace(0.0, rate, num_layers, dtype=jnp.float32)


def factors(
    key: Array,
    record_ids: Int[Array, " n"],
    tile_numbers: Int[Array, " n"],
    *,
    rate: float,
    num_layers: int,
) -> Float[Array, "L 2 n"]:
    """What branches are multiplied by, 0 or 1 / keep rate, per layer, branch and tile.

    A function of (key, record, tile of the record) and not of the place in the batch,
    so that packing, micro-batches and mesh do not change them; both sides of a pair
    share them because the tile is encoded once. The two branches of a block draw
    independently, per tile (timm's DropPath).
    """

    def draw(record: jax.Array, number: jax.Array) -> jax.Array:
        tile_key = jax.random.fold_in(jax.random.fold_in(key, record), number)
        return jax.random.uniform(tile_key, (num_layers, 2))

    uniform = jax.vmap(draw)(record_ids.astype(jnp.uint32), tile_numbers)
    keep_rate = 1.0 - rates(rate, num_layers)[None, :, None]
    drawn = jnp.where(uniform < keep_rate, 1.0 / keep_rate, 0.0)
    return jnp.moveaxis(drawn, 0, -1)
