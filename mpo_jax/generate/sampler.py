"""The compiled programs of generation: tiles to features, prefill, and decoding.

Pure functions of parameters, cache and small arrays, at the static shapes of a
:class:`cache.Geometry`. What the host decides (which prompt goes where, which slot is
free) comes in as arrays; the engine is the only caller.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from mpo_jax import sharding, types
from mpo_jax.generate import cache as cache_lib
from mpo_jax.generate import sampling
from mpo_jax.models import internvl, network
from mpo_jax.nn import attention, cached_attention, products
from mpo_jax.nn import params as params_lib


@types.pytree
class Slots:
    """What every slot does; small arrays that the host writes.

    Attributes:
      prompt_lengths: int32 ``[G]``, cached tokens of the prompt.
      long: bool ``[G]``, the sequence takes the second set of rotary frequencies.
      token: int32 ``[G, n]``, fed next.
      length: int32 ``[G, n]``, cached tokens of the answer.
      count: int32 ``[G, n]``, tokens that the answer has.
      limit: int32 ``[G, n]``, tokens at which it ends.
      active: bool ``[G, n]``.
      rules: how each draws.
    """

    prompt_lengths: Any
    long: Any
    token: Any
    length: Any
    count: Any
    limit: Any
    active: Any
    rules: sampling.Rules


@types.pytree
class Prompts:
    """Rows of one prefill; ``b`` is the bucket.

    Attributes:
      ids: int32 ``[B, b]``, padded; the prompts without their last tokens.
      lengths: int32 ``[B]``.
      long: bool ``[B]``, see :class:`Slots`.
      image_slot: int32 ``[B, b]``, row of the buffer's flattened features, or -1.
      groups: int32 ``[B]``, see ``cache.insert_prompts``.
    """

    ids: Any
    lengths: Any
    long: Any
    image_slot: Any
    groups: Any


def slots_shapes(geometry: cache_lib.Geometry, stops: int) -> Slots:
    """``ShapeDtypeStruct`` of every array of :class:`Slots`."""
    groups, lead = (geometry.groups,), (geometry.groups, geometry.slots)
    struct = jax.ShapeDtypeStruct
    return Slots(
        prompt_lengths=struct(groups, jnp.int32),
        long=struct(groups, jnp.bool_),
        token=struct(lead, jnp.int32),
        length=struct(lead, jnp.int32),
        count=struct(lead, jnp.int32),
        limit=struct(lead, jnp.int32),
        active=struct(lead, jnp.bool_),
        rules=sampling.no_rules(*lead, stops),
    )


def prompts_shapes(rows: int, bucket: int) -> Prompts:
    """``ShapeDtypeStruct`` of every array of :class:`Prompts`."""
    struct = jax.ShapeDtypeStruct
    return Prompts(
        ids=struct((rows, bucket), jnp.int32),
        lengths=struct((rows,), jnp.int32),
        long=struct((rows,), jnp.bool_),
        image_slot=struct((rows, bucket), jnp.int32),
        groups=struct((rows,), jnp.int32),
    )


def encode(
    model: internvl.InternVL,
    compute: network.Compute,
    weights: params_lib.Params,
    features: Array,
    tiles: Array,
    start: Int[Array, ""],
) -> Array:
    """Features of some tiles, into the buffer.

    Args:
      features: ``[U, I, D]``, on every device.
      tiles: ``[c, S, S, 3]``, see ``Network.image_features``.
      start: place of the first in the buffer.
    """
    tiles = sharding.constrain(tiles, "act_batch", None, None, None)
    new = model.bind(weights).image_features(tiles, compute=compute)
    new = sharding.constrain(new, None, None, None)
    return jax.lax.dynamic_update_slice_in_dim(features, new, start, axis=0)


def prefill(
    model: internvl.InternVL,
    compute: network.Compute,
    weights: params_lib.Params,
    cache: cache_lib.Cache,
    features: Array,
    prompts: Prompts,
) -> cache_lib.Cache:
    """Read prompts, each a row of the packed forward that training uses.

    A row holds one prompt, from its first column on: its numbers then do not depend on
    what is read beside it.
    """
    bound = model.bind(weights)
    flat = features.reshape(1, -1, features.shape[-1])
    rows, width = prompts.ids.shape
    x = bound.embed(
        prompts.ids,
        prompts.image_slot,
        jnp.broadcast_to(flat, (rows, *flat.shape[1:])),
        dtype=compute.dtype,
    )
    place = jnp.arange(width)[None, :]
    segments = (place < prompts.lengths[:, None]).astype(jnp.int32)

    def attend(
        query: Array, key: Array, value: Array, layer: None
    ) -> tuple[Array, Any]:
        out = attention.packed_attention(
            query,
            key,
            value,
            segments,
            roles=(width, 0, 0),
            backend=compute.attention,
        )
        return out, (key.swapaxes(1, 2), value.swapaxes(1, 2))

    positions = jnp.broadcast_to(place, segments.shape)
    lengths = _rule_lengths(model, prompts.long[:, None])
    _, (keys, values) = bound.language.run(x, positions, lengths, attend)
    return cache_lib.insert_prompts(cache, keys, values, prompts.ids, prompts.groups)


def _rule_lengths(model: internvl.InternVL, long: Bool[Array, ...]) -> Array | None:
    """Sequence lengths that make ``Decoder.rotary_tables`` choose as `long` says."""
    rope = model.cfg.language.rope
    if not rope.long_frequencies:
        return None
    return jnp.where(long, rope.original_length + 1, 1)


def decode(
    model: internvl.InternVL,
    compute: network.Compute,
    geometry: cache_lib.Geometry,
    weights: params_lib.Params,
    cache: cache_lib.Cache,
    slots: Slots,
) -> tuple[cache_lib.Cache, Slots, Array, Array]:
    """Up to ``geometry.steps`` tokens of every active answer; ends when none is active.

    Returns:
      Cache and slots after it; new tokens int32 ``[steps, G, n]`` and their log-probs
      float32, nats. A slot's are the first ``count_after - count_before`` of a column.
    """
    steps, lead = geometry.steps, (geometry.groups, geometry.slots)

    def more(state: Any) -> Array:
        number, _, slots, _, _ = state
        return (number < steps) & jnp.any(slots.active)

    def body(state: Any) -> Any:
        number, cache, slots, tokens, logps = state
        slots = jax.tree.map(_together, slots)
        cache, logits = _forward(model, compute, geometry, weights, cache, slots)
        seen = functools.partial(_seen, cache, slots, logits.shape[-1])
        new, chosen = sampling.draw(logits, slots.rules, slots.count, seen)
        new, chosen = _together(new), _together(chosen)
        tokens = tokens.at[number].set(new)
        logps = logps.at[number].set(chosen)
        return number + 1, cache, _after(slots, new), tokens, logps

    nothing = (jnp.zeros((steps, *lead), jnp.int32), jnp.zeros((steps, *lead)))
    state = (jnp.int32(0), cache, slots, *nothing)
    _, cache, slots, tokens, logps = jax.lax.while_loop(more, body, state)
    return cache, slots, tokens, logps


def _forward(
    model: internvl.InternVL,
    compute: network.Compute,
    geometry: cache_lib.Geometry,
    weights: params_lib.Params,
    cache: cache_lib.Cache,
    slots: Slots,
) -> tuple[cache_lib.Cache, Array]:
    """Feed every slot its token; returns float32 logits ``[G, n, V]``."""
    bound = model.bind(weights)
    prompt_lengths = jnp.where(jnp.any(slots.active, 1), slots.prompt_lengths, 0)
    answer_lengths = jnp.where(slots.active, slots.length, 0)

    def attend(query: Array, key: Array, value: Array, layer: Any) -> tuple[Array, Any]:
        out = cached_attention.attend(
            query,
            key,
            value,
            prompts=(cache.prompt_keys, cache.prompt_values),
            answers=(cache.answer_keys, cache.answer_values),
            prompt_lengths=prompt_lengths,
            answer_lengths=answer_lengths,
            layer=layer,
            blocks=(geometry.prompt_block, geometry.answer_block),
        )
        return out, (key, value)

    x = bound.embed(slots.token, None, None, dtype=compute.dtype)
    hidden, (keys, values) = bound.language.run(
        x,
        slots.prompt_lengths[:, None] + slots.length,
        _rule_lengths(model, slots.long[:, None]),
        attend,
        per_layer=jnp.arange(model.cfg.language.num_hidden_layers),
    )
    cache = cache_lib.append(cache, keys, values, slots.token, slots.length)
    hidden = _together(hidden)
    logits = jnp.einsum(
        "gnd,dv->gnv",
        hidden,
        bound.lm_head().astype(hidden.dtype),
        precision=products.precision(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    # Sums over the vocabulary and draws are of whole rows: those are dealt out.
    return cache, sharding.constrain(logits, "act_batch", "act_slots", None)


def _together(x: Array) -> Array:
    """All slots of a group on one device: they are dealt out for their draws alone.

    The partitioner would else deal them out in every layer, and gather them again.
    """
    return sharding.constrain(x, "act_batch", *(None,) * (x.ndim - 1))


def _seen(cache: cache_lib.Cache, slots: Slots, vocab: int) -> Bool[Array, "G n V"]:
    """Tokens of prompt and answer, the one just fed included."""

    def one(prompt: Array, length: Array, answer: Array, fed: Array) -> Array:
        prompt = jnp.where(jnp.arange(len(prompt)) < length, prompt, vocab)
        answer = jnp.where(jnp.arange(len(answer)) <= fed, answer, vocab)
        found = jnp.zeros((vocab,), jnp.bool_)
        found = found.at[prompt].set(True, mode="drop")
        return found.at[answer].set(True, mode="drop")

    per_slot = jax.vmap(one, (None, None, 0, 0))
    return jax.vmap(per_slot)(
        cache.prompt_ids,
        slots.prompt_lengths,
        _together(cache.answer_ids),
        _together(slots.length),
    )


def _after(slots: Slots, new: Int[Array, "G n"]) -> Slots:
    """Slots when each has drawn its token; those that are not active stay."""
    count = slots.count + slots.active
    ended = sampling.is_stop(new, slots.rules) | (count >= slots.limit)
    return dataclasses.replace(
        slots,
        token=jnp.where(slots.active, new, slots.token),
        length=slots.length + slots.active,
        count=count,
        active=slots.active & ~ended,
    )
