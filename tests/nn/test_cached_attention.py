"""Attention to cached keys and values against full attention under an explicit mask."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpo_jax import sharding
from mpo_jax.nn import attention, cached_attention

LAYERS, PROMPT, ANSWER, WIDTH = 3, 12, 8, 8
# Unequal, none at all, and full.
PROMPTS = np.array([5, 0, 12, 7], np.int32)
ANSWERS = np.array([[0, 3, 8], [1, 0, 5], [8, 8, 2], [0, 0, 0]], np.int32)


def inputs(heads: int, kv_heads: int, dtype=np.float32):
    """New tokens ``(q, k, v)``, prompts and answers, garbage beyond the lengths."""
    rng = np.random.default_rng(heads)
    groups, slots = ANSWERS.shape

    def made(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    new = (
        made(groups, slots, heads, WIDTH),
        made(groups, slots, kv_heads, WIDTH),
        made(groups, slots, kv_heads, WIDTH),
    )
    prompts = [made(LAYERS, groups, kv_heads, PROMPT, WIDTH) for _ in range(2)]
    answers = [made(LAYERS, groups, kv_heads, slots, ANSWER, WIDTH) for _ in range(2)]
    return new, tuple(prompts), tuple(answers)


def run(new, prompts, answers, *, layer=1, blocks=(4, 4)):
    return cached_attention.attend(
        *new,
        prompts=prompts,
        answers=answers,
        prompt_lengths=jnp.asarray(PROMPTS),
        answer_lengths=jnp.asarray(ANSWERS),
        layer=jnp.int32(layer),
        blocks=blocks,
    )


def expected(new, prompts, answers, *, layer: int = 1) -> np.ndarray:
    """One query over prompt, answer and itself, float32, in one softmax."""
    query, key, value = (np.asarray(x, np.float32) for x in new)
    groups, slots, heads, _ = query.shape

    def whole(part: int, own: np.ndarray) -> np.ndarray:
        prompt = np.asarray(prompts[part][layer], np.float32)[:, None]
        prompt = np.broadcast_to(prompt, (groups, slots, *prompt.shape[2:]))
        answer = np.asarray(answers[part][layer], np.float32).swapaxes(1, 2)
        cached = np.concatenate([prompt, answer], axis=3).swapaxes(2, 3)
        every = np.concatenate([cached, own[:, :, None]], axis=2)
        return every.reshape(groups * slots, *every.shape[2:])

    prompt_seen = np.arange(PROMPT) < np.repeat(PROMPTS, slots)[:, None]
    answer_seen = np.arange(ANSWER) < ANSWERS.reshape(-1, 1)
    seen = [prompt_seen, answer_seen, np.ones((groups * slots, 1), bool)]
    found = attention.full_attention(
        jnp.asarray(query.reshape(-1, 1, heads, WIDTH)),
        jnp.asarray(whole(0, key)),
        jnp.asarray(whole(1, value)),
        jnp.asarray(np.concatenate(seen, axis=1))[:, None],
    )
    return np.asarray(found).reshape(query.shape)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (6, 1)])
def test_equals_full_attention_under_a_mask(heads, kv_heads):
    given = inputs(heads, kv_heads)
    found = run(*given)
    np.testing.assert_allclose(found, expected(*given), rtol=2e-5, atol=2e-6)


def test_every_layer_is_read_by_its_number():
    given = inputs(4, 2)
    for layer in range(LAYERS):
        found = run(*given, layer=layer)
        want = expected(*given, layer=layer)
        np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-6)


def test_what_lies_beyond_the_lengths_changes_no_bit():
    new, prompts, answers = inputs(4, 2)
    beyond_prompt = np.arange(PROMPT) >= PROMPTS[:, None]
    beyond_answer = np.arange(ANSWER) >= ANSWERS[:, :, None]
    rng = np.random.default_rng(7)

    def spoilt(cached, beyond):
        garbage = 1e4 * rng.normal(size=cached.shape).astype(np.float32)
        return jnp.where(beyond, garbage, cached)

    others = (
        tuple(spoilt(x, beyond_prompt[None, :, None, :, None]) for x in prompts),
        tuple(spoilt(x, beyond_answer[None, :, None, :, :, None]) for x in answers),
    )
    compiled = jax.jit(run)
    found = compiled(new, *others)
    np.testing.assert_array_equal(found, compiled(new, prompts, answers))


def test_a_row_does_not_depend_on_how_long_its_neighbours_are():
    """More blocks are read for a longer neighbour; its own bits stay."""
    new, prompts, answers = inputs(4, 2)

    @jax.jit
    def with_lengths(prompt_lengths, answer_lengths):
        return cached_attention.attend(
            *new,
            prompts=prompts,
            answers=answers,
            prompt_lengths=prompt_lengths,
            answer_lengths=answer_lengths,
            layer=jnp.int32(0),
            blocks=(4, 4),
        )

    short = with_lengths(np.array([3, 0, 0, 0], np.int32), np.full((4, 3), 2, np.int32))
    answer_lengths = np.full((4, 3), 8, np.int32)
    answer_lengths[0] = 2
    long = with_lengths(np.array([3, 12, 9, 12], np.int32), answer_lengths)
    np.testing.assert_array_equal(short[0], long[0])
    assert np.abs(np.asarray(short[1:]) - np.asarray(long[1:])).min() > 0


@pytest.mark.parametrize("blocks", [(12, 8), (3, 2), (1, 1)])
def test_any_blocks_give_the_same_numbers(blocks):
    given = inputs(4, 2)
    found = run(*given, blocks=blocks)
    np.testing.assert_allclose(found, run(*given), rtol=1e-5, atol=1e-6)


def test_large_scores_neither_overflow_nor_vanish():
    """A running softmax: the highest score may come first, last, or with the token."""
    new, prompts, answers = inputs(4, 2)
    for scale in (40.0, -40.0):
        given = ((scale * new[0], *new[1:]), prompts, answers)
        found = run(*given)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected(*given), rtol=1e-4, atol=1e-4)


def test_bfloat16_sums_in_float32():
    """Against float32 on the same inputs: the rounding of weights and of the result."""
    given = inputs(4, 2, jnp.bfloat16)
    found = run(*given)
    assert found.dtype == jnp.bfloat16
    want = expected(*given)
    wide = np.asarray(found, np.float32)
    error = np.sqrt(np.mean((wide - want) ** 2) / np.mean(want**2))
    assert error < 5e-3


@pytest.mark.parametrize(
    ("sizes", "kv_heads"),
    [
        ((2, 2, 2), 2),  # groups over data and fsdp, heads over tensor
        ((1, 4, 2), 3),  # heads that tensor does not divide: on every device
        ((2, 1, 4), 2),
    ],
)
def test_sharded(sizes, kv_heads):
    mesh = sharding.make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    given = inputs(2 * kv_heads, kv_heads)
    names = (
        [("act_batch", None, "act_heads", None)]
        + [("act_batch", None, None, None)] * 2,
        [("layers", "act_batch", "act_kv", None, None)] * 2,
        [("layers", "act_batch", "act_kv", None, None, None)] * 2,
    )

    def place(x, axes):
        spec = sharding.RULES.spec(axes, x.shape, mesh)
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))

    placed = [
        tuple(place(x, axes) for x, axes in zip(part, kinds, strict=True))
        for part, kinds in zip(given, names, strict=True)
    ]
    cached = placed[1][0].sharding.spec
    assert cached[1] and bool(cached[2]) == (kv_heads % sizes[2] == 0)
    with jax.set_mesh(mesh):
        found = jax.jit(functools.partial(run, layer=2))(*placed)
    want = expected(*given, layer=2)
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-6)
