"""The language model: one decoder for InternLM2, Qwen2 and Llama layouts.

Their mathematics differ only in biases, which are data of the configuration.
"""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from mpo_jax import sharding
from mpo_jax.models.config import LanguageConfig
from mpo_jax.nn import attention, layers, stack


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, cfg: LanguageConfig, *, rngs: nnx.Rngs):
        self.theta = cfg.rope_theta
        width, head_dim = cfg.hidden_size, cfg.head_dim

        def project(heads: int, axis: str) -> layers.Linear:
            return layers.Linear(
                (width,),
                (heads, head_dim),
                in_axes=("embed",),
                out_axes=(axis, "head_dim"),
                use_bias=cfg.qkv_bias,
                stddev=cfg.initializer_range,
                rngs=rngs,
            )

        self.q = project(cfg.num_attention_heads, "heads")
        self.k = project(cfg.num_key_value_heads, "kv_heads")
        self.v = project(cfg.num_key_value_heads, "kv_heads")
        self.o = layers.Linear(
            (cfg.num_attention_heads, head_dim),
            (width,),
            in_axes=("heads", "head_dim"),
            out_axes=("embed",),
            use_bias=cfg.out_bias,
            stddev=cfg.initializer_range,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        roles: attention.Roles,
        backend: str,
    ) -> Float[Array, "B T D"]:
        heads = ("act_batch", "act_seq", "act_heads", None)
        query = sharding.constrain(self.q(x), *heads)
        key = sharding.constrain(self.k(x), *heads)
        value = sharding.constrain(self.v(x), *heads)
        out = attention.packed_attention(
            layers.rotary(query, positions, theta=self.theta),
            layers.rotary(key, positions, theta=self.theta),
            value,
            segment_ids,
            roles=roles,
            backend=backend,
        )
        return self.o(sharding.constrain(out, *heads))


class Mlp(nnx.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, cfg: LanguageConfig, *, rngs: nnx.Rngs):
        width, hidden = cfg.hidden_size, cfg.intermediate_size
        common = {"use_bias": False, "stddev": cfg.initializer_range, "rngs": rngs}
        inward = {"in_axes": ("embed",), "out_axes": ("mlp",), **common}
        self.gate = layers.Linear((width,), (hidden,), **inward)
        self.up = layers.Linear((width,), (hidden,), **inward)
        self.down = layers.Linear(
            (hidden,), (width,), in_axes=("mlp",), out_axes=("embed",), **common
        )

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        hidden = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.down(sharding.constrain(hidden, "act_batch", "act_seq", "act_mlp"))


class Block(nnx.Module):
    """Pre-norm decoder block."""

    def __init__(self, cfg: LanguageConfig, *, rngs: nnx.Rngs):
        norm = {"kind": "rms_norm", "eps": cfg.rms_norm_eps, "rngs": rngs}
        self.attn_norm = layers.Norm(cfg.hidden_size, **norm)
        self.attn = Attention(cfg, rngs=rngs)
        self.mlp_norm = layers.Norm(cfg.hidden_size, **norm)
        self.mlp = Mlp(cfg, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        roles: attention.Roles,
        backend: str,
        _: None,
    ) -> Float[Array, "B T D"]:
        x = x + self.attn(self.attn_norm(x), positions, segment_ids, roles, backend)
        x = x + self.mlp(self.mlp_norm(x))
        return sharding.constrain(x, "act_batch", "act_seq", "act_embed")


class Decoder(nnx.Module):
    """Embeddings in, normed hidden states out; the head is applied where needed."""

    def __init__(self, cfg: LanguageConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.embedding = layers.Embedding(
            cfg.vocab_size, cfg.hidden_size, stddev=cfg.initializer_range, rngs=rngs
        )
        self.layers = stack.Stack(
            lambda rngs: Block(cfg, rngs=rngs),
            num_layers=cfg.num_hidden_layers,
            rngs=rngs,
        )
        self.norm = layers.Norm(
            cfg.hidden_size, kind="rms_norm", eps=cfg.rms_norm_eps, rngs=rngs
        )
        self.lm_head = layers.Linear(
            (cfg.hidden_size,),
            (cfg.vocab_size,),
            in_axes=("embed",),
            out_axes=("vocab",),
            use_bias=False,
            stddev=cfg.initializer_range,
            rngs=rngs,
        )

    def __call__(
        self,
        embeddings: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        *,
        roles: attention.Roles,
        backend: str = "auto",
        remat: str = "none",
    ) -> Float[Array, "B T D"]:
        x = sharding.constrain(embeddings, "act_batch", "act_seq", "act_embed")
        x = self.layers(x, positions, segment_ids, roles, backend, policy=remat)
        return self.norm(x)
