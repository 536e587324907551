"""What is asked of a model and what it answers, in process and over HTTP alike.

Two levels. A :class:`Question` is text and images, an :class:`Answer` text: what
users, the command and an endpoint know. A :class:`Request` is a prompt in tokens and
tiles, an :class:`Update` some new tokens: that is what the engine knows.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

STOP = "stop"
"""Finish reason: a stop token or a stop string."""
LENGTH = "length"
"""Finish reason: `max_new_tokens`, or no room is left in the model or the engine."""

MAX_STOP_IDS = 16
"""Stop tokens of a request at most, the template's among them."""
MAX_STOPS = 16
"""Stop strings of a request at most."""
MAX_STOP_CHARACTERS = 256
"""Characters of a stop string at most."""
MAX_SAMPLES = 4096
"""Answers to one prompt at most."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Penalty, then `min_new_tokens`, temperature, `top_k` and `top_p` change the
    distribution in this order, as in transformers; tokens tied at a limit all stay.

    Attributes:
      n: answers to the prompt.
      seed: of the request; sample ``k`` draws its token ``t`` with
        ``fold_in(fold_in(key(seed), k), t)``.
      max_new_tokens: longest answer.
      min_new_tokens: no stop token before so many.
      temperature: 0 is greedy.
      top_p: smallest set of likeliest tokens with this mass; 1 is all.
      top_k: likeliest tokens; 0 is all.
      repetition_penalty: of tokens in prompt and answer, 1 is none; as in transformers.
      stop_ids: tokens that end an answer, beside the template's.
      stop: texts that end an answer; they are not part of it.

    Raises:
      ValueError: a value is out of range; names it.
    """

    n: int = 1
    seed: int = 0
    max_new_tokens: int = 1024
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low, high in (
            ("n", 1, MAX_SAMPLES),
            ("seed", -(2**63), 2**63 - 1),
            ("max_new_tokens", 1, 2**20),
            ("min_new_tokens", 0, self.max_new_tokens),
            ("top_k", 0, 2**31 - 1),
        ):
            _check_int(name, getattr(self, name), low, high)
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("repetition_penalty", 0.0, 100.0),
        ):
            _check_number(name, getattr(self, name), low, high)
        if not self.top_p:
            raise ValueError("top_p=0 admits no token; use temperature=0 for greedy")
        if not self.repetition_penalty:
            raise ValueError("repetition_penalty=0 divides by it; 1 is none")
        _check_stops(self.stop_ids, self.stop)


def _check_int(name: str, value: Any, low: int, high: int) -> None:
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_int or not low <= value <= high:
        raise ValueError(f"{name}={value!r}: must be an integer from {low} to {high}")


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    kinds = int | float | np.integer | np.floating
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # NaN is in no range
        raise ValueError(f"{name}={value!r}: must be a number from {low:g} to {high:g}")


def _check_stops(ids: Sequence[int], texts: Sequence[str]) -> None:
    if len(ids) > MAX_STOP_IDS:
        raise ValueError(f"stop_ids: {len(ids)} of them, at most {MAX_STOP_IDS}")
    for i in ids:
        _check_int("stop_ids", i, 0, 2**31 - 1)
    if len(texts) > MAX_STOPS:
        raise ValueError(f"stop: {len(texts)} texts, at most {MAX_STOPS}")
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARACTERS:
            raise ValueError(
                f"stop={str(text)[:40]!r}: must be a text of 1 to "
                f"{MAX_STOP_CHARACTERS} characters"
            )


@dataclasses.dataclass(frozen=True)
class Question:
    """A question as people put it.

    Attributes:
      id: names it in results; unique.
      question: text, with its ``<image>`` placeholders; a single image may have none.
      images: paths, or whatever the reader of bytes takes.
      prefix: beginning of the answer, as text or token ids.
      system: other system text; None is the template's.
      history: earlier (question, answer) pairs.
      seed: of this question; None derives it from the run's and `id`.
    """

    id: str | int
    question: str
    images: tuple[str, ...] = ()
    prefix: str | tuple[int, ...] = ""
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer to a question.

    Attributes:
      id: of the question.
      sample: its number among the answers, from 0.
      text: what was said, without prefix, stop token and stop string.
      finish_reason: :data:`STOP` or :data:`LENGTH`.
      prompt_tokens: of the prompt, image tokens and prefix included.
      tokens: generated, the stop token included.
      logprob: sum over them, nats, of the model's own (undistorted) distribution; None
        where an endpoint does not say.
      token_ids: None where an endpoint does not say.
      token_logprobs: of every token, nats; likewise.
    """

    id: str | int
    sample: int
    text: str
    finish_reason: str
    prompt_tokens: int
    tokens: int
    logprob: float | None
    token_ids: tuple[int, ...] | None = None
    token_logprobs: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Failure:
    """A question, or one sample of it, that got no answer.

    Attributes:
      sample: None where the question itself cannot be asked.
      reason: a key of ``ledger.REASONS`` where the question is at fault, else
        ``endpoint``.
      detail: what happened and what to do.
      retry: a later start of the same command asks again.
    """

    id: str | int
    sample: int | None
    reason: str
    detail: str
    retry: bool


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt in tokens, and how its answers are drawn.

    Attributes:
      key: names it in updates; unique among the requests of an engine.
      ids: int32 ``[p]``, at least one token; the last is no image token.
      tiles: uint8 or normalised float ``[m, S, S, 3]``.
      answer_start: position of the answer's first token, ``p`` without a prefix.
      samples: numbers of the answers that are wanted, each once; None is all
        ``sampling.n``.
    """

    key: Hashable
    ids: np.ndarray
    tiles: np.ndarray
    answer_start: int
    sampling: Sampling
    samples: tuple[int, ...] | None = None

    @property
    def wanted(self) -> tuple[int, ...]:
        """Numbers of the answers to give."""
        if self.samples is None:
            return tuple(range(self.sampling.n))
        return self.samples


@dataclasses.dataclass(frozen=True)
class Update:
    """News of one answer; those of an answer come in order, the last has a reason.

    Attributes:
      key: of the request.
      sample: number of the answer, from 0.
      ids: new tokens, the stop token included.
      logps: of each, nats.
      text: new text; joined over all updates it is the answer's. What may still become
        part of a stop string or of a character is held back.
      finish_reason: None while it goes on.
    """

    key: Hashable
    sample: int
    ids: tuple[int, ...]
    logps: tuple[float, ...]
    text: str
    finish_reason: str | None


def seed_of(question: Question, run_seed: int) -> int:
    """Seed of a question: its own, or one that depends on the run's and its id alone.

    So answers depend neither on the order of the questions nor on which of them there
    are, and two questions are drawn independently.
    """
    if question.seed is not None:
        return question.seed
    named = f"{run_seed}:{type(question.id).__name__}:{question.id}"
    digest = hashlib.sha256(named.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") - 2**63


class Answerer(Protocol):
    """What answers questions: a model in this process, or an endpoint."""

    def answers(
        self,
        questions: Iterable[Question],
        sampling: Sampling,
        *,
        skip: Callable[[str | int, int], bool],
    ) -> Iterator[Answer | Failure]:
        """Answers as they come, in any order; every question in full or with failures.

        Args:
          sampling: its seed is the run's, see :func:`seed_of`.
          skip: says of (id, sample) that it is answered already.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-able: what the answers depend on, for a manifest."""
        ...


class Engine(Protocol):
    """What answers requests; one thread calls it.

    Attributes:
      max_prompt_tokens: longest prompt that it takes.
      max_new_tokens: longest answer that it gives; longer ones end with ``length``.
    """

    max_prompt_tokens: int
    max_new_tokens: int

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
          BadRecord: ``too_long``, or its ids and tiles do not fit the model.
        """
        ...

    def cancel(self, key: Hashable) -> None:
        """Forget a request and free its slots; no further update of it comes."""
        ...

    def step(self) -> list[Update]:
        """Fill free slots, decode some tokens in all of them, tell what is new."""
        ...

    @property
    def busy(self) -> bool:
        """Is anything queued or being answered?"""
        ...

    @property
    def stats(self) -> dict[str, float]:
        """Counters and gauges by name, for progress and ``/metrics``."""
        ...
