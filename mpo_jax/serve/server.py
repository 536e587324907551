"""Serving the application over HTTP until a signal or a failure ends it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from mpo_jax.serve.app import Service
from mpo_jax.serve.limits import Limits

_LOG = logging.getLogger(__name__)

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
"""What the Host header says of a server that only this machine can reach."""


def bind(host: str, port: int) -> socket.socket:
    """Take an address, which does not listen yet; port 0 is any that is free.

    Raises:
      OSError: it cannot be had.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    taken = socket.socket(found[0], socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(found[4])
    except OSError as error:
        taken.close()
        error.filename = f"{host}:{port}"
        raise
    return taken


def is_loopback(taken: socket.socket) -> bool:
    """Can only this machine reach the address?"""
    return ipaddress.ip_address(taken.getsockname()[0].partition("%")[0]).is_loopback


def url(taken: socket.socket) -> str:
    """``http://127.0.0.1:8000/v1``"""
    host, port = taken.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def serve(
    app: Starlette, taken: socket.socket, *, on_ready: Callable[[], None]
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what runs.

    Args:
      app: of ``app.build``.
      taken: of :func:`bind`.
      on_ready: called when requests can come.

    Raises:
      EngineError: the engine has failed; all who waited have been told.
    """
    service: Service = app.state.service
    server = _Server(_config(app, service.limits), service, on_ready)
    # uvicorn raises the signal again when all is done, for the handlers of before:
    # these let the command end as one that has done its work.
    before = {name: signal.signal(name, _done) for name in _SIGNALS}
    try:
        server.run(sockets=[taken])
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    if service.worker.failure is not None:
        raise EngineError(
            f"the engine has failed: {service.worker.failure}; the traceback is above"
        ) from service.worker.failure


class EngineError(ValueError):
    """The server has ended because its engine failed."""


_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _done(number: int, frame: FrameType | None) -> None:
    _LOG.warning("ended by %s", signal.Signals(number).name)


def _config(app: Starlette, limits: Limits) -> uvicorn.Config:
    class Protocol(_TimedProtocol):
        head_seconds = limits.head_seconds

    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=max(1, round(limits.head_seconds)),
        timeout_graceful_shutdown=max(1, round(limits.drain_seconds)),
    )


class _Server(uvicorn.Server):
    """Says when it is ready, drains when it is told to, and ends with the engine."""

    def __init__(
        self, config: uvicorn.Config, service: Service, on_ready: Callable[[], None]
    ):
        super().__init__(config)
        self._service = service
        self._on_ready = on_ready
        service.on_failure = self._end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.draining = True
        super().handle_exit(sig, frame)

    def _end(self) -> None:
        self.should_exit = True


class _TimedProtocol(H11Protocol):
    """uvicorn's protocol, which alone waits forever for the head of a request."""

    head_seconds = 30.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Run the timer while no request is being answered; more data does not help."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        """Close; a client in the middle of its first head is told why."""
        if self.cycle is None and not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n"
                b"content-length: 0\r\n\r\n"
            )
        self.transport.close()
