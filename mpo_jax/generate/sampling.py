"""From logits to a token: what changes the distribution, and the draw. float32.

Nothing is sorted: a vocabulary has 150,000 entries, and XLA sorts slowly everywhere.
What `top_k` and `top_p` keep is bounded by a threshold that 32 halvings of float32's
order find exactly; a draw takes one uniform number and two cumulative sums, of blocks
and within one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from mpo_jax import types

_BLOCK = 512
_NEVER = float("-inf")
_COLDEST = 1e-30
"""Lower temperatures are greedy like this one, and their inverse would overflow."""


@types.pytree
class Rules:
    """How every slot draws; arrays ``[G, n]``, see ``requests.Sampling``.

    Attributes:
      seed: uint32 ``[G, n, 2]``, high and low half of the request's seed.
      sample: int32, number of the answer.
      temperature, top_p, penalty: float32.
      top_k, min_new: int32.
      stop_ids: int32 ``[G, n, E]``, padded with -1.
    """

    seed: Any
    sample: Any
    temperature: Any
    top_p: Any
    top_k: Any
    penalty: Any
    min_new: Any
    stop_ids: Any


def draw(
    logits: Float[Array, "G n V"],
    rules: Rules,
    count: Int[Array, "G n"],
    seen: Callable[[], Bool[Array, "G n V"]],
) -> tuple[Int[Array, "G n"], Float[Array, "G n"]]:
    """The next token of every slot.

    Args:
      count: tokens that the answer has.
      seen: gives the tokens of prompt and answer, asked where a slot has a penalty.

    Returns:
      Tokens, and their log-probs under the model's own distribution, nats.
    """
    highest = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - highest)
    too_early = count < rules.min_new
    changed = jnp.any(rules.penalty != 1.0) | jnp.any(too_early)
    tokens = jax.lax.cond(
        changed,
        lambda: _tokens(*_changed(logits, rules, too_early, seen), rules, count),
        lambda: _tokens(logits, highest, weights, rules, count),
    )
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return tokens, (picked - highest - jnp.log(total))[..., 0]


def _changed(
    logits: Float[Array, "G n V"],
    rules: Rules,
    too_early: Bool[Array, "G n"],
    seen: Callable[[], Bool[Array, "G n V"]],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits under penalty and without early stops; their maximum and weights."""
    logits = jax.lax.cond(
        jnp.any(rules.penalty != 1.0),
        lambda: penalised(logits, seen(), rules.penalty),
        lambda: logits,
    )
    logits = without(logits, jnp.where(too_early[..., None], rules.stop_ids, -1))
    highest = jnp.max(logits, axis=-1, keepdims=True)
    return logits, highest, jnp.exp(logits - highest)


def _tokens(
    logits: Float[Array, "G n V"],
    highest: Float[Array, "G n 1"],
    weights: Float[Array, "G n V"],
    rules: Rules,
    count: Int[Array, "G n"],
) -> Int[Array, "G n"]:
    """Tokens under `logits`, whose maximum and exponentials below it are known."""
    warm = rules.temperature > 0
    greedy = jax.lax.cond(
        jnp.all(warm), lambda: jnp.zeros_like(count), lambda: likeliest(logits)
    )
    drawn = jax.lax.cond(
        jnp.any(warm),
        lambda: _sampled(logits - highest, weights, rules, count),
        lambda: jnp.zeros_like(count),
    )
    return jnp.where(warm, drawn, greedy)


def likeliest(logits: Float[Array, "G n V"]) -> Int[Array, "G n"]:
    """First of the tokens with the highest logit.

    By blocks: XLA on a CPU takes several times longer for an index than for a maximum.
    """
    parts = _by_blocks(logits, fill=_NEVER)
    highest = jnp.max(parts, axis=-1)
    block = jnp.argmax(highest, axis=-1)
    inside = jnp.take_along_axis(parts, block[..., None, None], axis=-2)[..., 0, :]
    return (block * _BLOCK + jnp.argmax(inside, axis=-1)).astype(jnp.int32)


def _by_blocks(x: Float[Array, "G n V"], *, fill: float) -> Float[Array, "G n b s"]:
    """The vocabulary cut into blocks, the last one filled up."""
    lead, vocab = x.shape[:-1], x.shape[-1]
    blocks = -(-vocab // _BLOCK)
    widths = ((0, 0),) * len(lead) + ((0, blocks * _BLOCK - vocab),)
    return jnp.pad(x, widths, constant_values=fill).reshape(*lead, blocks, _BLOCK)


def penalised(
    logits: Float[Array, "G n V"],
    seen: Bool[Array, "G n V"],
    penalty: Float[Array, "G n"],
) -> Float[Array, "G n V"]:
    """Seen tokens less likely: positive logits divided, negative ones multiplied."""
    factor = penalty[..., None]
    lower = jnp.where(logits > 0, logits / factor, logits * factor)
    return jnp.where(seen, lower, logits)


def without(
    logits: Float[Array, "G n V"], tokens: Int[Array, "G n E"]
) -> Float[Array, "G n V"]:
    """Logits with some tokens made impossible; -1 is none."""

    def one(row: jax.Array, ids: jax.Array) -> jax.Array:
        ids = jnp.where(ids < 0, row.shape[0], ids)
        return row.at[ids].set(_NEVER, mode="drop")

    return jax.vmap(jax.vmap(one))(logits, tokens)


def _sampled(
    below: Float[Array, "G n V"],
    weights: Float[Array, "G n V"],
    rules: Rules,
    count: Int[Array, "G n"],
) -> Int[Array, "G n"]:
    """Draws; `weights` are ``exp(below)``, which is all that temperature 1 needs."""
    warm = jnp.where(rules.temperature > 0, rules.temperature, 1.0)
    # Divided after the difference: before it, large quotients would round apart.
    weights = jax.lax.cond(
        jnp.any(warm != 1.0),
        lambda: jnp.exp(below / jnp.maximum(warm, _COLDEST)[..., None]),
        lambda: weights,
    )
    vocab = weights.shape[-1]
    weights = jax.lax.cond(
        jnp.any((rules.top_k > 0) & (rules.top_k < vocab)),
        lambda: kept_top_k(weights, rules.top_k),
        lambda: weights,
    )
    weights = jax.lax.cond(
        jnp.any(rules.top_p < 1.0),
        lambda: kept_top_p(weights, rules.top_p),
        lambda: weights,
    )
    return pick(weights, uniform(rules.seed, rules.sample, count))


def kept_top_k(
    weights: Float[Array, "G n V"], top_k: Int[Array, "G n"]
) -> Float[Array, "G n V"]:
    """Weights of the `top_k` likeliest tokens and what is tied with them; 0 is all."""
    wanted = jnp.where(top_k > 0, top_k, weights.shape[-1])
    at_least = _threshold(weights, jnp.ones_like(weights), wanted.astype(jnp.float32))
    return jnp.where(weights >= at_least[..., None], weights, 0.0)


def kept_top_p(
    weights: Float[Array, "G n V"], top_p: Float[Array, "G n"]
) -> Float[Array, "G n V"]:
    """Weights of the smallest set of likeliest tokens with a share `top_p` of all."""
    wanted = top_p * jnp.sum(weights, axis=-1)
    at_least = _threshold(weights, weights, wanted)
    at_least = jnp.where(top_p < 1.0, at_least, 0.0)
    return jnp.where(weights >= at_least[..., None], weights, 0.0)


def _threshold(
    weights: Float[Array, "G n V"],
    mass: Float[Array, "G n V"],
    wanted: Float[Array, "G n"],
) -> Float[Array, "G n"]:
    """The highest weight such that the tokens from it on have the wanted mass.

    Weights are not negative, so that their order is that of their bits.
    """

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> Any:
        low, high = bounds  # from `low` on there is enough, from `high` on too little
        middle = low + (high - low) // 2
        found = jax.lax.bitcast_convert_type(middle, jnp.float32)
        enough = (
            jnp.sum(jnp.where(weights >= found[..., None], mass, 0.0), axis=-1)
            >= wanted
        )
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros(wanted.shape, jnp.int32)
    one = jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32)
    high = jnp.full(wanted.shape, one + 1, jnp.int32)
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)


def uniform(
    seed: UInt32[Array, "G n 2"], sample: Int[Array, "G n"], count: Int[Array, "G n"]
) -> Float[Array, "G n"]:
    """A number in [0, 1) of (seed, sample, token) alone."""

    def one(seed: jax.Array, sample: jax.Array, count: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        key = jax.random.fold_in(jax.random.fold_in(key, sample), count)
        return jax.random.uniform(key, dtype=jnp.float32)

    return jax.vmap(jax.vmap(one))(seed, sample, count)


def pick(
    weights: Float[Array, "G n V"], number: Float[Array, "G n"]
) -> Int[Array, "G n"]:
    """The token in whose share of all weights `number` falls."""
    parts = _by_blocks(weights, fill=0.0)
    sums = jnp.sum(parts, axis=-1)
    ends = jnp.cumsum(sums, axis=-1)
    target = number * ends[..., -1]
    block = _first_above(ends, sums, target)
    before = jnp.where(
        block > 0,
        jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[..., None], -1)[..., 0],
        0.0,
    )
    inside = jnp.take_along_axis(parts, block[..., None, None], axis=-2)[..., 0, :]
    place = _first_above(jnp.cumsum(inside, axis=-1), inside, target - before)
    return (block * _BLOCK + place).astype(jnp.int32)


def _first_above(
    ends: Float[Array, "G n S"],
    parts: Float[Array, "G n S"],
    target: Float[Array, "G n"],
) -> jax.Array:
    """First part above 0 whose running sum exceeds `target`, else the last above 0.

    Running sums are rounded, each in an order of its own: one may grow where nothing
    was added, and the last may lie at `target` or below.
    """
    there = parts > 0
    above = there & (ends > target[..., None])
    last = parts.shape[-1] - 1 - jnp.argmax(there[..., ::-1], axis=-1)
    return jnp.where(jnp.any(above, axis=-1), jnp.argmax(above, axis=-1), last)


def is_stop(tokens: Int[Array, "G n"], rules: Rules) -> Bool[Array, "G n"]:
    """Does the token end its answer?"""
    return jnp.any(tokens[..., None] == rules.stop_ids, axis=-1)


def no_rules(groups: int, slots: int, stops: int) -> Rules:
    """Shapes of the rules of a geometry."""
    struct, lead = jax.ShapeDtypeStruct, (groups, slots)
    kinds = {field.name: jnp.float32 for field in dataclasses.fields(Rules)}
    kinds |= {name: jnp.int32 for name in ("sample", "top_k", "min_new", "stop_ids")}
    kinds["seed"] = jnp.uint32
    ends = {"seed": (2,), "stop_ids": (stops,)}
    return Rules(
        **{
            name: struct((*lead, *ends.get(name, ())), kind)
            for name, kind in kinds.items()
        }
    )
