"""A model behind an OpenAI-compatible server that is asked in words alone: a judge.

Nothing is known of it but its name. So there is no prompt of our own to compare with,
and only what every server of this kind understands is sent.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, cast

from mpo_jax import ledger
from mpo_jax.generate import (
    endpoint_asking,
    endpoint_client,
    endpoint_reply,
    requests,
)
from mpo_jax.generate.endpoint_asking import Skip

Messages = list[dict[str, str]]


class TextEndpoint:
    """A model behind a server, asked without images.

    Attributes:
      model: its name at the server.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        concurrency: int = 16,
        timeout_s: float = 600.0,
        retries: int = 5,
    ):
        """Ask the server whether it has the model.

        Args:
          url, concurrency, timeout_s, retries: see ``endpoint_client.Client``.
          model: its name, with its version where the server has several of one name.

        Raises:
          EndpointError: the server cannot be reached or has no such model.
          ValueError: an argument is wrong, or the client library is absent.
        """
        if not model:
            raise ValueError("model='': name the model, so that another is another")
        self._client = endpoint_client.Client(
            url,
            model=model,
            concurrency=concurrency,
            timeout_s=timeout_s,
            retries=retries,
        )
        self.model = self._client.model

    def describe(self) -> dict[str, Any]:
        """Who is asked, see ``endpoint_client.Client.describe``."""
        return self._client.describe()

    def answers(
        self,
        questions: Iterable[requests.Question],
        *,
        temperature: float,
        max_new_tokens: int,
        skip: Skip = lambda question_id, sample: False,
    ) -> Iterator[endpoint_reply.NamedAnswer | requests.Failure]:
        """Ask each question once, and give the answers as they come, in no order.

        Args:
          questions: text and system text are sent, images, prefixes and histories
            refused; taken one at a time, in another thread.
          skip: says which (by id, sample 0) are not asked, in another thread.

        Returns:
          An iterator of one answer or failure per question. It raises ``EndpointError``
          where the server refuses every request.
        """
        sampling = {"temperature": temperature, "max_tokens": max_new_tokens, "n": 1}
        found = endpoint_asking.answers(
            questions,
            range(1),
            prepare=_messages,
            connect=self._client.connect,
            ask=functools.partial(self._ask, sampling=sampling),
            skip=skip,
            concurrency=self._client.concurrency,
        )
        return cast(Iterator[endpoint_reply.NamedAnswer | requests.Failure], found)

    async def _ask(
        self,
        client: Any,
        messages: Messages,
        question: requests.Question,
        sample: int,
        sampling: dict[str, Any],
    ) -> endpoint_reply.NamedAnswer | requests.Failure:
        """One question.

        Raises:
          EndpointError: see :meth:`answers`.
        """
        try:
            reply = await client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, **sampling
            )
            return endpoint_reply.named_answer_of(reply.text, question, sample)
        except self._client.errors as error:
            return self._client.failure(question.id, sample, error)


def _messages(question: requests.Question) -> Messages:
    """The request's messages.

    Raises:
      BadRecord: the question has something else than words.
    """
    if question.images or question.prefix or question.history:
        raise ledger.BadRecord(
            "unsupported",
            f"question {ledger.short(question.id)} has images, a prefix or a history: "
            "such a model is asked one text alone",
        )
    texts = {"system": question.system, "user": question.question}
    for role, text in texts.items():
        try:
            (text or "").encode("utf-8")
        except UnicodeEncodeError as error:
            detail = f"text of the {role} is no Unicode text: {error.reason}"
            raise ledger.BadRecord("bad_field", detail) from error
    return [
        {"role": role, "content": text}
        for role, text in texts.items()
        if text is not None
    ]
