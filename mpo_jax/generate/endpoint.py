"""A model behind an OpenAI-compatible server: vLLM, SGLang, LMDeploy, or ours.

Extra: ``pip install -e '.[endpoint]'``. docs/endpoint.md says what is sent and checked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mpo_jax.generate import (
    endpoint_asking,
    endpoint_client,
    endpoint_prompt,
    endpoint_reply,
    requests,
)
from mpo_jax.generate.endpoint_asking import Skip
from mpo_jax.inputs import images as images_lib
from mpo_jax.inputs import prompt as prompt_lib
from mpo_jax.inputs.tokenizer import ChatTokenizer


class Endpoint:
    """A model behind a server, asked as the one in process is.

    Every sample is a request of its own with a seed of its own; nothing else promises
    that an answer does not depend on how many were asked for. The same seed at another
    time may give another answer, as servers batch requests.

    Attributes:
      model: its name at the server.
      engine: what the server says that it is, such as ``vllm``; None if nothing.
    """

    def __init__(
        self,
        url: str,
        *,
        tokenizer: ChatTokenizer,
        policy: prompt_lib.PromptPolicy,
        max_tiles: int | None = None,
        model: str | None = None,
        concurrency: int = 16,
        timeout_s: float = 600.0,
        retries: int = 5,
        check_parity: bool = True,
        read: Callable[[str], bytes] = images_lib.read_file,
    ):
        """Ask the server which models it has.

        Args:
          url: such as ``http://host:8000``; ``/v1`` is added where it is missing.
          tokenizer, policy: those of the model that is served: the server's count of
            prompt tokens is compared with theirs.
          max_tiles: limit of a prompt's images together; None is the policy's.
          model: None is the only one that the server has.
          concurrency: requests in flight at most.
          timeout_s: seconds until a request counts as failed.
          retries: further tries of a request that failed for a reason that may pass,
            after 0.5, 1, 2, 4, 8, 8, … seconds (some less by chance), or as the server
            asks.
          check_parity: refuse a server that reads other prompts.
          read: gives the bytes of an image.

        Raises:
          EndpointError: the server cannot be reached or has no such model.
          ValueError: an argument is wrong, or the client library is absent.
        """
        self._client = endpoint_client.Client(
            url,
            model=model,
            concurrency=concurrency,
            timeout_s=timeout_s,
            retries=retries,
        )
        self.model, self.engine = self._client.model, self._client.engine
        self._tokenizer, self._policy, self._max_tiles = tokenizer, policy, max_tiles
        self._check_parity, self._read = check_parity, read

    def describe(self) -> dict[str, Any]:
        """Who is asked, as JSON values, for a manifest; without credentials.

        What only changes how fast is left out: a run may go on with other values.
        """
        return {**self._client.describe(), "check_parity": self._check_parity}

    def answers(
        self,
        questions: Iterable[requests.Question],
        sampling: requests.Sampling,
        *,
        skip: Skip = lambda question_id, sample: False,
    ) -> Iterator[requests.Answer | requests.Failure]:
        """Ask, and give the answers as they come, in no order.

        Requests go on while the caller is busy, until as many answers wait as there may
        be requests. A caller that stops early (closes the iterator) cancels them.

        Args:
          questions: taken one at a time, in another thread.
          sampling: of all of them; ``seed`` is the run's.
          skip: says which samples (by question id and number) are not asked, in another
            thread.

        Returns:
          An iterator of one answer or failure per sample, or one failure without a
          sample for a question that cannot be asked. It raises ``PromptMismatch`` where
          the server reads other prompts, ``EndpointError`` where it refuses every
          request, and ``OSError`` where the file system failed.

        Raises:
          ValueError: the server would ignore a part of `sampling`.
        """
        endpoint_prompt.check_sampling(sampling, self.engine)
        return endpoint_asking.answers(
            questions,
            range(sampling.n),
            prepare=functools.partial(self._asked_of, sampling=sampling),
            connect=self._client.connect,
            ask=functools.partial(self._ask, sampling=sampling),
            skip=skip,
            concurrency=self._client.concurrency,
        )

    def _asked_of(
        self, question: requests.Question, sampling: requests.Sampling
    ) -> endpoint_prompt.Asked:
        return endpoint_prompt.asked_of(
            question,
            sampling,
            tokenizer=self._tokenizer,
            policy=self._policy,
            max_tiles=self._max_tiles,
            engine=self.engine,
            read=self._read,
        )

    async def _ask(
        self,
        client: Any,
        asked: endpoint_prompt.Asked,
        question: requests.Question,
        sample: int,
        sampling: requests.Sampling,
    ) -> requests.Answer | requests.Failure:
        """One sample of one question.

        Raises:
          PromptMismatch, EndpointError: see :meth:`answers`.
        """
        route = client.chat.completions if asked.chat else client.completions
        try:
            reply = await route.with_raw_response.create(
                model=self.model,
                seed=endpoint_prompt.seed_of(question, sampling.seed, sample),
                extra_body=dict(asked.extra),
                **asked.fields,
            )
            return endpoint_reply.answer_of(
                reply.text,
                asked,
                question,
                sample,
                sampling=sampling,
                tokenizer=self._tokenizer,
                tokens_per_tile=self._policy.tokens_per_tile,
                check_parity=self._check_parity,
            )
        except self._client.errors as error:
            return self._client.failure(question.id, sample, error)
