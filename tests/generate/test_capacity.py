"""How many prompts and answers at a time: what fits, and what to lower."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import packed
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo_jax import sharding
from mpo_jax.generate import capacity
from mpo_jax.models import internvl

CFG = packed.tiny_config()
HOW = capacity.Habits(8, 256, 64, 16, 512, 2)
TOKEN = capacity.token_bytes(CFG, jnp.float32)


def choose(cfg=CFG, **changes):
    options = {
        **{"prompts": [100], "answer_tokens": 64, "samples": 1, "shards": 1},
        **{"memory": 10**9, "dtype": jnp.float32, "how": HOW},
    }
    return capacity.choose(cfg, **options | changes)


def test_bytes_of_a_token():
    lang = CFG.language
    wanted = 2 * lang.num_hidden_layers * lang.num_key_value_heads * lang.head_dim
    assert capacity.token_bytes(CFG, jnp.bfloat16) == 2 * wanted
    assert TOKEN == 4 * wanted


def test_the_ladder_grows_by_a_quarter_in_steps_of_64():
    found = capacity.rungs(3000)
    assert found[:7] == [64, 128, 192, 256, 320, 448, 576]
    assert found[-2] < 3000 <= found[-1]
    for low, high in zip(found, found[1:], strict=False):
        assert high % 64 == 0 and high <= max(low + 64, 1.25 * low + 64)


@given(st.integers(1, 50_000))
def test_a_rung_takes_its_tokens_and_is_everyones(tokens):
    rung = capacity.rung(tokens)
    assert rung >= tokens and capacity.rung(rung) == rung
    assert rung in capacity.rungs(tokens) and capacity.rungs(tokens)[-1] == rung


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=4),
    st.integers(1, 700),
    st.integers(1, 64),
    st.sampled_from([1, 2, 8]),
    st.integers(10**5, 10**9),
    st.sampled_from([0, 1, 3, 16]),
)
def test_what_is_chosen_fits_and_serves(
    prompts, answer, samples, shards, memory, slots
):
    options = {
        **{"prompts": prompts, "answer_tokens": answer, "samples": samples},
        **{"shards": shards, "memory": memory, "slots": slots},
    }
    try:
        found = choose(**options)
    except ValueError as error:
        assert "lower max_new_tokens, max_tiles or max_prompt_tokens" in str(error)
        with pytest.raises(ValueError):
            choose(**options | {"slots": 1, "samples": 1})
        return
    assert found == choose(**options | {"prompts": sorted(prompts)})
    keys = capacity.bytes_of(CFG, found, jnp.float32)
    ids = 4 * found.groups * (found.prompt_tokens + found.slots * found.answer_tokens)
    assert keys - ids <= memory * shards
    assert found.groups % shards == 0 and 1 <= found.slots <= samples
    assert found.buckets[-1] >= max(prompts) - 1 and found.answer_tokens >= answer
    for length in prompts:
        assert found.bucket(max(length - 1, 1)) == capacity.rung(max(length - 1, 1))
    wanted = slots or HOW.slots * shards
    lanes = found.groups * found.slots
    assert lanes <= max(wanted, shards) + shards * found.slots


def test_less_memory_is_fewer_groups_then_fewer_slots_then_an_error():
    group = TOKEN * (128 + 8 * 64)
    many = choose(samples=32, how=dataclasses.replace(HOW, slots=32), memory=10 * group)
    assert (many.groups, many.slots) == (4, 8)
    two = choose(
        samples=32, how=dataclasses.replace(HOW, slots=32), memory=3 * group - 1
    )
    assert (two.groups, two.slots) == (2, 8)
    half = choose(samples=8, memory=group - 1)
    assert (half.groups, half.slots) == (1, 4)
    least = TOKEN * (128 + 64)
    assert choose(samples=8, memory=least).slots == 1
    with pytest.raises(ValueError) as error:
        choose(samples=8, memory=least - 1)
    message = str(error.value)
    assert "64 tokens to a prompt of 128" in message and "GiB" in message
    assert "bfloat16, or more devices (tensor)" in message


def test_slots_are_as_many_as_are_asked_for():
    assert choose(slots=3, samples=8).slots == 3
    assert (choose(slots=12, samples=1).groups, choose(slots=12).slots) == (12, 1)
    four = choose(slots=32, samples=4, shards=8)
    assert (four.groups, four.slots) == (8, 4)
    assert choose(group_slots=5, samples=8).slots == 5


def test_longrope_gets_a_bucket_where_its_sequences_are_read_anew():
    long = packed.tiny_config(
        rope_scaling={
            "type": "su",
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
        },
        original_max_position_embeddings=200,
        architectures=["Phi3ForCausalLM"],
    )
    assert choose(long, answer_tokens=64).buckets == (128,)  # never comes so far
    assert choose(long, answer_tokens=128).buckets == (128, 256)
    assert choose(long, prompts=[500], answer_tokens=128).buckets == (576,)
    assert choose(answer_tokens=128).buckets == (128,)


def test_what_weights_leave_free():
    model = internvl.InternVL(CFG)
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    places = sharding.shardings(model.shapes, model.axes, mesh)
    weights = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=s),
        model.shapes,
        places,
    )
    options = {"dtype": jnp.float32, "device_memory": 2**31}
    free = capacity.free_memory(CFG, weights, mesh, HOW, **options)
    held = sum(
        4 * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(weights)
    )
    # Two devices hold the heads of a shard's cache.
    assert 0 < free < 2 * (2**31 - held)
    more = capacity.free_memory(
        CFG, weights, mesh, HOW, dtype=jnp.float32, device_memory=2**31 + 1000
    )
    assert more - free == 2 * 1000
    with pytest.raises(ValueError, match="use bfloat16, or share the model .*tensor"):
        capacity.free_memory(
            CFG, weights, mesh, HOW, dtype=jnp.float32, device_memory=held
        )
    # Heads that do not divide lie on every device whole.
    odd = packed.tiny_config(num_attention_heads=3, num_key_value_heads=3, head_dim=8)
    alone, more = (
        capacity.free_memory(
            odd, weights, mesh, HOW, dtype=jnp.float32, device_memory=2**31 + extra
        )
        for extra in (0, 1000)
    )
    assert more - alone == 1000


@pytest.mark.parametrize(
    ("weights", "devices", "expected"),
    [(10, 8, 1), (60, 8, 2), (150, 8, 4), (1000, 8, 4), (1000, 6, 2), (60, 3, 1)],
)
def test_as_few_devices_share_a_model_as_it_fits_on(weights, devices, expected):
    """4 heads; half of 100 bytes may be weights."""
    found = capacity.tensor_shards(CFG, weights, device_memory=100, devices=devices)
    assert found == expected


def test_the_memory_of_a_host_is_the_same_at_every_start():
    device = jax.devices()[0]
    assert capacity.memory_of(device) == capacity.memory_of(device) > 2**20
