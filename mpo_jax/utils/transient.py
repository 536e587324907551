"""Storage that is away for a moment: what passes by itself is tried again for a while.

An I/O error of a network file system ends no run at once. What does not pass within the
patience of a run becomes a ``TryAgain``: launchers start the command again.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import tenacity
from absl import logging

from mpo_jax.utils import statuses

T = TypeVar("T")

_PASSING = frozenset(
    {
        *(errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.EAGAIN, errno.EBUSY),
        *(errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED),
        *(errno.EPIPE, errno.ENOTCONN, errno.ENETDOWN, errno.ENETUNREACH),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH),
    }
)

_PASSING_HTTP = frozenset({408, 429, 500, 502, 503, 504})
_CODES = re.compile(r"\b(os_error|http_response)_code='(\d{1,6})'")
"""How TensorStore names the cause; its errors are ``ValueError``."""
_CLIENTS = ("aiohttp", "requests")
_CONNECTIONS = frozenset(
    {
        *("ClientConnectionError", "ClientPayloadError"),
        *("ConnectionError", "Timeout", "ChunkedEncodingError"),
    }
)
"""Errors of stores' clients that are no ``ConnectionError`` of Python's."""


def is_transient(error: BaseException) -> bool:
    """Whether an error, or one that it came from, may pass by itself."""
    return any(map(_passes, chain(error)))


def chain(
    error: BaseException | None, *, hidden: bool = False
) -> Iterator[BaseException]:
    """An error and those that it came from.

    Args:
      hidden: also those that were being handled when another one was raised.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        before = error.__context__
        if not hidden or error.__suppress_context__:  # "raise … from …"
            before = None
        error = error.__cause__ or before


def _passes(error: BaseException) -> bool:
    if isinstance(error, (statuses.TryAgain, ConnectionError, TimeoutError)):
        return True
    if _numbers(error) & _PASSING or _answers(error) & _PASSING_HTTP:
        return True
    return any(
        kind.__name__ in _CONNECTIONS and kind.__module__.startswith(_CLIENTS)
        for kind in type(error).__mro__
    )


def numbers(error: BaseException) -> set[int]:
    """The system's numbers (``errno``) of an error and of those that it came from."""
    return set().union(*map(_numbers, chain(error)))


def _numbers(error: BaseException) -> set[int]:
    found = _told(error, "os_error")
    if isinstance(error, OSError) and error.errno is not None:
        found.add(error.errno)
    return found


def _answers(error: BaseException) -> set[int]:
    """Statuses of HTTP: TensorStore's, and gcsfs's, whose errors have a ``code``."""
    found = _told(error, "http_response")
    code = str(getattr(error, "code", ""))
    if isinstance(error, Exception) and code.isdecimal():
        found.add(int(code))
    return found


def _told(error: BaseException, kind: str) -> set[int]:
    if not isinstance(error, Exception):
        return set()
    return {int(code) for name, code in _CODES.findall(str(error)) if name == kind}


def patiently(action: Callable[[], T], what: str, *, seconds: float) -> T:
    """The result of `action`, called again while storage is away.

    Args:
      what: is done, for messages.
      seconds: from the first try to the last; 0 tries once.

    Raises:
      TryAgain: it has not passed by then.
      Exception: any other error of `action`, at once.
    """

    def say(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None and state.next_action is not None
        logging.warning(
            "%s: %s; trying again in %.0f s",
            what,
            state.outcome.exception(),
            state.next_action.sleep,
        )

    trying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_exponential_jitter(initial=0.5, max=30),
        before_sleep=say,
        reraise=True,
    )
    try:
        return trying(action)
    except Exception as error:
        if not is_transient(error):
            raise
        raise statuses.TryAgain(
            f"{what}: {error}; tried for {seconds:g} s. Look at the storage, or start "
            "the same command again"
        ) from error
