"""From a question to the body of a request, so that a server makes our prompt of it.

Servers differ in how they make a prompt of messages: where they put images, how they
write "all tokens" for ``top_k``. What is known of an engine is a :class:`Dialect`;
whether the prompt came out as ours is checked on every answer
(``endpoint_reply.check_prompt``).
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from mpo_jax import ledger
from mpo_jax.generate import prompts, requests
from mpo_jax.inputs import images as images_lib
from mpo_jax.inputs import prompt as prompt_lib
from mpo_jax.inputs import template
from mpo_jax.inputs.tokenizer import ChatTokenizer


@dataclasses.dataclass(frozen=True)
class Dialect:
    """What an engine calls things, as its source says.

    Attributes:
      image: text that stands for an image inside a message; None where images can only
        stand in front of it. Every engine puts an image without such a text in front,
        with a line feed behind it.
      all_tokens: its ``top_k`` that means all tokens.
      min_tokens: its name of that field.
      stop_token_ids: it knows the field; an engine that does not says nothing.
    """

    image: str | None = template.PLACEHOLDER
    all_tokens: int = -1
    min_tokens: str = "min_tokens"
    stop_token_ids: bool = True


DIALECTS = {
    "vllm": Dialect(),
    "sglang": Dialect(image=None),
    "lmdeploy": Dialect(
        image="<IMAGE_TOKEN>",
        all_tokens=0,
        min_tokens="min_new_tokens",
        stop_token_ids=False,
    ),
}
"""By ``owned_by`` of ``/v1/models``; others are spoken to as vLLM is, ours too."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question as a server is asked it; its samples differ in the seed alone.

    Attributes:
      chat: ask ``/chat/completions``, else ``/completions``.
      fields: of the API as OpenAI has it.
      extra: further fields, which engines understand.
      ids: int32 ``[p]``, our own prompt: what the server should make of it.
      answer_start: where the answer begins in `ids`.
    """

    chat: bool
    fields: Mapping[str, Any]
    extra: Mapping[str, Any]
    ids: np.ndarray
    answer_start: int


def seed_of(question: requests.Question, run_seed: int, sample: int) -> int:
    """Seed of one sample, a stable hash: from 1 to ``2**53``, which JSON keeps exact.

    LMDeploy takes 0 for no seed.
    """
    base = ["run", int(run_seed), question.id]
    if question.seed is not None:
        base = ["question", int(question.seed)]
    digest = hashlib.sha256(json.dumps([*base, sample]).encode()).digest()
    return 1 + int.from_bytes(digest[:8], "big") % 2**53


def check_sampling(sampling: requests.Sampling, engine: str | None) -> None:
    """Raise ValueError where an engine would pass over a way of sampling in silence."""
    if sampling.stop_ids and not dialect_of(engine).stop_token_ids:
        raise ValueError(
            f"stop_ids={sampling.stop_ids}: {engine} has no such field and would pass "
            "over it; name the texts of these tokens in stop instead"
        )


def dialect_of(engine: str | None) -> Dialect:
    """How to speak to a server; None where it does not say what it is."""
    return DIALECTS.get(engine or "", DIALECTS["vllm"])


def asked_of(
    question: requests.Question,
    sampling: requests.Sampling,
    *,
    tokenizer: ChatTokenizer,
    policy: prompt_lib.PromptPolicy,
    max_tiles: int | None,
    engine: str | None,
    read: Callable[[str], bytes],
) -> Asked:
    """Make a question's own prompt, and the request that should give the same.

    A prompt whose answer has a beginning and that has no image is sent as token ids. An
    image goes with messages alone, the beginning is then the last of them.

    Args:
      max_tiles, read: see ``inputs.prompt.make_prompt``.
      engine: a key of :data:`DIALECTS`, another name, or None.

    Raises:
      BadRecord: with a reason of ``ledger.REASONS``; ``unsupported`` where no request
        gives the prompt.
      OSError: the file system failed.
    """
    read = functools.cache(read)
    make = functools.partial(
        prompt_lib.make_prompt,
        question.question,
        tokenizer,
        policy=policy,
        images=question.images,
        history=question.history,
        system_message=question.system,
        max_tiles=max_tiles,
        with_tiles=False,
        read=read,
    )
    made = make(prefix=question.prefix)
    dialect = dialect_of(engine)
    fields, extra = _sampling_fields(sampling, tokenizer, policy, dialect)
    if question.prefix and not question.images:
        fields |= {"prompt": made.ids.tolist(), "logprobs": 1, "echo": False}
        return Asked(False, fields, extra, made.ids, made.answer_start)
    strip = template.get_template(policy.template).strip
    prefix = _prefix_text(question.prefix, made, make, tokenizer, strip)
    share = prompt_lib.tiling(policy, len(question.images), max_tiles)["max_num"]
    parts = [_image_part(path, share, policy, read) for path in question.images]
    fields |= {
        "messages": _messages(question, prefix, parts, policy, dialect),
        "logprobs": True,
    }
    if parts:
        extra["mm_processor_kwargs"] = {"max_dynamic_patch": share}
    if prefix:
        extra |= {"continue_final_message": True, "add_generation_prompt": False}
    return Asked(True, fields, extra, made.ids, made.answer_start)


def _sampling_fields(
    sampling: requests.Sampling,
    tokenizer: ChatTokenizer,
    policy: prompt_lib.PromptPolicy,
    dialect: Dialect,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every one of them: a server fills gaps from files of the checkpoint."""
    fields = {
        "n": 1,
        "temperature": float(sampling.temperature),
        "top_p": float(sampling.top_p),
        "max_tokens": int(sampling.max_new_tokens),
        "stop": list(sampling.stop) or None,
    }
    extra: dict[str, Any] = {
        "top_k": int(sampling.top_k) or dialect.all_tokens,
        "repetition_penalty": float(sampling.repetition_penalty),
        dialect.min_tokens: int(sampling.min_new_tokens),
        "min_p": 0.0,
        "return_token_ids": True,
    }
    if dialect.stop_token_ids:
        ends = (prompts.stop_id(tokenizer, policy), *map(int, sampling.stop_ids))
        extra["stop_token_ids"] = list(dict.fromkeys(ends))
    return fields, extra


def _prefix_text(
    prefix: str | Sequence[int],
    made: prompt_lib.Prompt,
    make: Callable[..., prompt_lib.Prompt],
    tokenizer: ChatTokenizer,
    strip: bool,
) -> str:
    """The beginning of an answer as a text that gives the same prompt."""
    if isinstance(prefix, str):
        return prefix.lstrip() if strip else prefix
    text = tokenizer.decode(prefix, skip_special=False)
    problem = "its text has other tokens"
    try:
        if np.array_equal(make(prefix=text).ids, made.ids):
            return text
    except ledger.BadRecord as error:
        problem = error.detail
    raise ledger.BadRecord(
        "unsupported",
        "prefix is token ids, and the question has an image: servers take both as text "
        f"alone, and {problem}; cut it elsewhere, or ask the model in process",
    )


def _messages(
    question: requests.Question,
    prefix: str,
    parts: Sequence[dict[str, Any]],
    policy: prompt_lib.PromptPolicy,
    dialect: Dialect,
) -> list[dict[str, Any]]:
    """The conversation, the system text first, whatever the server's template says."""
    chat = template.get_template(policy.template)
    asked = question.question
    if len(parts) == 1 and not question.history:
        asked = template.add_placeholder(asked)
    system = chat.system_message if question.system is None else question.system
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
    turns = [text for pair in question.history for text in pair] + [asked]
    for number, turn in enumerate(turns):
        text = turn.strip() if chat.strip else turn
        if number % 2:
            _refuse(template.PLACEHOLDER in text, "an image in an earlier answer")
            messages.append({"role": "assistant", "content": text})
            continue
        here = parts[: text.count(template.PLACEHOLDER)]
        parts = parts[len(here) :]
        messages.append({"role": "user", "content": _content(text, here, dialect)})
    if prefix:
        messages.append({"role": "assistant", "content": prefix})
    return messages


def _content(
    text: str, parts: Sequence[dict[str, Any]], dialect: Dialect
) -> str | list[dict[str, Any]]:
    """A user's message: its images, then its text.

    Images in front of a text need no word in it. Elsewhere the text keeps a placeholder
    as the engine spells it: parts between texts would be joined with line feeds by one
    engine, and put in front by another.
    """
    if dialect.image is not None and dialect.image != template.PLACEHOLDER:
        _refuse(dialect.image in text, f"{dialect.image!r} in a text")
    if not parts:
        return text
    front = f"{template.PLACEHOLDER}\n" * len(parts)
    if text.startswith(front):
        text = text.removeprefix(front)
    else:
        _refuse(dialect.image is None, "an image that is not in front of its text")
        text = text.replace(template.PLACEHOLDER, dialect.image or "")
    return [*parts, {"type": "text", "text": text}]


def _refuse(found: bool, what: str) -> None:
    if found:
        raise ledger.BadRecord(
            "unsupported",
            f"{what} cannot be asked of this server; ask the model in process",
        )


def _image_part(
    path: str,
    tiles: int,
    policy: prompt_lib.PromptPolicy,
    read: Callable[[str], bytes],
) -> dict[str, Any]:
    kind, data = image_bytes(path, policy.max_image_pixels, read)
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "max_dynamic_patch": tiles}}


_SENT_AS_THEY_ARE = {
    name: f"image/{name.lower()}" for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP")
}


def image_bytes(
    path: str, max_pixels: int, read: Callable[[str], bytes]
) -> tuple[str, bytes]:
    """Media type and bytes of an image, from which any decoder reads our pixels.

    Those are the file's own where decoders agree on it. They do not on what is
    transparent, turned (EXIF), animated, of more than 8 bits or CMYK: such an image is
    sent as the model's own pixels, as PNG. Nothing is lost either way.

    Raises:
      BadRecord, OSError: see ``inputs.images.open_image``.
    """
    data = read(path)
    kind = _plain_kind(data)
    if kind is not None:
        return kind, data
    image = images_lib.open_image(path, max_pixels=max_pixels, read=read)
    out = io.BytesIO()
    # Of the pixels alone: Pillow would write the transparent colour and the like again.
    Image.fromarray(np.asarray(image)).save(out, "PNG")
    return "image/png", out.getvalue()


def _plain_kind(data: bytes) -> str | None:
    """Media type of a file that has one reading, else None."""
    try:
        with Image.open(io.BytesIO(data), formats=images_lib.FORMATS) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            odd = turned or "transparency" in image.info
            odd = odd or image.mode not in ("RGB", "L", "P")
            odd = odd or getattr(image, "n_frames", 1) > 1
            return None if odd else _SENT_AS_THEY_ARE.get(image.format or "")
    except Exception:  # metadata that Pillow cannot read; its pixels have been read
        return None
