"""Reference log-probs: what the key sees, what is stored, what stops the stage."""

from __future__ import annotations

import dataclasses
import json
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mpo_jax import config, sharding
from mpo_jax.nn import params as params_lib
from mpo_jax.train import reference


def weights(dtype=np.float32) -> params_lib.Params:
    rng = np.random.default_rng(0)
    return {
        "vision": {"a": rng.normal(size=(16, 3)).astype(dtype)},
        "language": {
            "b": rng.normal(size=(8, 4, 2)).astype(dtype),
            "c": rng.normal(size=(8, 4, 2)).astype(dtype),
            "scalar": np.array(0.5, dtype),
        },
    }


def test_fingerprint_is_the_same_for_any_sharding():
    expected = reference.fingerprint(weights())
    assert len(expected) == 64
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    places = (
        [P(), P("fsdp"), P(("data", "fsdp")), P(("data", "fsdp", "tensor"))],
        [P(None, "tensor"), P("tensor", "fsdp", "data"), P("data", None, "fsdp")],
    )
    for spec_a, spec_b in zip(places[0], [P(), *places[1]], strict=True):
        tree = weights()
        tree["vision"]["a"] = jax.device_put(
            tree["vision"]["a"], NamedSharding(mesh, spec_a)
        )
        for name in ("b", "c"):
            tree["language"][name] = jax.device_put(
                tree["language"][name], NamedSharding(mesh, spec_b)
            )
        assert reference.fingerprint(tree) == expected


def test_fingerprint_is_of_values_not_of_their_order_in_the_dict():
    tree = weights()
    turned = {"language": dict(reversed(tree["language"].items()))}
    assert reference.fingerprint({**turned, "vision": tree["vision"]}) == (
        reference.fingerprint(tree)
    )


def _flip(x: np.ndarray, index: int, bit: int) -> np.ndarray:
    bits = x.copy().reshape(-1).view(np.uint32)
    bits[index] ^= np.uint32(1 << bit)
    return bits.view(np.float32).reshape(x.shape)


@pytest.mark.parametrize("bit", [0, 1, 13, 22, 23, 30, 31])
def test_fingerprint_sees_one_flipped_bit(bit):
    tree = weights()
    expected = reference.fingerprint(tree)
    tree["language"]["b"] = _flip(tree["language"]["b"], 17, bit)
    assert reference.fingerprint(tree) != expected


def test_fingerprint_sees_the_sign_of_zero_and_small_numbers():
    found = {
        reference.fingerprint({"a": np.array([x], np.float32)})
        for x in (0.0, -0.0, 1e-42, 2e-42)
    }
    assert len(found) == 4


def test_fingerprint_sees_places():
    tree = weights()
    seen = {reference.fingerprint(tree)}
    swapped = weights()
    flat = swapped["language"]["b"].reshape(-1)
    flat[[3, 40]] = flat[[40, 3]]
    seen.add(reference.fingerprint(swapped))
    rows = weights()
    rows["language"]["b"] = rows["language"]["b"][::-1].copy()
    seen.add(reference.fingerprint(rows))
    leaves = weights()
    inner = leaves["language"]
    inner["b"], inner["c"] = inner["c"], inner["b"]
    seen.add(reference.fingerprint(leaves))
    renamed = weights()
    renamed["vision"]["d"] = renamed["vision"].pop("a")
    seen.add(reference.fingerprint(renamed))
    shaped = weights()
    shaped["vision"]["a"] = shaped["vision"]["a"].reshape(3, 16)
    seen.add(reference.fingerprint(shaped))
    assert len(seen) == 6


def test_fingerprint_sees_swaps_of_rounded_weights_far_apart():
    """Weights out of bfloat16 files have 16 zero bits, which a plain sum would lose."""
    x = np.asarray(weights_bf16(1 << 18), np.float32)
    seen = {reference.fingerprint({"a": x})}
    for distance in (1 << 12, 1 << 15, 1 << 17):
        moved = x.copy()
        moved[[5, 5 + distance]] = moved[[5 + distance, 5]]
        seen.add(reference.fingerprint({"a": moved}))
    assert len(seen) == 4


def weights_bf16(size: int) -> jax.Array:
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=size), jnp.bfloat16)


def test_fingerprint_of_bfloat16_is_that_of_the_same_values_in_float32():
    x = weights_bf16(64)
    assert reference.fingerprint({"a": x}) == reference.fingerprint(
        {"a": x.astype(jnp.float32)}
    )


def key(**changes):
    model = config.ModelConfig(dtype=changes.pop("dtype", "bfloat16"))
    parts = {
        "tokenizer": "tok",
        "policy": {"template": "internvl2_5", "max_tiles": 6},
        "content": "c0",
        "weights": "w0",
        "architecture": packed.tiny_config(),
        **changes,
    }
    return reference.cache_key(model=model, **parts)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weights": "w1"}, 'weights: "w1" here, "w0" there'),
        ({"content": "c1"}, 'content: "c1" here, "c0" there'),
        ({"tokenizer": "other"}, 'tokenizer: "other" here, "tok" there'),
        ({"dtype": "float32"}, 'dtype: "float32" here, "bfloat16" there'),
        (
            {"policy": {"template": "internvl2_5", "max_tiles": 12}},
            "policy.max_tiles: 12 here, 6 there",
        ),
        (
            {"policy": {"template": "internvl2_5"}},
            "policy.max_tiles: null here, 6 there",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_cache_of_something_else_is_refused_by_name(tmp_path, changes, named):
    reference.Cache(tmp_path, key(), size=4)
    with pytest.raises(ValueError) as raised:
        reference.Cache(tmp_path, key(**changes), size=4)
    lines = str(raised.value).splitlines()
    assert lines[1:-1] == [f"  {named}"]
    assert str(tmp_path) in lines[0] and "reference.cache" in lines[-1]
    assert reference.key_digest(key(**changes)) != reference.key_digest(key())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("language.rms_norm_eps", 1e-2),
        ("language.rope_theta", 5e5),
        ("language.rope.frequencies", None),
        ("language.rope.long_frequencies", None),
        ("language.qk_norm", True),
        ("vision.layer_norm_eps", 1e-3),
        ("vision.qk_normalization", True),
        ("ps_version", "v1"),
        ("select_layer", -2),
        ("downsample_ratio", 1.0),
    ],
)
def test_the_key_sees_the_architecture(field, value):
    """Weights may be the same, and the numbers others."""
    plain = packed.tiny_config()
    *path, name = field.split(".")
    owners = [plain]
    for part in path:
        owners.append(getattr(owners[-1], part))
    if value is None:
        value = tuple(x + 0.5 for x in plain.language.rope.frequencies)
    changed = dataclasses.replace(owners[-1], **{name: value})
    for owner, part in zip(reversed(owners[:-1]), reversed(path), strict=True):
        changed = dataclasses.replace(owner, **{part: changed})
    assert reference.key_digest(key(architecture=changed)) != (
        reference.key_digest(key())
    )
    assert len(reference.differences(key(architecture=changed), key())) == 1


def test_every_field_of_an_architecture_is_in_the_key_or_named_as_harmless():
    fields = set(packed.tiny_config().fields())
    harmless = fields - set(key()["architecture"])
    assert harmless == {
        *("template", "min_tiles", "max_tiles", "use_thumbnail"),
        *("vision.initializer_factor", "vision.initializer_range"),
        *("language.initializer_range", "language.max_position_embeddings"),
    }


def test_the_key_holds_the_attention_that_auto_means():
    """On another platform it is another one, and so are the numbers."""
    auto, blocks = (
        reference.cache_key(
            model=config.ModelConfig(attention=name),
            architecture=packed.tiny_config(),
            **dict.fromkeys(("tokenizer", "content", "weights"), ""),
            policy={},
        )
        for name in ("auto", "blocks")
    )
    assert auto == blocks and auto["attention"] == "blocks"
    other = {**auto, "attention": "splash"}
    assert reference.differences(auto, other) == [
        'attention: "blocks" here, "splash" there'
    ]
    assert reference.key_digest(auto) != reference.key_digest(other)


def test_the_same_key_opens_the_cache_again(tmp_path):
    reference.Cache(tmp_path / "c", key(), size=4)
    reference.Cache(tmp_path / "c", key(), size=4)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["key.json"]
    stored = json.loads((tmp_path / "c" / "key.json").read_text())
    assert reference.key_digest(stored) == reference.key_digest(key())


def test_what_is_appended_comes_back(tmp_path):
    cache = reference.Cache(tmp_path, key(), size=6)
    assert np.isnan(cache.load()).all() and cache.load().shape == (6, 2)
    first = np.array([[-1.25, -2.5], [-1e-3, -300.0]], np.float32)
    cache.append(np.array([4, 0]), first)
    # A part that a kill left under its temporary name is no part.
    (tmp_path / "part-1f.tmp").write_bytes(b"PAR1")
    again = reference.Cache(tmp_path, key(), size=6)
    again.append(np.array([2]), np.array([[-7.0, -8.0]], np.float32))
    found = again.load()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[[4, 0]], first)
    np.testing.assert_array_equal(found[2], [-7, -8])
    assert np.isnan(found[[1, 3, 5]]).all()
    assert len(list(tmp_path.glob("part-*.parquet"))) == 2


def test_runs_that_append_at_once_lose_nothing(tmp_path):
    """Each looks at the folder before the other has written; records may repeat."""
    caches = [reference.Cache(tmp_path, key(), size=64) for _ in range(4)]
    starts = np.arange(4) * 12
    ids = [np.arange(start, start + 16) for start in starts]
    with futures.ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            list(pool.map(lambda c, i: c.append(i, logps_of(i)), caches, ids))
    found = caches[0].load()
    np.testing.assert_array_equal(found[:52], logps_of(np.arange(52)))
    assert np.isnan(found[52:]).all()
    assert not list(tmp_path.glob("*.tmp"))


def logps_of(ids: np.ndarray) -> np.ndarray:
    """Log-probs that tell whose they are; garbage at padding."""
    pair = np.stack([-1.0 * ids, -2.0 * ids - 0.5], axis=-1).astype(np.float32)
    return np.where(ids[..., None] >= 0, pair, np.nan)


IDS = [np.array([[10 + n, 20 + n], [n, -1]]) for n in range(5)]
BATCHES = [dataclasses.replace(packed.batch([[]]), record_ids=ids) for ids in IDS]


def run(cache, *, numbers=range(5), step=None, part_batches=2, told=None):
    calls = []

    def default(batch, n):
        assert batch is BATCHES[n]
        calls.append(n)
        return jnp.asarray(logps_of(IDS[n]))

    reference.compute(
        cache,
        ((n, BATCHES[n]) for n in numbers),
        step=step or default,
        part_batches=part_batches,
        on_batch=None if told is None else told.append,
    )
    return calls


def test_compute_stores_real_pairs_in_parts(tmp_path):
    cache = reference.Cache(tmp_path, key(), size=30)
    told: list[int] = []
    assert run(cache, told=told) == [0, 1, 2, 3, 4]
    assert told == [3] * 5
    assert len(list(tmp_path.glob("part-*.parquet"))) == 3  # 2 + 2 + 1 batches
    found = cache.load()
    done = np.concatenate([ids[ids >= 0] for ids in IDS])
    np.testing.assert_array_equal(found[done], logps_of(done))
    assert np.isnan(np.delete(found, done, axis=0)).all()


def test_a_kill_loses_the_parts_that_were_not_written(tmp_path):
    cache = reference.Cache(tmp_path, key(), size=30)

    def killed(_, n):
        if n == 3:
            raise KeyboardInterrupt
        return jnp.asarray(logps_of(IDS[n]))

    with pytest.raises(KeyboardInterrupt):
        run(cache, step=killed)
    kept = ~np.isnan(reference.Cache(tmp_path, key(), size=30).load()).any(axis=1)
    assert np.flatnonzero(kept).tolist() == [0, 1, 10, 11, 20, 21]
    run(cache, numbers=range(2, 5))
    done = np.concatenate([ids[ids >= 0] for ids in IDS])
    np.testing.assert_array_equal(cache.load()[done], logps_of(done))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_log_prob_that_is_not_finite_stops_with_its_record(tmp_path, bad, side):
    cache = reference.Cache(tmp_path, key(), size=30)

    def step(_, n):
        values = logps_of(IDS[n])
        if n == 1:
            values[0, 1, side] = bad
        return jnp.asarray(values)

    with pytest.raises(FloatingPointError, match=r"records \[21\] are not finite"):
        run(cache, step=step)
    assert np.isnan(cache.load()).all()  # nothing of that part was stored


def test_no_batches_write_nothing(tmp_path):
    cache = reference.Cache(tmp_path, key(), size=30)
    run(cache, numbers=range(0))
    assert not list(tmp_path.glob("part-*"))
