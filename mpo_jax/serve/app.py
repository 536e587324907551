"""The engine behind OpenAI's routes, as a Starlette application."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mpo_jax import fields, ledger
from mpo_jax.generate import requests
from mpo_jax.inputs.prompt import PromptPolicy
from mpo_jax.inputs.tokenizer import ChatTokenizer
from mpo_jax.serve import answers, errors, http, json_fields, metrics, prepare, protocol
from mpo_jax.serve.limits import Limits, Place, Room
from mpo_jax.serve.sampling import Delivery
from mpo_jax.serve.worker import EngineFailed, Ticket, Worker

_PREPARING_THREADS = 2
_HUNG_UP = 499
"""What metrics call the status of a client that left (nginx' number for it)."""

Prepare = Callable[[dict[str, Any], Hashable], tuple[list[requests.Request], Delivery]]
"""A parsed body and the key of its requests to these and what is sent back."""


def build(
    engine: requests.Engine,
    *,
    tokenizer: ChatTokenizer,
    policy: PromptPolicy,
    name: str,
    limits: Limits | None = None,
    api_key: str | None = None,
    hosts: Sequence[str] = ("*",),
) -> Starlette:
    """The application that serves an engine; its lifespan runs the engine's thread.

    Args:
      name: what clients call the model.
      api_key: bearer token that clients must send; None admits all.
      hosts: what the Host header may say, so that a page in a browser cannot reach a
        loopback address by a name of its own.

    Returns:
      The application. ``app.state.service`` is its :class:`Service`.

    Raises:
      ValueError: a limit is out of bounds, or the template has no stop token.
    """
    limits = Limits() if limits is None else limits
    fields.check(limits, "limits.")
    service = Service(engine, tokenizer, policy, name, limits, api_key)
    app = Starlette(
        routes=[
            Route("/health", service.health),
            Route("/metrics", service.metrics),
            Route("/v1/models", service.models),
            Route("/v1/models/{model:path}", service.model),
            *(Route(route.path, route, methods=["POST"]) for route in service.routes()),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={
            errors.Refused: _on_refused,
            HTTPException: _on_http,
            Exception: _on_fault,
        },
        lifespan=service.lifespan,
    )
    app.state.service = service
    return app


class Service:
    """What the routes share.

    Attributes:
      worker: owns the engine.
      draining: no new request is taken.
      on_failure: called in the event loop when the engine has failed.
    """

    def __init__(
        self,
        engine: requests.Engine,
        tokenizer: ChatTokenizer,
        policy: PromptPolicy,
        name: str,
        limits: Limits,
        api_key: str | None,
    ):
        self.engine, self.tokenizer, self.policy = engine, tokenizer, policy
        self.name, self.limits, self.api_key = name, limits, api_key
        self.room, self.counters = Room(limits), metrics.Counters()
        self.worker = Worker(engine)
        self.draining = False
        self.on_failure: Callable[[], None] = lambda: None
        self.created = int(time.time())
        self.keys = itertools.count()
        self.threads = concurrent.futures.ThreadPoolExecutor(
            _PREPARING_THREADS, thread_name_prefix="prepare"
        )
        self._preparer = prepare.Preparer(
            tokenizer, policy, limits, max_prompt_tokens=engine.max_prompt_tokens
        )

    def routes(self) -> tuple[Completions, ...]:
        """The routes that ask the model."""
        return (
            Completions(
                self, "/v1/chat/completions", self._prepare_chat, answers.ChatAnswering
            ),
            Completions(
                self, "/v1/completions", self._prepare_text, answers.TextAnswering
            ),
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Run the engine's thread while the application runs."""
        self.worker.start(lambda: self.on_failure())
        yield
        self.threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.worker.stop, self.limits.drain_seconds)

    def why_not(self) -> str | None:
        """Why no request is taken; None where they are."""
        if self.worker.failure is not None:
            return f"the engine has failed: {self.worker.failure}"
        return "the server is stopping" if self.draining else None

    def _prepare_chat(self, raw: dict[str, Any], key: Hashable):
        asked = protocol.read_chat(raw, **self._reading)
        return self._preparer.chat(asked, key), asked.delivery

    def _prepare_text(self, raw: dict[str, Any], key: Hashable):
        asked = protocol.read_text(raw, **self._reading)
        return self._preparer.text(asked, key), asked.delivery

    @property
    def _reading(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "limits": self.limits,
            "default_tokens": self.engine.max_new_tokens,
        }

    async def health(self, request: Request) -> Response:
        why = self.why_not()
        if why is None:
            return http.json_response({"status": "ok", "model": self.name})
        return http.json_response({"status": "unavailable", "detail": why}, 503)

    async def metrics(self, request: Request) -> Response:
        http.check_key(request.headers, self.api_key)
        gauges = {"requests": self.room.requests, "held_bytes": self.room.held_bytes}
        text = metrics.render(self.counters, gauges, self.worker.stats)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        http.check_key(request.headers, self.api_key)
        return http.json_response({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        http.check_key(request.headers, self.api_key)
        asked = request.path_params["model"]
        if asked != self.name:
            message = f"model {asked[:200]!r} is not served here; {self.name!r} is"
            raise errors.Refused(404, message, param="model", code="model_not_found")
        return http.json_response(self._card())

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "mpo-jax",
            "max_prompt_tokens": self.engine.max_prompt_tokens,
            "max_new_tokens": self.engine.max_new_tokens,
            "max_tiles": self.policy.max_tiles,
        }


@dataclasses.dataclass(eq=False)
class Completions:
    """A route that asks the model, as an ASGI application.

    Attributes:
      path: of the route.
      prepare: called in a thread.
      answering: makes the bodies of responses.
    """

    service: Service
    path: str
    prepare: Prepare
    answering: type[answers.Answering]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever way it ends, its slots are freed."""
        status = 500
        try:
            status = await self._answer(Headers(scope=scope), receive, send)
        except http.HungUp:
            status = _HUNG_UP
        except asyncio.CancelledError:
            status = 503  # the server stops before the answer's end
            raise
        except errors.Refused as error:
            status = error.status
            await http.error_response(error)(scope, receive, send)
        finally:
            self.service.counters.responses[self.path, status] += 1

    async def _answer(self, headers: Headers, receive: Receive, send: Send) -> int:
        service = self.service
        http.check_key(headers, service.api_key)
        why = service.why_not()
        if why is not None:
            raise errors.busy(f"{why}; ask again later", service.limits.retry_seconds)
        with service.room.enter() as place:
            body = await http.read_body(headers, receive, service.limits, place)
            work = self._ask(body, place, send)
            return await http.while_connected(receive, work)

    async def _ask(self, body: bytes, place: Place, send: Send) -> int:
        """From a body to its answers, sent; gives the status."""
        asked, delivery = await self._prepared(body)
        del body
        place.hold(sum(request.tiles.nbytes for request in asked))
        with self._submitted(asked) as ticket:
            await _accepted(ticket)
            answering = self.answering(
                asked,
                delivery,
                model=self.service.name,
                tokenizer=self.service.tokenizer,
            )
            self.service.counters.prompt_tokens += answering.prompt_tokens
            try:
                if delivery.stream:
                    return await self._stream(ticket, answering, send)
                return await self._whole(ticket, answering, send)
            finally:
                self.service.counters.tokens += answering.tokens

    async def _prepared(self, body: bytes) -> tuple[list[requests.Request], Delivery]:
        service = self.service
        key = next(service.keys)

        def in_thread() -> tuple[list[requests.Request], Delivery]:
            most = service.limits.json_items
            return self.prepare(json_fields.parse(body, max_items=most), key)

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(service.threads, in_thread)

    @contextlib.contextmanager
    def _submitted(self, asked: Sequence[requests.Request]):
        """The ticket of requests, cancelled at the end where they are unanswered."""
        try:
            ticket = self.service.worker.submit(asked)
        except EngineFailed as error:
            raise _failure(error) from error
        try:
            yield ticket
        finally:
            self.service.worker.release(ticket)

    async def _whole(
        self, ticket: Ticket, answering: answers.Answering, send: Send
    ) -> int:
        try:
            async for updates in ticket.updates():
                answering.keep(updates)
        except EngineFailed as error:
            raise _failure(error) from error
        # Log-probs spell every token, which would hold up the event loop.
        body = await asyncio.to_thread(lambda: answers.json_bytes(answering.whole()))
        head = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        sending = http.Sending(send, self.service.limits)
        await sending.start(200, head)
        await sending.write(body, last=True)
        return 200

    async def _stream(
        self, ticket: Ticket, answering: answers.Answering, send: Send
    ) -> int:
        """Send events as they come; a failure is an event too, and the last."""
        head = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
        ]
        sending = http.Sending(send, self.service.limits)
        await sending.start(200, head)
        await sending.write(b"".join(answering.opening()))
        try:
            async for updates in ticket.updates():
                await sending.write(b"".join(answering.events(updates)))
        except EngineFailed as error:
            await sending.write(answers.event(_failure(error).body()), last=True)
            return 500
        await sending.write(b"".join(answering.closing()), last=True)
        return 200


async def _accepted(ticket: Ticket) -> None:
    try:
        await ticket.accepted()
    except ledger.BadRecord as error:
        raise errors.of_record(error) from error
    except EngineFailed as error:
        raise _failure(error) from error


def _failure(error: EngineFailed) -> errors.Refused:
    return errors.Refused(500, str(error), code="engine_failed")


async def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.Refused)  # as it is registered
    return http.error_response(error)


async def _on_http(request: Request, error: Exception) -> Response:
    """What Starlette refuses: unknown routes and methods."""
    assert isinstance(error, HTTPException)  # as it is registered
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    headers = dict(error.headers or {})
    return http.error_response(
        errors.Refused(error.status_code, message, headers=headers)
    )


async def _on_fault(request: Request, error: Exception) -> Response:
    """A fault of the server; Starlette raises it again, so that it is logged."""
    message = f"the server failed: {type(error).__name__}; its log has more"
    return http.error_response(errors.Refused(500, message, code="internal"))
