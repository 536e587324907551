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


@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)])
def test_processes_change_nothing(world, root, tmp_path, processes, devices):
    cfg = helpers.small(world)
    cfg.rows.row_multiple = 4
    cfg.rows.pairs_per_batch = 8
    cfg.mesh.fsdp = -1
    cfg.optim.max_steps = 3
    cfg.checkpoint.every_steps, cfg.checkpoint.keep_last = 2, 2
    cfg.data.cache_dir = str(tmp_path / "data")
    path = helpers.write_config(tmp_path / "recipe.py", cfg)
    one = helpers.start_training(root, world, path, tmp_path / "one", devices=1)
    output = helpers.output_of(one)
    assert one.returncode == 0, output

    address = f"localhost:{free_port()}"
    started = [
        helpers.start_training(
            root,
            world,
            path,
            tmp_path / "many",
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
        for process in started:  # one that failed leaves the other waiting
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, outputs
    # The same run as if it had been stopped after step 2, gone on with by one process.
    shutil.copytree(tmp_path / "many", tmp_path / "fewer")
    shutil.rmtree(tmp_path / "fewer/checkpoints/3")
    fewer = helpers.start_training(root, world, path, tmp_path / "fewer", devices=2)
    output = helpers.output_of(fewer)
    assert fewer.returncode == 0, output
    assert "after step 2" in output
    expected = helpers.losses(tmp_path / "one")
    assert_close(helpers.losses(tmp_path / "many"), expected)
    assert_close(helpers.losses(tmp_path / "fewer"), expected)
    assert (tmp_path / "many/hf/model.safetensors").is_file()


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
