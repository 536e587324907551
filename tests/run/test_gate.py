"""The step-0 gate: what passes, what stops a run, what is said where it is off."""

from __future__ import annotations

import dataclasses
import re
import shutil

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_runs as helpers

from mpo_jax import config
from mpo_jax.run import gate, parameters, scoring, setup, stages, train
from mpo_jax.train import comparison, reference

pytestmark = pytest.mark.slow

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def prepared(world, tmp_path_factory):
    """Reference weights of a small run, and what its cache holds of them."""
    cfg, tmp_path = helpers.small(world), tmp_path_factory.mktemp("gate")
    run = setup.setup(cfg, tmp_path, devices=ONE)
    index = stages.prepare_index(run, cfg.data.meta)
    ids = np.arange(len(index))
    params = parameters.reference_params(run)
    scorer = scoring.reference_scorer(run, index, ids)
    logps = scoring.prepare_reference(
        scorer, ids, fingerprint=reference.fingerprint(params), params=lambda: params
    )
    return gate.Cached("data.meta", tmp_path, scorer, ids, logps), params


def test_what_the_cache_holds_is_what_the_model_gives(prepared):
    cached, params = prepared
    found = gate.check(cached, params, same_model=True)
    assert sorted(found.record_ids.tolist()) == cached.record_ids.tolist()
    assert found.errors.max() < 1e-6  # one program twice
    parts = gate.preference_part(cached.scorer.run.cfg.loss, found)
    np.testing.assert_allclose(parts, 0.8 * np.log(2) + 0.4 * np.log(2), rtol=1e-5)


def test_numbers_of_another_record_are_refused_by_name(prepared):
    cached, params = prepared
    turned = cached.logps.copy()
    turned[[3, 7]] = turned[[7, 3]]
    wrong = dataclasses.replace(cached, logps=turned)
    with pytest.raises(ValueError, match="step-0 gate, data.meta") as raised:
        gate.check(wrong, params, same_model=True)
    lines = str(raised.value).splitlines()
    index = cached.scorer.index
    named = {line.split(": ")[0].strip() for line in lines[1:3]}
    assert named == {index.where(3), index.where(7)}
    assert index.where(3).endswith(f".jsonl, line {index.line[3]}")
    assert f"{turned[3, 0]:.4f}" in "".join(lines[1:3])
    assert "log.gate=False" in lines[-1]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("side", [0, 1])
def test_an_error_of_either_sign_on_either_side_is_refused(prepared, sign, side):
    cached, params = prepared
    moved = cached.logps.copy()
    moved[:, side] += sign
    with pytest.raises(ValueError, match="off by"):
        gate.check(dataclasses.replace(cached, logps=moved), params, same_model=True)


def test_errors_that_cancel_in_the_mean_are_refused(prepared):
    cached, params = prepared
    moved = cached.logps + np.where(np.arange(len(cached.logps)) % 2, 1, -1)[:, None]
    wrong = dataclasses.replace(cached, logps=moved.astype(np.float32))
    with pytest.raises(ValueError, match="off by"):
        gate.check(wrong, params, same_model=True)


def compared(noise: np.ndarray, tokens: int) -> comparison.Comparison:
    rng = np.random.default_rng(1)
    cached = rng.uniform(-300, -100, noise.shape).astype(np.float32)
    return comparison.Comparison(
        record_ids=np.arange(len(noise)),
        cached=cached,
        found=cached + noise.astype(np.float32),
        tokens=np.full(noise.shape, tokens),
    )


@pytest.mark.parametrize("std", [0.053, 0.19])
def test_rounding_in_bfloat16_passes_whatever_the_loss(std):
    """Noise as measured between packings and between back ends, 175-token answers."""
    noise = std * np.random.default_rng(0).normal(size=(256, 2))
    found = compared(noise, 175)
    assert found.agrees("bfloat16") and not found.agrees("float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_wrong_record_among_many_does_not_pass(dtype):
    noise = np.zeros((256, 2))
    noise[100, 1] = 8.0
    assert not compared(noise, 175).agrees(dtype)
    noise[100, 1] = np.nan
    found = compared(noise, 175)
    assert not found.agrees(dtype) and found.worst(1).tolist() == [100]


def test_small_errors_everywhere_do_not_pass_though_they_cancel():
    signs = np.where(np.arange(256) % 2, 1, -1)[:, None] * np.ones((256, 2))
    allowed, _ = comparison.tolerances("bfloat16")
    assert compared(0.8 * allowed * np.sqrt(175) * signs, 175).agrees("bfloat16")
    assert not compared(2 * allowed * np.sqrt(175) * signs, 175).agrees("bfloat16")


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A finished run of one step, with held-out pairs; its config and folder."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = helpers.small(world)
    cfg.data.cache_dir = str(folder / "data")
    cfg.compile_cache = str(folder / "compiled")
    cfg.data.eval_meta = str(world["eval_meta"])
    cfg.optim.max_steps, cfg.checkpoint.export_hf = 1, False
    train.train(cfg, folder / "run", devices=ONE)
    return cfg, folder


def damage(cache_dir, size: int) -> None:
    """Exchange the numbers of the records of the one cache of `size` records."""
    for part in cache_dir.glob("reference/*/part-*.parquet"):
        table = pq.read_table(part)
        if table.num_rows == size:
            turned = np.roll(table.column("record").to_numpy(), 1)
            pq.write_table(table.set_column(0, "record", pa.array(turned)), part)


@pytest.mark.parametrize(("size", "name"), [(4, "data.meta"), (8, "data.eval_meta")])
def test_training_stops_on_a_damaged_cache(trained, tmp_path, size, name):
    cfg, folder = trained
    cfg = config.from_json(cfg.to_json())
    shutil.copytree(folder / "data", tmp_path / "data")
    cfg.data.cache_dir = str(tmp_path / "data")
    damage(tmp_path / "data", size)
    with pytest.raises(ValueError, match=f"step-0 gate, {name}: cached") as raised:
        train.train(cfg, tmp_path / "run", devices=ONE)
    # The remedy that it names works.
    named = re.search(r"delete (\S+) and start again", str(raised.value))
    assert named is not None
    shutil.rmtree(named[1])
    train.train(cfg, tmp_path / "run", devices=ONE)


def test_a_gate_that_does_not_look_says_so(trained, tmp_path, capsys):
    cfg, folder = trained
    train.train(cfg, folder / "run", devices=ONE)  # finished: goes on from step 1
    said = capsys.readouterr().err
    for name in ("data.meta", "data.eval_meta"):
        assert f"gate of {name}: not repeated after step 1" in " ".join(said.split())
    cfg = config.from_json(cfg.to_json())
    cfg.log.gate = False
    train.train(cfg, tmp_path / "off", devices=ONE)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("is off (log.gate=False)") == 2 and "gate passed" not in said


def test_another_reference_is_checked_against_its_own_weights(
    trained, tmp_path, capsys, world
):
    cfg, folder = trained
    cfg = config.from_json(cfg.to_json())
    cfg.checkpoint.export_hf = True
    train.train(cfg, tmp_path / "other", devices=ONE)
    assert "preference part 0.8318" in " ".join(capsys.readouterr().err.split())
    cfg.checkpoint.export_hf = False
    cfg.reference.path = str(tmp_path / "other/hf")
    train.train(cfg, tmp_path / "run", devices=ONE)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("the policy starts from another model") == 2
    assert "preference part" not in said
    # A run keeps the reference that it began with.
    cfg.optim.max_steps = 2
    cfg.reference.path = ""
    with pytest.raises(ValueError, match="reference.path='', the checkpoint has"):
        train.train(cfg, tmp_path / "run", devices=ONE)
