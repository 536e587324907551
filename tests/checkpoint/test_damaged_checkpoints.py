"""A damaged checkpoint is named file by file and set aside; the one before is taken."""

from __future__ import annotations

import errno
import pathlib
import random
import re
import shutil

import checkpoint_files as made
import jax.numpy as jnp
import numpy as np
import pytest

from mpo_jax import checkpoint
from mpo_jax.checkpoint import files as files_lib


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """Steps 20, 30 and 40, whole."""
    workdir = tmp_path_factory.mktemp("saved")
    made.save(workdir, 20, 30, 40)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path) -> pathlib.Path:
    shutil.copytree(saved / "checkpoints", tmp_path / "checkpoints")
    return tmp_path


def content(directory: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in made.files(directory)
    }


def test_a_good_checkpoint_is_taken_and_nothing_touched(workdir):
    before = content(workdir)
    found = made.resume(workdir)
    assert found.step == 40
    assert re.fullmatch(
        r"its \d+ files \(.* kB\) are as they were saved", found.verdict
    )
    count = len(made.files(workdir / "checkpoints" / "40")) - 1  # but the manifest
    assert found.verdict.startswith(f"its {count} files")
    assert content(workdir) == before


def test_a_run_without_checkpoints_begins_anew(tmp_path):
    assert made.resume(tmp_path) is None


@pytest.mark.parametrize("kind", made.KINDS)
def test_each_kind_of_damage(workdir, kind, capsys):
    damage, said = made.KINDS[kind]
    newest = workdir / "checkpoints" / "40"
    damage(newest)
    left = content(newest)
    assert made.resume(workdir).step == 30
    told = capsys.readouterr().err
    assert re.search(said, " ".join(told.split())), told
    assert "checkpoints/40 is damaged" in told and "set aside as" in told
    assert "config" not in told and "settings" not in told  # nothing is blamed on it
    aside = workdir / "checkpoints" / "damaged_40_1"
    assert content(aside) == left and not newest.exists()
    # The run goes on: the same step is saved again, and is whole.
    made.save(workdir, 40)
    assert made.resume(workdir).step == 40


@pytest.mark.parametrize("kind", made.KINDS)
def test_each_kind_of_damage_without_a_manifest(workdir, kind, capsys):
    """Then only what cannot be read is noticed; all of these cannot."""
    newest = workdir / "checkpoints" / "40"
    made.drop_manifests(newest)
    made.KINDS[kind][0](newest)
    assert made.resume(workdir).step == 30
    told = capsys.readouterr().err
    assert "checkpoints/40 is damaged" in told and "config" not in told


def test_a_kill_before_the_manifest_loses_nothing(workdir):
    made.drop_manifests(workdir / "checkpoints" / "40")
    found = made.resume(workdir)
    assert found.step == 40
    assert found.verdict.startswith("not verified: it has no manifest; it was written")


def test_several_damaged_ones(workdir, capsys):
    for step in (30, 40):
        made.data_file(workdir / "checkpoints" / str(step)).unlink()
    assert made.resume(workdir).step == 20
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert names == {"20", "damaged_30_1", "damaged_40_1"}
    # Once more: the first is not overwritten.
    made.save(workdir, 40)
    made.data_file(workdir / "checkpoints" / "40").unlink()
    assert made.resume(workdir).step == 20
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert names == {"20", "damaged_30_1", "damaged_40_1", "damaged_40_2"}


@pytest.mark.parametrize("target", ["nowhere", "extra", "_CHECKPOINT_METADATA/x"])
@pytest.mark.parametrize("manifest", [True, False])
def test_a_link_to_nothing_that_is_none_of_its_files(workdir, target, manifest):
    newest = workdir / "checkpoints" / "40"
    for folder in (newest, newest / "params"):
        (folder / "extra").symlink_to(target)
    if not manifest:
        made.drop_manifests(newest)
    assert made.resume(workdir).step == 40
    made.save(workdir, 50, keep_last=1)  # it is deleted as others are
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["50"]


def test_a_name_that_a_link_to_nothing_has_is_not_free(workdir):
    taken = workdir / "checkpoints" / "damaged_40_1"
    taken.symlink_to("nowhere")
    made.data_file(workdir / "checkpoints" / "40").unlink()
    assert made.resume(workdir).step == 30
    assert taken.is_symlink() and (workdir / "checkpoints" / "damaged_40_2").is_dir()


def test_where_all_are_damaged_nothing_is_changed(workdir):
    for step in (20, 30, 40):
        made.data_file(workdir / "checkpoints" / str(step)).unlink()
    before = content(workdir)
    for _ in range(2):  # a restart must not begin anew
        with pytest.raises(checkpoint.Damaged) as raised:
            made.resume(workdir)
        message = str(raised.value)
        for step in (20, 30, 40):
            assert f"checkpoints/{step} is damaged:\n  params/" in message
        assert "No checkpoint is left" in message and "--workdir" in message
    assert content(workdir) == before


def test_every_flipped_bit_is_noticed(workdir):
    """Random bits of random files, the manifest among them; 60 of them."""
    rng = random.Random(7)
    newest = workdir / "checkpoints" / "40"
    names = made.files(newest)
    run = made.opened(workdir)
    try:
        for _ in range(60):
            path = rng.choice(names)
            bit = rng.randrange(8 * path.stat().st_size)
            made.flip(path, bit)
            verdict = checkpoint.verifying.of(newest, step=40)
            assert verdict.problems, f"bit {bit} of {path}"
            assert path.name in str(verdict)
            made.flip(path, bit)
        assert not checkpoint.verifying.of(newest, step=40).problems
    finally:
        run.close()


def test_a_flipped_bit_of_weights_is_resumed_around(workdir):
    path = made.data_file(workdir / "checkpoints" / "40")
    made.flip(path, 8 * (path.stat().st_size // 2) + 3)
    assert made.resume(workdir).step == 30
    assert (workdir / "checkpoints" / "damaged_40_1").is_dir()


def test_a_misfit_is_only_said_of_what_is_verified(workdir):
    run = made.opened(workdir)
    wanted = made.abstract()
    wanted["params"]["head"] = wanted["params"]["vision"]["w"]
    with pytest.raises(ValueError, match="'params' does not fit") as raised:
        run.resume(wanted, check=lambda *_: None)
    assert "damaged" not in str(raised.value)
    made.drop_manifests(workdir / "checkpoints" / "40")
    with pytest.raises(ValueError, match="could not be verified") as raised:
        run.resume(wanted, check=lambda *_: None)
    message = str(raised.value)
    assert "Either it is damaged, or the settings are others" in message
    assert "resume_step=N: 20, 30" in message
    run.close()
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"20", "30", "40"}


def test_a_refusal_of_the_run_changes_nothing(workdir):
    """Damage is set aside only when an older checkpoint has been loaded."""
    made.data_file(workdir / "checkpoints" / "40").unlink()
    run = made.opened(workdir)

    def check(step, meta):
        assert (step, meta["position"]) == (30, {"next_batch": 30})
        raise ValueError("another plan")

    with pytest.raises(ValueError, match="^another plan$"):
        run.resume(made.abstract(), check=check)
    run.close()
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"20", "30", "40"}


def test_what_cannot_be_read_is_not_taken_for_damaged(workdir, monkeypatch):
    def fails(self, name, *args):
        raise OSError(errno.EIO, "Input/output error", str(self.directory / name))

    monkeypatch.setattr(files_lib.Local, "digest", fails)
    with pytest.raises(OSError, match="Input/output error"):
        made.resume(workdir)
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"20", "30", "40"}


def test_a_renamed_checkpoint_is_none_of_its_new_step(workdir, capsys):
    checkpoints = workdir / "checkpoints"
    shutil.copytree(checkpoints / "40", checkpoints / "50")
    assert made.resume(workdir).step == 40
    assert "its manifest is that of step 40" in capsys.readouterr().err


def test_a_manifest_of_a_newer_version_is_left_alone(workdir, monkeypatch):
    monkeypatch.setattr(checkpoint.manifest, "FORMAT", 2)
    with pytest.raises(ValueError, match="format 1, this version of mpo-jax reads 2"):
        made.resume(workdir)


# Weights of a run, for evaluation, sampling and conversion.


@pytest.mark.parametrize(
    "kind", ["truncated", "deleted", "all_empty", "empty_directory", "cut_tree"]
)
def test_weights_come_from_the_newest_whole_checkpoint(workdir, kind, capsys):
    made.KINDS[kind][0](workdir / "checkpoints" / "40")
    assert checkpoint.params_directory(workdir) == workdir / "checkpoints" / "30"
    assert checkpoint.load_metadata(workdir)["position"] == {"next_batch": 30}
    found = checkpoint.load_params(workdir, made.abstract()["params"])
    np.testing.assert_array_equal(found["head"], made.tree(30)["params"]["head"])
    told = capsys.readouterr().err
    assert told.count("checkpoints/40 is damaged") == 1  # said once, not at each call
    assert f"Taken instead: {workdir}/checkpoints/30" in told
    assert "checkpoints/30: its" in told and "as they were saved" in told
    with pytest.raises((checkpoint.Damaged, FileNotFoundError)):
        checkpoint.load_params(
            workdir / "checkpoints" / "40", made.abstract()["params"]
        )
    assert (workdir / "checkpoints" / "40").is_dir()  # only a run sets aside


def test_flipped_weights_are_not_loaded(workdir):
    path = made.data_file(workdir / "checkpoints" / "40")
    made.flip(path, 8 * (path.stat().st_size // 2) + 3)
    with pytest.raises(checkpoint.Damaged) as raised:
        checkpoint.load_params(workdir, made.abstract()["params"])
    assert f"{path.name}: another content" in str(raised.value)
    assert "Name another checkpoint, such as" in str(raised.value)


def test_weights_do_not_care_about_the_optimiser(workdir):
    (workdir / "checkpoints" / "40" / "opt_state" / "_METADATA").unlink()
    found = checkpoint.load_params(workdir, made.abstract()["params"])
    assert float(found["head"][0]) == 40


def test_where_no_weights_are_whole(workdir):
    for step in (20, 30, 40):
        made.data_file(workdir / "checkpoints" / str(step)).unlink()
    with pytest.raises(checkpoint.Damaged, match="checkpoints/20 is damaged"):
        checkpoint.params_directory(workdir)


def test_weights_without_a_manifest_are_loaded_as_before(workdir, capsys):
    made.drop_manifests(workdir / "checkpoints" / "40")
    found = checkpoint.load_params(workdir, made.abstract()["params"])
    assert float(found["head"][0]) == 40
    assert "not verified: it has no manifest" in capsys.readouterr().err
    checkpoint.save_params(
        workdir / "alone" / "params", {"a": jnp.ones(2)}, metadata={}
    )
    checkpoint.load_params(workdir / "alone", {"a": jnp.ones(2)})
    assert not capsys.readouterr().err  # converted weights never have one
