"""The forward pass: vision tower, pixel shuffle, projector, injection, decoder.

It works on packed rows (``types.PackedBatch``) and returns hidden states at response
positions only: prompts and image tokens never reach the LM head.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mpo_jax import sharding, types
from mpo_jax.models import adapted, decoder, projector, vit
from mpo_jax.models import drop_path as drop_path_lib
from mpo_jax.models.config import InternVLConfig
from mpo_jax.nn import products
from mpo_jax.nn import roles as roles_lib


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a forward pass is computed.

    ``dtype`` decides how the result is rounded, and ``attention`` how sums are ordered;
    the others change memory and speed alone.

    Attributes:
      dtype: compute dtype, of activations and of products with weights.
      remat: what is kept for the gradient, in both towers: ``none``, ``dots``,
        ``attention``, ``full`` or ``offload`` (see ``nn.stack.remat``).
      attention: backend of ``nn.attention.packed_attention``.
      vision_chunk: tiles per row that go through the tower at once; 0 is all.
    """

    dtype: Any = jnp.bfloat16
    remat: str = "full"
    attention: str = "auto"
    vision_chunk: int = 0


class Network(nnx.Module):
    """The forward pass. Parameters: ``{vision, projector, language}``.

    Made by ``InternVL.bind`` inside a traced function. Methods only read parameters:
    each is a function of them and of its arguments.
    """

    def __init__(
        self,
        cfg: InternVLConfig,
        *,
        adaptation: adapted.Adaptation = adapted.UNADAPTED,
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
        self.projector = projector.Projector(cfg, rngs=rngs)
        self.language = decoder.Decoder(
            cfg.language, adapters=adaptation.language, rngs=rngs
        )

    def response_hidden(
        self,
        batch: types.PackedBatch,
        *,
        roles: roles_lib.Roles,
        compute: Compute,
        drop_path: float = 0.0,
        key: Array | None = None,
    ) -> Float[Array, "B R D"]:
        """Normed hidden states at the response positions of packed rows.

        Args:
          roles: of the batch's row shape.
          drop_path: rate of the last ViT layer; 0 is deterministic.
          key: random key, needed with drop path only.

        Raises:
          ValueError: if there is drop path and no key.
        """
        prompt = roles[0]
        keep = None
        if drop_path > 0:
            if key is None:
                raise ValueError("drop path needs a random key")
            keep = drop_path_lib.of_batch(
                batch,
                key,
                rate=drop_path,
                num_layers=self.cfg.vision.num_hidden_layers,
                tokens_per_tile=self.cfg.tokens_per_tile,
            )
        features = None
        if batch.tiles.shape[1]:
            features = self.packed_features(batch.tiles, keep, compute=compute)
        x = self.embed(batch.tokens, batch.image_slot, features, dtype=compute.dtype)
        hidden = self.language(
            x,
            batch.positions,
            batch.segment_ids,
            roles=roles,
            backend=compute.attention,
            remat=compute.remat,
        )
        return hidden[:, prompt:]

    def logits(
        self,
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
        features = None
        if tiles is not None:
            flat = self.image_features(tiles, compute=compute)
            flat = flat.reshape(1, -1, flat.shape[-1])
            features = jnp.broadcast_to(flat, (tokens.shape[0], *flat.shape[1:]))
        x = self.embed(tokens, image_slot, features, dtype=compute.dtype)
        mask = attention_mask.astype(jnp.int32)
        positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        hidden = self.language(
            x,
            positions,
            mask,
            roles=(tokens.shape[1], 0, 0),
            backend=compute.attention,
            remat=compute.remat,
        )
        return jnp.einsum(
            "btd,dv->btv",
            hidden,
            self.lm_head().astype(hidden.dtype),
            precision=products.precision(hidden.dtype),
            preferred_element_type=jnp.float32,
        )

    def lm_head(self) -> Float[Array, "D V"]:
        """Kernel of the output projection, in the dtype it is kept in."""
        return self.language.lm_head.kernel[...]

    def image_features(
        self,
        tiles: Array,
        keep: Float[Array, "L 2 n"] | None = None,
        *,
        compute: Compute,
    ) -> Float[Array, "n I D"]:
        """Language-space features of tiles ``[n, S, S, 3]``, in the compute dtype.

        Args:
          tiles: uint8 RGB, or floats that are normalised already.
          keep: drop-path factors (``drop_path.factors``); None drops nothing.
        """
        pixels = vit.normalise(tiles, dtype=compute.dtype)
        x = self.vision(pixels, keep, backend=compute.attention, remat=compute.remat)
        x = projector.pixel_shuffle(
            x, factor=self.cfg.shuffle, version=self.cfg.ps_version
        )
        # The compiler for v5p aborts where it draws the shuffle into the projector, at
        # 8 or 16 tiles a device.
        return self.projector(jax.lax.optimization_barrier(x))

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

        def by_chunk(x: jax.Array, axis: int) -> jax.Array:
            widths = [(0, pad if i == axis else 0) for i in range(x.ndim)]
            x = jnp.pad(x, widths) if pad else x
            shape = (*x.shape[:axis], num_chunks, chunk, *x.shape[axis + 1 :])
            return jnp.moveaxis(x.reshape(shape), axis, 0)

        def encode(inputs: tuple[jax.Array, jax.Array | None]) -> jax.Array:
            pixels, factors = inputs
            pixels = pixels.reshape(batch * chunk, *pixels.shape[2:])
            pixels = sharding.constrain(pixels, "act_batch", None, None, None)
            if factors is not None:
                factors = factors.reshape(*factors.shape[:2], batch * chunk)
            out = self.image_features(pixels, factors, compute=compute)
            return out.reshape(batch, chunk, *out.shape[1:])

        inputs = (by_chunk(tiles, 1), None if keep is None else by_chunk(keep, 3))
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
        injected = jnp.where(image_slot[:, :, None] >= 0, picked, x[:, :width])
        return jnp.concatenate([injected, x[:, width:]], axis=1)
