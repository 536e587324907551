"""What is kept on the devices between steps: keys and values, at static shapes.

Slots for answers stand in groups; a group answers one prompt at a time, whose keys and
values it holds once for all its slots::

    prompts  [L, G, K, P, H]      answers  [L, G, K, n, R, H]

Heads come before slots and positions, in the order in which attention multiplies: a
TPU would otherwise turn the whole cache around; and padding of the last two axes to its
tiles costs nothing. The last token of a prompt is in no prompt
cache: it is the first that a slot is fed, as a response in training begins with it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import layout as layout_lib

from mpo_jax import sharding, types
from mpo_jax.models.config import LanguageConfig
from mpo_jax.nn import cached_attention

PROMPTS = ("layers", "act_batch", "act_kv", None, None)
ANSWERS = ("layers", "act_batch", "act_kv", None, None, None)
TOKENS = ("layers", "act_batch", None, "act_kv", None)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Static sizes; a request's tokens are a function of it and of the request.

    Attributes:
      groups: ``G``, prompts that are answered at a time.
      slots: ``n``, answers of each at a time.
      prompt_tokens: ``P``, room for a prompt, its last token not counted.
      answer_tokens: ``R``, longest answer.
      prompt_block, answer_block: positions that attention reads at a time.
      steps: tokens of every answer between two looks of the host.
      buckets: prompt lengths that prefill is compiled for, ascending.
      prefill_tokens: of one prefill and data shard, about.
      tiles: tiles that the vision tower takes at a time, per data shard.
    """

    groups: int
    slots: int
    prompt_tokens: int
    answer_tokens: int
    prompt_block: int
    answer_block: int
    steps: int
    buckets: tuple[int, ...]
    prefill_tokens: int
    tiles: int

    def __post_init__(self) -> None:
        for name, block in (
            ("prompt_tokens", self.prompt_block),
            ("answer_tokens", self.answer_block),
        ):
            if getattr(self, name) % block:
                raise ValueError(
                    f"{name}={getattr(self, name)}: no multiple of {block}"
                )
        rising = list(self.buckets) == sorted(set(self.buckets))
        if not rising or self.buckets[-1] > self.prompt_tokens:
            raise ValueError(f"buckets={self.buckets} do not rise to prompt_tokens")

    def rows(self, bucket: int, shards: int) -> int:
        """Prompts of one prefill, per data shard."""
        each = max(1, self.prefill_tokens // bucket)
        return min(each, self.groups // shards)

    def bucket(self, tokens: int) -> int:
        """Smallest bucket that takes a prompt."""
        return next(size for size in self.buckets if size >= tokens)


@types.pytree
class Cache:
    """Keys and values, and the tokens they are of; on devices.

    Attributes:
      prompt_keys, prompt_values: ``[L, G, K, P, H]``, see :func:`kept_as`.
      answer_keys, answer_values: ``[L, G, K, n, R, H]``.
      prompt_ids: int32 ``[G, P]``.
      answer_ids: int32 ``[G, n, R]``, tokens that slots were fed.
    """

    prompt_keys: Any
    prompt_values: Any
    answer_keys: Any
    answer_values: Any
    prompt_ids: Any
    answer_ids: Any


def kept_as(dtype: Any, platform: str) -> Any:
    """Dtype of cached keys and values: on a CPU 16 bits are kept as integers.

    XLA there widens a whole array of bfloat16 to float32 to change a part of it.
    """
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.uint16) if platform == "cpu" and dtype.itemsize == 2 else dtype


def shapes(cfg: LanguageConfig, geometry: Geometry, dtype: Any) -> Cache:
    """``ShapeDtypeStruct`` of every array."""
    layers, heads = cfg.num_hidden_layers, cfg.num_key_value_heads
    groups, slots, width = geometry.groups, geometry.slots, cfg.head_dim
    prompt = (layers, groups, heads, geometry.prompt_tokens, width)
    answer = (layers, groups, heads, slots, geometry.answer_tokens, width)
    struct = jax.ShapeDtypeStruct
    return Cache(
        prompt_keys=struct(prompt, dtype),
        prompt_values=struct(prompt, dtype),
        answer_keys=struct(answer, dtype),
        answer_values=struct(answer, dtype),
        prompt_ids=struct((groups, geometry.prompt_tokens), jnp.int32),
        answer_ids=struct((groups, slots, geometry.answer_tokens), jnp.int32),
    )


def placed(cache: Cache, mesh: jax.sharding.Mesh) -> Cache:
    """Shapes with their shardings: groups over ``data`` and ``fsdp``, heads over
    ``tensor`` where they divide it."""
    axes = Cache(
        prompt_keys=PROMPTS,
        prompt_values=PROMPTS,
        answer_keys=ANSWERS,
        answer_values=ANSWERS,
        prompt_ids=("act_batch", None),
        answer_ids=("act_batch", None, None),
    )
    places = sharding.shardings(cache, axes, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), cache, places
    )


def insert_prompts(
    cache: Cache,
    keys: jax.Array,
    values: jax.Array,
    ids: jax.Array,
    groups: jax.Array,
) -> Cache:
    """Put the prompts of a prefill into their groups.

    Every data shard fills groups of its own, so nothing moves between devices.

    Args:
      keys, values: ``[L, B, K, b, H]``, ``b`` the bucket.
      ids: int32 ``[B, b]``.
      groups: int32 ``[B]``, group counted within the row's shard; -1 is no prompt.
    """

    def local(cached: jax.Array, new: jax.Array, groups: jax.Array) -> jax.Array:
        for row in range(new.shape[1]):
            at = (0, jnp.maximum(groups[row], 0), *(0,) * (new.ndim - 2))
            one = jax.lax.dynamic_slice_in_dim(new, row, 1, axis=1)
            old = jax.lax.dynamic_slice(cached, at, one.shape)
            one = jnp.where(groups[row] >= 0, one, old)
            cached = jax.lax.dynamic_update_slice(cached, one, at)
        return cached

    def put(cached: jax.Array, new: jax.Array, axes: Any) -> jax.Array:
        new = cached_attention.same_bits(new, cached.dtype)
        return sharding.per_shard(
            local, (cached, new, groups), (axes, axes, ("act_batch",))
        )

    return dataclasses.replace(
        cache,
        prompt_keys=put(cache.prompt_keys, keys, PROMPTS),
        prompt_values=put(cache.prompt_values, values, PROMPTS),
        prompt_ids=put(cache.prompt_ids[None], ids[None], (None, "act_batch", None))[0],
    )


def append(
    cache: Cache,
    keys: jax.Array,
    values: jax.Array,
    ids: jax.Array,
    places: jax.Array,
) -> Cache:
    """Add one token to every answer.

    Args:
      keys, values: ``[L, G, n, K, H]``.
      ids: int32 ``[G, n]``.
      places: int32 ``[G, n]``, position in the slot.
    """

    local = _all_at_once if sharding.platform() in ("gpu", "cuda") else _one_by_one

    def put(cached: jax.Array, new: jax.Array) -> jax.Array:
        axes = (ANSWERS, TOKENS, ("act_batch", None))
        new = cached_attention.same_bits(new, cached.dtype)
        return sharding.per_shard(local, (cached, new, places), axes)

    fed = put(cache.answer_ids[None, :, None, :, :, None], ids[None, :, :, None, None])
    return dataclasses.replace(
        cache,
        answer_keys=put(cache.answer_keys, keys),
        answer_values=put(cache.answer_values, values),
        answer_ids=fed[0, :, 0, :, :, 0],
    )


def _one_by_one(cached: jax.Array, new: jax.Array, places: jax.Array) -> jax.Array:
    """A device's tokens into ``[L, G, K, n, R, H]``, slot by slot and in place.

    As one scatter, a TPU turned the whole cache to bring the slots to the front, and
    spread them over ``tensor``; a CPU copied it.
    """
    layers, _, slots, heads, width = new.shape
    in_order = layout_lib.Layout(tuple(range(cached.ndim)))

    def one(number: jax.Array, cached: jax.Array) -> jax.Array:
        group, slot = number // slots, number % slots
        token = jax.lax.dynamic_slice(
            new, (0, group, slot, 0, 0), (layers, 1, 1, heads, width)
        )
        token = token.reshape(layers, 1, heads, 1, 1, width)
        to = (0, group, 0, slot, places[group, slot], 0)
        cached = jax.lax.dynamic_update_slice(cached, token, to)
        return layout_lib.with_layout_constraint(cached, in_order)

    return jax.lax.fori_loop(0, places.size, one, cached)


def _all_at_once(cached: jax.Array, new: jax.Array, places: jax.Array) -> jax.Array:
    """The same as one scatter: on a GPU a launch, where every slot would be several."""

    def one(cached: jax.Array, new: jax.Array, place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(cached, new[..., None, :], (0, 0, place, 0))

    return jax.vmap(jax.vmap(one, (2, 1, 0), 2), (1, 1, 0), 1)(cached, new, places)
