"""Whole runs: every stage, artefacts, resume after SIGKILL, refusals, bad data."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest
import small_runs as helpers
import tiny_mmpr
from safetensors import numpy as safetensors_numpy

import mpo_jax
from mpo_jax import checkpoint, config, ledger
from mpo_jax.run import (
    attempts,
    eval_training,
    evaluation,
    export,
    parameters,
    program,
    references,
    setup,
    stages,
    train,
)
from mpo_jax.train import loop, optimizer
from mpo_jax.utils import lease, peers, profiling

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """One finished run with held-out pairs."""
    workdir = tmp_path_factory.mktemp("done")
    cfg = helpers.small(world)
    cfg.data.eval_meta = str(world["eval_meta"])
    cfg.log.eval_every = 4
    cfg.log.tensorboard = cfg.log.plots = True
    with pytest.MonkeyPatch.context() as patch:
        for module, name in STAGES:
            patch.setattr(module, name, watched(name, getattr(module, name)))
        return workdir, train.train(cfg, workdir, devices=ONE)


STAGES = (
    *((stages, "prepare_training_data"), (references, "prepare"), (loop, "run")),
    *((evaluation, "before_training"), (evaluation, "after_training")),
    (export, "export"),
)
WATCHED: list[str] = []


def watched(name, stage):
    """The stage, which notes whether somebody looks that it comes on."""

    def run(*args, **options):
        if any(thread.name == "mpo-watchdog" for thread in threading.enumerate()):
            WATCHED.append(name)
        return stage(*args, **options)

    return run


def test_no_stage_can_hang_unseen(done):
    assert sorted(WATCHED) == sorted(name for _, name in STAGES)


def test_a_run_leaves_what_it_promises(done):
    workdir, result = done
    for name in ("metrics.jsonl", "ledger.jsonl", "run_config.json", "plots/loss.png"):
        assert (workdir / name).stat().st_size >= 0, name
    assert list((workdir / "tensorboard").glob("events*"))
    lines = [json.loads(t) for t in (workdir / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    evaluated = [line["step"] for line in lines if "eval/loss" in line]
    assert evaluated == [0, 4, 6]
    wanted = {
        *("loss", "loss/sigmoid", "loss/bco_pair", "loss/sft", "delta", "grad_norm"),
        *("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen"),
        *("grad_norm/vision", "grad_norm/projector", "grad_norm/language"),
        *("learning_rate", "fill/tokens", "fill/tiles", "ledger/left_out", "pairs"),
        *("throughput/pairs_per_s", "time/step_s", "time/input_wait_s"),
        *("time/host_to_device_s", "time/goodput", "time/compile_cache_hits"),
        *(f"time/sum_{name}_s" for name in (*profiling.SPENT, "step")),
    }
    first = next(line for line in lines if line["step"] == 1)
    assert wanted <= set(first), wanted - set(first)
    assert first["time/sum_compile_s"] > 0 and first["time/sum_startup_s"] > 0
    assert "throughput/mfu" not in first  # nobody knows a CPU's peak
    np.testing.assert_allclose(first["loss/sigmoid"], np.log(2), rtol=1e-5)
    np.testing.assert_allclose(result["before"]["loss/bco_pair"], 2 * np.log(2), 1e-5)
    assert result["after"]["pairs"] == 8
    # Held-out pairs are scored with the reward shift that training has come to.
    last = helpers.losses(workdir)[6]["delta"]
    assert result["before"]["delta"] == 0 and abs(last) > 1e-4
    assert result["after"]["delta"] == pytest.approx(last, rel=1e-5)


def test_the_export_is_the_trained_model(done):
    workdir, result = done
    model = mpo_jax.InternVL.from_pretrained(workdir / "hf")
    cfg = config.from_json((workdir / "run_config.json").read_text())
    assert (model.cfg.min_tiles, model.cfg.max_tiles) == (1, cfg.data.max_tiles)
    assert pathlib.Path(cfg.model.path).is_absolute()
    trained = result["params"]["language"]["lm_head"]["kernel"]
    exported = model.params["language"]["lm_head"]["kernel"]
    np.testing.assert_array_equal(
        exported, np.asarray(trained).astype("bfloat16").astype(np.float32)
    )
    ids = np.arange(10)[None]
    assert np.isfinite(model.logits(ids, np.ones_like(ids), None)).all()


@pytest.mark.slow
def test_starting_a_finished_run_again_does_nothing(done, monkeypatch):
    """``kill -USR1`` before the first step shows where it stands, and ends nothing."""
    workdir, result = done
    prepare = train.stages.prepare_training_data

    def asked_while_preparing(run):
        os.kill(os.getpid(), signal.SIGUSR1)
        return prepare(run)

    monkeypatch.setattr(train.stages, "prepare_training_data", asked_while_preparing)
    cfg = config.from_json((workdir / "run_config.json").read_text())
    lines = (workdir / "metrics.jsonl").read_text()
    again = train.train(cfg, workdir, devices=ONE)
    assert again["before"] == pytest.approx(result["before"])
    assert again["after"] == pytest.approx(result["after"])
    assert (workdir / "metrics.jsonl").read_text() == lines
    stacks = (workdir / "stacks" / "host_0.txt").read_text("utf-8")
    assert "asked for by SIGUSR1" in stacks


@pytest.mark.slow
def test_a_start_that_cannot_read_its_data_is_noted(world, tmp_path):
    cfg = helpers.small(world)
    cfg.data.meta = str(tmp_path / "absent.json")
    with pytest.raises(FileNotFoundError, match="absent.json"):
        train.train(cfg, tmp_path / "run", devices=ONE)
    (start,) = attempts.read(tmp_path / "run")
    assert start.ended is not None and "absent.json" in start.how
    assert "absent.json" in (tmp_path / "run" / "report.md").read_text("utf-8")


@pytest.mark.slow
def test_a_work_directory_that_vanishes_ends_the_run_before_it_saves(
    world, tmp_path, monkeypatch
):
    """Else a checkpoint would lie in its place, and the next start go on from there."""
    workdir, away = tmp_path / "run", tmp_path / "away"
    following, ended = loop._next_batch, []

    def batch_after_a_while(batches, n, clock):
        if n == 2:
            saved = workdir / "checkpoints" / "2" / "mpo-manifest-0-of-1.json"
            while not saved.exists():
                time.sleep(0.01)
            workdir.rename(away)
        return following(batches, n, clock)

    def end(message: str, status: int) -> None:
        ended.append((message, status))
        raise KeyboardInterrupt  # the process would be gone

    monkeypatch.setattr(loop, "_next_batch", batch_after_a_while)
    monkeypatch.setattr(peers, "end", end)
    cfg = helpers.small(world)
    cfg.log.tensorboard = cfg.log.plots = True
    with pytest.raises(KeyboardInterrupt):
        train.train(cfg, workdir, devices=ONE)
    (message, status), *_ = ended
    assert "lease.json has vanished" in message and status == 1
    assert not workdir.exists() and (away / "checkpoints" / "2").is_dir()


@pytest.mark.parametrize(
    "make",
    [
        lambda: export.export(None, None),  # type: ignore[arg-type]
        lambda: object.__new__(eval_training.Benchmarks)(None, 4),  # type: ignore[arg-type]
    ],
    ids=["export", "benchmarks"],
)
def test_nothing_else_is_made_in_the_place_of_one_that_vanished(tmp_path, make):
    def end(message: str, status: int) -> None:
        raise KeyboardInterrupt(message)

    with (
        pytest.raises(KeyboardInterrupt, match="has vanished"),
        lease.held(tmp_path, tell=print, lost=end),
    ):
        (tmp_path / lease.FILE).unlink()
        make()


@pytest.mark.parametrize("kind", ["file", "link", "below a file"])
def test_a_work_directory_that_is_no_directory_is_named(world, tmp_path, kind):
    place = tmp_path / "run"
    if kind == "link":
        place.symlink_to("nowhere")
    else:
        place.touch()
    workdir = place / "8b" if kind == "below a file" else place
    with pytest.raises(ValueError, match=rf"--workdir={workdir}: .*name another"):
        train.train(helpers.small(world), workdir, devices=ONE)


def test_an_evaluation_that_was_lost_is_made_up(done, tmp_path):
    """Killed after the save of step 4, while held-out pairs were scored."""
    workdir, result = done
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "6")
    metrics = again / "metrics.jsonl"
    kept = [text for text in metrics.open() if (4, "held-out") != _kind(text)]
    metrics.write_text("".join(kept))
    cfg = config.from_json((workdir / "run_config.json").read_text())
    found = train.train(cfg, again, devices=ONE)
    assert found["after"] == pytest.approx(result["after"])
    assert helpers.written(again) == helpers.written(workdir)
    assert helpers.losses(again, held_out=True) == helpers.losses(
        workdir, held_out=True
    )


def _kind(text: str) -> tuple[int, str]:
    line = json.loads(text)
    return line["step"], "held-out" if "eval/loss" in line else "training"


def test_fewer_steps_than_are_trained_are_refused(done):
    """Weights of step 6 would be scored and exported as those of step 4."""
    workdir, _ = done
    cfg = config.from_json((workdir / "run_config.json").read_text())
    cfg.optim.max_steps = 4
    lines = (workdir / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="step 6, beyond the 4 .*raise it to 6"):
        train.train(cfg, workdir, devices=ONE)
    assert (workdir / "metrics.jsonl").read_text() == lines


def test_damaged_weights_are_named_and_all_is_closed(world, done, tmp_path, capsys):
    """NaN ends the run before records are blamed; a map of zeros is pointed out."""
    model = tmp_path / "model"
    shutil.copytree(done[0] / "hf", model)
    file = model / "model.safetensors"
    tensors = safetensors_numpy.load_file(file)
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    tensors["language_model.model.layers.0.mlp.down_proj.weight"][:] = 0
    safetensors_numpy.save_file(tensors, file)
    cfg = helpers.small(world)
    cfg.model.path, cfg.model.init, cfg.optim.max_steps = str(model), "pretrained", 1
    run = setup.setup(cfg, tmp_path / "zeros", devices=ONE)
    parameters.initial_params(run)
    told = " ".join(capsys.readouterr().err.split())
    assert "zeros in language/layers/blocks/mlp/down/kernel[0]; was the" in told
    tensors[name][0, 0] = np.nan
    safetensors_numpy.save_file(tensors, file)
    closed = []
    with pytest.MonkeyPatch.context() as patch:
        original = checkpoint.Checkpoints.close
        patch.setattr(
            checkpoint.Checkpoints,
            "close",
            lambda self: closed.append(1) or original(self),
        )
        with pytest.raises(ValueError, match="NaN .*language/layers/blocks/mlp/up"):
            train.train(cfg, tmp_path / "nan", devices=ONE)
    assert closed


def test_steps_that_change_nothing_are_pointed_out():
    cfg = config.RunConfig()
    for steps, rate, said in ((1, 1e-3, True), (2, 1e-3, False), (9, 0.0, True)):
        cfg.optim.learning_rate = rate
        found = program.idle_note(
            cfg.optim, optimizer.schedule(cfg.optim, steps), steps
        )
        assert bool(found) is said
        assert not said or f"rate of all {steps} steps is 0" in found


@pytest.mark.slow
def test_an_online_reference_gives_the_numbers_of_the_cached_one(world, done, tmp_path):
    cfg = helpers.small(world)
    cfg.reference.mode = "online"
    cfg.checkpoint.export_hf = False
    train.train(cfg, tmp_path, devices=ONE)
    cached, online = helpers.losses(done[0]), helpers.losses(tmp_path)
    names = ("loss", "loss/sigmoid", "loss/bco_pair", "rewards/margins", "grad_norm")
    steps = sorted(step for step in cached if step)
    assert steps == sorted(online) == [1, 2, 3, 4, 5, 6]
    for step in steps:
        for name in names:
            # The same log-probs from another program; AdamW magnifies rounding, and
            # margins of the first step are 0 but for it.
            np.testing.assert_allclose(
                online[step][name], cached[step][name], rtol=1e-4, atol=2e-6
            )
    assert not list(tmp_path.glob("data/reference/*"))


@pytest.mark.slow
def test_held_out_pairs_do_not_follow_a_moving_reference(world, tmp_path, capsys):
    """It is the policy itself after each step here; they keep the starting point."""
    cfg = helpers.small(world)
    cfg.reference = config.ReferenceConfig(
        mode="moving", moving_alpha=1.0, moving_every=1
    )
    cfg.data.eval_meta = str(world["eval_meta"])
    cfg.checkpoint.export_hf = False
    result = train.train(cfg, tmp_path, devices=ONE)
    lines = [line for step, line in helpers.losses(tmp_path).items() if step]
    assert len(lines) == 6
    for line in lines:
        assert line["loss/sigmoid"] == pytest.approx(np.log(2), rel=1e-5)
    assert result["before"]["loss/sigmoid"] == pytest.approx(np.log(2), rel=1e-5)
    assert abs(result["after"]["rewards/chosen"]) > 0.1
    printed = " ".join(capsys.readouterr().err.split())
    assert "Held-out pairs are scored against the starting point" in printed


@pytest.mark.slow
def test_sft_trains_on_chosen_responses_alone(world, tmp_path):
    cfg = helpers.small(world, "sft")
    cfg.checkpoint.export_hf = True  # the quickstart goes on from the checkpoint
    cfg.data.eval_meta = str(world["eval_meta"])
    result = train.train(cfg, tmp_path, devices=ONE)
    lines = {step: line for step, line in helpers.losses(tmp_path).items() if step}
    assert sorted(lines) == [1, 2, 3, 4, 5, 6]
    for line in lines.values():
        assert line["loss"] == pytest.approx(line["loss/sft"], rel=1e-6)
        assert not any("rejected" in name or "margin" in name for name in line)
    assert lines[6]["loss"] < lines[1]["loss"]
    assert result["after"]["loss"] < result["before"]["loss"]
    assert (tmp_path / "hf/model.safetensors").is_file()
    cfg = config.from_json((tmp_path / "run_config.json").read_text())
    again = train.train(cfg, tmp_path, devices=ONE)  # finished: its score is read back
    assert again["after"] == pytest.approx(result["after"])


@pytest.mark.slow
def test_a_reference_cache_of_other_weights_is_refused(world, tmp_path):
    cfg = helpers.small(world)
    cfg.optim.max_steps = 1
    cfg.checkpoint.export_hf = False
    cfg.data.cache_dir = str(tmp_path / "data")
    cfg.reference.cache = str(tmp_path / "reference")
    train.train(cfg, tmp_path / "one", devices=ONE)
    cfg.seed = 1  # other random weights
    with pytest.raises(ValueError, match="weights: .* here, .* there"):
        train.train(cfg, tmp_path / "two", devices=ONE)


def test_another_plan_is_refused_on_resume(done):
    workdir, _ = done
    cfg = config.from_json((workdir / "run_config.json").read_text())
    cfg.rows.pairs_per_batch = 8
    with pytest.raises(ValueError, match="pack plan"):
        train.train(cfg, workdir, devices=ONE)


@pytest.fixture(scope="module")
def broken_run(world, tmp_path_factory):
    """A run on a folder where nearly every record is broken."""
    folder = tmp_path_factory.mktemp("broken")
    meta, expected = tiny_mmpr.write_broken(folder)
    cfg = helpers.small(world)
    cfg.data.meta = str(meta)
    cfg.data.max_image_pixels, cfg.data.max_left_out = 1_000_000, 1.0
    cfg.rows.short = config.RowShapeConfig(512, 400, 400, 4, 4)
    cfg.rows.rows_per_batch, cfg.optim.max_steps = 1, 1
    cfg.checkpoint.export_hf = False
    workdir = folder / "run"
    train.train(cfg, workdir, devices=ONE)
    return workdir, expected


@pytest.mark.slow
def test_broken_data_trains_on_with_the_exact_ledger(broken_run):
    workdir, expected = broken_run
    found = [(e.line, e.reason) for e in ledger.read(workdir / "ledger.jsonl")]
    assert found == expected
    line = helpers.losses(workdir)[1]
    assert line["ledger/left_out"] == len(expected)
    assert np.isfinite(line["loss"])
