"""Several real processes (gloo) train to the numbers of one, wherever devices lie."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys

import fake_gcs
import numpy as np
import pyarrow.parquet as pq
import pytest
import small_runs as helpers
import speaking

from mpo_jax import config
from mpo_jax.run import attempts

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def recipe(world, cache_dir: pathlib.Path, *, tensor: int = 1):
    cfg = helpers.small(world)
    cfg.rows.row_multiple = 4
    cfg.rows.pairs_per_batch = 8
    cfg.mesh.fsdp, cfg.mesh.tensor = -1, tensor
    cfg.optim.max_steps = 3
    cfg.checkpoint.every_steps, cfg.checkpoint.keep_last = 2, 2
    cfg.data.cache_dir = str(cache_dir)
    cfg.data.eval_meta = str(world["eval_meta"])
    return cfg


@pytest.fixture(scope="module")
def one(world, root, tmp_path_factory):
    """Config file, metrics and cached log-probs that all other runs must equal."""
    tmp_path = tmp_path_factory.mktemp("one")
    cfg = helpers.with_questions(
        recipe(world, tmp_path / "data"), tmp_path / "questions"
    )
    path = helpers.write_config(tmp_path / "recipe.py", cfg)
    process = helpers.start_training(root, world, path, tmp_path / "one")
    output = helpers.output_of(process)
    assert process.returncode == 0, output
    asked = said(tmp_path / "one")
    assert set(asked) == {"step_0", "step_2", "step_3"}
    assert len(set(asked["step_0"])) > 1  # not the same answer to every question
    return path, results(tmp_path / "one"), cached(tmp_path / "data"), asked


def results(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
    """Metrics by step, those of held-out pairs too."""
    return helpers.losses(workdir, held_out=True)


def said(workdir: pathlib.Path) -> dict[str, list[str]]:
    """Answers to the benchmark's questions in order, by step."""
    return {
        path.parents[1].name: [x["text"] for x in speaking.read_lines(path)]
        for path in workdir.glob("benchmarks/step_*/answers/gsm8k*tokens.jsonl")
    }


def cached(cache_dir: pathlib.Path) -> dict[tuple[int, int], tuple[float, float]]:
    """Reference log-probs by number of records of the data set, and record."""
    found = {}
    for directory in (cache_dir / "reference").iterdir():
        parts = [pq.read_table(path).to_pylist() for path in directory.glob("part-*")]
        rows = [row for part in parts for row in part]
        for row in rows:
            found[len(rows), row["record"]] = (row["chosen"], row["rejected"])
    return found


def train_with(
    processes,
    root,
    world,
    path,
    workdir,
    *,
    devices,
    script: str = "scripts/train.py",
    **env: str,
):
    """Run to the end with several processes of `devices` fake devices each."""
    address = f"localhost:{free_port()}"
    started = [
        helpers.start_training(
            root,
            world,
            path,
            workdir,
            devices=devices,
            script=script,
            MPO_COORDINATOR=address,
            MPO_NUM_PROCESSES=str(processes),
            MPO_PROCESS_ID=str(i),
            **env,
        )
        for i in range(processes)
    ]
    try:
        outputs = [helpers.output_of(process) for process in started]
    finally:
        for process in started:  # one that failed leaves the others waiting
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, outputs


@pytest.mark.parametrize(
    "processes",
    [
        2,  # each process holds every row: tensor groups lie across processes
        4,  # pairs of processes share rows that lie apart
    ],
)
def test_processes_whose_devices_lie_apart(processes, world, root, one, tmp_path):
    """Each computes the reference itself: every record must get its own numbers."""
    _, metrics, logps, asked = one
    cfg = recipe(world, tmp_path / "data", tensor=2)
    if processes == 2:
        cfg = helpers.with_questions(cfg, tmp_path / "questions")
    path = tmp_path / "recipe.json"
    path.write_text(cfg.to_json(), encoding="utf-8")
    train_with(
        processes,
        root,
        world,
        path,
        tmp_path / "many",
        devices=2,
        script="tests/interleaved_training.py",
    )
    assert (tmp_path / "many/hf/model.safetensors").is_file()
    assert_close(results(tmp_path / "many"), metrics)
    if cfg.eval.every:
        assert said(tmp_path / "many")["step_0"] == asked["step_0"]
    assert_same_records(cached(tmp_path / "data"), logps)


def assert_same_records(found, expected) -> None:
    assert found.keys() == expected.keys() and len(expected) == 24 + 8
    for record, pair in expected.items():
        np.testing.assert_allclose(found[record], pair, rtol=1e-5, err_msg=str(record))


def test_two_processes_share_a_bucket_alone_and_one_goes_on(world, root, one, tmp_path):
    """Data, index, log-probs, answers and checkpoints lie in it, and nowhere else.

    Neighbouring rows are on different processes.
    """
    path, expected, logps, asked = one
    cfg = config.from_json((path.parent / "one/run_config.json").read_text())
    cfg.data.cache_dir, cfg.log.upload_seconds = "", 1e6
    cfg.data.meta = f"gs://bucket/MMPR/{world['meta'].name}"
    cfg.data.eval_meta = f"gs://bucket/MMPR/{world['eval_meta'].name}"
    of_two, of_one = tmp_path / "recipe.json", tmp_path / "recipe.py"
    of_two.write_text(cfg.to_json(), encoding="utf-8")
    helpers.write_config(of_one, cfg)
    with fake_gcs.serve() as (url, bucket):
        fake_gcs.upload(world["meta"].parent, bucket, "MMPR")
        env = fake_gcs.environment(url)
        machines = {"XDG_CACHE_HOME": str(tmp_path / "machines")}
        train_with(
            2,
            root,
            world,
            of_two,
            "gs://bucket/many",
            devices=2,
            script="tests/interleaved_training.py",
            **env,
            **machines,
        )
        found = fake_gcs.arrived(bucket, "many/", tmp_path / "found")
        assert_close(results(found), expected)
        assert said(found).keys() == asked.keys()
        assert said(found)["step_0"] == asked["step_0"]
        assert_same_records(cached(found / "data"), logps)
        for name in ("hf/model.safetensors", "report.md"):
            assert (found / name).is_file()
        assert not (found / "lease.json").exists()
        told = subprocess.run(
            [sys.executable, str(root / "scripts/status.py"), "gs://bucket/many"],
            env=os.environ | env,
            capture_output=True,
            text=True,
        )
        assert told.returncode == 0 and "finished" in told.stdout, told
        # The same run as if it had been stopped after step 2, on another machine.
        for name in [n for n in bucket.objects if n.startswith("many/checkpoints/3/")]:
            del bucket.objects[name]
        machines = {"XDG_CACHE_HOME": str(tmp_path / "another")}
        fewer = helpers.start_training(
            root, world, of_one, "gs://bucket/many", devices=2, **env, **machines
        )
        output = helpers.output_of(fewer)
        assert fewer.returncode == 0 and "after step 2" in output, output
        assert "reference log-probs" not in output  # all were there
        found = fake_gcs.arrived(bucket, "many/", tmp_path / "again")
    assert (found / "checkpoints/3").is_dir()
    assert_close(results(found), expected)
    starts = attempts.read(found)
    assert [(one.first_step, one.how) for one in starts] == [
        (0, "finished"),
        (2, "finished"),
    ]


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    names = ["loss", "loss/sft", "delta", "grad_norm", "logps/rejected", "pairs"]
    names += ["loss/bco_pair", "rewards/margins", "eval/loss", "eval/logps/chosen"]
    for step, line in expected.items():
        for name in names:
            if name not in line:
                continue  # held-out pairs are scored before and after alone
            # Two steps of AdamW magnify rounding a little.
            np.testing.assert_allclose(
                found[step][name],
                line[name],
                rtol=1e-4,
                atol=2e-6,  # the first delta and margin are 0 but for rounding
                err_msg=f"{step} {name}",
            )
