"""The trainer on damaged checkpoints and chosen steps: the same bits after all."""

from __future__ import annotations

import pathlib
import shutil

import checkpoint_files as made
import jax
import numpy as np
import pytest
import small_runs as helpers

from mpo_jax import checkpoint, config
from mpo_jax.run import train

pytestmark = pytest.mark.slow
ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> tuple[pathlib.Path, dict]:
    """A run of 6 steps with checkpoints 2, 4 and 6."""
    workdir = tmp_path_factory.mktemp("whole")
    cfg = helpers.small(world)
    cfg.model.drop_path = 0.2
    cfg.checkpoint.keep_last, cfg.checkpoint.export_hf = 3, False
    return workdir, train.train(cfg, workdir, devices=ONE)


@pytest.fixture
def copied(whole, tmp_path) -> tuple[config.RunConfig, pathlib.Path]:
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    cfg = config.from_json((workdir / "run_config.json").read_text())
    return cfg, workdir


def again(cfg, workdir, whole) -> None:
    """Train, and compare with the run that nothing happened to."""
    result = train.train(cfg, workdir, devices=ONE)
    jax.tree.map(np.testing.assert_array_equal, result["params"], whole[1]["params"])
    assert helpers.losses(workdir) == helpers.losses(whole[0])


def test_around_a_flipped_bit(copied, whole, capsys):
    cfg, workdir = copied
    newest = workdir / "checkpoints" / "6"
    path = made.data_file(newest)
    made.flip(path, 8 * (path.stat().st_size // 2))
    again(cfg, workdir, whole)
    told = " ".join(capsys.readouterr().err.split())
    assert "checkpoints/6 is damaged" in told and "damaged_6_1" in told
    assert f"Resuming {workdir} after step 4; its" in told
    assert newest.is_dir() and (workdir / "checkpoints" / "damaged_6_1").is_dir()
    assert not checkpoint.verifying.of(newest, step=6).problems


def test_from_a_chosen_step_and_again(copied, whole, capsys):
    cfg, workdir = copied
    cfg.checkpoint.resume_step = 2
    again(cfg, workdir, whole)
    assert f"Resuming {workdir} after step 2;" in capsys.readouterr().err
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert names == {"2", "4", "6", "replaced_4_1", "replaced_6_1"}
    again(cfg, workdir, whole)  # as a launcher does
    assert f"Resuming {workdir} after step 6;" in capsys.readouterr().err
    cfg.checkpoint.resume_step = 3
    with pytest.raises(ValueError, match="no checkpoint of that step; .*: 2, 4, 6"):
        train.train(cfg, workdir, devices=ONE)
