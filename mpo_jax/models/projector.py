"""Patch features of the tower to tokens of the decoder: pixel shuffle, then an MLP."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from mpo_jax.models.config import InternVLConfig
from mpo_jax.nn import layers


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
