"""From a question to a request: its prompt, and what ends its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable

from mpo_jax.generate import requests
from mpo_jax.inputs import images as images_lib
from mpo_jax.inputs import prompt as prompt_lib
from mpo_jax.inputs import template
from mpo_jax.inputs.tokenizer import ChatTokenizer


def stop_id(tokenizer: ChatTokenizer, policy: prompt_lib.PromptPolicy) -> int:
    """The template's token that ends an answer, such as ``<|im_end|>``.

    Raises:
      ValueError: it is no single token of this tokenizer.
    """
    text = template.get_template(policy.template).stop
    found = tokenizer.id_of(text)
    if found is None:
        raise ValueError(
            f"template {policy.template} ends answers with {text!r}, "
            "which is no token of this tokenizer"
        )
    return found


def request_of(
    question: requests.Question,
    sampling: requests.Sampling,
    *,
    key: Hashable,
    tokenizer: ChatTokenizer,
    policy: prompt_lib.PromptPolicy,
    max_tiles: int | None = None,
    letters: bool = False,
    read: Callable[[str], bytes] = images_lib.read_file,
) -> requests.Request:
    """Make a question's prompt; the template's stop token is added to `sampling`'s.

    Args:
      max_tiles, letters, read: see ``inputs.prompt.make_prompt``.

    Raises:
      BadRecord: with a reason of ``ledger.REASONS``.
      OSError: the file system failed.
    """
    made = prompt_lib.make_prompt(
        question.question,
        tokenizer,
        policy=policy,
        images=question.images,
        history=question.history,
        system_message=question.system,
        prefix=question.prefix,
        max_tiles=max_tiles,
        letters=letters,
        read=read,
    )
    ends = (stop_id(tokenizer, policy), *sampling.stop_ids)
    return requests.Request(
        key=key,
        ids=made.ids,
        tiles=made.tiles,
        answer_start=made.answer_start,
        sampling=dataclasses.replace(sampling, stop_ids=tuple(dict.fromkeys(ends))),
    )


def length_of(
    question: requests.Question,
    *,
    tokenizer: ChatTokenizer,
    policy: prompt_lib.PromptPolicy,
    max_tiles: int | None = None,
    read: Callable[[str], bytes] = images_lib.read_file,
) -> int:
    """Tokens of a question's prompt; of its images only the headers are looked at.

    Raises:
      BadRecord, OSError: as :func:`request_of`, as far as can be seen.
    """
    return prompt_lib.measure_prompt(
        question.question,
        tokenizer,
        policy=policy,
        images=question.images,
        history=question.history,
        system_message=question.system,
        prefix=question.prefix,
        max_tiles=max_tiles,
        read=read,
    )
