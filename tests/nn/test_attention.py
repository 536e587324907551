"""Packed attention against the definition, forward and gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpo_jax.nn import attention, blocks

ROLES = (6, 5, 4)


def inputs(roles: tuple[int, int, int], *, heads: int = 4, kv_heads: int = 2):
    rng = np.random.default_rng(0)
    total = sum(roles)
    shape = (2, total, heads, 8)
    query = rng.normal(size=shape).astype(np.float32)
    key = rng.normal(size=(2, total, kv_heads, 8)).astype(np.float32)
    value = rng.normal(size=key.shape).astype(np.float32)
    segments = np.zeros((2, total), np.int32)
    start = 0
    for length in roles:
        cut = length // 2
        segments[0, start : start + cut] = 1
        segments[0, start + cut : start + length - 1] = 2  # last one is padding
        start += length
    segments[1] = 1
    return query, key, value, segments


def naive(query, key, value, segments, roles):
    """Float64 loops over the definition: who sees whom, then softmax."""
    prompt, chosen, _ = roles
    out = np.zeros(query.shape)
    groups = query.shape[2] // key.shape[2]
    for b in range(query.shape[0]):
        for t in range(query.shape[1]):
            visible = [
                s
                for s in range(t + 1)
                if segments[b, s] == segments[b, t]
                and not (t >= prompt + chosen and prompt <= s < prompt + chosen)
            ]
            for n in range(query.shape[2]):
                scores = (
                    key[b, visible, n // groups].astype(np.float64) @ query[b, t, n]
                )
                weights = np.exp((scores - scores.max()) * query.shape[3] ** -0.5)
                weights /= weights.sum()
                out[b, t, n] = weights @ value[b, visible, n // groups]
    return out


@pytest.mark.parametrize("backend", ["reference", "blocks", "auto"])
@pytest.mark.parametrize("roles", [ROLES, (9, 6, 0), (15, 0, 0)])
def test_equals_definition(backend, roles):
    query, key, value, segments = inputs(roles)
    found = attention.packed_attention(
        query, key, value, segments, roles=roles, backend=backend
    )
    expected = naive(query, key, value, segments, roles)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_blocks_have_the_reference_gradient():
    query, key, value, segments = inputs(ROLES)
    weights = np.random.default_rng(1).normal(size=query.shape).astype(np.float32)

    def scalar(backend):
        def fn(q, k, v):
            out = attention.packed_attention(
                q, k, v, segments, roles=ROLES, backend=backend
            )
            return jnp.sum(out * weights)

        return jax.grad(fn, argnums=(0, 1, 2))(query, key, value)

    for found, expected in zip(scalar("blocks"), scalar("reference"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scores", [1, 2**20], ids=["head by head", "all heads"])
def test_blocks_of_long_rows_and_of_some_heads(scores, monkeypatch):
    """Real sizes cut rows into pieces and heads into groups; here at toy size."""
    monkeypatch.setattr(blocks, "QUERIES", 4)
    monkeypatch.setattr(blocks, "SCORES", scores)
    roles = (11, 9, 6)
    query, key, value, segments = inputs(roles)
    weights = np.random.default_rng(1).normal(size=query.shape).astype(np.float32)

    def run(backend):
        def fn(q, k, v):
            out = attention.packed_attention(
                q, k, v, segments, roles=roles, backend=backend
            )
            return jnp.sum(out * weights), out

        return jax.grad(fn, argnums=(0, 1, 2), has_aux=True)(query, key, value)

    found, out = run("blocks")
    expected = naive(query, key, value, segments, roles)
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-6)
    for ours, reference in zip(found, run("reference")[0], strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5)


def test_blocks_sum_in_float32_under_bf16():
    """Against float32 on the same bf16 inputs: the rounding of two results, no more."""
    query, key, value, segments = (jnp.asarray(x) for x in inputs((90, 60, 50)))
    low = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    weights = np.random.default_rng(1).normal(size=query.shape).astype(np.float32)

    def run(backend, arrays):
        def fn(q, k, v):
            out = attention.packed_attention(
                q, k, v, segments, roles=(90, 60, 50), backend=backend
            )
            return jnp.sum(out.astype(jnp.float32) * weights), out

        pulled, out = jax.grad(fn, argnums=(0, 1, 2), has_aux=True)(*arrays)
        return [np.asarray(x, np.float64) for x in (out, *pulled)]

    wide = run("reference", [x.astype(jnp.float32) for x in low])
    for found, expected in zip(run("blocks", low), wide, strict=True):
        error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
        assert error < 5e-3


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match="flash"):
        attention.packed_attention(*inputs(ROLES), roles=ROLES, backend="flash")
