"""Mathematics in processes of their own, with limits of time and memory.

Whatever a model writes ends: the kernel stops a worker that takes too long or too much
(``maths_worker``). The caller's process imports no algebra and sets no signal, and any
of its threads may ask.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.metadata
import json
import os
import pathlib
import queue
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from typing import Any

from mpo_jax.verify.verdict import OUTCOMES, UNDECIDED, Verdict

TIMEOUT, ERROR = "maths_timeout", "maths_error"

OURS, RELEASED = JUDGES = ("ours", "released")
"""By what workers judge: ``maths_judge``, or ``maths_released`` for comparison."""

MAX_CHARACTERS = 8192
"""Longer answers are no mathematics to us (``maths_unparsed``)."""
MAX_WORKERS = 256

_START_S = 120.0
_TRIES = 3
_ROOT = pathlib.Path(__file__).resolve().parents[2]


def version() -> str:
    """Of the algebra: verdicts depend on it."""
    names = ("math-verify", "latex2sympy2-extended", "sympy")
    return " ".join(f"{name}-{importlib.metadata.version(name)}" for name in names)


class Mathematics:
    """Workers that compare two mathematical answers; use it in ``with`` or close it.

    They start with the first question. Any thread may ask; several threads are answered
    side by side.
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        seconds: float = 0.5,
        memory: int = 96 << 20,
        renew: int = 10_000,
        judge: str = OURS,
    ):
        """
        Args:
          workers: answers that are judged at a time.
          seconds: of processor time for one answer; ten times as much by the clock.
          memory: bytes that a worker may take beyond what it has at its start.
          renew: answers after which a worker is replaced, since the algebra leaks.
          judge: one of ``JUDGES``.

        Raises:
          ValueError: an argument is out of range.
        """
        if judge not in JUDGES:
            raise ValueError(f"judge={judge!r}: use one of {', '.join(JUDGES)}")
        for name, value, low, high in (
            ("workers", workers, 1, MAX_WORKERS),
            ("seconds", seconds, 0.01, 3600.0),
            ("memory", memory, 16 << 20, 1 << 40),
            ("renew", renew, 1, 1 << 40),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name}={value!r}: must be from {low} to {high}")
        self._workers, self._seconds = workers, seconds
        self._memory, self._renew, self._judge = memory, renew, judge
        self._lock = threading.Lock()
        self._processes: _Processes | None = None
        self._free: queue.Queue[int] = queue.Queue()
        for i in range(workers):
            self._free.put(i)
        self._askers = concurrent.futures.ThreadPoolExecutor(workers, "mathematics")
        self._number = 0
        self._closed = False

    def check(self, prediction: str, truth: str) -> Verdict:
        """Compare an answer with the true one, both as text.

        Returns:
          Right or wrong by the rule ``maths``, or undecided: ``maths_unparsed`` (no
          expression, or one of two meanings), ``maths_shape`` (not comparable),
          ``maths_rounded``, ``maths_unsettled``, ``maths_timeout``, ``maths_memory``,
          ``maths_error`` (the algebra failed or its worker died). Those that judge by
          the released rules say right or wrong by ``latex``, or undecided:
          ``latex_unparsed``, or one of the last three.

        Raises:
          RuntimeError: workers cannot be started; says what they wrote.
          ValueError: it is closed.
        """
        if max(len(prediction), len(truth)) > MAX_CHARACTERS:
            return Verdict(UNDECIDED, "maths_unparsed")
        place = self._free.get()
        try:
            for _ in range(_TRIES):
                processes = self._running()
                try:
                    return processes.ask(place, self._next(), prediction, truth)
                except _Gone as gone:
                    self._drop(processes)
                    if gone.rule:
                        return Verdict(UNDECIDED, gone.rule)
            return Verdict(UNDECIDED, ERROR)
        finally:
            self._free.put(place)

    def check_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        """Compare (prediction, truth) with all workers; in the order of the pairs."""
        if self._closed:
            raise ValueError("Mathematics is closed; make another")
        return list(self._askers.map(lambda pair: self.check(*pair), pairs))

    def pids(self) -> list[int]:
        """Process ids of workers that run: the one that forks, then the others."""
        processes = self._processes
        return [] if processes is None else processes.pids()

    def close(self) -> None:
        """End the workers; what is under way is answered first."""
        self._askers.shutdown()
        with self._lock:
            self._closed = True
            processes, self._processes = self._processes, None
        if processes is not None:
            processes.close()

    def __enter__(self) -> Mathematics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    def _running(self) -> _Processes:
        """The processes, started where there are none."""
        with self._lock:
            if self._closed:
                raise ValueError("Mathematics is closed; make another")
            if self._processes is None:
                self._processes = _Processes(
                    self._workers,
                    seconds=self._seconds,
                    memory=self._memory,
                    renew=self._renew,
                    judge=self._judge,
                )
            return self._processes

    def _drop(self, processes: _Processes) -> None:
        """Forget processes that are gone; others may have done so before."""
        with self._lock:
            if self._processes is processes:
                self._processes = None
        processes.close()


class _Gone(Exception):
    """The workers do not answer; `rule` where the question may be to blame."""

    def __init__(self, rule: str = ""):
        super().__init__(rule)
        self.rule = rule


class _Processes:
    """The forking process, its children, and a socket to each of those."""

    def __init__(
        self, workers: int, *, seconds: float, memory: int, renew: int, judge: str
    ):
        pairs = [socket.socketpair() for _ in range(workers)]
        theirs = [other.fileno() for _, other in pairs]
        self._patience = 20 * seconds + 10  # then not even the kernel has stopped it
        self._lines = [_Line(mine) for mine, _ in pairs]
        settings = {
            "sockets": theirs,
            "seconds": seconds,
            "memory": memory,
            "renew": renew,
            "judge": judge,
        }
        path = os.pathsep.join([str(_ROOT), *(entry for entry in sys.path if entry)])
        with tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "mpo_jax.verify.maths_worker"),
                    json.dumps(settings),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=theirs,
                start_new_session=True,  # Ctrl-C is the caller's to handle
                env=os.environ | {"PYTHONPATH": path},
            )
            for _, other in pairs:
                other.close()
            self._wait_until_ready(errors)

    def _wait_until_ready(self, errors: Any) -> None:
        out = self._process.stdout
        assert out is not None
        told = b""
        if select.select([out], [], [], _START_S)[0]:
            told = out.readline()
        out.close()
        if told.startswith(b'{"ready"'):
            return
        self.close()
        errors.seek(0)
        words = errors.read()[-2000:].decode("utf-8", "replace").strip()
        raise RuntimeError(
            f"workers for mathematics did not start: {words or 'they said nothing'}. "
            "Is math-verify installed (pip install -e .)?"
        )

    def ask(self, place: int, number: int, prediction: str, truth: str) -> Verdict:
        """One question to one worker.

        Raises:
          _Gone: nobody answers.
        """
        line = self._lines[place]
        asked = {"n": number, "prediction": prediction, "truth": truth}
        try:
            with line.used:
                return self._answer(line, asked)
        except TimeoutError as error:
            raise _Gone(TIMEOUT) from error
        except OSError as error:
            raise _Gone() from error

    def _answer(self, line: _Line, asked: dict[str, Any]) -> Verdict:
        """Ask, and once more where a worker died before it began."""
        began, sent = False, 1
        line.send(asked)
        while sent <= _TRIES:
            said = line.read(self._patience)
            if said.get("n") == asked["n"] and said.get("outcome") in OUTCOMES:
                return Verdict(said["outcome"], str(said["rule"]))
            began = began or said.get("began") == asked["n"]
            if "died" in said:
                if began:
                    return Verdict(UNDECIDED, str(said["died"]))
                line.send(asked)  # it died before, and may have taken it along
                sent += 1
        return Verdict(UNDECIDED, ERROR)

    def pids(self) -> list[int]:
        """Of the forking process and its children."""
        mother = self._process.pid
        children = pathlib.Path(f"/proc/{mother}/task/{mother}/children")
        try:
            found = children.read_text(encoding="ascii").split()
        except OSError:  # it has just ended
            return []
        return [mother, *map(int, found)]

    def close(self) -> None:
        """Close the sockets, at which all end; kill what does not."""
        for line in self._lines:
            line.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()


class _Line:
    """JSON lines over a socket.

    Attributes:
      used: held by whoever asks.
    """

    def __init__(self, end: socket.socket):
        self._socket = end
        self._rest = b""
        self.used = threading.Lock()

    def send(self, value: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(value).encode() + b"\n")

    def read(self, timeout: float) -> dict[str, Any]:
        """The next object; what a killed worker has torn is passed over.

        Raises:
          TimeoutError: nothing came for `timeout` seconds.
          ConnectionError: nobody is there.
        """
        self._socket.settimeout(timeout)
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if not newline:
                more = self._socket.recv(65_536)
                if not more:
                    raise ConnectionResetError("the workers are gone")
                self._rest += more
                continue
            self._rest = rest
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                return found

    def close(self) -> None:
        """Wake whoever asks; close the socket when they have left it.

        Its number is free at once for the next socket that is made, and a thread that
        asks here would wait there.
        """
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self.used:
            self._socket.close()
