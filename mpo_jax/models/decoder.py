"""The language model: one decoder for InternLM2, Qwen2, Qwen3, Llama and Phi-3.

Their mathematics differ in biases, per-head norms of queries and keys, and rotary
frequencies, which are data of the configuration; their files differ in ``convert``.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mpo_jax import sharding
from mpo_jax.models.config import LanguageConfig
from mpo_jax.nn import attention, layers, lora, stack
from mpo_jax.nn import roles as roles_lib

Tables = tuple[Float[Array, "B T F"], Float[Array, "B T F"]]


class Attend(Protocol):
    """Attention of a layer, over whatever its keys and values are."""

    def __call__(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K H"],
        layer: Any,
    ) -> tuple[Float[Array, "B T N H"], Any]:
        """
        Args:
          query, key: with their positions (rotated).
          layer: this layer's slice of what the caller gave for all layers.

        Returns:
          The output, and what the layer is to leave behind.
        """
        ...


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, cfg: LanguageConfig, *, adapters: lora.Adapters, rngs: nnx.Rngs):
        width, head_dim = cfg.hidden_size, cfg.head_dim

        def project(name: str, heads: int, axis: str) -> layers.Linear:
            return layers.Linear(
                (width,),
                (heads, head_dim),
                in_axes=("embed",),
                out_axes=(axis, "head_dim"),
                use_bias=cfg.qkv_bias,
                stddev=cfg.initializer_range,
                lora=adapters.of(name),
                rngs=rngs,
            )

        self.q = project("q", cfg.num_attention_heads, "heads")
        self.k = project("k", cfg.num_key_value_heads, "kv_heads")
        self.v = project("v", cfg.num_key_value_heads, "kv_heads")
        self.o = layers.Linear(
            (cfg.num_attention_heads, head_dim),
            (width,),
            in_axes=("heads", "head_dim"),
            out_axes=("embed",),
            use_bias=cfg.out_bias,
            stddev=cfg.initializer_range,
            lora=adapters.of("o"),
            rngs=rngs,
        )
        self.normalise = cfg.qk_norm
        if self.normalise:
            norm = {"kind": "rms_norm", "eps": cfg.rms_norm_eps, "rngs": rngs}
            self.q_norm = layers.Norm(head_dim, **norm)
            self.k_norm = layers.Norm(head_dim, **norm)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        tables: Tables,
        attend: Attend,
        layer: Any,
    ) -> tuple[Float[Array, "B T D"], Any]:
        heads = ("act_batch", "act_seq", "act_heads", None)
        query, key, value = (
            sharding.constrain(out, *heads)
            for out in layers.apply_parallel(x, self.q, self.k, self.v)
        )
        if self.normalise:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = layers.rotary(query, tables), layers.rotary(key, tables)
        out, kept = attend(query, key, value, layer)
        return self.o(sharding.constrain(out, *heads)), kept


class Mlp(nnx.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, cfg: LanguageConfig, *, adapters: lora.Adapters, rngs: nnx.Rngs):
        width, hidden = cfg.hidden_size, cfg.intermediate_size
        common = {"use_bias": False, "stddev": cfg.initializer_range, "rngs": rngs}
        inward = {"in_axes": ("embed",), "out_axes": ("mlp",), **common}
        gate, up, down = (adapters.of(name) for name in ("gate", "up", "down"))
        self.gate = layers.Linear((width,), (hidden,), lora=gate, **inward)
        self.up = layers.Linear((width,), (hidden,), lora=up, **inward)
        self.down = layers.Linear(
            (hidden,),
            (width,),
            in_axes=("mlp",),
            out_axes=("embed",),
            lora=down,
            **common,
        )

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up = layers.apply_parallel(x, self.gate, self.up)
        hidden = layers.swiglu(gate, up)
        return self.down(sharding.constrain(hidden, "act_batch", "act_seq", "act_mlp"))


class Block(nnx.Module):
    """Pre-norm decoder block."""

    def __init__(self, cfg: LanguageConfig, *, adapters: lora.Adapters, rngs: nnx.Rngs):
        norm = {"kind": "rms_norm", "eps": cfg.rms_norm_eps, "rngs": rngs}
        self.attn_norm = layers.Norm(cfg.hidden_size, **norm)
        self.attn = Attention(cfg, adapters=adapters, rngs=rngs)
        self.mlp_norm = layers.Norm(cfg.hidden_size, **norm)
        self.mlp = Mlp(cfg, adapters=adapters, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        tables: Tables,
        attend: Attend,
        layer: Any,
    ) -> tuple[Float[Array, "B T D"], Any]:
        out, kept = self.attn(self.attn_norm(x), tables, attend, layer)
        x = x + out
        x = x + self.mlp(self.mlp_norm(x))
        return sharding.constrain(x, "act_batch", "act_seq", "act_embed"), kept


class Decoder(nnx.Module):
    """Embeddings in, normed hidden states out; the head is applied where needed."""

    def __init__(
        self,
        cfg: LanguageConfig,
        *,
        adapters: lora.Adapters = lora.NONE,
        rngs: nnx.Rngs,
    ):
        self.cfg = cfg
        self.embedding = layers.Embedding(
            cfg.vocab_size, cfg.hidden_size, stddev=cfg.initializer_range, rngs=rngs
        )
        self.layers = stack.Stack(
            lambda rngs: Block(cfg, adapters=adapters, rngs=rngs),
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
        roles: roles_lib.Roles,
        backend: str = "auto",
        remat: str = "none",
    ) -> Float[Array, "B T D"]:
        """Hidden states of packed rows.

        Args:
          roles: of the rows; `segment_ids` tell their pairs apart.
          backend: see ``nn.attention``.
          remat: see ``nn.stack``.
        """
        lengths = None
        if self.cfg.rope.long_frequencies:
            lengths = layers.segment_lengths(positions, segment_ids)
            if roles[1]:  # the last token of a response is a label alone
                lengths = lengths + 1
        attend = functools.partial(
            _attend_packed, segment_ids=segment_ids, roles=roles, backend=backend
        )
        return self.run(embeddings, positions, lengths, attend, remat=remat)[0]

    def run(
        self,
        embeddings: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        lengths: Int[Array, "#B #T"] | None,
        attend: Attend,
        *,
        per_layer: Any = None,
        remat: str = "none",
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Hidden states under any attention, and what its layers leave behind.

        Args:
          lengths: of every token's sequence, see :meth:`rotary_tables`.
          per_layer: pytree with a leading layer axis; `attend` gets its slice.
        """
        x = sharding.constrain(embeddings, "act_batch", "act_seq", "act_embed")
        tables = self.rotary_tables(positions, lengths)
        x, kept = self.layers(x, tables, attend, per_layer=per_layer, policy=remat)
        return self.norm(x), kept

    def rotary_tables(
        self, positions: Int[Array, "B T"], lengths: Int[Array, "#B #T"] | None
    ) -> Tables:
        """Cosine and sine of every token, once for all layers.

        Args:
          lengths: of every token's sequence. Where the rule has a second set of
            frequencies, each sequence takes one by its own length; what else stands in
            the batch does not matter. None where there is no second set.
        """
        rope = self.cfg.rope
        frequencies = jnp.asarray(rope.frequencies, jnp.float32)[None, None]
        if rope.long_frequencies:
            assert lengths is not None
            long = jnp.asarray(rope.long_frequencies, jnp.float32)[None, None]
            is_long = lengths[:, :, None] > rope.original_length
            frequencies = jnp.where(is_long, long, frequencies)
        return layers.rotary_tables(positions, frequencies, scale=rope.scale)


def _attend_packed(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    layer: None,
    *,
    segment_ids: Int[Array, "B T"],
    roles: roles_lib.Roles,
    backend: str,
) -> tuple[Float[Array, "B T N H"], None]:
    """:class:`Attend` of packed rows; nothing is left behind."""
    out = attention.packed_attention(
        query, key, value, segment_ids, roles=roles, backend=backend
    )
    return out, None
