"""Rows and micro-batches on slices that a recipe was not written for."""

from __future__ import annotations

import pytest

from mpo_jax import recipes
from mpo_jax.utils import batch_rows


@pytest.mark.parametrize(
    ("configured", "shards", "expected"),
    [(96, 32, 96), (96, 8, 96), (96, 64, 64), (1, 8, 8), (8, 16, 16), (1, 1, 1)],
)
def test_rows_are_multiples_of_what_divides(configured, shards, expected):
    assert batch_rows.multiple(configured, shards) == expected


@pytest.mark.parametrize(
    ("rows", "shards", "configured", "expected"),
    [
        (96, 32, 3, 3),  # the recipe's own slice
        (96, 16, 3, 3),
        (128, 64, 3, 2),  # two rows a device, one at a time as before
        (128, 128, 3, 1),
        (96, 16, 12, 6),  # adapters on twice the chips
        (160, 32, 3, 5),  # five rows do not go in three parts
        (128, 32, 3, 4),
        (96, 64, 3, 3),  # does not divide at all: left to the run's own check
    ],
)
def test_micro_batches_never_take_more_rows_at_a_time(
    rows, shards, configured, expected
):
    found = batch_rows.micro_batches(rows, shards, configured)
    assert found == expected
    if rows % shards == 0:
        each = rows // shards
        assert each % found == 0
        assert each // found <= max(each / configured, 1)


def recipe(**optim: int):
    cfg = recipes.released_mpo()
    cfg.rows.row_multiple = 96
    for name, value in optim.items():
        setattr(cfg.optim, name, value)
    return cfg


def test_both_shapes_get_their_own_and_changes_are_told():
    cfg = recipe(accumulation_long=3)
    assert batch_rows.follow(cfg, [128, 128], 64) == ["optim.accumulation_long 3 -> 2"]
    assert (cfg.optim.accumulation, cfg.optim.accumulation_long) == (1, 2)

    cfg = recipe(accumulation=12)  # of long rows as well, by default
    told = batch_rows.follow(cfg, [96, 64], 32)
    assert told == ["optim.accumulation 12 -> 3", "optim.accumulation_long 12 -> 2"]
    assert (cfg.optim.accumulation, cfg.optim.accumulation_long) == (3, 2)


def test_what_suits_or_is_set_outright_stays():
    cfg = recipe(accumulation=12)
    assert batch_rows.follow(cfg, [96, 96], 8) == []
    assert cfg == recipe(accumulation=12)
    cfg.rows.rows_per_batch = 128
    assert batch_rows.follow(cfg, [128, 128], 64) == []
    assert cfg.optim.accumulation == 12
