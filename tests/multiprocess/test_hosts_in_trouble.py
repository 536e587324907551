"""What happens to one host is told by all, and ends all, with the right status."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import time

import pytest
import several

pytestmark = pytest.mark.slow

PROGRAM = pathlib.Path(__file__).parents[1] / "hosts_in_trouble.py"


@pytest.fixture
def run(tmp_path):
    """Runs so many hosts; status and output of each."""

    def run(count: int, trouble: str, *, host: int = 1) -> list[tuple[int, str]]:
        return several.ended(start(tmp_path, count, trouble, host))

    return run


def start(
    workdir: pathlib.Path, count: int, trouble: str, host: int
) -> list[subprocess.Popen]:
    flags = (f"--trouble={trouble}", f"--host={host}", f"--workdir={workdir}")
    return several.start([sys.executable, str(PROGRAM), *flags], count)


@pytest.mark.parametrize("count, host", [(2, 1), (4, 2), (2, 0)])
def test_an_exception_of_one_host_ends_all_with_1_and_is_named(run, count, host):
    """No status that launchers restart: the same command would fail again."""
    found = run(count, "explained", host=host)
    for number, (status, output) in enumerate(found):
        assert status == 1, output
        mine = f"host {number} of {count}: "
        if number != host:
            mine += f"ends, because host {host} failed: "
        assert mine + "records.jsonl:17: image is broken" in output
        assert "Traceback" not in output


@pytest.mark.parametrize(
    "trouble, status, words",
    [
        ("missing", 1, "/nowhere/image.png: No such file or directory"),
        ("unexpected", 1, "KeyError: 'a bug'"),
        ("storage", 75, "the bucket is away"),
        ("leaves", 1, "left its program with 3"),
        ("leaves with 0", 1, "left its program with 0"),
        ("no Exception", 1, "GeneratorExit: a bug"),
    ],
)
def test_every_kind_of_error_has_its_status(run, trouble, status, words):
    for number, (found, output) in enumerate(run(2, trouble)):
        assert found == status, output
        assert words in output
        trace = trouble in ("unexpected", "no Exception") and number == 1
        assert ("Traceback" in output) == trace


def test_hosts_whose_output_nobody_reads_end_the_same(tmp_path):
    """A ``tee`` that is killed, a connection that is lost."""
    processes = start(tmp_path, 2, "unheard", 1)
    try:
        for process in processes:
            assert process.stdout is not None
            while process.stdout.readline() != "started\n":
                assert process.poll() is None
            process.stdout.close()
        assert [process.wait(60) for process in processes] == [1, 1]
    finally:
        for process in processes:
            process.kill()


def test_an_error_that_all_hosts_raise_is_no_news(run):
    for status, output in run(2, "all"):
        assert status == 1 and "the same on all hosts" in output


@pytest.mark.parametrize("host", [0, 1])
def test_a_killed_host_ends_the_others_with_a_status_that_is_restarted(run, host):
    found = run(2, "killed", host=host)
    assert found[host][0] == -signal.SIGKILL
    status, output = found[1 - host]
    assert status in (75, -signal.SIGABRT), output
    # JAX's message is the last word. Stacks of all threads would bury it, and reading
    # them while they run on has ended hosts with SIGSEGV instead.
    assert "Thread 0x" not in output


def test_a_frozen_host_is_given_up(tmp_path):
    processes = start(tmp_path, 2, "frozen", 1)
    try:
        assert processes[0].wait(120) in (75, -signal.SIGABRT)
    finally:
        processes[1].send_signal(signal.SIGCONT)
        several.ended(processes)


def ask_where_it_stands(process: subprocess.Popen) -> None:
    """SIGUSR1, as soon as the program is no longer Python's own start."""
    status = pathlib.Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        mask = status.read_text().partition("SigIgn:")[2].split()[0]
        if int(mask, 16) & 1 << (signal.SIGUSR1 - 1):
            process.send_signal(signal.SIGUSR1)
            return
        time.sleep(0.01)


def test_hosts_that_never_come_end_those_that_wait():
    """At once: one whose coordinator is not there, and two of three."""
    command = [sys.executable, str(PROGRAM), "--connect=6"]
    alone = several.start(
        command, 1, env={"MPO_NUM_PROCESSES": "4", "MPO_PROCESS_ID": "2"}
    )
    two = several.start(command, 2, env={"MPO_NUM_PROCESSES": "3"})
    ask_where_it_stands(two[1])
    (first, second), ((status, output),) = several.ended(two), several.ended(alone)
    assert (status, first[0], second[0]) == (75, 75, 75)
    assert "within 6 s (hosts.connect_s)" in output
    assert "host 2 of 4: the coordinator, host 0 at localhost:" in output
    assert "cannot be reached" in output and "Connection refused" in output
    assert "host 0 of 3: not all other hosts came to this one" in first[1]
    assert "host 1 of 3: the coordinator, host 0 at localhost:" in second[1]
    assert "answers, but not all hosts came within 6 s" in second[1]


def test_a_host_that_differs_is_named_with_the_field(run):
    for number, (status, output) in enumerate(run(2, "differs")):
        assert status == 1, output
        rates = "config.optim.learning_rate is 3e-06 here and 5e-06 there"
        assert rates in output
        assert ("host 1 failed" in output) == (number == 0)


def test_jax_itself_is_set_alike_on_all_hosts(run):
    for status, output in run(2, "other keys"):
        assert status == 1, output
        assert "jax_default_prng_impl is 'rbg' here and 'threefry2x32' there" in output


def test_a_host_that_works_while_the_others_wait_is_not_stuck(run):
    for status, output in run(2, "busy"):
        assert status == 0 and "done" in output, output


def test_hosts_that_end_late_are_waited_for(run):
    for status, output in run(2, "late"):
        assert status == 0 and "done" in output, output


def test_a_host_that_does_not_see_the_work_directory_is_named(run):
    for number, (status, output) in enumerate(run(2, "unshared")):
        assert status == 1, output
        assert "does not see the first one's lease.json" in output
        assert ("host 1 failed" in output) == (number == 0)


def test_a_work_directory_that_vanishes_ends_all_and_nothing_starts_them_again(
    tmp_path,
):
    """The first host has the lease, and looks before it saves."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    found = several.ended(start(workdir, 2, "vanished", 0))
    for number, (status, output) in enumerate(found):
        assert status == 1, output
        assert "lease.json has vanished: was the directory unmounted" in output
        assert ("host 0 failed" in output) == (number == 1)
    assert not workdir.exists()


def test_a_host_that_hangs_ends_all_and_all_say_where_they_stand(run, tmp_path):
    waits = ("the devices, in step 8", "batch 7 of its own loader")
    for number, (status, output) in enumerate(run(2, "stuck")):
        assert status == 75, output
        assert f"host has waited for {waits[number]} for " in output
        stacks = (tmp_path / "stacks" / f"host_{number}.txt").read_text("utf-8")
        assert "hosts_in_trouble.py" in stacks and waits[number] in stacks
