"""Requests of clients to requests of the engine: tokens and tiles.

Takes from milliseconds to a second, so it runs in threads of its own; tokenizers may be
used by several threads at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from mpo_jax import ledger
from mpo_jax.generate import prompts, requests
from mpo_jax.inputs import images as images_lib
from mpo_jax.inputs import prompt as prompt_lib
from mpo_jax.inputs import template
from mpo_jax.inputs.tokenizer import ChatTokenizer
from mpo_jax.serve import errors
from mpo_jax.serve.conversation import Picture
from mpo_jax.serve.limits import Limits
from mpo_jax.serve.protocol import ChatAsked, TextAsked


class Preparer:
    """Makes the prompts of one model."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        policy: prompt_lib.PromptPolicy,
        limits: Limits,
        *,
        max_prompt_tokens: int,
    ):
        pixels = min(policy.max_image_pixels, limits.image_pixels)
        self._policy = dataclasses.replace(policy, max_image_pixels=pixels)
        self._tokenizer = tokenizer
        self._limits = limits
        self._max_prompt_tokens = max_prompt_tokens
        self._stop_id = prompts.stop_id(tokenizer, policy)

    def chat(self, asked: ChatAsked, key: Hashable) -> list[requests.Request]:
        """The request that a chat is.

        Raises:
          Refused: 400 or 413, naming the message or image at fault.
        """
        pictures = asked.conversation.pictures
        self._stop_ids(asked.sampling)
        # Other servers state the limit for each image, here images share one.
        tiles = None if asked.tiles is None else asked.tiles * len(pictures)
        self._check_pictures(pictures, tiles)
        question = requests.Question(
            id="",
            question=asked.conversation.question,
            images=tuple(picture.name for picture in pictures),
            prefix=asked.conversation.prefix,
            system=asked.conversation.system,
            history=asked.conversation.history,
        )
        try:
            request = prompts.request_of(
                question,
                asked.sampling,
                key=key,
                tokenizer=self._tokenizer,
                policy=self._policy,
                max_tiles=tiles,
                letters=True,
                read={picture.name: picture.data for picture in pictures}.__getitem__,
            )
        except ledger.BadRecord as error:
            raise errors.of_record(error) from error
        self._check_length(len(request.ids), "messages")
        return [request]

    def text(self, asked: TextAsked, key: Hashable) -> list[requests.Request]:
        """The requests that the prompts are, keyed ``(key, number)``.

        A prompt is the whole of what the model reads: in its text, chat markers are
        tokens. Its answer continues it, so the prompt is its given beginning.

        Raises:
          Refused: 400, naming the prompt at fault.
        """
        ends = self._stop_ids(asked.sampling)
        drawn = dataclasses.replace(asked.sampling, stop_ids=ends)
        size = self._policy.image_size
        return [
            requests.Request(
                key=(key, number),
                ids=self._ids(prompt, f"prompt[{number}]"),
                tiles=np.empty((0, size, size, 3), np.uint8),
                answer_start=0,
                sampling=drawn,
            )
            for number, prompt in enumerate(asked.prompts)
        ]

    def _stop_ids(self, sampling: requests.Sampling) -> tuple[int, ...]:
        """The template's stop token and those of a request."""
        ends = tuple(dict.fromkeys((self._stop_id, *sampling.stop_ids)))
        most = requests.MAX_STOP_IDS
        if len(ends) > most:
            message = f"{len(ends)} with the template's own, at most {most}"
            raise errors.bad("stop_token_ids", message)
        return ends

    def _check_pictures(self, pictures: Sequence[Picture], tiles: int | None) -> None:
        """Refuse images by their headers, before any is decoded."""
        how = prompt_lib.tiling(self._policy, len(pictures), tiles)
        pixels = tokens = 0
        for picture in pictures:
            width, height = self._size(picture)
            pixels += width * height
            count = images_lib.tile_count(width, height, **how)
            tokens += count * self._policy.tokens_per_tile
        most = self._limits.request_pixels
        if pixels > most:
            message = f"images have {pixels} pixels together, at most {most}"
            raise errors.Refused(413, message, param="messages", code="image_too_large")
        if tokens > self._max_prompt_tokens:
            raise errors.bad(
                "messages",
                f"images take {tokens} tokens, prompts have {self._max_prompt_tokens} "
                "at most; lower max_dynamic_patch or send fewer",
                "too_long",
            )

    def _size(self, picture: Picture) -> tuple[int, int]:
        most = self._policy.max_image_pixels
        try:
            return images_lib.image_size(
                picture.name, max_pixels=most, read=lambda _: picture.data
            )
        except ledger.BadRecord as error:
            if error.reason != "image_too_large":
                raise errors.of_record(error) from error
            message = f"{picture.name}: more than {most} pixels; shrink the image"
            raise errors.Refused(
                413, message, param=picture.name, code=error.reason
            ) from error

    def _ids(self, prompt: str | tuple[int, ...], where: str) -> np.ndarray:
        tokenizer = self._tokenizer
        if isinstance(prompt, str):
            smuggled = template.find_image_token(prompt)
            if smuggled:
                raise _image_token(where, smuggled)
            try:
                prompt = tuple(tokenizer.encode(prompt, bos=tokenizer.add_bos))
            except UnicodeEncodeError as error:
                message = f"is no Unicode text: {error.reason}"
                raise errors.bad(where, message) from error
        for place, token in enumerate(prompt):
            if not 0 <= token < tokenizer.vocab_size:
                message = f"{token} is no token; there are {tokenizer.vocab_size}"
                raise errors.bad(f"{where}[{place}]", message)
        if tokenizer.img_context_id in prompt:
            raise _image_token(where, str(tokenizer.img_context_id))
        self._check_length(len(prompt), where)
        return np.asarray(prompt, np.int32)

    def _check_length(self, tokens: int, where: str) -> None:
        if tokens > self._max_prompt_tokens:
            message = f"{tokens} tokens, at most {self._max_prompt_tokens}"
            raise errors.bad(where, message, "too_long")


def _image_token(where: str, found: str) -> errors.Refused:
    message = f"holds the image token {found}; send images to /v1/chat/completions"
    return errors.bad(where, message, "smuggled_token")
