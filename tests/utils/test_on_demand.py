"""``kill -USR1`` shows where a program stands and never harms it."""

from __future__ import annotations

import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from mpo_jax.utils import on_demand, watchdog


def _ask(then) -> None:
    """Signal a thread that is not the main one, which goes on with what it does."""

    def ask() -> None:
        time.sleep(0.3)  # until that one waits
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        then()

    threading.Thread(target=ask).start()


def test_stacks_come_while_the_main_thread_waits_in_native_code(tmp_path):
    """As inside a collective: no handler of Python's would run before its end."""
    path, seen = watchdog.stacks_of(tmp_path, 3), []
    reading, writing = os.pipe()

    def look() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not seen:
            text = path.read_text("utf-8") if path.exists() else ""
            if "test_on_demand.py" in text:
                seen.append(text)
            time.sleep(0.01)
        os.write(writing, b"x")

    with on_demand.signals(tmp_path, number=3) as wish:
        _ask(look)
        ctypes.CDLL(None).read(reading, ctypes.create_string_buffer(1), 1)
        assert wish.taken() and not wish.taken()
    assert seen and "asked for by SIGUSR1" in seen[0]


def test_nobody_asked(tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    with on_demand.signals(tmp_path, number=0) as wish:
        assert not wish.taken()
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGUSR1) == before


def test_signals_of_an_embedding_event_loop_reach_it(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing)
    usual = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        with on_demand.signals(tmp_path, number=0):
            os.kill(os.getpid(), signal.SIGUSR2)
        assert os.read(reading, 10) == bytes([signal.SIGUSR2])
        assert signal.set_wakeup_fd(writing) == writing
    finally:
        signal.signal(signal.SIGUSR2, usual)
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)
    assert not list(tmp_path.iterdir())


def test_the_end_does_not_wait_for_a_child_that_has_a_copy_of_all(tmp_path):
    with on_demand.signals(tmp_path, number=0):
        child = os.fork()
        if not child:
            signal.pause()
            os._exit(0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_folder_that_cannot_be_written_to_ends_nothing(tmp_path, caplog):
    (tmp_path / watchdog.FOLDER).write_text("a file")
    with on_demand.signals(tmp_path, number=0):
        for number in range(2):  # it listens on after the first
            os.kill(os.getpid(), signal.SIGUSR1)
            deadline = time.monotonic() + 120
            while caplog.text.count("no stacks: ") <= number:
                assert time.monotonic() < deadline
                time.sleep(0.01)


BUSY = """
import os, pathlib, signal, sys, threading, time
from mpo_jax.utils import on_demand

def work():
    number = 0
    while True:
        number += 1
        name = f"f{number % 7}"
        code = f"def {name}(n):\\n  g = lambda: n and {name}(n - 1)\\n  return g()"
        exec(code + f"\\n{name}(150)", {})

threading.Thread(target=work, daemon=True).start()
with on_demand.signals(pathlib.Path(sys.argv[1]), number=0):
    print("listens", flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
    while True:
        time.sleep(1)
"""


@pytest.mark.slow
def test_a_program_whose_threads_run_on_survives_many(tmp_path):
    """A handler that reads stacks while they change dies of some of these."""
    program = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(tmp_path)],
        cwd=pathlib.Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "listens\n"
    for _ in range(150):
        program.send_signal(signal.SIGUSR1)
        time.sleep(0.01)
    program.communicate("")
    assert program.returncode == 0
    text = watchdog.stacks_of(tmp_path, 0).read_text("utf-8")
    assert text.count("asked for by SIGUSR1") > 3
