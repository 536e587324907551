"""Stages by themselves: FLOPs of a batch, shards as a run's data, the dry run."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import counted
import jax
import numpy as np
import pytest
import small_runs as helpers

from mpo_jax import config, ledger
from mpo_jax.mmpr import shard_writer
from mpo_jax.models import flops
from mpo_jax.run import report, setup, stages, train
from mpo_jax.utils import runtime

pytestmark = pytest.mark.slow

ONE = jax.devices()[:1]


def test_flops_by_number_are_those_of_the_batch(world, tmp_path):
    cfg = helpers.small(world)
    cfg.model.freeze_vision = True
    run = setup.setup(cfg, tmp_path / "run", devices=ONE)
    data = stages.prepare_training_data(run)
    plan = data.plan
    flops_of = stages.flops_of(run, data)
    batches = stages.loader(run, data.index, plan)
    try:
        seen = []
        for n, batch in batches:
            counts = counted.counts(
                batch,
                run.shapes[data.shape_of(n)],
                tokens_per_tile=run.policy.tokens_per_tile,
            )
            trained = flops.Trained(vision=False)
            want = flops.training(run.model.cfg, counts, trained=trained).total
            np.testing.assert_allclose(flops_of(n), want, rtol=1e-12)
            seen.append(want)
        assert len(seen) == plan.num_batches and len(set(seen)) > 1
    finally:
        batches.close()


def test_training_data_tells_of_batches_by_number(world, tmp_path):
    cfg = helpers.small(world)
    data = stages.prepare_training_data(setup.setup(cfg, tmp_path, devices=ONE))
    assert data.num_steps == 6 <= data.plan.num_batches
    first = data.record_ids_of(0)
    assert data.first_pairs.tolist() == sorted(first.tolist())
    trained = np.concatenate([data.record_ids_of(n) for n in range(6)])
    assert data.record_ids.tolist() == sorted(set(trained.tolist()))
    assert data.names_of(0).startswith(
        f"{len(first)} pairs: {data.index.where(int(first[0]))}; "
    )
    many = dataclasses.replace(data, plan=OneBatch([np.arange(5), np.arange(5, 9)]))
    assert many.names_of(3).endswith(f"; {data.index.where(7)}; …")
    assert many.shape_of(3) == 1


class OneBatch:
    """Stands for a plan all of whose batches hold the same rows, of shape 1."""

    def __init__(self, rows):
        self.batch = lambda n: (1, rows)


def test_pairs_are_measured_against_the_model_not_row_budgets(world, tmp_path):
    """Rows may hold more than a sequence; a pair that is longer is left out by name."""
    model = tmp_path / "model"
    shutil.copytree(world["model"], model)
    raw = json.loads((model / "config.json").read_text())
    cfg = helpers.small(world)
    cfg.model.path = str(model)
    cfg.data.cache_dir = str(tmp_path / "data")

    def planned(limit: int):
        raw["llm_config"]["max_position_embeddings"] = limit
        (model / "config.json").write_text(json.dumps(raw))
        run = setup.setup(cfg, tmp_path / f"run{limit}", devices=ONE)
        index = stages.prepare_index(run, cfg.data.meta)
        plan = stages.make_plan(run, index)
        report.write_ledger(run, index, plan)
        return index, plan, list(ledger.read(run.workdir / "ledger.jsonl"))

    index, plan, entries = planned(4096)
    lengths = index.prompt_tokens + 1
    lengths = lengths + np.maximum(index.chosen_tokens, index.rejected_tokens)
    rows = cfg.rows.short.build()
    limit = int(np.sort(lengths)[-3])  # two are longer
    assert limit < rows.prompt_tokens + rows.chosen_tokens and not entries
    _, fewer, entries = planned(limit)
    assert plan.num_pairs - fewer.num_pairs == len(entries) == (lengths > limit).sum()
    assert {entry.reason for entry in entries} == {"too_long"}
    assert all(f"> {limit}, the model's" in entry.detail for entry in entries)


@pytest.fixture
def every_program_is_cached(monkeypatch):
    """Small programs too; nothing is cached afterwards."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 0.0)
    yield
    jax.config.update(name, before)
    runtime.compilation_cache(None)


def test_a_run_on_shards_is_the_run_on_files(world, tmp_path, every_program_is_cached):
    """Same ledger, same steps, same numbers, whichever thread or process reads."""
    shards = tmp_path / "shards"
    shard_writer.write_shards(world["meta"], shards, num_shards=2)
    found = {}
    for name, meta, depth in (("files", world["meta"], 0), ("shards", shards, 2)):
        cfg = helpers.small(world)
        cfg.data.meta, cfg.data.prefetch_to_device = str(meta), depth
        cfg.optim.max_steps = 3
        cfg.checkpoint.export_hf = False
        cfg.data.workers = depth // 2
        cfg.compile_cache = "none" if depth else str(tmp_path / "compiled")
        train.train(cfg, tmp_path / name, devices=ONE)
        ledger = (tmp_path / name / "ledger.jsonl").read_text()
        found[name] = helpers.losses(tmp_path / name), ledger
    assert found["shards"] == found["files"]
    assert list((tmp_path / "compiled").iterdir())
    assert not list(tmp_path.glob("*/compile_cache"))


def test_dry_run_takes_a_profile_window(world, root, tmp_path):
    path = helpers.write_config(tmp_path / "recipe.py", helpers.small(world))

    def start(window):
        command = [sys.executable, str(root / "scripts/train.py"), "--dry_run"]
        command += [f"--config={path}", f"--workdir={tmp_path / 'run'}"]
        return subprocess.run(
            [*command, f"--profile={window}"],
            capture_output=True,
            text=True,
            timeout=300,
        )

    good = start("20:5")
    assert good.returncode == 0, good.stderr
    assert '"profile_start": 20' in good.stderr and '"profile_steps": 5' in good.stderr
    bad = start("20")
    assert bad.returncode == 1
    assert "--profile='20': write START:COUNT" in " ".join(bad.stderr.split())


def prepare(cfg, workdir):
    """The stages before training, on one device."""
    stages.prepare_training_data(setup.setup(cfg, workdir, devices=ONE))


def poor_meta(world, folder, **change):
    """The training pairs, and a source that leaves out what `change` says."""
    meta = json.loads(world["meta"].read_text())
    name, entry = next(iter(meta.items()))
    for each in meta.values():
        for key in ("root", "annotation"):
            each[key] = str(world["meta"].parent / each[key])
    path = folder / "meta.json"
    path.write_text(json.dumps({name: entry, "poor": {**entry, **change}}))
    return path


def test_a_source_that_gives_nothing_stops_the_run_or_is_named(world, tmp_path, capfd):
    cfg = helpers.small(world)
    cfg.data.meta = str(poor_meta(world, tmp_path, root=str(tmp_path / "imagez")))
    wanted = r"(?s)1 of 2 sources leave out more than data.max_left_out=0.5.*'poor' .*"
    wanted += "imagez is no folder.*raise data.max_left_out"
    with pytest.raises(ValueError, match=wanted):
        prepare(cfg, tmp_path / "run")
    cfg.data.max_left_out = 1.0  # the remedy
    prepare(cfg, tmp_path / "run")
    printed = " ".join(capfd.readouterr().err.split())
    assert "Warning: source 'poor' leaves out" in printed


def test_a_source_too_long_for_every_row(world, tmp_path, capfd):
    """It is counted once, and no row shape is described by nothing."""
    cfg = helpers.small(world)
    cfg.data.meta = str(poor_meta(world, tmp_path))
    run = setup.setup(cfg, tmp_path / "run", devices=ONE)
    cfg = run.cfg
    index = stages.prepare_index(run, cfg.data.meta)
    half = len(index) // 2
    assert [counts.kept for counts in index.counts] == [half, half]
    index.__dict__["prompt_tokens"] = np.where(index.source == 1, 9999, 20)
    with pytest.raises(ValueError, match="'poor' leaves out .* as too_long .*budgets"):
        stages.make_plan(run, index)
    cfg.data.max_left_out = 1.0
    cfg.rows.long = config.RowShapeConfig(5000, 900, 900, 16, 2)
    plan = stages.make_plan(run, index)
    counts = report.write_ledger(run, index, plan)
    report.print_data(run, index, plan, plan.num_batches, counts)
    printed = " ".join(capfd.readouterr().err.split())
    assert f"{half} pairs indexed, {half} left out, {half} of them too long" in printed
    assert "Row shape 1 is used by no pair." in printed
    assert "Fill of row shape 0: prompt" in printed and ": ." not in printed


@pytest.mark.parametrize(
    "repeat, text",
    [
        (0.001, "'poor' gives no pair: repeat_time 0.001 of .* raise repeat_time to"),
        (0, "every repeat_time is 0"),
    ],
)
def test_an_epoch_without_pairs_is_explained(world, tmp_path, repeat, text):
    cfg = helpers.small(world)
    path = poor_meta(world, tmp_path, repeat_time=repeat)
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({"poor": meta["poor"]}))
    cfg.data.meta = str(path)
    with pytest.raises(ValueError, match=f"an epoch has no pair.*{text}"):
        prepare(cfg, tmp_path / "run")


def test_images_that_come_are_found_by_the_next_start(world, tmp_path):
    """What the message advises, followed."""
    images = tmp_path / "images"
    cfg = helpers.small(world)
    path = poor_meta(world, tmp_path, root=str(images))
    meta = json.loads(path.read_text())
    root = next(iter(meta.values()))["root"]
    path.write_text(json.dumps({"poor": meta["poor"]}))
    cfg.data.meta = str(path)
    with pytest.raises(ValueError, match="no usable record.*start again"):
        prepare(cfg, tmp_path / "run")
    shutil.copytree(root, images)
    prepare(cfg, tmp_path / "run")
