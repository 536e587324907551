"""The processes that do mathematics: one that forks, and its children that judge.

The first imports the algebra and warms it up, once; a child that died or has done its
share is then replaced in milliseconds. It has one thread, opens no device and is a new
program, not a fork of the caller, so its own forks are safe.

Each child speaks over its own socket, in JSON lines: ``{"n", "prediction", "truth"}``
in; ``{"began": n}`` and ``{"n", "outcome", "rule"}`` out. When a child dies, the
forking process says ``{"died": rule}`` in its place. Limits are the kernel's: a timer
of processor time, one of the clock, an address space; a long power of integers would
notice no other. Children end when their socket closes, however the caller ended.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from mpo_jax.verify import maths, maths_judge
from mpo_jax.verify.verdict import UNDECIDED, Verdict

_CLOSED, _RENEW, _MEMORY = 0, 3, 4
"""Exit statuses of children."""

_WARM = (
    *(("x^2+2x+1", "(x+1)^2"), (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}")),
    *((r"\{1, -2.5\}", r"\{-\frac{5}{2}, 1\}"), (r"2\pi", r"\sin 3"), ("x>3", "x<3")),
    *((r"y=\log_2 x", r"y=\ln x"), ("(1,2)", "(2,e^3)"), ("3x+y=1", "x+y=1")),
)
_MAX_LINE = 1 << 20

Judge = Callable[[str, str], Verdict]
"""Compares a prediction with the truth, and may raise anything."""


def main() -> None:
    """Serve on the sockets whose numbers the first argument gives, until they close."""
    settings = json.loads(sys.argv[1])
    judge = _warm(settings["judge"])
    gc.collect()
    gc.freeze()  # pages that children share are not written to by collections
    print(json.dumps({"ready": os.getpid()}), flush=True)
    with open(os.devnull, "rb+") as nothing:
        for fd in range(3):
            os.dup2(nothing.fileno(), fd)
    _serve(
        {fd: socket.socket(fileno=fd) for fd in settings["sockets"]},
        seconds=settings["seconds"],
        memory=settings["memory"],
        renew=settings["renew"],
        judge=judge,
    )


def _warm(name: str) -> Judge:
    """A judge of ``maths.JUDGES`` that has its imports and tables."""
    judge, pairs = maths_judge.judge, _WARM
    if name == maths.RELEASED:
        from mpo_jax.verify import maths_released  # as large as all the rest

        judge, pairs = maths_released.judge, maths_released.WARM
    for prediction, truth in pairs:
        judge(prediction, truth)
    return judge


def _serve(sockets: dict[int, socket.socket], **limits: Any) -> None:
    """One child for every socket, always."""
    children: dict[int, int] = {}
    for fd in sockets:
        children[_fork(fd, sockets, **limits)] = fd
    while children:
        pid, status = os.wait()
        fd = children.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        if code == _CLOSED:
            sockets.pop(fd).close()
            continue
        if code != _RENEW:
            with contextlib.suppress(OSError):  # the caller is gone; so will be we
                sockets[fd].sendall(b'\n{"died": "%s"}\n' % _rule(code).encode())
        children[_fork(fd, sockets, **limits)] = fd


def _rule(code: int) -> str:
    """Why a child died."""
    if code in (-signal.SIGPROF, -signal.SIGALRM):
        return maths.TIMEOUT
    return maths_judge.MEMORY if code == _MEMORY else maths_judge.ERROR


def _fork(fd: int, sockets: dict[int, socket.socket], **limits: Any) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        for other, mine in sockets.items():
            if other != fd:
                mine.close()
        status = _judge_all(sockets[fd], **limits)
    except MemoryError:
        status = _MEMORY
    except OSError:  # the caller has closed its end
        status = _CLOSED
    finally:
        os._exit(status)


def _judge_all(
    line: socket.socket, *, seconds: float, memory: int, renew: int, judge: Judge
) -> int:
    """Judge what comes, until the end of the line or of a child's share.

    Args:
      seconds: of processor time, per answer.
      memory: bytes of address space beyond what there is.
      renew: answers of a child.
      judge: of every answer.

    Returns:
      Exit status.
    """
    limit = _address_space() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for _ in range(renew):
        asked = _read(line)
        if asked is None:
            return _CLOSED
        line.sendall(b'{"began": %d}\n' % asked["n"])
        signal.setitimer(signal.ITIMER_REAL, 10 * seconds)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        verdict = _judged(judge, asked["prediction"], asked["truth"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        said = {"n": asked["n"], "outcome": verdict.outcome, "rule": verdict.rule}
        line.sendall(json.dumps(said).encode() + b"\n")
    return _RENEW


def _judged(judge: Judge, prediction: str, truth: str) -> Verdict:
    try:
        return judge(prediction, truth)
    except MemoryError:
        raise
    except Exception:  # the algebra's own faults are many; the answer stays undecided
        return Verdict(UNDECIDED, maths_judge.ERROR)


def _read(line: socket.socket) -> dict[str, Any] | None:
    """The next request; None at the end. No more than one is ever under way."""
    found = b""
    while not found.endswith(b"\n"):
        more = line.recv(_MAX_LINE)
        if not more:
            return None
        found += more
    return json.loads(found)


def _address_space() -> int:
    """Bytes of this process's address space."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
