"""One thread ahead of the training loop."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from absl import logging

T = TypeVar("T")
U = TypeVar("U")

_END = object()


class Ahead(Iterator[U], Generic[T, U]):
    """Applies a function to the items of an iterator in a thread, in order.

    At most `depth` results wait to be taken, and one more is in the making. With
    `depth` 0 there is no thread: the caller does the work, item by item. The iterator
    is used by one thread only, so a generator will do. An error of the iterator or of
    the function is raised, as it is, where its item would have come; after it, and
    after the end, nothing more is asked of the iterator.

    Close it (or use it in ``with``) before what the iterator reads from is closed.

    Attributes:
      busy_s: seconds spent in the function, by whichever thread.
    """

    def __init__(self, items: Iterator[T], apply: Callable[[T], U], *, depth: int):
        if depth < 0:
            raise ValueError(f"{depth=} must not be negative")
        self.busy_s = 0.0
        self._items, self._apply = items, apply
        self._stop = threading.Event()
        self._done = False
        self._ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
        self._thread: threading.Thread | None = None
        if depth:
            self._thread = threading.Thread(
                target=self._work, name="mpo-ahead", daemon=True
            )
            self._thread.start()

    def _make(self) -> U:
        item = next(self._items)
        start = time.perf_counter()
        try:
            return self._apply(item)
        finally:
            self.busy_s += time.perf_counter() - start

    def _work(self) -> None:
        while not self._stop.is_set():
            entry: tuple[Any, BaseException | None]
            try:
                entry = (self._make(), None)
            except StopIteration:
                entry = (_END, None)
            except BaseException as error:  # raised again in the caller's thread
                entry = (_END, error)
            self._put(entry)
            if entry[0] is _END:
                return

    def _put(self, entry: tuple[Any, BaseException | None]) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def __next__(self) -> U:
        if self._done:
            raise StopIteration
        if self._thread is None:
            return self._make()
        result, error = self._ready.get()
        if result is _END:
            self._done = True
            if error is not None:
                raise error
            raise StopIteration
        return result

    def __enter__(self) -> Ahead[T, U]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, *, timeout: float = 60.0) -> None:
        """Stop the thread after the item in the making; safe to call twice.

        A loader that hangs is given up after `timeout` seconds, with a warning: the
        error that ends the run matters more.
        """
        self._done = True
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is None or thread is threading.current_thread():
            return
        thread.join(timeout)
        if thread.is_alive():
            logging.warning("the loader did not stop within %g s", timeout)
