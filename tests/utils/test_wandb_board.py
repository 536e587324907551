"""Metrics go to Weights & Biases as one run, and its trouble is not ours."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest

from mpo_jax import config
from mpo_jax.run import train
from mpo_jax.utils import metrics, wandb_board


@pytest.fixture
def service(monkeypatch):
    """Stands for the library: notes what it is given."""
    told = types.SimpleNamespace(runs=[], lines=[], finished=0, broken="")

    class Run:
        def define_metric(self, name, *, step_metric):
            assert (name, step_metric) == ("*", "step")

        def log(self, values):
            if told.broken:
                raise RuntimeError(told.broken)
            told.lines.append(values)

        def finish(self):
            told.finished += 1

    def init(**options):
        if told.broken:
            raise RuntimeError(told.broken)
        told.runs.append(options)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return told


def test_a_restart_is_the_same_run(service, tmp_path):
    for _ in range(2):
        board = wandb_board.Board("mpo", tmp_path, tmp_path, {"seed": 3})
        writer = metrics.Writer(tmp_path, tensorboard=False, board=board)
        writer.write(4, {"loss": 0.5})
        writer.close()
    first, second = service.runs
    assert first == second and first["resume"] == "allow" and len(first["id"]) == 16
    assert first["config"] == {"seed": 3} and first["project"] == "mpo"
    assert service.lines == [{"loss": 0.5, "step": 4}] * 2 and service.finished == 2


@pytest.mark.parametrize("place", ["gs://bucket/runs/8b", "/disk/runs/8b"])
def test_a_run_is_known_by_its_work_directory_wherever_its_files_lie(
    service, tmp_path, place
):
    """A host's own folder of an address is called host_0, and is elsewhere tomorrow."""
    cfg = config.RunConfig()
    cfg.log.wandb = "mpo"
    for home in ("mine", "another"):
        folder = tmp_path / home / "host_0"
        setup = types.SimpleNamespace(cfg=cfg, place=place, workdir=folder)
        train._board(setup)  # type: ignore[arg-type]
    first, second = service.runs
    assert first["name"] == "8b" and first["dir"] == str(tmp_path / "mine" / "host_0")
    assert first["id"] == second["id"]
    setup.place = "gs://another/runs/8b"
    train._board(setup)  # type: ignore[arg-type]
    assert service.runs[-1]["id"] != first["id"]


def test_its_trouble_ends_no_run(service, tmp_path, caplog):
    board = wandb_board.Board("mpo", tmp_path, tmp_path, {})
    service.broken = "503"
    board.write(1, {"loss": 1.0})
    assert "lacks step 1: 503" in caplog.text
    away = wandb_board.Board("mpo", tmp_path, tmp_path, {})
    away.write(1, {"loss": 1.0})
    away.close()
    assert "nothing goes to Weights & Biases: 503" in caplog.text


def test_a_library_that_is_not_there_is_said_at_once(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    wandb_board.check("")
    with pytest.raises(ValueError, match=r"log.wandb='mpo'.*'\.\[wandb\]'"):
        wandb_board.check("mpo")
