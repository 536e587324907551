"""The thread that owns the engine, and what it tells the event loop."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Hashable, Sequence

from mpo_jax import ledger
from mpo_jax.generate import requests

_LOG = logging.getLogger(__name__)

News = list[requests.Update] | Exception


class EngineFailed(Exception):
    """The engine has failed, for all requests or for this one."""


class Ticket:
    """One client's requests, and what has come of them; lives in the event loop."""

    def __init__(self, asked: Sequence[requests.Request]):
        self.requests = tuple(asked)
        self._open = sum(request.sampling.n for request in asked)
        self._news: asyncio.Queue[News] = asyncio.Queue()

    def put(self, news: News) -> None:
        self._news.put_nowait(news)

    async def accepted(self) -> None:
        """Return once the engine has taken the requests.

        Raises:
          BadRecord: it does not take one of them; none is answered.
          EngineFailed: it has failed.
        """
        first = await self._news.get()
        if isinstance(first, Exception):
            raise first

    async def updates(self) -> AsyncIterator[list[requests.Update]]:
        """All updates until the last answer has ended.

        Raises:
          EngineFailed: the engine has failed meanwhile.
        """
        while self._open:
            news = await self._news.get()
            if isinstance(news, Exception):
                raise news
            self._open -= sum(update.finish_reason is not None for update in news)
            yield news


class Worker:
    """Runs the engine in a thread: takes requests, hands out their updates.

    Methods are called in the event loop; the engine is touched by the thread alone.

    Attributes:
      failure: what the engine has failed with.
      stats: the engine's after its last step.
    """

    def __init__(self, engine: requests.Engine):
        self._engine = engine
        self.failure: Exception | None = None
        self.stats: dict[str, float] = dict(engine.stats)
        self._waiting: set[Ticket] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_failure: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # What the thread shall do next; it goes on after those that give True.
        self._inbox: queue.SimpleQueue[Callable[[], bool]] = queue.SimpleQueue()
        # Of the thread alone: open answers of a request, and who waits for them.
        self._open: dict[Hashable, int] = {}
        self._tickets: dict[Hashable, Ticket] = {}

    def start(self, on_failure: Callable[[], None]) -> None:
        """Start the thread; `on_failure` is called in this event loop."""
        self._loop = asyncio.get_running_loop()
        self._on_failure = on_failure
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread after its step; waits for it so many seconds."""
        self._inbox.put(lambda: False)
        self._thread.join(timeout)
        if self._thread.is_alive():
            _LOG.error("the engine's step has not ended within %g s", timeout)

    def submit(self, asked: Sequence[requests.Request]) -> Ticket:
        """Hand requests to the engine, all or none of them; :meth:`release` them.

        Raises:
          EngineFailed: it has failed.
        """
        if self.failure is not None:
            raise _failed(self.failure)
        ticket = Ticket(asked)
        self._waiting.add(ticket)
        self._inbox.put(lambda: self._add(ticket))
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Forget a ticket; what is not answered yet is cancelled."""
        self._waiting.discard(ticket)
        self._inbox.put(lambda: self._forget(ticket))

    def _fail(self, error: Exception) -> None:
        """Tell all who wait."""
        self.failure = error
        for ticket in self._waiting:
            ticket.put(_failed(error))
        self._on_failure()

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            while self._take_in():
                self._hand_out(self._engine.step())
        except Exception as error:
            _LOG.exception("the engine has failed")
            self._in_loop(self._fail, error)

    def _take_in(self) -> bool:
        """Do what the inbox asks for until there is a step to do; False at the end."""
        while True:
            self.stats = dict(self._engine.stats)
            try:
                todo = self._inbox.get(block=not self._engine.busy)
            except queue.Empty:
                return True
            if not todo():
                return False

    def _add(self, ticket: Ticket) -> bool:
        try:
            for request in ticket.requests:
                self._engine.add(request)
                self._tickets[request.key] = ticket
                self._open[request.key] = request.sampling.n
        except ledger.BadRecord as error:
            self._forget(ticket)
            self._in_loop(ticket.put, error)
        except Exception as error:
            _LOG.exception("the engine could not take a request")
            self._forget(ticket)
            self._in_loop(ticket.put, _failed(error))
        else:
            self._in_loop(ticket.put, [])
        return True

    def _forget(self, ticket: Ticket) -> bool:
        for request in ticket.requests:
            if self._tickets.pop(request.key, None) is not None:
                del self._open[request.key]
                self._engine.cancel(request.key)
        return True

    def _hand_out(self, updates: list[requests.Update]) -> None:
        """Give each ticket its updates, in one call of the event loop."""
        news: dict[Ticket, list[requests.Update]] = {}
        for update in updates:
            news.setdefault(self._tickets[update.key], []).append(update)
            self._open[update.key] -= update.finish_reason is not None
            if not self._open[update.key]:
                del self._open[update.key], self._tickets[update.key]
        self._in_loop(_put_all, news)

    def _in_loop(self, call: Callable[..., None], *args: object) -> None:
        assert self._loop is not None  # start() has set it
        self._loop.call_soon_threadsafe(call, *args)


def _put_all(news: dict[Ticket, list[requests.Update]]) -> None:
    for ticket, updates in news.items():
        ticket.put(updates)


def _failed(error: Exception) -> EngineFailed:
    failure = EngineFailed(f"the engine has failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
