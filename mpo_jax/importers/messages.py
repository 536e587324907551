"""Conversations of other trainers' records: turns, content parts, earlier turns.

A message names its speaker under ``role`` or ``from`` and its text under ``content``
or ``value``; the text is a string or a list of parts, some of which are images.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mpo_jax import ledger

PLACEHOLDER = "<image>"
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"

_ROLES = {
    "system": SYSTEM,
    "user": USER,
    "human": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "bot": ASSISTANT,
    "model": ASSISTANT,
}


@dataclasses.dataclass(frozen=True)
class Tags:
    """How messages are written where they are not written the usual way.

    Attributes:
      role_keys, content_keys: keys looked for, in order.
      roles: speaker (system, user, assistant) by the name that data give him.
    """

    role_keys: tuple[str, ...] = ("role", "from")
    content_keys: tuple[str, ...] = ("content", "value")
    roles: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(_ROLES))


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one speaker says.

    Attributes:
      role: system, user or assistant.
      text: with :data:`PLACEHOLDER` where an image part stood.
      images: values of the image parts that carry their image themselves.
    """

    role: str
    text: str
    images: tuple[Any, ...] = ()


class _Short(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxstring = self.maxother = 60

    def repr_bytes(self, value: bytes, level: int) -> str:
        del level
        return f"<{len(value)} bytes>"


def short(value: Any) -> str:
    """What a value is, for messages; long and deep ones are cut."""
    text = _Short().repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def names(record: Iterable[str]) -> str:
    """Fields of a record, for messages."""
    text = ", ".join(sorted(map(str, record)))
    return text if len(text) <= 300 else text[:297] + "..."


def bad(field: str, problem: str) -> ledger.BadRecord:
    return ledger.BadRecord("bad_field", f"{field}: {problem}")


def unsupported(field: str, problem: str) -> ledger.BadRecord:
    return ledger.BadRecord("unsupported", f"{field}: {problem}")


def text(record: Mapping[str, Any], field: str) -> str:
    """A field that must be text."""
    value = record.get(field)
    if value is None:
        raise bad(field, f"is missing; the record has {names(record)}")
    if not isinstance(value, str):
        raise bad(field, f"must be text, got {short(value)}")
    return value


def turns(value: Any, field: str, tags: Tags) -> list[Turn]:
    """The turns of a list of messages.

    Raises:
      BadRecord: naming `field` and the message.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise bad(field, f"must be a list of messages, got {short(value)}")
    return [_turn(item, f"{field}[{n}]", tags) for n, item in enumerate(value)]


def _turn(message: Any, where: str, tags: Tags) -> Turn:
    if not isinstance(message, Mapping):
        raise bad(where, f"must be an object, got {short(message)}")
    role = _first(message, tags.role_keys)
    if role is None:
        raise bad(where, f"has none of {', '.join(tags.role_keys)}: {short(message)}")
    if not isinstance(role, str) or role not in tags.roles:
        raise unsupported(
            where, f"role {short(role)}; only {', '.join(tags.roles)} can be used"
        )
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            raise unsupported(where, f"{key}; conversations with tools are not read")
    content = _first(message, tags.content_keys)
    if isinstance(content, str):
        return Turn(tags.roles[role], content)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise bad(where, f"content must be text or a list of parts: {short(message)}")
    parts = [_part(part, f"{where}.content") for part in content]
    images = [image for _, image in parts if image is not None]
    return Turn(tags.roles[role], "".join(text for text, _ in parts), tuple(images))


def _first(message: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((message[key] for key in keys if message.get(key) is not None), None)


def _part(part: Any, where: str) -> tuple[str, Any]:
    """Text of a content part, and the image that it carries or None."""
    if isinstance(part, str):
        return part, None
    if not isinstance(part, Mapping):
        raise bad(where, f"a part must be text or an object, got {short(part)}")
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"], None
    if kind in ("image", "image_url"):
        image = _first(part, ("image", "image_url", "url", "path", "base64"))
        if isinstance(image, Mapping) and image.get("url") is not None:
            image = image["url"]
        # A line of its own, as the chat template of the family has it.
        return f"{PLACEHOLDER}\n", image
    if kind in ("video", "video_url", "audio", "input_audio"):
        raise unsupported(where, f"a part of type {kind!r}; only text and images")
    raise bad(where, f"a part must have a type text or image, got {short(part)}")


def history(value: Any, field: str = "history") -> list[Turn]:
    """Turns of earlier (question, answer) pairs; None and [] are none."""
    if not value:
        return []
    result = []
    pairs = value if isinstance(value, Sequence) and not isinstance(value, str) else [0]
    for pair in pairs:
        if (
            not isinstance(pair, Sequence)
            or isinstance(pair, str)
            or len(pair) != 2
            or not all(isinstance(side, str) for side in pair)
        ):
            raise bad(field, f"must be [question, answer] pairs, got {short(value)}")
        result += [Turn(USER, pair[0]), Turn(ASSISTANT, pair[1])]
    return result


def single_answer(value: Any, field: str, tags: Tags) -> str:
    """A response: text, one message, or a list of one message of the assistant."""
    if isinstance(value, str):
        return value
    found = turns(value, field, tags)
    if len(found) != 1:
        raise unsupported(
            field,
            f"{len(found)} messages after the prompt; one answer of the assistant "
            "can be compared, so cut the conversation after it",
        )
    if found[0].role != ASSISTANT:
        raise bad(field, f"must be an answer of the assistant, not of {found[0].role}")
    if found[0].images:
        raise unsupported(field, "holds an image; only the question can")
    return found[0].text
