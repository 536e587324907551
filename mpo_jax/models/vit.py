"""InternViT: the vision tower (300M style and 6B style), without a final norm."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mpo_jax import sharding
from mpo_jax.models.config import VisionConfig
from mpo_jax.nn import attention, layers, lora, params, stack

# ImageNet statistics, RGB (InternVL's processor).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(tiles: Array, *, dtype: Any) -> Float[Array, "... S S 3"]:
    """Turn uint8 RGB tiles into normalised pixels; floats are taken as normalised."""
    if tiles.dtype != jnp.uint8:
        return tiles.astype(dtype)
    shape = (1,) * (tiles.ndim - 1) + (3,)
    mean = jnp.asarray(MEAN, jnp.float32).reshape(shape)
    std = jnp.asarray(STD, jnp.float32).reshape(shape)
    return ((tiles.astype(jnp.float32) / 255.0 - mean) / std).astype(dtype)


class Attention(nnx.Module):
    """Bidirectional attention; query/key norms of the 6B tower span all heads."""

    def __init__(self, cfg: VisionConfig, *, adapters: lora.Adapters, rngs: nnx.Rngs):
        width, heads, head_dim = (
            cfg.hidden_size,
            cfg.num_attention_heads,
            cfg.head_dim,
        )
        self.qkv = layers.Linear(
            (width,),
            (3, heads, head_dim),
            in_axes=("embed",),
            out_axes=(None, "heads", "head_dim"),
            use_bias=cfg.qkv_bias,
            stddev=cfg.initializer_range,
            lora=adapters.of("qkv"),
            rngs=rngs,
        )
        self.normalise = cfg.qk_normalization
        if self.normalise:
            kind, eps = "rms_norm", cfg.layer_norm_eps
            self.q_norm = layers.Norm(width, kind=kind, eps=eps, rngs=rngs)
            self.k_norm = layers.Norm(width, kind=kind, eps=eps, rngs=rngs)
        self.out = layers.Linear(
            (heads, head_dim),
            (width,),
            in_axes=("heads", "head_dim"),
            out_axes=("embed",),
            use_bias=True,
            stddev=cfg.initializer_range,
            lora=adapters.of("out"),
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "n T C"], *, backend: str
    ) -> Float[Array, "n T C"]:
        qkv = self.qkv(x)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.normalise:
            shape = query.shape
            query = self.q_norm(query.reshape(x.shape)).reshape(shape)
            key = self.k_norm(key.reshape(x.shape)).reshape(shape)
        heads = ("act_batch", "act_seq", "act_heads", None)
        query = sharding.constrain(query, *heads)
        key = sharding.constrain(key, *heads)
        value = sharding.constrain(value, *heads)
        return self.out(attention.tile_attention(query, key, value, backend=backend))


class Block(nnx.Module):
    """Pre-norm block: LayerScale, then drop path, then the residual sum."""

    def __init__(self, cfg: VisionConfig, *, adapters: lora.Adapters, rngs: nnx.Rngs):
        norm = {"kind": cfg.norm_type, "eps": cfg.layer_norm_eps, "rngs": rngs}
        width, hidden = cfg.hidden_size, cfg.intermediate_size
        linear = {"use_bias": True, "stddev": cfg.initializer_range, "rngs": rngs}
        scale = jax.nn.initializers.constant(cfg.initializer_factor)
        self.norm1 = layers.Norm(width, **norm)
        self.attn = Attention(cfg, adapters=adapters, rngs=rngs)
        self.ls1 = params.param(rngs, (width,), axes=("norm",), init=scale)
        self.norm2 = layers.Norm(width, **norm)
        self.fc1 = layers.Linear(
            (width,),
            (hidden,),
            in_axes=("embed",),
            out_axes=("mlp",),
            lora=adapters.of("fc1"),
            **linear,
        )
        self.fc2 = layers.Linear(
            (hidden,),
            (width,),
            in_axes=("mlp",),
            out_axes=("embed",),
            lora=adapters.of("fc2"),
            **linear,
        )
        self.ls2 = params.param(rngs, (width,), axes=("norm",), init=scale)

    def __call__(
        self, x: Float[Array, "n T C"], backend: str, keep: Float[Array, "2 n"] | None
    ) -> tuple[Float[Array, "n T C"], None]:
        def branch(y: jax.Array, scale: nnx.Param, index: int) -> jax.Array:
            y = y * scale[...].astype(y.dtype)[None, None, :]
            if keep is not None:
                y = y * keep[index].astype(y.dtype)[:, None, None]
            return y

        x = x + branch(self.attn(self.norm1(x), backend=backend), self.ls1, 0)
        hidden = layers.gelu(self.fc1(self.norm2(x)))
        hidden = sharding.constrain(hidden, "act_batch", "act_seq", "act_mlp")
        x = x + branch(self.fc2(hidden), self.ls2, 1)
        return sharding.constrain(x, "act_batch", "act_seq", "act_embed"), None


class InternViT(nnx.Module):
    """Tiles to patch features of the layer that ``select_layer`` names.

    With `last` layers in a stack of their own, ``last_layers``: what is trained there
    while ``layers`` is frozen has gradients of its own, and none flow further down.
    """

    def __init__(
        self,
        cfg: VisionConfig,
        *,
        image_size: int,
        select_layer: int,
        adapters: lora.Adapters = lora.NONE,
        last: int = 0,
        rngs: nnx.Rngs,
    ):
        self.cfg = cfg
        self.side = image_size // cfg.patch_size
        self.num_layers = used_layers(cfg, select_layer)
        if not 0 <= last < self.num_layers:
            raise ValueError(
                f"model.train_vision_layers={last}: the tower runs {self.num_layers} "
                "layers; set fewer, or model.freeze_vision=False to train them all"
            )
        self.first = self.num_layers - last if last else cfg.num_hidden_layers
        width, stddev = cfg.hidden_size, cfg.initializer_range
        normal = jax.nn.initializers.normal(stddev)
        stored = (cfg.image_size // cfg.patch_size) ** 2
        self.class_embedding = params.param(rngs, (width,), axes=("norm",), init=normal)
        self.position_embedding = params.param(
            rngs, (1 + stored, width), axes=(None, "norm"), init=normal
        )
        self.patch = layers.Linear(
            (cfg.patch_size, cfg.patch_size, 3),
            (width,),
            in_axes=(None, None, None),
            out_axes=("embed",),
            use_bias=True,
            stddev=stddev,
            rngs=rngs,
        )
        self.layers = stack.Stack(
            lambda rngs: Block(cfg, adapters=adapters, rngs=rngs),
            num_layers=self.first,
            rngs=rngs,
        )
        self.two_stacks = bool(last)
        if self.two_stacks:
            self.last_layers = stack.Stack(
                lambda rngs: Block(cfg, adapters=adapters, rngs=rngs),
                num_layers=cfg.num_hidden_layers - self.first,
                rngs=rngs,
            )

    def positions(self) -> Float[Array, "T C"]:
        """Position embeddings for this image size.

        Other sizes than the stored one are interpolated with torch's bicubic kernel
        (a = -0.75, half-pixel centres) in float32, as the released code does.
        """
        table = self.position_embedding[...]
        stored = self.cfg.image_size // self.cfg.patch_size
        if stored == self.side:
            return table
        grid = table[1:].astype(jnp.float32).reshape(stored, stored, -1)
        grid = jax.image.resize(
            grid,
            (self.side, self.side, grid.shape[-1]),
            method=jax.image.ResizeMethod.CUBIC_PYTORCH,
            antialias=False,
        )
        patches = grid.reshape(self.side**2, -1).astype(table.dtype)
        return jnp.concatenate([table[:1], patches])

    def __call__(
        self,
        pixels: Float[Array, "n S S 3"],
        keep: Float[Array, "L 2 n"] | None = None,
        *,
        backend: str = "auto",
        remat: str = "none",
    ) -> Float[Array, "n P C"]:
        """Encode tiles.

        Args:
          pixels: normalised tiles in the compute dtype.
          keep: drop-path factors per layer, branch and tile (0 or 1 / keep rate).
          backend: see ``nn.attention``.
          remat: see ``nn.stack``.

        Returns:
          Patch features ``[n, side², C]``, class token dropped, no final norm.
        """
        count, side, patch = pixels.shape[0], self.side, self.cfg.patch_size
        patches = pixels.reshape(count, side, patch, side, patch, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5)
        x = self.patch(patches).reshape(count, side * side, -1)
        first = jnp.broadcast_to(
            self.class_embedding[...].astype(x.dtype)[None, None],
            (count, 1, x.shape[-1]),
        )
        x = jnp.concatenate([first, x], axis=1)
        x = x + self.positions().astype(x.dtype)[None]
        x = sharding.constrain(x, "act_batch", "act_seq", "act_embed")
        if not self.two_stacks:
            x, _ = self.layers(
                x, backend, per_layer=keep, policy=remat, stop=self.num_layers
            )
            return x[:, 1:]
        early = None if keep is None else keep[: self.first]
        late = None if keep is None else keep[self.first :]
        x, _ = self.layers(x, backend, per_layer=early, policy=remat)
        rest = self.num_layers - self.first
        x, _ = self.last_layers(x, backend, per_layer=late, policy=remat, stop=rest)
        return x[:, 1:]


def used_layers(cfg: VisionConfig, select_layer: int) -> int:
    """Number of layers that run: features are those after layer `select_layer`."""
    return cfg.num_hidden_layers + select_layer + 1
