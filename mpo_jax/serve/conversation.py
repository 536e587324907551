"""Messages of a chat request: the question, what came before it, and its images."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from typing import Any

from mpo_jax import ledger
from mpo_jax.inputs import template
from mpo_jax.serve import errors
from mpo_jax.serve.json_fields import Fields
from mpo_jax.serve.limits import Limits

ROLES = ("system", "user", "assistant")

DETAIL = {"auto": None, "low": 6, "medium": 12, "high": 24}
"""Most tiles of an image by its ``detail``; None is the server's own limit."""

_DATA_URI = re.compile(
    r"data:image/[\w.+-]+(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image of a message.

    Attributes:
      name: its place in the request, such as ``messages[0].content[1].image_url``.
      data: the file's bytes.
      tiles: limit on its tiles; None is the server's.
    """

    name: str
    data: bytes
    tiles: int | None


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What is asked.

    Attributes:
      question: the last user message, with its ``<image>`` placeholders.
      history: earlier (question, answer) pairs, likewise.
      system: None is the template's.
      prefix: beginning of the answer, which is continued.
      pictures: in the order of their placeholders.
    """

    question: str
    history: tuple[tuple[str, str], ...]
    system: str | None
    prefix: str
    pictures: tuple[Picture, ...]


@dataclasses.dataclass(frozen=True)
class _Message:
    """One message; its parts are texts and pictures in order."""

    where: str
    role: str
    parts: tuple[str | Picture, ...]

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]

    @property
    def texts(self) -> list[str]:
        return [part for part in self.parts if isinstance(part, str)]


def read_conversation(body: Fields, limits: Limits) -> Conversation:
    """Read ``messages`` and what belongs to a continued answer.

    A last message of the assistant is the beginning of the answer. Other servers want
    ``continue_final_message=true`` and ``add_generation_prompt=false`` for that, which
    are taken too.

    Raises:
      Refused: 400.
    """
    raw = body.listed("messages", limits.messages)
    messages = [_message(f"messages[{i}]", item) for i, item in enumerate(raw)]
    _check_amounts(messages, limits)
    continued = bool(messages) and messages[-1].role == "assistant"
    _check_continuation(body, continued)
    system = None
    if messages and messages[0].role == "system":
        system = "\n".join(messages.pop(0).texts)
    prefix = "\n".join(messages.pop().texts) if continued else ""
    _check_order(messages)
    pictures = [p for message in messages for p in message.pictures]
    turns = [_turn_text(message) for message in messages]
    return Conversation(
        question=turns[-1],
        history=tuple(zip(turns[:-1:2], turns[1:-1:2], strict=True)),
        system=system,
        prefix=prefix,
        pictures=tuple(pictures),
    )


def _message(where: str, raw: Any) -> _Message:
    message = Fields(raw, where, ("role", "content"))
    role = message.text("role", None)
    if role not in ROLES:
        raise message.bad("role", " or ".join(ROLES))
    content = message.value("content")
    if isinstance(content, str):
        return _Message(where, role, (content,))
    if not isinstance(content, list):
        raise message.bad("content", "a text, or a list of parts")
    named = [(f"{where}.content[{i}]", part) for i, part in enumerate(content)]
    return _Message(where, role, tuple(_part(name, part, role) for name, part in named))


def _part(where: str, raw: Any, role: str) -> str | Picture:
    part = Fields(raw, where, ("type", "text", "image_url"))
    kind = part.text("type", None)
    if kind == "text":
        text = part.text("text", None)
        if text is None or part.has("image_url"):
            raise errors.bad(where, "a part of type text has the field text alone")
        return text
    if kind != "image_url":
        raise part.bad("type", "text or image_url")
    if role != "user":
        raise errors.bad(where, f"a message of the {role} has no image")
    if part.has("text") or not part.has("image_url"):
        raise errors.bad(where, "a part of type image_url has that field alone")
    return _picture(part.name("image_url"), part.value("image_url"))


def _picture(where: str, raw: Any) -> Picture:
    image = Fields(raw, where, ("url", "detail", "max_dynamic_patch"))
    url = image.text("url", None)
    if url is None:
        raise image.bad("url", "a data URI")
    detail = image.text("detail", "auto")
    if detail not in DETAIL:
        raise image.bad("detail", " or ".join(DETAIL))
    tiles = image.integer("max_dynamic_patch", DETAIL[detail], 1, 2**31 - 1)
    return Picture(where, _decode(image.name("url"), url), tiles)


def _decode(where: str, url: str) -> bytes:
    """The bytes of a data URI; nothing is fetched from anywhere."""
    start = _DATA_URI.match(url)
    if start is None:
        inline = url[:5].lower() == "data:"
        why = "no image in base64" if inline else "nothing is fetched from an address"
        wanted = "send the image as data:image/png;base64,... (or image/jpeg, ...)"
        raise errors.bad(where, f"{ledger.short(url)}: {why}; {wanted}", "bad_url")
    try:
        return base64.b64decode(url[start.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise errors.bad(where, f"is no base64: {error}", "bad_base64") from error


def _check_amounts(messages: list[_Message], limits: Limits) -> None:
    if not messages:
        raise errors.bad("messages", "there must be one of the user at least")
    pictures = [p for message in messages for p in message.pictures]
    if len(pictures) > limits.images:
        raise errors.bad("messages", f"{len(pictures)} images, at most {limits.images}")
    for picture in pictures:
        if picture.tiles is not None and picture.tiles > limits.tiles:
            asked = f"max_dynamic_patch={picture.tiles}, at most {limits.tiles}"
            raise errors.bad(picture.name, asked)
    characters = sum(len(text) for message in messages for text in message.texts)
    if characters > limits.text_characters:
        message = f"{characters} characters, at most {limits.text_characters}"
        raise errors.bad("messages", message, "too_long")


def _check_continuation(body: Fields, continued: bool) -> None:
    asked = body.boolean("continue_final_message", continued)
    opened = body.boolean("add_generation_prompt", not continued)
    if asked != continued:
        wanted = f"{str(continued).lower()}: the last message decides"
        raise body.bad("continue_final_message", wanted)
    if opened == continued:
        wanted = f"{str(not continued).lower()}: the last message decides"
        raise body.bad("add_generation_prompt", wanted)


def _check_order(messages: list[_Message]) -> None:
    """User and assistant by turns, beginning and ending with the user."""
    for number, message in enumerate(messages):
        expected = ROLES[1 + number % 2]
        if message.role != expected:
            what = "a system message must be the first, and the only one"
            if message.role != "system":
                what = f"a message of the {expected} must stand here; turns alternate"
            raise errors.bad(f"{message.where}.role", f"{message.role!r}: {what}")
    if not messages or messages[-1].role != "user":
        raise errors.bad("messages", "the question, a message of the user, is missing")
    for message in messages:
        if message.role == "user" and not any(message.parts):
            raise errors.bad(f"{message.where}.content", "is empty")


def _turn_text(message: _Message) -> str:
    """A message's text with its images' placeholders.

    As InternVL's own chat does it: the only image of a message stands first, then a
    line feed. Several stand where their parts do, a line feed behind each. A text
    that has placeholders of its own, one for each image, is left as it is.
    """
    placeholder = template.PLACEHOLDER
    own = sum(text.count(placeholder) for text in message.texts)
    count = len(message.pictures)
    if message.role == "user" and own and own != count:
        raise errors.bad(
            f"{message.where}.content",
            f"{own} {placeholder!r} in its text for {count} images; there must be one "
            "for each, or none",
            "image_count",
        )
    if own or not count:
        return "\n".join(message.texts)
    if count == 1:
        return f"{placeholder}\n" + "\n".join(message.texts)
    text, after_text = "", False
    for part in message.parts:
        is_text = isinstance(part, str)
        joint = "\n" if is_text and after_text else ""
        text += joint + (part if is_text else f"{placeholder}\n")
        after_text = is_text
    return text
