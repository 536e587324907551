"""Over HTTP: the openai client, many of them, those that hang up, slow and hostile."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import echo_engine
import httpx2
import openai
import pytest
import serve_parts as parts

from mpo_jax.generate import prompts, requests
from mpo_jax.serve import server, worker
from mpo_jax.serve.limits import Limits

CHAT = "/v1/chat/completions"


@pytest.fixture
def start(qwen2):
    """Servers of an application; gives application, engine and address."""
    with parts.contextlib.ExitStack() as stack:

        def make(**options):
            app, engine = parts.application(qwen2, **options)
            return app.state.service, engine, stack.enter_context(parts.serving(app))

        yield make


def client_of(address, cls=openai.OpenAI, **options):
    url = f"http://{address[0]}:{address[1]}/v1"
    return cls(base_url=url, api_key="none", **{"max_retries": 0} | options)


def answer_of(qwen2, question: str, **sampling) -> str:
    asked = prompts.request_of(
        requests.Question(id=0, question=question),
        requests.Sampling(**sampling),
        key=0,
        tokenizer=qwen2,
        policy=parts.policy(),
    )
    return echo_engine.run(echo_engine.EchoEngine(qwen2), asked)[0]


def head(length: int, path: str = CHAT) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


def test_the_openai_client(start, qwen2):
    _, _, address = start()
    client = client_of(address)
    assert [model.id for model in client.models.list()] == [parts.NAME]
    answer = client.chat.completions.create(
        model=parts.NAME,
        messages=[parts.user("the?")],
        temperature=0,
        logprobs=True,
        extra_body={"top_k": 5, "return_token_ids": True},
    )
    text = answer_of(qwen2, "the?", max_new_tokens=64)
    assert answer.choices[0].message.content == text
    assert answer.choices[0].logprobs.content[0].logprob <= 0
    assert answer.usage.completion_tokens == len(answer.choices[0].token_ids)
    stream = client.chat.completions.create(
        model=parts.NAME,
        messages=[parts.user("the?")],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens
    pieces = [chunk.choices[0].delta.content for chunk in chunks[:-1]]
    assert "".join(pieces) == text and len(pieces) > 3
    told = client.completions.create(model=parts.NAME, prompt="the", logprobs=1)
    assert len(told.choices[0].logprobs.tokens) == told.usage.completion_tokens
    for wrong, error in (
        ({"model": "gpt-4"}, openai.NotFoundError),
        ({"temperature": 1000}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
    ):
        body = {"model": parts.NAME, "messages": [parts.user("the?")]} | wrong
        with pytest.raises(error) as caught:
            client.chat.completions.create(**body)
        assert caught.value.param == next(iter(wrong))


def many(start, qwen2, *, clients: int, each: int) -> None:
    """Every answer of many clients at a time is the engine's own; none is lost."""
    service, engine, address = start(slots=8)

    async def one(client: openai.AsyncOpenAI, number: int) -> None:
        for turn in range(each):
            question, stream = f"the {number} an {turn}?", bool((number + turn) % 2)
            answer = await client.chat.completions.create(
                model=parts.NAME,
                messages=[parts.user(question)],
                seed=number,
                temperature=1,
                max_tokens=12,
                stream=stream,
            )
            if stream:
                text = "".join([c.choices[0].delta.content async for c in answer])
            else:
                text = answer.choices[0].message.content
            sampling = {"seed": number, "temperature": 1.0, "max_new_tokens": 12}
            assert text == answer_of(qwen2, question, **sampling)

    async def open_gate() -> None:  # when all wait, so that every slot is taken
        while service.room.requests < clients:
            await asyncio.sleep(0.01)
        engine.gate.set()

    async def everyone() -> None:
        async with client_of(address, openai.AsyncOpenAI) as client:
            asked = (one(client, number) for number in range(clients))
            await asyncio.gather(open_gate(), *asked)

    engine.gate.clear()
    asyncio.run(everyone())
    parts.wait_for(lambda: not service.room.requests)
    assert service.counters.responses == {(CHAT, 200): clients * each}
    assert engine.most == 8 and not engine.cancelled
    assert service.room.held_bytes == 0
    assert not service.worker._tickets and not service.worker._waiting


def test_a_few_clients_at_a_time(start, qwen2):
    many(start, qwen2, clients=16, each=2)


@pytest.mark.slow
def test_64_clients_at_a_time(start, qwen2):
    many(start, qwen2, clients=64, each=8)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_slot(start, stream):
    service, engine, address = start(slots=1, step_seconds=0.02, max_new_tokens=10**6)
    body = json.dumps(
        parts.chat("the?", n=4, min_tokens=10**5, max_tokens=10**6, stream=stream)
    )
    with socket.create_connection(address, timeout=60) as link:
        link.sendall(head(len(body)) + body.encode())
        parts.wait_for(lambda: engine.asked)
        if stream:
            assert b"200 OK" in link.recv(4096)
    parts.wait_for(lambda: engine.cancelled and not engine.busy)
    parts.wait_for(lambda: not service.room.requests)
    assert service.counters.responses == {(CHAT, 499): 1}
    assert client_of(address).chat.completions.create(
        model=parts.NAME, messages=[parts.user("the?")], max_tokens=3
    )


@pytest.mark.slow
def test_a_client_that_takes_nothing(start):
    limits = Limits(write_seconds=0.3)
    service, engine, address = start(limits=limits, chunk=500, max_new_tokens=10**6)
    body = json.dumps(
        parts.chat(
            "the?",
            n=4,
            min_tokens=10**5,
            max_tokens=10**6,
            stream=True,
            logprobs=True,
        )
    )
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(address)
        link.sendall(head(len(body)) + body.encode())
        parts.wait_for(lambda: engine.cancelled)
        parts.wait_for(lambda: service.counters.responses[CHAT, 499] == 1)
    assert not engine.busy


def test_too_many_requests(start):
    service, engine, address = start(limits=Limits(requests=2, retry_seconds=3))
    client = client_of(address)

    def ask():
        return client.chat.completions.create(
            model=parts.NAME, messages=[parts.user("the?")], temperature=0
        )

    engine.gate.clear()
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(ask) for _ in range(2)]
        parts.wait_for(lambda: service.room.requests == 2)
        with pytest.raises(openai.InternalServerError) as caught:
            ask()
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "3"
        assert httpx2.get(f"http://{address[0]}:{address[1]}/health").status_code == 200
        engine.gate.set()
        first, second = (f.result().choices[0].message for f in waiting)
    assert first == second == ask().choices[0].message


def test_bodies_together_have_a_limit(start):
    service, engine, address = start(limits=Limits(held_bytes=10_000))
    with socket.create_connection(address, timeout=60) as link:
        link.sendall(head(9_000) + b" " * 8_000)
        parts.wait_for(lambda: service.room.held_bytes == 8_000)
        body = b" " * 5_000
        assert b" 503 " in parts.ask_raw(address, head(len(body)) + body)
    parts.wait_for(lambda: service.room.held_bytes == 0)
    # Tiles count too: 13 of 28 x 28 x 3 bytes are more than there is.
    body = json.dumps(parts.chat(parts.user(parts.image_part(parts.picture(32, 24)))))
    assert b" 503 " in parts.ask_raw(address, head(len(body)) + body.encode())
    assert not engine.asked and service.room.held_bytes == 0


@pytest.mark.slow
def test_slow_clients(start):
    limits = Limits(head_seconds=0.3, body_seconds=0.3)
    service, _, address = start(limits=limits)
    began = time.monotonic()
    assert b" 408 " in parts.ask_raw(address, head(10) + b"{")
    for sent in (b"", b"POST /v1/chat"):
        assert b" 408 " in parts.ask_raw(address, sent)
    with socket.create_connection(address, timeout=5) as link:  # byte by byte
        with pytest.raises(OSError):
            for byte in head(10) * 10:
                link.sendall(bytes([byte]))
                time.sleep(0.02)
    # A connection that is kept is closed when no other request comes.
    kept = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    assert b" 200 " in parts.ask_raw(address, kept)
    assert time.monotonic() - began < 60
    assert service.room.requests == 0


def test_a_huge_body_is_refused_while_it_comes(start):
    service, _, address = start(limits=Limits(body_bytes=2**20))
    size = 40 * 2**20
    client = client_of(address)
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(
            model=parts.NAME, messages=[parts.user("a" * size)]
        )
    assert caught.value.status_code == 413
    # By what is announced alone; nothing of it comes.
    assert b" 413 " in parts.ask_raw(address, head(10**12), seconds=5)
    # Without its length told beforehand.
    with socket.create_connection(address, timeout=60) as link:
        link.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        piece = b"10000\r\n" + b" " * 2**16 + b"\r\n"
        for _ in range(100):
            link.sendall(piece)
        assert b" 413 " in link.recv(4096)
    parts.wait_for(lambda: not service.room.requests)
    assert service.room.held_bytes == 0


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_ends_the_server(qwen2, stream):
    app, engine = parts.application(qwen2, step_seconds=0.05)
    service = app.state.service
    taken = server.bind("127.0.0.1", 0)
    address, ready = taken.getsockname()[:2], threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        ended = threads.submit(_serve_in_thread, app, taken, ready)
        assert ready.wait(10)
        with concurrent.futures.ThreadPoolExecutor(3) as clients:
            fields = {"stream": stream, "min_tokens": 60}
            body = json.dumps(parts.chat("the?", **fields)).encode()
            data = head(len(body)) + body
            asked = [clients.submit(parts.ask_raw, address, data) for _ in range(3)]
            parts.wait_for(lambda: len(engine.asked) == 3)
            engine.broken = RuntimeError("out of memory")
            for told in asked:
                assert b"RuntimeError: out of memory" in told.result(10)
                assert (b" 500 " in told.result()) != stream
        with pytest.raises(server.EngineError, match="out of memory"):
            ended.result(10)
    assert service.counters.responses == {(CHAT, 500): 3}
    assert "failed" in service.why_not()
    with pytest.raises(worker.EngineFailed, match="out of memory"):
        service.worker.submit([])


def test_a_server_that_is_stopping_takes_nothing_new(start):
    service, engine, address = start()
    service.draining = True
    health = httpx2.get(f"http://{address[0]}:{address[1]}/health")
    assert health.status_code == 503 and "stopping" in health.text
    with pytest.raises(openai.InternalServerError, match="stopping"):
        client_of(address).completions.create(model=parts.NAME, prompt="the")
    assert not engine.asked


def _serve_in_thread(app, taken, ready):
    """`server.serve` without its signals, which only a main thread may set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: None)
        server.serve(app, taken, on_ready=ready.set)


def test_a_request_that_the_engine_chokes_on(start, monkeypatch):
    service, engine, address = start()
    client = client_of(address)
    add = engine.add

    def choke(request):
        if len(engine.asked) == 1:
            engine.asked.append(request)
            raise KeyError("a fault")
        add(request)

    monkeypatch.setattr(engine, "add", choke)

    def ask():
        return client.chat.completions.create(
            model=parts.NAME, messages=[parts.user("the?")]
        )

    ask()
    with pytest.raises(openai.InternalServerError, match="KeyError"):
        ask()
    ask()
    assert service.why_not() is None


SCRIPT = """
import sys
import echo_engine, serve_parts
from mpo_jax.inputs import tokenizer as tokenizer_lib
from mpo_jax.serve import server, worker

tokenizer = tokenizer_lib.load_tokenizer(sys.argv[1])
app, _ = serve_parts.application(
    tokenizer, step_seconds=0.1, hosts=server.LOOPBACK, max_new_tokens=60
)
taken = server.bind("127.0.0.1", 0)
server.serve(app, taken, on_ready=lambda: print(server.url(taken), flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(qwen2_dir: pathlib.Path, root: pathlib.Path, number):
    where = f"{root}{os.pathsep}{root / 'tests'}"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(qwen2_dir)],
        env=os.environ | {"PYTHONPATH": where},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        asked = threads.submit(
            client.chat.completions.create,
            model=parts.NAME,
            messages=[parts.user("the?")],
            extra_body={"min_tokens": 60},
        )
        parts.wait_for(lambda: "running 1" in _metrics(url))
        process.send_signal(number)
        assert asked.result(20).usage.completion_tokens == 60
    assert process.wait(20) == 0
    with pytest.raises(openai.APIConnectionError):
        client.models.list()


def _metrics(url: str) -> str:
    return httpx2.get(url.removesuffix("/v1") + "/metrics").text
