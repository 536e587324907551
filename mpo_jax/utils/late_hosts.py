"""Ends a process whose other hosts do not come, before JAX aborts it without a word.

``jax.distributed`` waits for a coordinator that never comes, or for hosts that never
do, until its time-out, and then aborts the process (status 134) with the stack of its
C++ code. Here a timer comes first, which says what was waited for and where.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from mpo_jax.utils import peers, statuses

MARGIN_S = 30
"""By which JAX's own time-out is longer."""
_PROBE_S = 5.0
_LONGER_S = 3.0
"""For which the coordinator stays: the others look whether it is there."""


@contextlib.contextmanager
def given_up(seconds: float) -> Iterator[None]:
    """End the process with ``TRY_AGAIN`` if the body takes longer: JAX joins hosts."""
    timer = threading.Timer(seconds, _end, [seconds])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(seconds: float) -> None:
    joining = peers.joining()
    if joining.number == 0:
        time.sleep(_LONGER_S)
    peers.end(_message(joining, seconds), statuses.TRY_AGAIN)


def _message(joining: peers.Joining, seconds: float) -> str:
    within = f"within {seconds:g} s (hosts.connect_s)"
    if joining.address is None:
        return (
            f"this host found no coordinator {within}: neither the TPU's metadata nor "
            "the environment names one. Start all hosts, or set MPO_COORDINATOR"
        )
    ours = f"host {joining.number} of {joining.count}"
    if joining.number == 0:
        return (
            f"{ours}: not all other hosts came to this one, the coordinator at "
            f"{joining.address}, {within}. JAX does not tell which: look for a host "
            "whose program does not run, or whose log says that it cannot reach "
            "this address"
        )
    problem = _probed(joining.address)
    if problem is None:
        return (
            f"{ours}: the coordinator, host 0 at {joining.address}, answers, but not "
            f"all hosts came {within}: look for one whose program does not run, or "
            "whose log has another message"
        )
    return (
        f"{ours}: the coordinator, host 0 at {joining.address}, cannot be reached "
        f"{within}: {problem}. Look whether host 0's program runs and what its log "
        "says, and at name, port and firewall"
    )


def _probed(address: str) -> str | None:
    """Why nothing can be connected to at ``host:port``; None if it can."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _PROBE_S):
            return None
    except (OSError, ValueError) as error:
        return str(error)
