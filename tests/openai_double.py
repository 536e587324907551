"""A server that plays vLLM, SGLang or LMDeploy: it makes prompts by their rules.

Where it has images, how it joins texts and which tile limit it reads are those of the
engine, so that a prompt that comes out as ours was asked for in the right way.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from PIL import Image
from starlette import applications, responses, routing
from starlette import requests as starlette_requests

from mpo_jax.inputs import images, template
from mpo_jax.inputs import prompt as prompt_lib
from mpo_jax.inputs.tokenizer import ChatTokenizer

HANG_UP = 0
"""A fault: the connection breaks in the middle of a reply."""

MODELS = "/v1/models"


@dataclasses.dataclass
class Double:
    """What it is told to do, and what it saw.

    Attributes:
      engine: whose rules it follows; also its ``owned_by``.
      models: names that it lists.
      faults: statuses of the next replies, or :data:`HANG_UP`.
      error: body of a fault.
      change: changes a reply, given the request's body.
      raw: text of every reply instead.
      delays_s: seconds that the next answers take.
      delay_s: seconds that every other answer takes.
      text: of every answer.
      bodies, paths, headers: of the requests, in order.
      active, most_active, gone: requests in work, most at a time, and those whose
        client has hung up.
    """

    tokenizer: ChatTokenizer
    policy: prompt_lib.PromptPolicy
    engine: str = "vllm"
    models: tuple[str, ...] = ("internvl",)
    faults: list[int] = dataclasses.field(default_factory=list)
    error: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"error": {"message": "told to fail"}}
    )
    change: Callable[[dict[str, Any], dict[str, Any]], None] = lambda reply, body: None
    raw: str | None = None
    delays_s: list[float] = dataclasses.field(default_factory=list)
    delay_s: float = 0.0
    text: str = "the an"
    url: str = ""
    bodies: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    paths: list[str] = dataclasses.field(default_factory=list)
    headers: list[dict[str, str]] = dataclasses.field(default_factory=list)
    active: int = 0
    most_active: int = 0
    gone: int = 0

    def prompt_ids(self, body: dict[str, Any]) -> list[int]:
        """Tokens that the engine would make of a request."""
        if "prompt" in body:
            return body["prompt"]
        chat = template.get_template(self.policy.template)
        text = ""
        for message in body["messages"]:
            header = {
                "system": chat.system,
                "user": chat.user,
                "assistant": chat.assistant,
            }
            text += header[message["role"]] + self._content(message["content"], body)
            text += chat.separator
        if body.get("continue_final_message"):
            assert body["add_generation_prompt"] is False
            text = text.removesuffix(chat.separator)
        else:
            text += chat.assistant
        return self.tokenizer.encode(text, bos=self.tokenizer.add_bos)

    def _content(self, content: Any, body: dict[str, Any]) -> str:
        if isinstance(content, str):
            return content
        texts = [part["text"] for part in content if part["type"] == "text"]
        slots = [self._slots(p, body) for p in content if p["type"] == "image_url"]
        if self.engine == "sglang":
            return "".join(f"{slot}\n" for slot in slots) + "".join(texts)
        if self.engine == "lmdeploy":
            return self._lmdeploy(content, texts, slots)
        text = "\n".join(texts)
        missing = len(slots) - text.count("<image>")
        assert missing >= 0
        return self._fill("\n".join(["<image>"] * missing + [text]), "<image>", slots)

    def _lmdeploy(self, content: Any, texts: list[str], slots: list[str]) -> str:
        if any("<IMAGE_TOKEN>" in text for text in texts):
            return self._fill("".join(texts), "<IMAGE_TOKEN>", slots)
        left = iter(slots)
        return "".join(
            part["text"] if part["type"] == "text" else f"{next(left)}\n"
            for part in content
        )

    def _fill(self, text: str, word: str, slots: list[str]) -> str:
        for slot in slots:
            text = text.replace(word, slot, 1)
        return text

    def _slots(self, part: dict[str, Any], body: dict[str, Any]) -> str:
        """Image tokens of a part, by the tile limit that the engine reads."""
        where = part["image_url"]
        limit = where["max_dynamic_patch"]
        if self.engine == "vllm":
            limit = body["mm_processor_kwargs"]["max_dynamic_patch"]
        data = base64.b64decode(where["url"].partition(";base64,")[2], validate=True)
        with Image.open(io.BytesIO(data)) as image:
            tiles = images.tile_count(
                *image.size,
                min_num=1,
                max_num=limit,
                image_size=self.policy.image_size,
                use_thumbnail=self.policy.use_thumbnail,
            )
        return f"<img>{'<IMG_CONTEXT>' * tiles * self.policy.tokens_per_tile}</img>"

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        """An answer as the engine puts it."""
        prompt = self.prompt_ids(body)
        ids = self.tokenizer.encode(self.text, bos=False, start=False)
        stop = template.get_template(self.policy.template).stop
        ids.append(self.tokenizer.id_of(stop) or 0)
        logprobs = [-0.5 - k for k in range(len(ids))]
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if "prompt" in body:
            choice |= {"text": self.text, "logprobs": {"token_logprobs": logprobs}}
        else:
            choice["message"] = {"role": "assistant", "content": self.text}
            choice["logprobs"] = {"content": [{"logprob": p} for p in logprobs]}
        reply: dict[str, Any] = {
            "model": body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(ids)},
        }
        if self.engine == "vllm":
            choice["token_ids"] = ids
            (choice if "prompt" in body else reply)["prompt_token_ids"] = prompt
        elif self.engine == "lmdeploy":
            choice["logprobs"] = None
            choice["gen_tokens"] = ids
        self.change(reply, body)
        return reply

    async def answer(self, request: starlette_requests.Request) -> Any:
        body = await request.json()
        self.bodies.append(body)
        self.paths.append(request.url.path)
        self.headers.append(dict(request.headers))
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            heard = await self._work(request)
        finally:
            self.active -= 1
        if not heard:
            return responses.Response(status_code=499)
        if self.faults:
            return self._fault(self.faults.pop(0))
        text = json.dumps(self.reply(body)) if self.raw is None else self.raw
        return responses.Response(text, media_type="application/json")

    async def _work(self, request: starlette_requests.Request) -> bool:
        """Take the time that an answer takes; False where the client has hung up."""
        delay_s = self.delays_s.pop(0) if self.delays_s else self.delay_s
        end = time.monotonic() + delay_s
        while time.monotonic() < end:
            await asyncio.sleep(0.01)
            if await request.is_disconnected():
                self.gone += 1
                return False
        return True

    def _fault(self, status: int) -> Any:
        if status == HANG_UP:
            return _BrokenReply()
        hurry = {"retry-after-ms": "1"}
        return responses.JSONResponse(self.error, status, headers=hurry)

    async def list_models(self, request: starlette_requests.Request) -> Any:
        self.headers.append(dict(request.headers))
        if self.faults:
            return self._fault(self.faults.pop(0))
        cards = [{"id": name, "owned_by": self.engine} for name in self.models]
        return responses.JSONResponse({"object": "list", "data": cards})

    async def version(self, request: starlette_requests.Request) -> Any:
        if self.engine != "vllm":
            return responses.PlainTextResponse("Not Found", 404)
        return responses.JSONResponse({"version": "0.33.0"})


class _BrokenReply(responses.Response):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"1000"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{", "more_body": False})


@contextlib.contextmanager
def serve(double: Double) -> Iterator[Double]:
    """Run it at a port of this machine, in a thread."""
    app = applications.Starlette(
        routes=[
            routing.Route(MODELS, double.list_models),
            routing.Route("/version", double.version),
            routing.Route("/v1/chat/completions", double.answer, methods=["POST"]),
            routing.Route("/v1/completions", double.answer, methods=["POST"]),
        ]
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app, port=0, log_level="critical", timeout_graceful_shutdown=1, ws="none"
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    double.url = f"http://127.0.0.1:{port}"
    try:
        yield double
    finally:
        server.should_exit = True
        thread.join()
