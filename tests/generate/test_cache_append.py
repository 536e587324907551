"""A step's tokens go into the cache in place, each to its own answer and position."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpo_jax import sharding
from mpo_jax.generate import cache as cache_lib
from mpo_jax.nn import cached_attention

LAYERS, GROUPS, SLOTS, HEADS, ROOM, WIDTH = 3, 2, 4, 2, 16, 8


def filled(dtype) -> cache_lib.Cache:
    """Answers of random numbers, kept as on a CPU; no prompts."""
    rng = np.random.default_rng(0)
    shape = (LAYERS, GROUPS, HEADS, SLOTS, ROOM, WIDTH)

    def kept():
        values = jnp.asarray(rng.normal(size=shape), dtype)
        return cached_attention.same_bits(values, cache_lib.kept_as(dtype, "cpu"))

    ids = jnp.asarray(rng.integers(0, 99, (GROUPS, SLOTS, ROOM)), jnp.int32)
    return cache_lib.Cache(None, None, kept(), kept(), None, ids)


def tokens(dtype):
    rng = np.random.default_rng(1)
    shape = (LAYERS, GROUPS, SLOTS, HEADS, WIDTH)
    keys, values = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(2))
    ids = jnp.asarray(rng.integers(0, 99, (GROUPS, SLOTS)), jnp.int32)
    places = jnp.asarray(rng.permutation(ROOM)[: GROUPS * SLOTS], jnp.int32)
    return keys, values, ids, places.reshape(GROUPS, SLOTS)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_every_token_lands_in_its_slot_and_nothing_else_changes(
    dtype, platform, monkeypatch
):
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    before, (keys, values, ids, places) = filled(dtype), tokens(dtype)
    after = jax.jit(lambda *args: cache_lib.append(*args))(
        before, keys, values, ids, places
    )
    for old, new, found in (
        (before.answer_keys, keys, after.answer_keys),
        (before.answer_values, values, after.answer_values),
    ):
        wanted = np.array(cached_attention.same_bits(old, dtype))
        for group, slot in np.ndindex(GROUPS, SLOTS):
            wanted[:, group, :, slot, places[group, slot]] = new[:, group, slot]
        np.testing.assert_array_equal(cached_attention.same_bits(found, dtype), wanted)
    wanted = np.array(before.answer_ids)
    for group, slot in np.ndindex(GROUPS, SLOTS):
        wanted[group, slot, places[group, slot]] = ids[group, slot]
    np.testing.assert_array_equal(after.answer_ids, wanted)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_step_copies_or_widens_the_cache(dtype):
    """In a loop, as decoding has it; all that touches a whole cache is in place."""
    keys, values, ids, places = tokens(dtype)

    def steps(cache: cache_lib.Cache) -> cache_lib.Cache:
        return jax.lax.fori_loop(
            0, 5, lambda _, x: cache_lib.append(x, keys, values, ids, places), cache
        )

    compiled = jax.jit(steps, donate_argnums=0).lower(filled(dtype)).compile()
    shape = f"{LAYERS},{GROUPS},{HEADS},{SLOTS},{ROOM},{WIDTH}"
    made = re.findall(rf"= \w+\[{shape}\]\S* ([\w-]+)\(", compiled.as_text())
    assert "dynamic-update-slice" in made
    in_place = {"dynamic-update-slice", "fusion", "get-tuple-element", "parameter"}
    assert set(made) <= in_place


def test_16_bits_are_kept_as_integers_on_a_cpu_alone():
    assert cache_lib.kept_as(jnp.bfloat16, "cpu") == jnp.uint16
    assert cache_lib.kept_as(jnp.float32, "cpu") == jnp.float32
    assert cache_lib.kept_as(jnp.bfloat16, "tpu") == jnp.bfloat16
