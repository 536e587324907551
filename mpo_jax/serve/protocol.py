"""Bodies of requests to what they ask; pure, knows nothing of HTTP."""

from __future__ import annotations

import dataclasses
from typing import Any

from mpo_jax.generate import requests
from mpo_jax.serve import conversation, errors, sampling
from mpo_jax.serve.conversation import Conversation
from mpo_jax.serve.json_fields import Fields, is_integer
from mpo_jax.serve.limits import Limits
from mpo_jax.serve.sampling import Delivery

_CHAT_ONLY = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "chat_template_kwargs": ({},),
}
_CHAT = (
    *(*sampling.FIELDS, *sampling.IGNORED, *sampling.ONLY, *_CHAT_ONLY),
    *("messages", "max_completion_tokens", "top_logprobs", "mm_processor_kwargs"),
    *("continue_final_message", "add_generation_prompt"),
)
_TEXT_ONLY = {"suffix": ("",)}
_TEXT = (*(*sampling.FIELDS, *sampling.IGNORED, *sampling.ONLY, *_TEXT_ONLY, "prompt"),)


@dataclasses.dataclass(frozen=True)
class ChatAsked:
    """A request to ``/v1/chat/completions``.

    Attributes:
      tiles: limit on the tiles of each image; None is the model's own rule.
    """

    conversation: Conversation
    tiles: int | None
    sampling: requests.Sampling
    delivery: Delivery


@dataclasses.dataclass(frozen=True)
class TextAsked:
    """A request to ``/v1/completions``.

    Attributes:
      prompts: each as text or as token ids.
    """

    prompts: tuple[str | tuple[int, ...], ...]
    sampling: requests.Sampling
    delivery: Delivery


def read_chat(
    raw: Any, *, model: str, limits: Limits, default_tokens: int
) -> ChatAsked:
    """A chat request from its parsed body.

    Args:
      model: name of the served one.
      default_tokens: longest answer where the request does not say.

    Raises:
      Refused: 400, or 404 on another model.
    """
    body = Fields(raw, "", _CHAT)
    sampling.check_model(body, model)
    body.only(sampling.ONLY | _CHAT_ONLY)
    logprobs = body.boolean("logprobs", False)
    if body.has("top_logprobs") and not logprobs:
        raise errors.bad("top_logprobs", "only with logprobs=true")
    # Clients may be given fewer alternatives than they ask for; of more than one, all
    # would be missing.
    body.only({"top_logprobs": (0, 1)})
    asked = conversation.read_conversation(body, limits)
    return ChatAsked(
        conversation=asked,
        tiles=_tiles(body, asked, limits),
        sampling=sampling.read_sampling(body, limits, default_tokens=default_tokens),
        delivery=sampling.read_delivery(body, logprobs=logprobs),
    )


def _tiles(body: Fields, asked: Conversation, limits: Limits) -> int | None:
    """The one limit on every image's tiles, from both places that can state it."""
    options = Fields(
        body.value("mm_processor_kwargs") or {},
        "mm_processor_kwargs",
        ("max_dynamic_patch", "min_dynamic_patch", "dynamic_image_size"),
    )
    options.only({"min_dynamic_patch": (1,), "dynamic_image_size": (True,)})
    common = options.integer("max_dynamic_patch", None, 1, limits.tiles)
    each = {p.tiles if p.tiles is not None else common for p in asked.pictures}
    if len(each) > 1 or common is not None and each - {common}:
        found = ", ".join(str(tiles) for tiles in sorted(each | {common}, key=str))
        raise errors.bad(
            options.name("max_dynamic_patch"),
            f"images of one request share one limit on tiles; found {found}",
        )
    return each.pop() if each else None


def read_text(
    raw: Any, *, model: str, limits: Limits, default_tokens: int
) -> TextAsked:
    """A completions request from its parsed body; arguments as :func:`read_chat`."""
    body = Fields(raw, "", _TEXT)
    sampling.check_model(body, model)
    body.only(sampling.ONLY | _TEXT_ONLY | {"logprobs": (0, 1)})
    prompts = _prompts(body, limits)
    return TextAsked(
        prompts=prompts,
        sampling=sampling.read_sampling(
            body, limits, default_tokens=default_tokens, prompts=len(prompts)
        ),
        delivery=sampling.read_delivery(body, logprobs=body.has("logprobs")),
    )


def _prompts(body: Fields, limits: Limits) -> tuple[str | tuple[int, ...], ...]:
    raw = body.value("prompt")
    wanted = "a text, a list of token ids, or a list of either; none of them empty"
    is_ids = isinstance(raw, list) and any(map(is_integer, raw[:1]))
    prompts = [raw] if isinstance(raw, str) or is_ids else raw
    if not isinstance(prompts, list) or not prompts or not all(prompts):
        raise body.bad("prompt", wanted)
    if len(prompts) > limits.prompts:
        raise errors.bad("prompt", f"{len(prompts)} of them, at most {limits.prompts}")
    for prompt in prompts:
        is_ids = isinstance(prompt, list) and all(map(is_integer, prompt))
        if not isinstance(prompt, str) and not is_ids:
            raise body.bad("prompt", wanted)
    size = sum(map(len, prompts))
    if size > limits.text_characters:
        message = f"{size} characters or tokens, at most {limits.text_characters}"
        raise errors.bad("prompt", message, "too_long")
    return tuple(p if isinstance(p, str) else tuple(p) for p in prompts)
