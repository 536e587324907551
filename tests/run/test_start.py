"""What a resumed run may change, what it may not, and what it is told."""

from __future__ import annotations

import dataclasses
import types

import pytest

from mpo_jax import config
from mpo_jax.run import start


def run_of(**changes) -> types.SimpleNamespace:
    cfg = config.RunConfig()
    for name, value in changes.items():
        group, field = name.split("__")
        setattr(getattr(cfg, group), field, value)
    return types.SimpleNamespace(cfg=cfg, place="runs/one")


STORED = dataclasses.asdict(config.RunConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__freeze_vision": True}, "model.freeze_vision=True, .* has False"),
        ({"model__train_head": True}, "model.train_head=True"),
        ({"reference__path": "other"}, "reference.path='other', the checkpoint has ''"),
        ({"reference__mode": "moving"}, "reference.mode='moving', .* has 'cache'"),
    ],
)
def test_what_the_checkpoints_arrays_do_not_allow_is_refused(change, message):
    with pytest.raises(ValueError, match=f"(?s)runs/one: .*{message}.*--workdir"):
        start._check_config(run_of(**change), STORED)


def test_other_changes_are_told(capsys):
    run = run_of(optim__learning_rate=0.5, reference__mode="online")
    start._check_config(run, STORED)
    told = " ".join(capsys.readouterr().err.split())
    before = config.RunConfig().optim.learning_rate
    changed = f"Changed since the checkpoint: optim.learning_rate {before} -> 0.5"
    assert changed in told and "reference.mode 'cache' -> 'online'" in told
    start._check_config(run_of(), STORED)
    assert not capsys.readouterr().err


def test_a_field_that_the_checkpoint_is_older_than_had_its_default(capsys):
    stored = {**STORED, "model": {**STORED["model"]}}
    del stored["model"]["train_head"], stored["log"]
    start._check_config(run_of(), stored)
    assert not capsys.readouterr().err
    with pytest.raises(ValueError, match="model.train_head=True, .* has False"):
        start._check_config(run_of(model__train_head=True), stored)


def test_a_run_that_would_end_before_its_checkpoint_is_refused():
    start._check_length(run_of(), 4, 4)
    with pytest.raises(ValueError, match="up to step 5, beyond the 4 .* to 5 or"):
        start._check_length(run_of(), 5, 4)
