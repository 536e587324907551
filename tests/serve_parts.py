"""A server over :mod:`echo_engine` for tests: its application, pictures, requests."""

from __future__ import annotations

import base64
import contextlib
import io
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import echo_engine
import numpy as np
from PIL import Image
from starlette.applications import Starlette

from mpo_jax.inputs.prompt import PromptPolicy
from mpo_jax.inputs.tokenizer import ChatTokenizer
from mpo_jax.serve import app as app_lib
from mpo_jax.serve import server
from mpo_jax.serve.limits import Limits

NAME = "echo"
SIDE, PER_TILE = 28, 4


def policy(template: str = "internvl2_5") -> PromptPolicy:
    return PromptPolicy(
        template=template,
        image_size=SIDE,
        tokens_per_tile=PER_TILE,
        min_tiles=1,
        max_tiles=12,
        use_thumbnail=True,
        max_image_pixels=10**8,
    )


def application(
    tokenizer: ChatTokenizer,
    *,
    limits: Limits | None = None,
    api_key: str | None = None,
    hosts: tuple[str, ...] = ("*",),
    template: str = "internvl2_5",
    **engine: Any,
) -> tuple[Starlette, echo_engine.EchoEngine]:
    made = echo_engine.EchoEngine(tokenizer, **engine)
    app = app_lib.build(
        made,
        tokenizer=tokenizer,
        policy=policy(template),
        name=NAME,
        limits=limits,
        api_key=api_key,
        hosts=hosts,
    )
    return app, made


def picture(
    width: int = 40, height: int = 30, *, kind: str = "PNG", seed: int = 0
) -> bytes:
    """An image file with noise in it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes | None = None, **fields: Any) -> dict[str, Any]:
    url = uri(picture() if data is None else data)
    return {"type": "image_url", "image_url": {"url": url} | fields}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user(*content: Any) -> dict[str, Any]:
    parts = [text_part(c) if isinstance(c, str) else c for c in content]
    return {"role": "user", "content": parts}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    """A chat body; a text is a message of the user."""
    listed = [
        {"role": "user", "content": m} if isinstance(m, str) else m for m in messages
    ]
    return {"model": NAME, "messages": listed, "temperature": 0} | fields


@contextlib.contextmanager
def serving(app: Starlette) -> Iterator[tuple[str, int]]:
    """Serve over HTTP in a thread; gives host and port; ends as by a signal."""
    service: app_lib.Service = app.state.service
    taken = server.bind("127.0.0.1", 0)
    ready = threading.Event()
    made = server._Server(server._config(app, service.limits), service, ready.set)
    thread = threading.Thread(target=made.run, kwargs={"sockets": [taken]})
    thread.start()
    try:
        assert ready.wait(20)
        yield taken.getsockname()[:2]
    finally:
        made.handle_exit(signal.SIGTERM, None)
        thread.join(30)
        assert not thread.is_alive() and service.draining


def ask_raw(address: tuple[str, int], data: bytes, *, seconds: float = 60) -> bytes:
    """Send bytes over a connection; gives what comes until it is closed."""
    with socket.create_connection(address, timeout=seconds) as link:
        link.sendall(data)
        answer = b""
        while more := link.recv(65536):
            answer += more
    return answer


def wait_for(condition, seconds: float = 60.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not become true"
        time.sleep(0.01)
