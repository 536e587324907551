"""An engine without a model: what it says follows from prompt, seed, sample, step."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Hashable

import numpy as np

from mpo_jax import ledger
from mpo_jax.generate import requests, text
from mpo_jax.inputs.tokenizer import ChatTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz ,.\n"


class _Answer:
    def __init__(self, request: requests.Request, sample: int, decode: text.Decode):
        self.request, self.sample = request, sample
        self.said: list[int] = []
        self.stream = text.TextStream(
            decode,
            prefix=request.ids[request.answer_start :].tolist(),
            stop=request.sampling.stop,
            stop_ids=request.sampling.stop_ids,
        )


class EchoEngine:
    """Implements ``requests.Engine``.

    Attributes:
      asked: every request that was added.
      cancelled: keys of requests that were cancelled while queued or answered.
      most: answers in slots at a time, at most so far.
      broken: what the next step raises.
      gate: steps wait for it.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        slots: int = 4,
        chunk: int = 3,
        max_prompt_tokens: int = 4096,
        max_new_tokens: int = 64,
        step_seconds: float = 0.0,
    ):
        self.max_prompt_tokens = max_prompt_tokens
        self.max_new_tokens = max_new_tokens
        self._tokenizer = tokenizer
        self._letters = [tokenizer.encode(c, bos=False)[-1] for c in LETTERS]
        self._slots, self._chunk, self._seconds = slots, chunk, step_seconds
        self._queue: list[_Answer] = []
        self._running: list[_Answer] = []
        self._steps = 0
        self.asked: list[requests.Request] = []
        self.cancelled: set[Hashable] = set()
        self.most = 0
        self.broken: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def add(self, request: requests.Request) -> None:
        if len(request.ids) > self.max_prompt_tokens:
            raise ledger.BadRecord("too_long", f"prompt of {len(request.ids)} tokens")
        self.asked.append(request)
        self._queue += [
            _Answer(request, sample, self._tokenizer.decode)
            for sample in range(request.sampling.n)
        ]

    def cancel(self, key: Hashable) -> None:
        self.cancelled.add(key)
        self._queue = [a for a in self._queue if a.request.key != key]
        self._running = [a for a in self._running if a.request.key != key]

    def step(self) -> list[requests.Update]:
        self.gate.wait(20)
        time.sleep(self._seconds)
        if self.broken is not None:
            raise self.broken
        while self._queue and len(self._running) < self._slots:
            self._running.append(self._queue.pop(0))
        self.most = max(self.most, len(self._running))
        self._steps += 1
        news = [self._speak(answer) for answer in self._running]
        ended = {(u.key, u.sample) for u in news if u.finish_reason}
        self._running = [
            a for a in self._running if (a.request.key, a.sample) not in ended
        ]
        return news

    def _speak(self, answer: _Answer) -> requests.Update:
        sampling = answer.request.sampling
        new: list[int] = []
        said, reason = "", None
        longest = min(sampling.max_new_tokens, self.max_new_tokens)
        while len(new) < self._chunk and reason is None:
            token = self._token(answer)
            new.append(token)
            answer.said.append(token)
            said += answer.stream.push([token])[0]
            if token in sampling.stop_ids or answer.stream.stopped:
                reason = requests.STOP
            elif len(answer.said) >= longest:
                reason = requests.LENGTH
        if reason is not None:
            said += answer.stream.finish()
        logps = tuple(-float(token % 7) / 8 for token in new)
        key = answer.request.key
        return requests.Update(key, answer.sample, tuple(new), logps, said, reason)

    def _token(self, answer: _Answer) -> int:
        sampling, step = answer.request.sampling, len(answer.said)
        greedy = sampling.temperature == 0
        where = (0, 0, step) if greedy else (sampling.seed, answer.sample, step)
        ids, tiles = answer.request.ids, answer.request.tiles
        data = ids.tobytes() + np.ascontiguousarray(tiles).tobytes()
        drawn = zlib.crc32(repr(where).encode(), zlib.crc32(data))
        if drawn % 29 == 0 and step >= sampling.min_new_tokens:
            return sampling.stop_ids[0]
        return self._letters[drawn % len(self._letters)]

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._running)

    @property
    def stats(self) -> dict[str, float]:
        return {
            "queued": float(len(self._queue)),
            "running": float(len(self._running)),
            "steps": float(self._steps),
        }


def run(engine: EchoEngine, request: requests.Request) -> list[str]:
    """Texts of a request's answers, without any server."""
    texts = [""] * request.sampling.n
    engine.add(request)
    while engine.busy:
        for update in engine.step():
            texts[update.sample] += update.text
    return texts
