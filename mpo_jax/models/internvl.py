"""InternVL: vision tower, pixel shuffle, projector, injection, decoder.

The forward pass works on packed rows (``types.PackedBatch``) and returns hidden states
at response positions only: prompts and image tokens never reach the LM head.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mpo_jax import sharding, types
from mpo_jax.models import adapted, decoder, vit
from mpo_jax.models.config import InternVLConfig
from mpo_jax.nn import layers, lora, params, products


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a forward pass is computed; changes memory and speed, not the result.

    Attributes:
      dtype: compute dtype.
      remat: ``none``, ``dots`` or ``full``, for both towers.
      attention: backend of ``nn.attention.packed_attention``.
      vision_chunk: tiles per row that go through the tower at once; 0 is all.
    """

    dtype: Any = jnp.bfloat16
    remat: str = "full"
    attention: str = "auto"
    vision_chunk: int = 0


def pixel_shuffle(
    x: Float[Array, "n P C"], *, factor: int, version: str
) -> Float[Array, "n I E"]:
    """Merge ``factor × factor`` patches into one token of ``factor²`` the width.

    v2 is space-to-depth, channels ordered (row in block, column in block, channel);
    v1, of old checkpoints, has the output grid transposed.
    """
    count, patches, width = x.shape
    side = int(patches**0.5)
    out = side // factor
    x = x.reshape(count, out, factor, out, factor, width)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(count, out, out, factor**2 * width)
    if version == "v1":
        x = x.transpose(0, 2, 1, 3)
    return x.reshape(count, out * out, factor**2 * width)


class Projector(nnx.Module):
    """``mlp1``: layer norm (eps 1e-5), linear, exact GELU, linear."""

    def __init__(self, cfg: InternVLConfig, *, rngs: nnx.Rngs):
        inner, width = cfg.projector_width, cfg.language.hidden_size
        common = {"use_bias": True, "rngs": rngs}
        self.norm = layers.Norm(inner, kind="layer_norm", eps=1e-5, rngs=rngs)
        self.fc1 = layers.Linear(
            (inner,),
            (width,),
            in_axes=("embed",),
            out_axes=("mlp",),
            stddev=inner**-0.5,
            **common,
        )
        self.fc2 = layers.Linear(
            (width,),
            (width,),
            in_axes=("mlp",),
            out_axes=("embed",),
            stddev=width**-0.5,
            **common,
        )

    def __call__(self, x: Float[Array, "n I E"]) -> Float[Array, "n I D"]:
        return self.fc2(layers.gelu(self.fc1(self.norm(x))))


class InternVLModel(nnx.Module):
    """The network. Parameters: ``{vision, projector, language}``."""

    def __init__(
        self,
        cfg: InternVLConfig,
        *,
        adaptation: adapted.Adaptation = adapted.BASE,
        rngs: nnx.Rngs,
    ):
        self.cfg = cfg
        self.vision = vit.InternViT(
            cfg.vision,
            image_size=cfg.image_size,
            select_layer=cfg.select_layer,
            adapters=adaptation.vision,
            last=adaptation.vision_layers,
            rngs=rngs,
        )
        self.projector = Projector(cfg, rngs=rngs)
        self.language = decoder.Decoder(
            cfg.language, adapters=adaptation.language, rngs=rngs
        )

    def image_features(
        self,
        tiles: Array,
        keep: Float[Array, "L 2 n"] | None = None,
        *,
        compute: Compute,
    ) -> Float[Array, "n I D"]:
        """Language-space features of tiles ``[n, S, S, 3]``."""
        pixels = vit.normalise(tiles, dtype=compute.dtype)
        x = self.vision(pixels, keep, backend=compute.attention, remat=compute.remat)
        x = pixel_shuffle(x, factor=self.cfg.shuffle, version=self.cfg.ps_version)
        return self.projector(x)

    def packed_features(
        self,
        tiles: Array,
        keep: Float[Array, "L 2 B M"] | None,
        *,
        compute: Compute,
    ) -> Float[Array, "B MI D"]:
        """Features of packed tiles ``[B, M, S, S, 3]``, a bounded number at a time."""
        batch, num_tiles = tiles.shape[:2]
        chunk = min(compute.vision_chunk or num_tiles, num_tiles)
        num_chunks = -(-num_tiles // chunk)
        pad = num_chunks * chunk - num_tiles

        def split(x: jax.Array, axis: int) -> jax.Array:
            widths = [(0, pad if i == axis else 0) for i in range(x.ndim)]
            x = jnp.pad(x, widths) if pad else x
            shape = (*x.shape[:axis], num_chunks, chunk, *x.shape[axis + 1 :])
            return jnp.moveaxis(x.reshape(shape), axis, 0)

        def encode(inputs: tuple[jax.Array, jax.Array | None]) -> jax.Array:
            some, factors = inputs
            some = some.reshape(batch * chunk, *some.shape[2:])
            some = sharding.constrain(some, "act_batch", None, None, None)
            if factors is not None:
                factors = factors.reshape(*factors.shape[:2], batch * chunk)
            out = self.image_features(some, factors, compute=compute)
            return out.reshape(batch, chunk, *out.shape[1:])

        inputs = (split(tiles, 1), None if keep is None else split(keep, 3))
        if num_chunks == 1:
            features = encode(jax.tree.map(lambda x: x[0], inputs))
        else:
            # Of a chunk only the tiles are kept, at the price of one more forward pass
            # of the tower; the policies that spend memory on speed keep what they keep.
            if compute.remat not in ("dots", "attention"):
                encode = jax.checkpoint(encode)
            chunks = jax.lax.map(encode, inputs)
            features = jnp.moveaxis(chunks, 0, 1).reshape(
                batch, num_chunks * chunk, *chunks.shape[3:]
            )[:, :num_tiles]
        return features.reshape(batch, -1, features.shape[-1])

    def embed(
        self,
        tokens: Int[Array, "B T"],
        image_slot: Int[Array, "B U"] | None,
        features: Float[Array, "B J D"] | None,
        *,
        dtype: Any,
    ) -> Float[Array, "B T D"]:
        """Token embeddings with features in place of image tokens.

        Args:
          image_slot: feature index per token of the first ``U`` tokens, -1 is text.
        """
        x = self.language.embedding(tokens, dtype=dtype)
        x = sharding.constrain(x, "act_batch", "act_seq", "act_embed")
        if features is None or image_slot is None:
            return x
        index = jnp.maximum(image_slot, 0)[:, :, None]
        picked = jnp.take_along_axis(features, index, axis=1).astype(dtype)
        width = image_slot.shape[1]
        merged = jnp.where(image_slot[:, :, None] >= 0, picked, x[:, :width])
        return jnp.concatenate([merged, x[:, width:]], axis=1)


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


class InternVL:
    """The network as pure functions of ``(params, inputs)``.

    Attributes:
      cfg: architecture.
      adaptation: how the parameters differ in structure from those as released.
      declared: abstract shapes, logical axes, initialiser.
    """

    def __init__(
        self, cfg: InternVLConfig, adaptation: adapted.Adaptation = adapted.BASE
    ):
        self.cfg = cfg
        self.adaptation = adaptation
        self.declared = params.Declared(
            lambda rngs: InternVLModel(cfg, adaptation=adaptation, rngs=rngs)
        )

    @functools.cached_property
    def plain(self) -> InternVL:
        """The model without adapters, for ``adapted.plain`` parameters."""
        without = self.adaptation.plain
        return self if without == self.adaptation else InternVL(self.cfg, without)

    @functools.cached_property
    def base(self) -> InternVL:
        """The model as released."""
        return self if self.adaptation == adapted.BASE else InternVL(self.cfg)

    def adapt(self, base: params.Params, key: jax.Array) -> params.Params:
        """The run's parameters from those of the base; it computes the same.

        Pure: call it under ``jit``. Adapters are drawn, in float32 (``nn/lora.py``).
        """
        tree = adapted.split(base, self.plain.declared.shapes, self.adaptation)
        if self.plain is self:
            return tree
        drawn = self.declared.init(key)
        return adapted.union(tree, adapted.partition(drawn, lora.is_adapter)[0])

    def merge(self, weights: params.Params) -> params.Params:
        """Parameters of the base from the run's: adapters merged. Pure."""
        return adapted.merge(weights, self.adaptation)

    def response_hidden(
        self,
        weights: params.Params,
        batch: types.PackedBatch,
        *,
        roles: tuple[int, int, int],
        compute: Compute,
        drop_path: float = 0.0,
        key: Array | None = None,
    ) -> Float[Array, "B R D"]:
        """Normed hidden states at the response positions of packed rows.

        Args:
          roles: ``(T_p, T_c, T_r)`` of the batch's row shape.
          drop_path: rate of the last ViT layer; 0 is deterministic.
          key: random key, needed with drop path only.
        """
        model: InternVLModel = self.declared.merge(weights)
        prompt = roles[0]
        keep = None
        if drop_path > 0:
            if key is None:
                raise ValueError("drop path needs a random key")
            keep = self._drop_path(batch, prompt, rate=drop_path, key=key)
        features = None
        if batch.tiles.shape[1]:
            features = model.packed_features(batch.tiles, keep, compute=compute)
        x = model.embed(batch.tokens, batch.image_slot, features, dtype=compute.dtype)
        hidden = model.language(
            x,
            batch.positions,
            batch.segment_ids,
            roles=roles,
            backend=compute.attention,
            remat=compute.remat,
        )
        return hidden[:, prompt:]

    def _drop_path(
        self, batch: types.PackedBatch, prompt: int, *, rate: float, key: Array
    ) -> Float[Array, "L 2 B M"]:
        rows, num_tiles = batch.tiles.shape[:2]
        owner, number = tile_owners(
            batch.image_slot,
            batch.segment_ids[:, :prompt],
            num_tiles=num_tiles,
            tokens_per_tile=self.cfg.tokens_per_tile,
        )
        record = jnp.take_along_axis(
            batch.record_ids, jnp.maximum(owner - 1, 0), axis=1
        )
        factors = vit.drop_path_factors(
            key,
            record.reshape(-1),
            number.reshape(-1),
            rate=rate,
            num_layers=self.cfg.vision.num_hidden_layers,
        )
        return factors.reshape(*factors.shape[:2], rows, num_tiles)

    def lm_head(self, weights: params.Params) -> Float[Array, "D V"]:
        """Kernel of the output projection."""
        return weights["language"]["lm_head"]["kernel"]

    def image_features(
        self, weights: params.Params, tiles: Array, *, compute: Compute
    ) -> Float[Array, "n I D"]:
        """Features of tiles ``[n, S, S, 3]``, uint8 or already normalised."""
        model: InternVLModel = self.declared.merge(weights)
        return model.image_features(tiles, compute=compute)

    def logits(
        self,
        weights: params.Params,
        tokens: Int[Array, "B T"],
        attention_mask: Int[Array, "B T"],
        image_slot: Int[Array, "B T"],
        tiles: Array | None,
        *,
        compute: Compute,
    ) -> Float[Array, "B T V"]:
        """Logits at every position of ordinary (unpacked) sequences, float32.

        Args:
          attention_mask: 1 for tokens, 0 for padding on either side.
          image_slot: row of all tiles' flattened features per token, or -1.
          tiles: ``[n, S, S, 3]`` of the whole batch, in reading order, or None.
        """
        model: InternVLModel = self.declared.merge(weights)
        features = None
        if tiles is not None:
            flat = model.image_features(tiles, compute=compute)
            flat = flat.reshape(1, -1, flat.shape[-1])
            features = jnp.broadcast_to(flat, (tokens.shape[0], *flat.shape[1:]))
        x = model.embed(tokens, image_slot, features, dtype=compute.dtype)
        mask = attention_mask.astype(jnp.int32)
        positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        hidden = model.language(
            x,
            positions,
            mask,
            roles=(tokens.shape[1], 0, 0),
            backend=compute.attention,
            remat=compute.remat,
        )
        kernel = self.lm_head(weights).astype(hidden.dtype)
        return jnp.einsum(
            "btd,dv->btv",
            hidden,
            kernel,
            precision=products.precision(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
