"""Answers from the model in this process: questions to prompts, updates to answers."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

import numpy as np

from mpo_jax import ledger
from mpo_jax.generate import engine as engine_lib
from mpo_jax.generate import prompts, requests
from mpo_jax.inputs import images as images_lib
from mpo_jax.inputs import prompt as prompt_lib
from mpo_jax.inputs.tokenizer import ChatTokenizer

THREADS = 4
"""That decode and tile images while the model works."""

Result = requests.Answer | requests.Failure


@dataclasses.dataclass
class _Pending:
    """A question whose answers are being given."""

    request: requests.Request
    question: requests.Question
    ids: dict[int, list[int]]
    logps: dict[int, list[float]]
    texts: dict[int, list[str]]


class Local:
    """``requests.Answerer`` on an engine."""

    def __init__(
        self,
        engine: engine_lib.Engine,
        *,
        tokenizer: ChatTokenizer,
        policy: prompt_lib.PromptPolicy,
        max_tiles: int | None = None,
        read: Callable[[str], bytes] = images_lib.read_file,
        described: dict[str, Any] | None = None,
    ):
        """
        Args:
          max_tiles, read: see ``inputs.prompt.make_prompt``.
          described: what :meth:`describe` tells.
        """
        self.engine = engine
        self._tokenizer, self._policy = tokenizer, policy
        self._max_tiles, self._read = max_tiles, read
        self._described = described or {}

    def describe(self) -> dict[str, Any]:
        """See ``requests.Answerer``."""
        return self._described

    def answers(
        self,
        questions: Iterable[requests.Question],
        sampling: requests.Sampling,
        *,
        skip: Callable[[str | int, int], bool] = lambda _id, _sample: False,
    ) -> Iterator[Result]:
        """See ``requests.Answerer``."""
        pending: dict[str | int, _Pending] = {}
        with futures.ThreadPoolExecutor(THREADS) as pool:
            made = self._made(questions, sampling, skip, pool)
            more = True
            while more or self.engine.busy:
                while more and self.engine.stats["queued"] < self._ahead:
                    found = next(made, None)
                    if found is None:
                        more = False
                    elif isinstance(found, requests.Failure):
                        yield found
                    else:
                        yield from self._added(found, pending)
                for update in self.engine.step():
                    answer = _taken(pending, update)
                    if answer is not None:
                        yield answer

    @property
    def _ahead(self) -> int:
        """Requests that wait in the engine, so that no group waits for one."""
        return max(2, int(self.engine.stats["slots"]) // 2)

    def _added(
        self, found: _Pending, pending: dict[str | int, _Pending]
    ) -> Iterator[Result]:
        try:
            self.engine.add(found.request)
        except ledger.BadRecord as error:
            yield _failure(found.question, error)
        else:
            pending[found.question.id] = found

    def _made(
        self,
        questions: Iterable[requests.Question],
        sampling: requests.Sampling,
        skip: Callable[[str | int, int], bool],
        pool: futures.Executor,
    ) -> Iterator[_Pending | requests.Failure]:
        """Requests in order, some of them in the making ahead of time."""
        waiting: collections.deque[futures.Future[Any]] = collections.deque()
        for question in questions:
            wanted = tuple(k for k in range(sampling.n) if not skip(question.id, k))
            if not wanted:
                continue
            waiting.append(pool.submit(self._request, question, sampling, wanted))
            if len(waiting) > 2 * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _request(
        self,
        question: requests.Question,
        sampling: requests.Sampling,
        wanted: tuple[int, ...],
    ) -> _Pending | requests.Failure:
        seed = requests.seed_of(question, sampling.seed)
        try:
            request = prompts.request_of(
                question,
                dataclasses.replace(sampling, seed=seed),
                key=question.id,
                tokenizer=self._tokenizer,
                policy=self._policy,
                max_tiles=self._max_tiles,
                read=self._read,
            )
        except ledger.BadRecord as error:
            return _failure(question, error)
        request = dataclasses.replace(request, samples=wanted)
        return _Pending(
            request,
            question,
            *({k: [] for k in wanted} for _ in range(3)),
        )


def _failure(question: requests.Question, error: ledger.BadRecord) -> requests.Failure:
    return requests.Failure(question.id, None, error.reason, error.detail, retry=False)


def _taken(
    pending: dict[str | int, _Pending], update: requests.Update
) -> requests.Answer | None:
    """Add an update to its answer; the answer where that was the last."""
    key: Any = update.key
    one, sample = pending[key], update.sample
    one.ids[sample] += update.ids
    one.logps[sample] += update.logps
    one.texts[sample].append(update.text)
    if update.finish_reason is None:
        return None
    ids, logps = one.ids.pop(sample), one.logps.pop(sample)
    text = "".join(one.texts.pop(sample))
    if not one.ids:
        del pending[key]
    # As upstream's chat has it; a continuation keeps the space that joins it.
    if len(one.request.ids) == one.request.answer_start:
        text = text.strip()
    return requests.Answer(
        id=one.question.id,
        sample=sample,
        text=text,
        finish_reason=update.finish_reason,
        prompt_tokens=len(one.request.ids),
        tokens=len(ids),
        logprob=float(np.sum(np.asarray(logps, np.float64))),
        token_ids=tuple(ids),
        token_logprobs=tuple(logps),
    )
