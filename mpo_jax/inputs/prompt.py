"""A conversation and its images, ready for the model: where every prompt is made.

Training examples and whatever answers questions call :func:`make_prompt`, so that the
tokens in front of an answer are the same wherever the model reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpo_jax import ledger
from mpo_jax.inputs import images as images_lib
from mpo_jax.inputs import template
from mpo_jax.inputs.tokenizer import ChatTokenizer


@dataclasses.dataclass(frozen=True)
class PromptPolicy:
    """How conversations become tokens and images tiles; part of every cache key.

    Attributes:
      template: name of the chat template, see ``template.TEMPLATES``.
      image_size: ``S``, side of a tile in pixels.
      tokens_per_tile: ``I``, language tokens of a tile.
      min_tiles: fewest tiles of an image.
      max_tiles: most tiles of a prompt's images, thumbnails not counted, where it has
        no limit of its own; several images share it.
      use_thumbnail: add a tile of the whole image where there is more than one.
      max_image_pixels: larger images are refused.
    """

    template: str
    image_size: int
    tokens_per_tile: int
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    max_image_pixels: int

    def __post_init__(self) -> None:
        template.get_template(self.template)
        for name in ("image_size", "tokens_per_tile", "min_tiles", "max_tiles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.min_tiles > self.max_tiles:
            raise ValueError(
                f"min_tiles={self.min_tiles} is more than max_tiles={self.max_tiles}"
            )
        if self.max_image_pixels < 1:
            raise ValueError(f"max_image_pixels={self.max_image_pixels} admits none")

    def fingerprint(self) -> dict[str, Any]:
        """Every field as JSON values; for cache keys."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What the model reads before it answers (NumPy, host).

    Attributes:
      ids: int32 ``[p]``; every image is as many ``<IMG_CONTEXT>`` as its tiles take.
      answer_start: position of the answer's first token. It is ``p`` unless the answer
        was given a beginning, which then stands in ``ids[answer_start:]``.
      tiles: uint8 ``[m, S, S, 3]`` RGB, tiles of all images in order.
      num_tiles: ``m``; known also where ``tiles`` was not decoded.
      image_tokens: context tokens of every image, in order.
    """

    ids: np.ndarray
    answer_start: int
    tiles: np.ndarray
    num_tiles: int
    image_tokens: tuple[int, ...]


def make_prompt(
    question: str,
    tokenizer: ChatTokenizer,
    *,
    policy: PromptPolicy,
    images: Sequence[str] = (),
    history: Sequence[tuple[str, str]] = (),
    system_message: str | None = None,
    prefix: str | Sequence[int] = "",
    max_tiles: int | None = None,
    with_tiles: bool = True,
    letters: bool = False,
    read: Callable[[str], bytes] = images_lib.read_file,
) -> Prompt:
    """Check and tokenise a question, and cut its images into tiles.

    A single image gets its placeholder put in front where the conversation is its
    question alone and has none. Otherwise there must be as many placeholders as images:
    unlike upstream, superfluous ones are refused instead of read as text, without an
    image too, and a text-only question needs no blank tile.

    Args:
      question: the user's text, with its ``<image>`` placeholders.
      tokenizer: the model's tokenizer.
      policy: how to encode.
      images: paths, in the order of their placeholders over the whole conversation.
      history: earlier (question, answer) pairs.
      system_message: other text for the system segment; None is the template's.
      prefix: the beginning of the answer, as text or as token ids.
      max_tiles: this prompt's own limit; None is the policy's.
      with_tiles: False leaves `tiles` empty (``[0, S, S, 3]``); images are decoded
        all the same, so that both ways refuse the same prompts.
      letters: chat and image tokens in a text are its letters, no tokens; without it
        such texts are refused, as in training data.
      read: gives the bytes of an image by its path.

    Returns:
      The prompt, however long; nothing is truncated.

    Raises:
      BadRecord: with a reason of ``ledger.REASONS``.
      OSError: the file system failed, see ``images.read_file``.
    """

    def load() -> tuple[np.ndarray, list[int]]:
        return _load_tiles(images, policy, max_tiles, with_tiles, read)

    return _make(
        question,
        tokenizer,
        policy,
        images,
        history,
        system_message,
        prefix,
        load,
        letters=letters,
    )


def measure_prompt(
    question: str,
    tokenizer: ChatTokenizer,
    *,
    policy: PromptPolicy,
    images: Sequence[str] = (),
    history: Sequence[tuple[str, str]] = (),
    system_message: str | None = None,
    prefix: str | Sequence[int] = "",
    max_tiles: int | None = None,
    read: Callable[[str], bytes] = images_lib.read_file,
) -> int:
    """Tokens of the prompt that :func:`make_prompt` makes, without decoding an image.

    Raises:
      BadRecord, OSError: as :func:`make_prompt`, but for pictures whose header is fine.
    """
    how = tiling(policy, len(images), max_tiles)
    most = policy.max_image_pixels

    def load() -> tuple[np.ndarray, list[int]]:
        sizes = [
            images_lib.image_size(path, max_pixels=most, read=read) for path in images
        ]
        return _no_tiles(policy), [images_lib.tile_count(*s, **how) for s in sizes]

    made = _make(
        question, tokenizer, policy, images, history, system_message, prefix, load
    )
    return len(made.ids)


def _make(
    question: str,
    tokenizer: ChatTokenizer,
    policy: PromptPolicy,
    images: Sequence[str],
    history: Sequence[tuple[str, str]],
    system_message: str | None,
    prefix: str | Sequence[int],
    load: Callable[[], tuple[np.ndarray, list[int]]],
    *,
    letters: bool = False,
) -> Prompt:
    """Check the texts, then `load` tiles and their number for each image, tokenise."""
    chat = template.get_template(policy.template)
    texts = {"question": question}
    for turn, (asked, answered) in enumerate(history):
        texts |= {
            f"history[{turn}].question": asked,
            f"history[{turn}].answer": answered,
        }
    if system_message is not None:
        texts["system_message"] = system_message
    if isinstance(prefix, str):
        texts["prefix"] = prefix
    check_text(texts, tokenizer, letters=letters)
    if letters:

        def cut(text: str) -> str:
            return template.as_letters(text, tokenizer)

        question, history = cut(question), [(cut(q), cut(a)) for q, a in history]
        system_message = None if system_message is None else cut(system_message)
        prefix = cut(prefix) if isinstance(prefix, str) else prefix
    if len(images) == 1 and not history:
        question = template.add_placeholder(question)
    turns = [text for pair in history for text in pair]
    _check_placeholders([*turns, question], system_message, images)
    tiles, counts = load()
    image_tokens = tuple(count * policy.tokens_per_tile for count in counts)
    ids, answer_start = template.encode_prompt(
        tokenizer,
        chat,
        question,
        num_image_tokens=image_tokens,
        history=history,
        system_message=system_message,
        prefix=prefix if isinstance(prefix, str) else "",
    )
    if not isinstance(prefix, str):
        ids = [*ids, *_checked_ids(prefix, tokenizer)]
    made = Prompt(
        ids=np.asarray(ids, np.int32),
        answer_start=answer_start,
        tiles=tiles,
        num_tiles=sum(counts),
        image_tokens=image_tokens,
    )
    _check_slots(made, tokenizer, policy)
    return made


def check_text(
    texts: dict[str, str], tokenizer: ChatTokenizer, *, letters: bool = False
) -> None:
    """Raise BadRecord where a text holds chat markers, or is no Unicode.

    Args:
      texts: by the name of their field, for the message.
      letters: markers are let through.
    """
    for field, text in texts.items():
        for reason, found in (
            ("smuggled_token", template.find_image_token(text)),
            ("chat_marker", template.find_chat_marker(text, tokenizer)),
        ):
            if found and not letters:
                at = max(0, text.index(found) - 20)
                raise ledger.BadRecord(
                    reason, f"{field} holds {found!r}: ...{short(text[at:])}; remove it"
                )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            detail = f"{field} is not Unicode text: {error.reason} at character "
            raise ledger.BadRecord(
                "bad_field", f"{detail}{error.start}; write it anew"
            ) from error


def _check_placeholders(
    turns: Sequence[str], system_message: str | None, images: Sequence[str]
) -> None:
    if system_message is not None and template.PLACEHOLDER in system_message:
        detail = f"system_message holds {template.PLACEHOLDER!r}; images stand in turns"
        raise ledger.BadRecord("image_count", detail)
    placeholders = sum(text.count(template.PLACEHOLDER) for text in turns)
    if placeholders == len(images):
        return
    remedy = "they must be equal"
    if not images:
        remedy = "name the images in the field image, or remove the placeholders"
    raise ledger.BadRecord(
        "image_count",
        f"question has {placeholders} {template.PLACEHOLDER!r} for "
        f"{len(images)} images; {remedy}",
    )


def tiling(policy: PromptPolicy, images: int, max_tiles: int | None) -> dict[str, Any]:
    """How each of a prompt's images is cut: arguments of ``images.tile_count``.

    Args:
      images: how many there are; they share the limit.
      max_tiles: the prompt's own limit; None is the policy's.
    """
    limit = policy.max_tiles if max_tiles is None else max_tiles
    most = max(1, limit // max(1, images))
    return {
        "min_num": min(policy.min_tiles, most),
        "max_num": most,
        "image_size": policy.image_size,
        "use_thumbnail": policy.use_thumbnail,
    }


def _no_tiles(policy: PromptPolicy, number: int = 0) -> np.ndarray:
    size = policy.image_size
    return np.empty((number, size, size, 3), np.uint8)


def _load_tiles(
    paths: Sequence[str],
    policy: PromptPolicy,
    max_tiles: int | None,
    with_tiles: bool,
    read: Callable[[str], bytes],
) -> tuple[np.ndarray, list[int]]:
    """Tiles of all images (uint8 ``[m, S, S, 3]``) and the number for each image."""
    counts: list[int] = []
    how = tiling(policy, len(paths), max_tiles)
    opened = []
    for path in paths:
        image = images_lib.open_image(
            path, max_pixels=policy.max_image_pixels, read=read
        )
        counts.append(images_lib.tile_count(*image.size, **how))
        if with_tiles:
            opened.append(image)
    tiles = _no_tiles(policy, sum(counts) if with_tiles else 0)
    start = 0
    for image, count in zip(opened, counts, strict=False):  # none is open without tiles
        images_lib.tile(image, **how, out=tiles[start : start + count])
        start += count
    return tiles, counts


def _checked_ids(prefix: Sequence[int], tokenizer: ChatTokenizer) -> list[int]:
    ids = [int(i) for i in prefix]
    for place, token in enumerate(ids):
        if not 0 <= token < tokenizer.vocab_size:
            raise ledger.BadRecord(
                "bad_field",
                f"prefix[{place}]={token} is no token of a vocabulary of "
                f"{tokenizer.vocab_size}; give ids of this model's tokenizer",
            )
    return ids


def _check_slots(
    prompt: Prompt, tokenizer: ChatTokenizer, policy: PromptPolicy
) -> None:
    """Raise BadRecord unless exactly the prompt's image slots await the tiles."""
    is_slot = prompt.ids == tokenizer.img_context_id
    slots = int(np.count_nonzero(is_slot[: prompt.answer_start]))
    stray = int(np.count_nonzero(is_slot[prompt.answer_start :]))
    if slots != prompt.num_tiles * policy.tokens_per_tile or stray:
        raise ledger.BadRecord(
            "image_count",
            f"prompt has {slots} image tokens for {prompt.num_tiles} tiles of "
            f"{policy.tokens_per_tile}, the beginning of the answer has {stray}",
        )


def short(text: str) -> str:
    """A text for messages, in quotes, cut to 60 characters."""
    return repr(text if len(text) <= 60 else text[:60] + "…")
