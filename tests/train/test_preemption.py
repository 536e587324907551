"""SIGTERM is noted, handed back, and left alone where it cannot be caught."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from mpo_jax.train import preemption
from mpo_jax.utils import statuses


def test_a_signal_is_noted_and_the_handler_handed_back():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.Preemption() as preempted:
        assert not preempted.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preempted.reached(2) and preempted.reached(3)
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_signals_are_the_embedding_programs():
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with preemption.Preemption() as preempted:
            found.append((preempted.reached(1), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_is_a_wish_and_twice_an_order():
    original = signal.getsignal(signal.SIGINT)
    # In the background of a shell it is ignored.
    before = signal.default_int_handler
    signal.signal(signal.SIGINT, before)
    try:
        _interrupt_twice()
        assert signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGINT, original)


def _interrupt_twice():
    with preemption.Preemption() as preempted:
        os.kill(os.getpid(), signal.SIGINT)
        assert preempted.reached(1) and preempted.status == statuses.INTERRUPTED
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
