"""A run on more devices than its recipe divides over: rows and micro-batches follow."""

from __future__ import annotations

import jax
import pytest
import small_runs as helpers

from mpo_jax.run import setup, stages

pytestmark = pytest.mark.slow


def test_rows_and_micro_batches_follow_the_devices_and_it_is_said(
    world, tmp_path, capfd
):
    cfg = helpers.small(world)
    cfg.rows.row_multiple = cfg.optim.accumulation = 6
    cfg.rows.pairs_per_batch = 16
    cfg.mesh.fsdp = 4
    run = setup.setup(cfg, tmp_path, devices=jax.devices()[:4])
    index = stages.prepare_index(run, cfg.data.meta)
    plan = stages.make_plan(run, index)
    (rows,) = plan.rows_per_batch
    assert rows % 4 == 0 and rows > 4  # of 6 neither 12 nor 24 would do
    assert run.cfg.optim.accumulation == rows // 4
    assert cfg.optim.accumulation == 6  # the caller's stays
    printed = " ".join(capfd.readouterr().err.split())
    assert "rows are multiples of 4, not 6" in printed
    assert f"optim.accumulation 6 -> {rows // 4}" in printed


def test_rows_that_are_set_outright_are_refused_with_what_divides(world, tmp_path):
    cfg = helpers.small(world)
    cfg.rows.rows_per_batch, cfg.mesh.fsdp = 6, 4
    run = setup.setup(cfg, tmp_path, devices=jax.devices()[:4])
    index = stages.prepare_index(run, cfg.data.meta)
    with pytest.raises(ValueError, match="6 rows per batch do not divide over 4"):
        stages.make_plan(run, index)
