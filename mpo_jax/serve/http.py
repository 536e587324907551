"""What HTTP brings with it: bodies read within bounds, clients that hang up."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Send

from mpo_jax.serve import answers, errors
from mpo_jax.serve.limits import Limits, Place

T = TypeVar("T")


class HungUp(Exception):
    """The client is gone, or takes nothing of what is sent to it."""


def json_response(value: Any, status: int = 200, **headers: str) -> Response:
    """A response of one JSON value."""
    return Response(
        answers.json_bytes(value), status, headers, media_type="application/json"
    )


def error_response(error: errors.Refused) -> Response:
    """The response to a refused request."""
    return json_response(error.body(), error.status, **error.headers)


def check_key(headers: Headers, key: str | None) -> None:
    """Check the bearer token where the server has a key.

    Raises:
      Refused: 401.
    """
    if key is None:
        return
    scheme, _, given = headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), key.encode())
    if scheme.lower() != "bearer" or not same:
        raise errors.Refused(
            401,
            "this server wants its key: send the header Authorization: Bearer <key>",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )


async def read_body(
    headers: Headers, receive: Receive, limits: Limits, place: Place
) -> bytes:
    """The body of a request, which `place` holds while it grows.

    Raises:
      Refused: 408, 413, 415 or 503, before more than the limit is in memory.
      HungUp: the client left before its end.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also what keeps pages in a browser from asking a server behind its user.
        message = f"content-type {kind[:80]!r}: send application/json"
        raise errors.Refused(415, message, code="unsupported_media_type")
    announced = headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limits.body_bytes:
        raise _too_large(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise HungUp
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > limits.body_bytes:
                    raise _too_large(limits)
                place.hold(len(body))
    except TimeoutError as error:
        raise errors.Refused(
            408,
            f"the body did not arrive within {limits.body_seconds:g} s",
            code="timeout",
            headers={"connection": "close"},
        ) from error
    return bytes(body)


def _too_large(limits: Limits) -> errors.Refused:
    message = f"the body has more than {limits.body_bytes} bytes; send smaller images"
    return errors.Refused(413, message, code="body_too_large")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do `work`, which is cancelled when the client hangs up.

    Raises:
      HungUp: it did. Else what `work` raises.
    """
    doing = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise HungUp
        return doing.result()
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Sending:
    """Sends one response to a client that may not take it."""

    def __init__(self, send: Send, limits: Limits):
        self._send = send
        self._seconds = limits.write_seconds

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head of the response."""
        head = {"type": "http.response.start", "status": status, "headers": headers}
        await self._write(head)

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Send a part of the body.

        Raises:
          HungUp: the client has not taken it in time.
        """
        message = {"type": "http.response.body", "body": data, "more_body": not last}
        await self._write(message)

    async def _write(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError as error:
            raise HungUp from error
