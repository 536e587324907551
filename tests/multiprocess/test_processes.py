"""Several real processes (gloo) train to the numbers of one."""

from __future__ import annotations

import shutil
import socket

import numpy as np
import pytest
import small_runs as helpers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def one(world, root, tmp_path_factory):
    """Config file and losses of the run that all others must equal."""
    tmp_path = tmp_path_factory.mktemp("one")
    cfg = helpers.small(world)
    cfg.rows.row_multiple = 4
    cfg.rows.pairs_per_batch = 8
    cfg.mesh.fsdp = -1
    cfg.optim.max_steps = 3
    cfg.checkpoint.every_steps, cfg.checkpoint.keep_last = 2, 2
    cfg.data.cache_dir = str(tmp_path / "data")
    path = helpers.write_config(tmp_path / "recipe.py", cfg)
    process = helpers.start_training(root, world, path, tmp_path / "one")
    output = helpers.output_of(process)
    assert process.returncode == 0, output
    return path, helpers.losses(tmp_path / "one")


def train_with(processes, root, world, path, workdir, *, devices):
    """Run to the end with several processes of `devices` fake devices each."""
    address = f"localhost:{free_port()}"
    started = [
        helpers.start_training(
            root,
            world,
            path,
            workdir,
            devices=devices,
            MPO_COORDINATOR=address,
            MPO_NUM_PROCESSES=str(processes),
            MPO_PROCESS_ID=str(i),
        )
        for i in range(processes)
    ]
    try:
        outputs = [helpers.output_of(process) for process in started]
    finally:
        for process in started:  # one that failed leaves the others waiting
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, outputs
    assert (workdir / "hf/model.safetensors").is_file()


def test_four_processes_change_nothing(world, root, one, tmp_path):
    path, expected = one
    train_with(4, root, world, path, tmp_path / "many", devices=1)
    assert_close(helpers.losses(tmp_path / "many"), expected)


def test_two_processes_change_nothing_and_one_goes_on(world, root, one, tmp_path):
    path, expected = one
    train_with(2, root, world, path, tmp_path / "many", devices=2)
    assert_close(helpers.losses(tmp_path / "many"), expected)
    # The same run as if it had been stopped after step 2.
    shutil.rmtree(tmp_path / "many/checkpoints/3")
    fewer = helpers.start_training(root, world, path, tmp_path / "many", devices=2)
    output = helpers.output_of(fewer)
    assert fewer.returncode == 0, output
    assert "after step 2" in output and (tmp_path / "many/checkpoints/3").is_dir()
    assert_close(helpers.losses(tmp_path / "many"), expected)


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for step, line in expected.items():
        for name in ("loss", "loss/sft", "delta", "grad_norm", "logps/rejected"):
            # Two steps of AdamW magnify rounding a little.
            np.testing.assert_allclose(
                found[step][name],
                line[name],
                rtol=1e-4,
                atol=1e-6,  # the first delta is 0 but for rounding
                err_msg=f"{step} {name}",
            )
