"""Many questions to one server at a time: slots, a queue, and an end at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

from mpo_jax import ledger
from mpo_jax.generate import requests

Client = TypeVar("Client")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")
Outcome = requests.Answer | requests.Failure
Skip = Callable[[str | int, int], bool]
Ask = Callable[[Client, Prepared, requests.Question, int], Awaitable[Outcome]]

MAX_REFUSALS = 8
"""So many refused requests without an answer are the fault of what all share."""


class EndpointError(ValueError):
    """The endpoint answers no question at all; says why and what to do."""


def answers(
    questions: Iterable[requests.Question],
    samples: Iterable[int],
    *,
    prepare: Callable[[requests.Question], Prepared],
    connect: Callable[[], AbstractAsyncContextManager[Client]],
    ask: Ask[Client, Prepared],
    skip: Skip,
    concurrency: int,
) -> Iterator[Outcome]:
    """Ask for samples of questions, and give what comes of them, in no order.

    Args:
      questions: taken one at a time, in another thread.
      samples: numbers of the samples of each.
      prepare: makes of a question what `ask` needs, once for all its samples.
      connect: opens what `ask` speaks through.
      ask: asks for one sample; what it raises concerns all questions.
      skip: by question id and sample; in another thread.
      concurrency: samples that are asked for at a time, and results that may wait.

    Raises:
      EndpointError: the first :data:`MAX_REFUSALS` requests were refused.
      Exception: whatever the arguments raise, but ``BadRecord`` of `prepare`, which
        gives a failure.
    """
    with _loop_of_its_own() as call:
        asking = _Asking(
            questions, tuple(samples), prepare, connect, ask, skip, concurrency
        )
        call(asking.start())
        try:
            while (item := call(asking.next())) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            call(asking.stop())


class _Asking(Generic[Client, Prepared]):
    """Questions under way; lives in an event loop.

    A task takes questions and starts one task per sample as there are slots. What
    comes of them waits in a queue of as many places; None is the end, an exception what
    ended it.
    """

    def __init__(
        self,
        questions: Iterable[requests.Question],
        samples: tuple[int, ...],
        prepare: Callable[[requests.Question], Prepared],
        connect: Callable[[], AbstractAsyncContextManager[Client]],
        ask: Ask[Client, Prepared],
        skip: Skip,
        concurrency: int,
    ):
        self._questions, self._samples, self._skip = questions, samples, skip
        self._prepare, self._connect, self._ask = prepare, connect, ask
        self._slots = asyncio.Semaphore(concurrency)
        self._results: asyncio.Queue[Outcome | Exception | None]
        self._results = asyncio.Queue(concurrency)
        self._answered, self._refused = 0, 0

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def next(self) -> Outcome | Exception | None:
        return await self._results.get()

    async def stop(self) -> None:
        """Cancel what is in flight, and wait until it is."""
        self._task.cancel()
        await asyncio.wait([self._task])
        with contextlib.suppress(asyncio.QueueFull):  # then nobody waits for it
            self._results.put_nowait(None)

    async def _run(self) -> None:
        end: Exception | None = None
        try:
            async with self._connect() as client, asyncio.TaskGroup() as group:
                await self._ask_all(client, group)
        except ExceptionGroup as errors:  # the first has cancelled the other tasks
            end = errors.exceptions[0]
        except Exception as error:  # of the client itself
            end = error
        await self._results.put(end)

    async def _ask_all(self, client: Client, group: asyncio.TaskGroup) -> None:
        source = iter(self._questions)
        # Files are read and images decoded aside: requests must go on meanwhile.
        while (question := await asyncio.to_thread(next, source, None)) is not None:
            samples = await asyncio.to_thread(self._wanted, question)
            if not samples:
                continue
            try:
                prepared = await asyncio.to_thread(self._prepare, question)
            except ledger.BadRecord as error:
                await self._results.put(
                    requests.Failure(
                        question.id, None, error.reason, error.detail, retry=False
                    )
                )
                continue
            for sample in samples:
                await self._slots.acquire()
                group.create_task(self._ask_one(client, prepared, question, sample))

    def _wanted(self, question: requests.Question) -> list[int]:
        return [k for k in self._samples if not self._skip(question.id, k)]

    async def _ask_one(
        self,
        client: Client,
        prepared: Prepared,
        question: requests.Question,
        sample: int,
    ) -> None:
        """Put what comes of a sample, then free its slot."""
        try:
            item = await self._ask(client, prepared, question, sample)
            self._check_refusals(item)
            await self._results.put(item)
        finally:
            self._slots.release()

    def _check_refusals(self, item: Outcome) -> None:
        """Raise EndpointError where it is not the questions that are refused."""
        if isinstance(item, requests.Answer):
            self._answered += 1
        elif not item.retry:
            self._refused += 1
            if self._refused >= MAX_REFUSALS and not self._answered:
                raise EndpointError(
                    f"the first {self._refused} requests were all refused, so it is "
                    f"hardly the questions. The last: {item.detail}"
                )


@contextlib.contextmanager
def _loop_of_its_own() -> Iterator[Callable[[Coroutine[Any, Any, Result]], Result]]:
    """An event loop in a thread; gives a function that runs a coroutine there."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="endpoint", daemon=True)
    thread.start()
    try:
        yield lambda job: asyncio.run_coroutine_threadsafe(job, loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
