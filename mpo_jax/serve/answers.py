"""Updates of the engine to bodies of responses, whole or in chunks."""

from __future__ import annotations

import abc
import collections
import dataclasses
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from mpo_jax.generate import requests
from mpo_jax.inputs.tokenizer import ChatTokenizer
from mpo_jax.serve.sampling import Delivery

_LOWEST_LOGPROB = -9999.0
"""What OpenAI gives for a token without any chance; JSON has no infinity."""

DONE = b"data: [DONE]\n\n"
"""End of a stream."""


def json_bytes(value: Any) -> bytes:
    """JSON in UTF-8, whatever a client has put into a text that is shown to it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def event(value: Any) -> bytes:
    """A server-sent event of one JSON value."""
    return b"data: " + json_bytes(value) + b"\n\n"


@dataclasses.dataclass
class _Said:
    """What has been said of one answer."""

    text: str = ""
    ids: list[int] = dataclasses.field(default_factory=list)
    logps: list[float] = dataclasses.field(default_factory=list)
    reason: str | None = None


class Answering(abc.ABC):
    """One client's answers; choice ``k`` of prompt ``p`` has index ``p * n + k``.

    Attributes:
      name, piece: what responses and chunks are called.
      prompt_tokens, tokens: read and generated so far.
    """

    name: ClassVar[str]
    piece: ClassVar[str]
    prefix: ClassVar[str]

    def __init__(
        self,
        asked: Sequence[requests.Request],
        delivery: Delivery,
        *,
        model: str,
        tokenizer: ChatTokenizer,
    ):
        self._asked, self._delivery = asked, delivery
        self._tokenizer = tokenizer
        n = asked[0].sampling.n
        self._first = {request.key: number * n for number, request in enumerate(asked)}
        self._said = [_Said() for _ in range(n * len(asked))]
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self.prompt_tokens = sum(len(request.ids) for request in asked)
        self.tokens = 0

    def whole(self) -> dict[str, Any]:
        """The response, when every answer has ended."""
        choices = []
        for index, said in enumerate(self._said):
            choice = self._whole(said) | {
                "index": index,
                "finish_reason": said.reason,
                "logprobs": self._logprobs(said.ids, said.logps),
            }
            if self._delivery.return_token_ids:
                choice["token_ids"] = said.ids
            choices.append(choice)
        body = self._chunk(choices) | {"object": self.name, "usage": self._usage()}
        return self._with_prompts(body)

    def keep(self, updates: Iterable[requests.Update]) -> None:
        """Take news for :meth:`whole`."""
        for update in updates:
            said = self._said[self._index(update)]
            said.text += update.text
            said.ids += update.ids
            said.logps += update.logps
            said.reason = update.finish_reason
            self.tokens += len(update.ids)

    def opening(self) -> Iterator[bytes]:
        """Events that come before any news."""
        head = {"finish_reason": None, "logprobs": None}
        for index in range(len(self._said)):
            opening = self._opening()
            if opening is not None:
                chunk = self._chunk([{"index": index} | opening | head])
                yield event(self._with_prompts(chunk))

    def events(self, updates: Iterable[requests.Update]) -> Iterator[bytes]:
        """Events of news, one for each answer that has any."""
        joined: dict[int, list[requests.Update]] = collections.defaultdict(list)
        for update in updates:
            joined[self._index(update)].append(update)
        for index, items in joined.items():
            ids = [i for item in items for i in item.ids]
            logps = [p for item in items for p in item.logps]
            text = "".join(item.text for item in items)
            reason = items[-1].finish_reason
            self.tokens += len(ids)
            if not (text or reason or self._delivery.tells_tokens):
                continue  # held back, or a part of a character
            choice = self._piece(text) | {
                "index": index,
                "finish_reason": reason,
                "logprobs": self._logprobs(ids, logps),
            }
            if self._delivery.return_token_ids:
                choice["token_ids"] = ids
            yield event(self._chunk([choice]))

    def closing(self) -> Iterator[bytes]:
        """Events after the last news."""
        if self._delivery.include_usage:
            yield event(self._chunk([]) | {"usage": self._usage()})
        yield DONE

    def _index(self, update: requests.Update) -> int:
        return self._first[update.key] + update.sample

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head | {"object": self.piece, "choices": choices}

    def _with_prompts(self, body: dict[str, Any]) -> dict[str, Any]:
        """A body with the token ids of its prompts, where these are asked for."""
        if self._delivery.return_token_ids:
            self._put_prompts(body)
        return body

    def _prompt_ids(self, index: int) -> list[int]:
        return self._asked[index // self._asked[0].sampling.n].ids.tolist()

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
        }

    def _logprobs(
        self, ids: Sequence[int], logps: Sequence[float]
    ) -> dict[str, Any] | None:
        if not self._delivery.logprobs:
            return None
        texts = [self._tokenizer.decode([i], skip_special=False) for i in ids]
        return self._spelt(texts, [max(p, _LOWEST_LOGPROB) for p in logps])

    @abc.abstractmethod
    def _whole(self, said: _Said) -> dict[str, Any]: ...

    @abc.abstractmethod
    def _opening(self) -> dict[str, Any] | None: ...

    @abc.abstractmethod
    def _put_prompts(self, body: dict[str, Any]) -> None: ...

    @abc.abstractmethod
    def _piece(self, text: str) -> dict[str, Any]: ...

    @abc.abstractmethod
    def _spelt(self, texts: list[str], logps: list[float]) -> dict[str, Any]: ...


class ChatAnswering(Answering):
    """Of ``/v1/chat/completions``."""

    name, piece, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def _whole(self, said: _Said) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": said.text}}

    def _opening(self) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": ""}}

    def _put_prompts(self, body: dict[str, Any]) -> None:
        if not body["choices"][0]["index"]:  # once in a stream
            body["prompt_token_ids"] = self._prompt_ids(0)

    def _piece(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}}

    def _spelt(self, texts: list[str], logps: list[float]) -> dict[str, Any]:
        content = [
            {
                "token": text,
                "logprob": logp,
                # Bytes of a part of a character are not known here.
                "bytes": None if "\ufffd" in text else list(text.encode()),
                "top_logprobs": [],
            }
            for text, logp in zip(texts, logps, strict=True)
        ]
        return {"content": content}


class TextAnswering(Answering):
    """Of ``/v1/completions``."""

    name, piece, prefix = "text_completion", "text_completion", "cmpl"

    def _whole(self, said: _Said) -> dict[str, Any]:
        return {"text": said.text}

    def _opening(self) -> dict[str, Any] | None:
        return {"text": ""} if self._delivery.return_token_ids else None

    def _put_prompts(self, body: dict[str, Any]) -> None:
        for choice in body["choices"]:
            choice["prompt_token_ids"] = self._prompt_ids(choice["index"])

    def _piece(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _spelt(self, texts: list[str], logps: list[float]) -> dict[str, Any]:
        return {"tokens": texts, "token_logprobs": logps, "top_logprobs": None}
