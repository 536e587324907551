"""A stored plan is the plan; anything else is made again."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mpo_jax.packing import plan as plan_lib
from mpo_jax.packing import plan_cache
from mpo_jax.types import RowShape

SHAPES = (RowShape(400, 120, 120, 6, 4), RowShape(900, 300, 300, 12, 2))


@pytest.fixture
def arguments():
    rng = np.random.default_rng(0)
    columns = [rng.integers(1, high, 3000, np.int32) for high in (380, 130, 130, 7)]
    columns[0][:5] = 2000  # fits nowhere
    lengths = plan_lib.Lengths(*columns)
    ids = np.arange(3000)
    return {
        "lengths": lengths,
        "record_ids": [ids, ids[::3]],
        "shapes": SHAPES,
        "rows_per_batch": (8, 8),
        "seed": 1,
    }


def test_the_second_call_reads(tmp_path, arguments, monkeypatch):
    want = plan_lib.plan_epochs(**arguments)
    first = plan_cache.plan_epochs(tmp_path / "plans", **arguments)
    monkeypatch.setattr(plan_lib, "plan_epochs", None)
    again = plan_cache.plan_epochs(tmp_path / "plans", **arguments)
    for found in (first, again):
        assert found.fingerprint == want.fingerprint
        assert found.fill() == want.fill()
        assert found.too_long == want.too_long and len(found.too_long) >= 5
        for n in range(want.num_batches):
            assert found.batch(n)[0] == want.batch(n)[0]
            for a, b in zip(found.batch(n)[1], want.batch(n)[1], strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype


@pytest.mark.parametrize(
    "change", ["seed", "ids", "epochs", "length", "longest", "shape", "rows"]
)
def test_whatever_matters_makes_another_plan(tmp_path, arguments, change):
    plan_cache.plan_epochs(tmp_path, **arguments)
    other = dict(arguments)
    if change == "seed":
        other["seed"] = 2
    elif change == "ids":
        other["record_ids"] = [arguments["record_ids"][0][1:], *other["record_ids"][1:]]
    elif change == "epochs":
        other["record_ids"] = arguments["record_ids"][:1]
    elif change == "length":
        prompt = arguments["lengths"].prompt.copy()
        prompt[7] += 1
        other["lengths"] = dataclasses.replace(arguments["lengths"], prompt=prompt)
    elif change == "longest":
        other["lengths"] = dataclasses.replace(arguments["lengths"], max_sequence=300)
    elif change == "shape":
        other["shapes"] = (dataclasses.replace(SHAPES[0], pairs=3), SHAPES[1])
    else:
        other["rows_per_batch"] = (16, 8)
    found = plan_cache.plan_epochs(tmp_path, **other)
    assert len(list(tmp_path.glob("*.npz"))) == 2
    assert found.fingerprint == plan_lib.plan_epochs(**other).fingerprint


@pytest.mark.parametrize("harm", ["cut", "empty", "altered", "json"])
def test_a_broken_file_is_made_again(tmp_path, arguments, harm):
    want = plan_cache.plan_epochs(tmp_path, **arguments).fingerprint
    (path,) = tmp_path.iterdir()
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif harm == "empty":
        path.write_bytes(b"")
    else:
        with np.load(path) as stored:
            arrays = dict(stored)
        if harm == "altered":
            arrays["0/record_ids"][[0, 1]] = arrays["0/record_ids"][[1, 0]]
        else:
            text = json.dumps([[1, 2]]).encode()
            arrays["0/too_long"] = np.frombuffer(text, np.uint8)
        with open(path, "wb") as file:
            np.savez(file, **arrays)
    assert plan_cache.plan_epochs(tmp_path, **arguments).fingerprint == want
    assert plan_cache._load(path, SHAPES, (8, 8), epochs=2) is not None


def test_only_the_writer_writes(tmp_path, arguments):
    plan_cache.plan_epochs(tmp_path / "plans", **arguments, write=False)
    assert not (tmp_path / "plans").exists()
