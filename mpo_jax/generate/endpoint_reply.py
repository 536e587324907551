"""From a server's reply to an answer, after a look at whether it saw our prompt."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, TypeGuard

import numpy as np

from mpo_jax import ledger
from mpo_jax.generate import requests
from mpo_jax.generate.endpoint_prompt import Asked
from mpo_jax.inputs.tokenizer import ChatTokenizer


class BadReply(ValueError):
    """A reply that holds no answer."""


class PromptMismatch(ValueError):
    """A server reads another prompt than the model was trained on."""


def models_of(body: str) -> dict[str, str | None]:
    """Models that ``/v1/models`` lists, with who serves them (``owned_by``).

    Raises:
      BadReply: it is no such list.
    """
    cards = _object(_json(body), "reply of /models").get("data")
    if not isinstance(cards, list):
        raise BadReply(f"data={ledger.short(cards)} of /models is no list")
    found: dict[str, str | None] = {}
    for card in cards:
        card = _object(card, "an entry of /models")
        name, owner = card.get("id"), card.get("owned_by")
        if not isinstance(name, str):
            raise BadReply(f"id={ledger.short(name)} in /models is no name")
        found[name] = owner if isinstance(owner, str) else None
    return found


def answer_of(
    body: str,
    asked: Asked,
    question: requests.Question,
    sample: int,
    *,
    sampling: requests.Sampling,
    tokenizer: ChatTokenizer,
    tokens_per_tile: int,
    check_parity: bool,
) -> requests.Answer:
    """Read a reply of ``/chat/completions`` or ``/completions``.

    Args:
      body: JSON as it came.
      tokens_per_tile: language tokens of a tile, to tell why counts differ.
      check_parity: compare the server's prompt with ours.

    Raises:
      BadReply: it is no answer; says why.
      PromptMismatch: see :func:`check_prompt`.
    """
    reply = _object(_json(body), "reply")
    choice = _only_choice(reply)
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    if check_parity:
        theirs = choice.get("prompt_token_ids") or reply.get("prompt_token_ids")
        check_prompt(
            usage.get("prompt_tokens"),
            _ids(theirs),
            asked,
            question,
            tokenizer=tokenizer,
            tokens_per_tile=tokens_per_tile,
        )
    reason = _finish_reason(choice)
    tokens = usage.get("completion_tokens")
    if not _is_count(tokens):
        raise BadReply(f"usage.completion_tokens={ledger.short(tokens)} is no number")
    text = _text(choice, asked.chat)
    _check_text(text, tokens, reason, asked, sampling, tokenizer)
    prompt_tokens = usage.get("prompt_tokens")
    logprobs = _logprobs(choice.get("logprobs"), tokens)
    return requests.Answer(
        id=question.id,
        sample=sample,
        text=text,
        finish_reason=reason,
        prompt_tokens=prompt_tokens if _is_count(prompt_tokens) else len(asked.ids),
        tokens=tokens,
        logprob=None if logprobs is None else math.fsum(logprobs),
        token_ids=_generated(choice, tokens),
        token_logprobs=logprobs,
    )


@dataclasses.dataclass(frozen=True)
class NamedAnswer(requests.Answer):
    """An answer with the name of who gave it.

    Attributes:
      model: as the reply says; a name may stand for several versions of a model.
    """

    model: str = ""


def named_answer_of(body: str, question: requests.Question, sample: int) -> NamedAnswer:
    """Read a reply of ``/chat/completions`` to a question in words alone.

    Args:
      body: JSON as it came.

    Raises:
      BadReply: it is no answer; says why.
    """
    reply = _object(_json(body), "reply")
    choice = _only_choice(reply)
    reason = _finish_reason(choice)
    usage = _object(reply.get("usage"), "usage")
    counts = []
    for name in ("prompt_tokens", "completion_tokens"):
        if not _is_count(usage.get(name)):
            raise BadReply(f"usage.{name}={ledger.short(usage.get(name))} is no number")
        counts.append(usage[name])
    model = reply.get("model")
    return NamedAnswer(
        id=question.id,
        sample=sample,
        text=_text(choice, chat=True),
        finish_reason=reason,
        prompt_tokens=counts[0],
        tokens=counts[1],
        logprob=None,
        model=model if isinstance(model, str) else "",
    )


def check_prompt(
    count: Any,
    ids: tuple[int, ...] | None,
    asked: Asked,
    question: requests.Question,
    *,
    tokenizer: ChatTokenizer,
    tokens_per_tile: int,
) -> None:
    """Compare the prompt of a server with ours.

    Args:
      count: ``usage.prompt_tokens``, whatever it is.
      ids: the prompt's tokens where the server tells them.
      tokens_per_tile: see :func:`answer_of`.

    Raises:
      PromptMismatch: with both counts, or the first tokens that differ, and what is
        likely at fault.
    """
    ours, remedy = len(asked.ids), "; check_parity=False asks nevertheless"
    if not _is_count(count):
        raise PromptMismatch(
            f"the server does not say how many tokens a prompt has (usage.prompt_tokens"
            f"={ledger.short(count)}), so it may read anything{remedy}"
        )
    if count != ours:
        raise PromptMismatch(
            f"question {ledger.short(question.id)}: the server counts {count} prompt "
            f"tokens, our own prompt has {ours}. "
            f"{_likely(count - ours, question, tokens_per_tile)}{remedy}"
        )
    if ids is None or len(ids) != ours:
        return
    differs = np.flatnonzero(np.asarray(ids) != asked.ids)
    if len(differs):
        at = int(differs[0])
        texts = [
            ledger.short(tokenizer.decode(part[at : at + 8], skip_special=False))
            for part in (ids, asked.ids.tolist())
        ]
        raise PromptMismatch(
            f"question {ledger.short(question.id)}: from token {at} on the server's "
            f"prompt is {texts[0]}, ours {texts[1]}. Likely another chat template, or "
            f"an image at another place{remedy}"
        )


def _likely(extra: int, question: requests.Question, tokens_per_tile: int) -> str:
    """What makes counts differ by so many tokens."""
    template = (
        "Likely the server's chat template is not the checkpoint's (system text, line "
        "feeds, --chat-template-content-format), or the tokenizer is another one"
    )
    if question.prefix:
        template += ", or the beginning of the answer is not continued as it stands"
    if not question.images or extra % tokens_per_tile:
        return template
    tiles = f"{abs(extra) // tokens_per_tile} tiles {'more' if extra > 0 else 'fewer'}"
    return (
        f"That is {tiles}: likely the server does not take the tile limit "
        "(max_dynamic_patch); set max_tiles to its own, or its config's to ours"
    )


def _check_text(
    text: str,
    tokens: int,
    reason: str,
    asked: Asked,
    sampling: requests.Sampling,
    tokenizer: ChatTokenizer,
) -> None:
    """Raise BadReply where a text is more than an answer."""
    found = next((stop for stop in sampling.stop if stop in text), None)
    if found is not None:
        raise BadReply(f"the text goes on after {found!r}: the server ignores stop")
    begun = asked.ids[asked.answer_start :].tolist()
    beginning = tokenizer.decode(begun)
    if not beginning or not text.startswith(beginning):
        return
    # An answer may repeat its beginning. With an echo, though, there are more tokens in
    # the text than were generated, of which the last may be a stop token.
    spoken = tokens - (reason == requests.STOP)
    excess = len(tokenizer.encode(text, bos=False, start=False)) - spoken
    if 2 * excess > len(begun):
        raise BadReply("the server repeats the given beginning in front of its answer")


def _only_choice(reply: dict[str, Any]) -> dict[str, Any]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != 1:
        raise BadReply(f"choices={ledger.short(choices)}: one was asked for")
    return _object(choices[0], "choice")


def _finish_reason(choice: dict[str, Any]) -> str:
    reason = choice.get("finish_reason")
    if reason not in (requests.STOP, requests.LENGTH):
        raise BadReply(f"finish_reason={ledger.short(reason)} is no end of an answer")
    return reason


def _text(choice: dict[str, Any], chat: bool) -> str:
    text: Any = choice.get("text")
    if chat:
        message = _object(choice.get("message"), "message")
        text = message.get("content")
    if not isinstance(text, str):
        raise BadReply(f"the answer is {ledger.short(text)}, not a text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadReply(f"the answer is no Unicode text: {error.reason}") from error
    return text


def _logprobs(found: Any, tokens: int) -> tuple[float, ...] | None:
    """Of every generated token, or None: a sum over some would be misread."""
    if not isinstance(found, dict):
        return None
    values: Any = found.get("token_logprobs")  # of /completions
    if isinstance(content := found.get("content"), list):
        values = [e.get("logprob") if isinstance(e, dict) else None for e in content]
    if not isinstance(values, list) or len(values) != tokens:
        return None
    if not all(_is_number(value) and math.isfinite(value) for value in values):
        return None
    return tuple(map(float, values))


def _generated(choice: dict[str, Any], tokens: int) -> tuple[int, ...] | None:
    """Generated ids: ``token_ids`` of vLLM, ``gen_tokens`` of LMDeploy."""
    message = choice.get("message")
    places = (choice, message if isinstance(message, dict) else {})
    for place in places:
        for name in ("token_ids", "gen_tokens"):
            ids = _ids(place.get(name))
            if ids is not None and len(ids) == tokens:
                return ids
    return None


def _ids(found: Any) -> tuple[int, ...] | None:
    if not isinstance(found, list) or not all(map(_is_count, found)):
        return None
    return tuple(found)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _json(body: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadReply(f"{ledger.short(body)} is no JSON: {error}") from error


def _object(found: Any, name: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise BadReply(f"{name}={ledger.short(found)} is no JSON object")
    return found
