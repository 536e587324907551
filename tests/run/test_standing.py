"""Where a run stands is read from its files, whatever state they are in."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from mpo_jax.run import attempts, run_report, standing
from mpo_jax.utils import lease


@pytest.fixture
def workdir(tmp_path):
    """Killed after step 20, started again after the checkpoint of 16, now at 24."""
    attempts.begin(tmp_path, started=1000.0)
    attempts.know(tmp_path, first_step=0, num_steps=40)
    lines = [{"step": 0, "eval/loss": 2.0, "eval/rewards/accuracies": 0.5}]
    lines += [
        {
            "step": step,
            "loss": 1 / step,
            "time/step_s": 2.0,
            "throughput/pairs_per_s": 8.0,
            "ledger/left_out": 3.0,
            "ledger/image_missing": 3.0,
            "time_s": 100.0,
            "time/sum_step_s": 60.0,
        }
        for step in (8, 16, 20)
    ]
    path = tmp_path / attempts.METRICS
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(path, (1050, 1050))
    attempts.begin(tmp_path, started=1100.0)
    attempts.know(tmp_path, first_step=16, num_steps=40)
    (tmp_path / "checkpoints" / "16").mkdir(parents=True)
    (tmp_path / "checkpoints" / "24.orbax-checkpoint-tmp").mkdir()
    return tmp_path


def test_a_killed_start_ends_at_its_last_sign_of_life(workdir):
    first, second = attempts.read(workdir)
    assert (first.ended, first.how) == (1050.0, "killed")
    assert (second.ended, second.first_step, second.pid) == (None, 16, os.getpid())
    assert second.host == socket.gethostname()


def test_a_line_that_a_kill_cut_off_stops_nobody(workdir):
    """The next start drops it, and goes on behind the last whole line."""
    with open(workdir / attempts.FILE, "a") as file:
        file.write('{"ended": 12')
    assert len(attempts.read(workdir)) == 2
    attempts.begin(workdir, started=1200.0)
    starts = attempts.read(workdir)
    assert [one.how for one in starts] == ["killed", "killed", ""]
    assert [one.first_step for one in starts] == [0, 16, None]
    assert standing.read(workdir).num_steps == 40


def test_where_a_run_stands(workdir):
    attempts.end(workdir, "stopped, and saved")
    found = standing.read(workdir)
    assert (found.step, found.num_steps, found.checkpoint) == (20, 40, 16)
    assert found.left_s == 20 * 2.0
    assert found.trained_s == 20 * 2.0  # steps that were done twice count once
    assert found.state == "stopped, and saved"
    lasted = found.attempts[1].ended - 1100.0
    assert found.goodput == pytest.approx(40 / (50 + lasted))
    text = run_report.render(found, name="8b")
    for words in ("| step | 20 of 40 |", "killed", "| loss | 2.0000 |", "step 16"):
        assert words in text
    assert "missing 3, left" in text


def test_a_run_that_runs_and_one_that_has_vanished(workdir):
    assert standing.read(workdir).state.startswith("no sign of life; it was process")
    with lease.held(workdir, tell=print, lost=print) as holder:
        found = standing.read(workdir)
        assert found.state.startswith(f"running ({holder}; last sign 0 s ago")
        path = workdir / lease.FILE
        os.utime(path, (1000, 1000))
        assert "no sign of life" in standing.read(workdir).state


def test_a_run_that_prepares_its_data_and_one_that_failed_there(tmp_path):
    with lease.held(tmp_path, tell=print, lost=print) as holder:
        assert standing.read(tmp_path).state.startswith(f"running ({holder};")
        attempts.begin(tmp_path, started=1000.0)
        text = run_report.render(standing.read(tmp_path), name="8b")
        assert "| step | none yet |" in text
    attempts.end(tmp_path, "FileNotFoundError: meta.json")
    run_report.write(tmp_path, tmp_path, draw=True)
    text = (tmp_path / run_report.FILE).read_text("utf-8")
    assert "| state | FileNotFoundError: meta.json |" in text


@pytest.fixture
def killed(workdir):
    """Its process had the lease, and is killed; the lease is fresh."""
    code = (
        "import os, pathlib, sys\n"
        "from mpo_jax.utils import lease\n"
        "with lease.held(pathlib.Path(sys.argv[1]), tell=print, lost=print):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(workdir)], check=False)
    return workdir


def test_a_killed_process_of_this_host_is_seen_at_once(killed):
    found = standing.read(killed)
    assert found.holder is not None and found.sign_s < lease.STALE_S
    assert found.state == f"killed: {found.holder}, is there no more"
    assert not found.running
    mine = found.attempts[-1].pid  # of this test, which noted the starts
    path = killed / lease.FILE
    as_written = path.read_text()
    attempts.end(killed, "stopped, and saved")
    assert standing.read(killed).state.startswith("killed: ")  # another start's end
    lines = (killed / attempts.FILE).read_text()
    theirs = lines.replace(f'"pid": {mine}', f'"pid": {found.holder.pid}')
    (killed / attempts.FILE).write_text(theirs)
    assert standing.read(killed).state == "stopped, and saved"
    path.write_text(as_written.replace(socket.gethostname(), "another"))
    assert standing.read(killed).state.startswith("running (process")


def test_time_after_the_last_sign_of_life_is_not_spent(killed, monkeypatch):
    """Else goodput falls for ever behind a run that was killed."""
    os.utime(killed / lease.FILE, (1200, 1200))
    assert standing.read(killed).spent_s == pytest.approx(50 + 100, abs=1)
    monkeypatch.setattr(lease, "is_gone", lambda holder: False)  # of another host
    assert standing.read(killed).spent_s == pytest.approx(50 + 100, abs=1)


def test_a_directory_without_a_run_and_a_broken_file_are_named(tmp_path, workdir):
    with pytest.raises(ValueError, match=r"holds no training run.*--workdir"):
        standing.read(tmp_path / "elsewhere")
    with open(workdir / attempts.FILE, "a") as file:
        file.write("[1]\n")
    with pytest.raises(ValueError, match=r"attempts\.jsonl:6: not a start"):
        standing.read(workdir)


@pytest.mark.slow
def test_a_watch_ends_with_a_run_that_was_killed(killed, root):
    words = [sys.executable, str(root / "scripts/status.py"), str(killed), "--watch=1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "killed: process" in done.stdout


@pytest.mark.slow
def test_the_command_shows_it(workdir, root):
    done = subprocess.run(
        [sys.executable, str(root / "scripts/status.py"), str(workdir)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for words in ("20 of 40", "no sign of life", "Held-out pairs", "killed"):
        assert words in done.stdout
