"""``checkpoint.resume_step``: which checkpoint, and what becomes of newer ones."""

from __future__ import annotations

import checkpoint_files as made
import pytest

from mpo_jax import checkpoint, config
from mpo_jax.checkpoint import checkpoints as checkpoints_lib


def names(workdir) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def test_a_step_is_chosen_and_newer_ones_stand_aside(tmp_path, capsys):
    made.save(tmp_path, 20, 30, 40)
    assert made.resume(tmp_path, resume_step=20).step == 20
    assert names(tmp_path) == {"20", "replaced_30_1", "replaced_40_1"}
    told = capsys.readouterr().err
    assert "checkpoints/40 comes after checkpoint.resume_step=20" in told
    assert "damaged" not in told


def test_started_again_with_the_same_step_it_goes_on(tmp_path):
    """A launcher repeats its command: that must not throw away what was trained."""
    made.save(tmp_path, 20, 30, 40)
    made.resume(tmp_path, resume_step=20)
    made.save(tmp_path, 30, 45, resume_step=20)
    assert made.resume(tmp_path, resume_step=20).step == 45
    # Even when the chosen one is no longer kept.
    (tmp_path / "checkpoints" / "20").rename(tmp_path / "gone")
    assert made.resume(tmp_path, resume_step=20).step == 45
    assert made.resume(tmp_path).step == 45
    assert names(tmp_path) == {"30", "45", "replaced_30_1", "replaced_40_1"}


def test_what_was_saved_since_may_be_damaged_too(tmp_path):
    made.save(tmp_path, 20, 40)
    made.resume(tmp_path, resume_step=20)
    made.save(tmp_path, 30, resume_step=20)
    made.data_file(tmp_path / "checkpoints" / "30").unlink()
    assert made.resume(tmp_path, resume_step=20).step == 20
    assert names(tmp_path) == {"20", "damaged_30_1", "replaced_40_1"}


def test_another_step_than_before(tmp_path):
    made.save(tmp_path, 20, 30, 40)
    made.resume(tmp_path, resume_step=30)
    made.save(tmp_path, 50, resume_step=30)
    assert made.resume(tmp_path, resume_step=20).step == 20
    assert names(tmp_path) == {
        *("20", "replaced_40_1", "replaced_30_1", "replaced_50_1")
    }


@pytest.mark.parametrize("step", [25, 41])
def test_a_step_that_does_not_exist(tmp_path, step):
    made.save(tmp_path, 20, 30, 40)
    with pytest.raises(ValueError, match=f"resume_step={step}.*there are: 20, 30, 40"):
        made.resume(tmp_path, resume_step=step)
    with pytest.raises(ValueError, match="there are: none at all"):
        made.resume(tmp_path / "empty", resume_step=step)
    assert names(tmp_path) == {"20", "30", "40"}


def test_a_chosen_step_that_is_damaged_is_not_replaced_by_another(tmp_path):
    made.save(tmp_path, 20, 30, 40)
    made.data_file(tmp_path / "checkpoints" / "30").unlink()
    with pytest.raises(checkpoint.Damaged, match="checkpoints/30 is damaged") as raised:
        made.resume(tmp_path, resume_step=30)
    assert "resume_step=N: 20, 40" in str(raised.value)
    assert names(tmp_path) == {"20", "30", "40"}


def test_a_newer_one_whose_metadata_is_damaged_is_not_ours(tmp_path):
    made.save(tmp_path, 20)
    made.save(tmp_path, 40, resume_step=20)
    path = tmp_path / "checkpoints" / "40" / "_CHECKPOINT_METADATA"
    path.write_bytes(path.read_bytes()[:30])
    assert made.resume(tmp_path, resume_step=20).step == 20
    assert names(tmp_path) == {"20", "replaced_40_1"}


def test_the_field_is_checked():
    cfg = config.RunConfig()
    cfg.model.path = cfg.data.meta = "x"
    cfg.checkpoint.resume_step = -1
    with pytest.raises(ValueError, match="checkpoint.resume_step"):
        cfg.validate()


def test_what_no_other_checkpoint_can_help():
    assert "--workdir" in checkpoints_lib._remedy([])
