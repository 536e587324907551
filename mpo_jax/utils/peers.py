"""What the processes of a run tell each other beside their arrays.

They talk through the key-value store of JAX's coordination service, which the first
process holds: it works while a collective hangs, and before anything compiles. A
process that fails says so there; the others, wherever they wait, print it and end, too.

JAX has no public name for that store; this is the only module that reaches for it.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax

from mpo_jax.utils import statuses

_END, _LEFT = "mpo/end", "mpo/left"
_WELL = "well"
_LOOK_S = 2.0
_LONGEST_END_S = 86_400.0
_LEAVE_S = 15.0
"""How long the first process waits for the others to have read why they end."""
_LONGEST = 4000
"""Characters of a message."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a run ends.

    Attributes:
      host: number of the process that failed.
      message: for people, one line or more.
      status: with which all processes end.
      stacks: whether every process is to show where it stands.
    """

    host: int
    message: str
    status: int = statuses.FAILED
    stacks: bool = False


class Peers:
    """The other processes.

    Args:
      client: of the coordination service.
      number, count: of this process, and of all.
      heartbeat_s: after which JAX ends all if one shows no life.
    """

    def __init__(self, client: Any, number: int, count: int, *, heartbeat_s: float):
        self._client, self.number, self.count = client, number, count
        self._heartbeat_s = heartbeat_s
        self._over = threading.Event()
        self._watcher = threading.Thread(
            target=self._watch, name="mpo-peers", daemon=True
        )
        self._leaving = threading.Lock()
        self.stands: Callable[[], str] | None = None
        """Writes the stacks of all threads, says what is waited for; the watchdog's."""

    def watch(self) -> None:
        """From now on, end this process where another one fails."""
        self._watcher.start()
        atexit.register(self._stop)

    def _stop(self) -> None:
        """A thread that waits inside JAX must not meet the end of the interpreter."""
        self._over.set()
        self._watcher.join()

    def finish(self) -> None:
        """Wait until all have come to the end of their program.

        JAX's own wait is short, so that a lost host is noticed; one that still writes
        results is not lost.
        """
        self.meet("end", timeout_s=_LONGEST_END_S)
        if self.number == 0:
            self._client.key_value_set(_END, _WELL)
        self._stop()

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                text = self._client.blocking_key_value_get(_END, int(_LOOK_S * 1000))
            except jax.errors.JaxRuntimeError:
                # Nobody failed yet, or the service is gone: then JAX ends us itself.
                self._over.wait(0.1)
                continue
            if text != _WELL:
                failure = Failure(**json.loads(text))
                if failure.host != self.number:
                    self._follow(failure)
            return

    def _follow(self, failure: Failure) -> NoReturn:
        """End as another process has told."""
        self._leaving.acquire()
        if failure.stacks and self.stands is not None:
            self._say(self.stands())
        self._say(f"ends, because host {failure.host} failed: {failure.message}")
        self._leave(failure.status)

    def fail(
        self, message: str, status: int = statuses.FAILED, *, stacks: bool = False
    ) -> NoReturn:
        """Print why this process fails, tell the others, and end all of them.

        Nothing after it runs, so that no barrier at the end of a program waits for
        those that never come. Where another process failed first, that one's status
        holds for all.
        """
        self._leaving.acquire()  # the watching thread ends the process as well
        self._say(message)
        failure = Failure(self.number, message[:_LONGEST], status, stacks)
        try:
            self._client.key_value_set(_END, json.dumps(dataclasses.asdict(failure)))
        except jax.errors.JaxRuntimeError as error:
            first = self._first_failure()
            if first is None:
                self._say(f"cannot tell the others: {error}")
            else:
                status = first.status
        self._leave(status)

    def _first_failure(self) -> Failure | None:
        try:
            text = self._client.key_value_try_get(_END)
        except jax.errors.JaxRuntimeError:
            return None
        return None if text == _WELL else Failure(**json.loads(text))

    def wait_for_news(self) -> None:
        """Wait: if another process is the cause of our trouble, this one ends here."""
        self._over.wait(self._heartbeat_s + 15)

    def compare(self, name: str, facts: Mapping[str, Any], *, timeout_s: float) -> None:
        """Check that all processes have the facts of the first.

        Args:
          name: of the comparison; used once.
          facts: JSON-able, a few kilobytes.
          timeout_s: how long to wait for the slowest process.

        Raises:
          ValueError: in those that differ, naming host, field and both values.
          TryAgain: a process does not come.
        """
        first = self.first(name, facts, timeout_s=timeout_s)
        mine = json.loads(json.dumps(facts))
        different = [
            f"{field} is {mine.get(field)!r} here and {first.get(field)!r} there"
            for field in sorted(set(first) | set(mine))
            if first.get(field) != mine.get(field)
        ]
        if different:
            shown = different[:10] + ["…"] * (len(different) > 10)
            raise ValueError(
                f"this host differs from host 0: {'; '.join(shown)}. Start all hosts "
                "with one command, one commit and one environment"
            )

    def first(
        self, name: str, facts: Mapping[str, Any], *, timeout_s: float
    ) -> dict[str, Any]:
        """The first process's facts, once all have come here."""
        key = f"mpo/facts/{name}"
        if self.number == 0:
            self._client.key_value_set(key, json.dumps(facts))
        self.meet(name, timeout_s=timeout_s)
        return json.loads(
            self._client.blocking_key_value_get(key, int(timeout_s * 1000))
        )

    def say(self, name: str, values: Mapping[str, float]) -> None:
        """Leave numbers for the first process; those before are forgotten."""
        self._client.key_value_set(
            f"mpo/said/{name}/{self.number}", json.dumps(values), allow_overwrite=True
        )

    def heard(self, name: str) -> dict[int, dict[str, float]]:
        """What processes have left under a name, by their number."""
        found = self._client.key_value_dir_get(f"mpo/said/{name}")
        return {int(key.rsplit("/", 1)[1]): json.loads(text) for key, text in found}

    def meet(self, name: str, *, timeout_s: float) -> None:
        """Wait until every process has come here.

        Raises:
          TryAgain: one has not within `timeout_s`.
        """
        try:
            self._client.wait_at_barrier(f"mpo/meet/{name}", int(timeout_s * 1000))
        except jax.errors.JaxRuntimeError as error:
            raise statuses.TryAgain(
                f"not all {self.count} hosts came to {name!r} within {timeout_s:g} s: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def _leave(self, status: int) -> NoReturn:
        """End; the first process last, because JAX kills those that it leaves."""
        try:
            if self.number:
                self._client.key_value_set(f"{_LEFT}/{self.number}", "1")
            else:
                self._wait_for_others()
        except jax.errors.JaxRuntimeError as error:
            self._say(f"cannot take leave: {error}")
        _exit(status)

    def _wait_for_others(self) -> None:
        deadline = time.monotonic() + _LEAVE_S
        while time.monotonic() < deadline:
            if len(self._client.key_value_dir_get(_LEFT)) >= self.count - 1:
                break
            time.sleep(0.1)
        time.sleep(0.3)  # they end right after they have said so

    def _say(self, message: str) -> None:
        tell(f"host {self.number} of {self.count}: {message}")


_PEERS: list[Peers] = []


def join(*, heartbeat_s: float) -> None:
    """Know the other processes, once ``jax.distributed`` is initialised."""
    from jax._src import distributed

    client = distributed.global_state.client
    if client is None or jax.process_count() == 1 or _PEERS:
        return
    peers = Peers(
        client, jax.process_index(), jax.process_count(), heartbeat_s=heartbeat_s
    )
    _PEERS.append(peers)
    peers.watch()


@dataclasses.dataclass(frozen=True)
class Joining:
    """What ``jax.distributed`` knows while it waits for the other processes.

    Attributes:
      address: ``host:port`` of the first one; None as long as it is not found.
      number, count: of this process, and of all.
    """

    address: str | None
    number: int | None
    count: int | None


def joining() -> Joining:
    """How far ``jax.distributed.initialize`` has come."""
    from jax._src import distributed

    state = distributed.global_state
    return Joining(state.coordinator_address, state.process_id, state.num_processes)


def others() -> Peers | None:
    """The other processes; None where this one is alone."""
    return _PEERS[0] if _PEERS else None


def end(message: str, status: int, *, stacks: bool = False) -> NoReturn:
    """From any thread: end this process and all others, at once.

    Args:
      stacks: the others are to show where they stand.
    """
    found = others()
    if found is not None:
        found.fail(message, status, stacks=stacks)
    tell(message)
    _exit(status)


def tell(message: str) -> None:
    """Print to stderr; where nobody reads that any more, what follows matters more."""
    with contextlib.suppress(OSError, ValueError):
        print(message, file=sys.stderr)


def _exit(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
