"""Whole runs of adapters and of parts: the free reference, exact resume, refusals."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
import small_runs as helpers

import mpo_jax
from mpo_jax import config
from mpo_jax.convert import hub
from mpo_jax.models import adapted
from mpo_jax.nn import lora
from mpo_jax.nn import params as params_lib
from mpo_jax.run import train

pytestmark = pytest.mark.slow

ONE = jax.devices()[:1]


def adapters_alone(world) -> config.RunConfig:
    cfg = helpers.small(world)
    for part in adapted.PARTS:
        setattr(cfg.model, f"freeze_{part}", True)
    cfg.model.lora.language_rank, cfg.model.lora.vision_rank = 4, 2
    cfg.reference.mode = "online"
    return cfg


def last_layers(world) -> config.RunConfig:
    cfg = helpers.small(world)
    cfg.model.freeze_vision = cfg.model.freeze_language = True
    cfg.model.train_vision_layers, cfg.model.train_head = 1, True
    cfg.reference.mode = "online"
    return cfg


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """A finished run of adapters with its reference online."""
    workdir = tmp_path_factory.mktemp("lora")
    cfg = adapters_alone(world)
    cfg.checkpoint.keep_last = 5
    return workdir, train.train(cfg, workdir, devices=ONE)


def resumed(workdir, target, cfg):
    """The run once more, from its checkpoint of step 2."""
    shutil.copytree(workdir, target)
    for path in (target / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > 2:
            shutil.rmtree(path)
    train.train(cfg, target, devices=ONE)
    return helpers.losses(target)


def test_adapters_learn_and_their_reference_is_the_cached_one(done, world, tmp_path):
    workdir, result = done
    lines = helpers.losses(workdir)
    np.testing.assert_allclose(lines[1]["loss/sigmoid"], np.log(2), rtol=1e-5)
    assert abs(lines[6]["rewards/chosen"]) > 1e-4
    assert lines[6]["loss"] < lines[1]["loss"]
    cfg = adapters_alone(world)
    cfg.reference.mode = "cache"
    cfg.checkpoint.export_hf = False
    train.train(cfg, tmp_path, devices=ONE)
    cached = helpers.losses(tmp_path)
    for step in range(1, 7):
        for name in ("loss", "loss/sigmoid", "loss/bco_pair", "grad_norm"):
            # The same log-probs from another program; AdamW magnifies rounding.
            np.testing.assert_allclose(
                lines[step][name], cached[step][name], rtol=1e-4, atol=2e-6
            )
    assert any(lora.is_adapter(p) for p, _ in params_lib.flatten(result["params"]))


def test_the_export_of_adapters_is_the_merged_model(done):
    workdir, result = done
    exported = mpo_jax.InternVL.from_pretrained(workdir / "hf")
    merged = hub.load_params(hub.locate(workdir), exported.model)
    weights = dict(params_lib.flatten(exported.params))
    for path, leaf in params_lib.flatten(merged):
        rounded = np.asarray(leaf).astype("bfloat16").astype(np.float32)
        # One unit in the last place where the two sums round apart.
        np.testing.assert_allclose(weights[path], rounded, rtol=2**-7, err_msg=path)
    q = "language/layers/blocks/attn/q/kernel"
    start = dict(params_lib.flatten(result["params"]))[q]
    assert np.abs(weights[q] - np.asarray(start)).max() > 1e-3


def test_a_run_of_adapters_resumes_to_the_same_bits(done, world, tmp_path):
    cfg = adapters_alone(world)
    cfg.checkpoint.keep_last, cfg.checkpoint.export_hf = 5, False
    assert resumed(done[0], tmp_path / "again", cfg) == helpers.losses(done[0])


def test_a_run_of_last_layers_and_head_resumes_to_the_same_bits(world, tmp_path):
    cfg = last_layers(world)
    cfg.checkpoint.keep_last = 5
    cfg.model.drop_path = 0.2
    cfg.checkpoint.export_hf = False
    result = train.train(cfg, tmp_path / "whole", devices=ONE)
    expected = helpers.losses(tmp_path / "whole")
    assert resumed(tmp_path / "whole", tmp_path / "again", cfg) == expected
    assert "last_layers" in result["params"]["vision"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora.language_rank": 8}, r"model.lora.language_rank=8, the .* has 4"),
        ({"lora.scale": 1.0}, r"model.lora.scale=1.0, the checkpoint has 2.0"),
        ({"lora.vision_targets": ("qkv",)}, r"model.lora.vision_targets=\('qkv',\)"),
        ({"freeze_projector": False}, "model.freeze_projector=False, .* has True"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_other_adapters_is_refused(done, change, message):
    workdir, _ = done
    cfg = config.from_json((workdir / "run_config.json").read_text())
    for name, value in change.items():
        group = cfg.model.lora if name.startswith("lora.") else cfg.model
        setattr(group, name.removeprefix("lora."), value)
    with pytest.raises(ValueError, match=message):
        train.train(cfg, workdir, devices=ONE)
