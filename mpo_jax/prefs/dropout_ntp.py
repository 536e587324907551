"""Dropout-NTP pairs: an answer against its own beginning, continued without the image.

The chosen answer is cut, the model goes on from the cut without seeing the image, and
what it says is the rejected answer: no truth is needed. Cut and continuation are token
ids, so that nothing shows where they meet but what was said; words, as the released
pipeline has them, are the other way.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from mpo_jax.generate import requests
from mpo_jax.inputs import prompt as prompt_lib
from mpo_jax.inputs import template
from mpo_jax.inputs.tokenizer import ChatTokenizer

REASON = "dropout_ntp"
"""What made a pair, as its line says."""

TOKENS, WORDS = "tokens", "words"
UNITS = (TOKENS, WORDS)

DUPLICATE = "duplicate"
TEXT_ONLY = "text_only"
EMPTY_QUESTION = "empty_question"
EMPTY_CHOSEN = "empty_chosen"
TOO_SHORT = "too_short"
BROKEN_TEXT = "broken_text"
TOKENISATION = "tokenisation"
CUT_OFF = "cut_off"
EMPTY_CONTINUATION = "empty_continuation"
PREFIX_CHANGED = "prefix_changed"
IDENTICAL = "identical"
NO_ANSWER = "no_answer"

DROPPED = {
    DUPLICATE: "an earlier line is the same, its images' bytes included",
    TEXT_ONLY: "the question has no image, which is what would be left out",
    EMPTY_QUESTION: "nothing is asked beside the image",
    EMPTY_CHOSEN: "the chosen answer is empty",
    TOO_SHORT: "the cut would leave nothing before it, or nothing after it",
    BROKEN_TEXT: "an answer holds bytes that are no UTF-8",
    TOKENISATION: "the tokens of the chosen answer do not give its text back",
    CUT_OFF: "the continuation reached the longest answer, the chosen one did not",
    EMPTY_CONTINUATION: "the model ended the answer at the cut",
    PREFIX_CHANGED: "the rejected answer does not begin with the text before the cut",
    IDENTICAL: "the continuation is what the chosen answer says anyway",
    NO_ANSWER: "the model gave no answer; the ledger says why",
}
"""Why there is no pair, by the names that the manifest counts under."""

_BROKEN = "\ufffd"
_IMAGE = re.compile(re.escape(template.PLACEHOLDER) + r"\n?")


class Dropped(ValueError):
    """No pair can be made.

    Attributes:
      reason: a key of :data:`DROPPED`.
    """

    def __init__(self, reason: str):
        super().__init__(f"{reason}: {DROPPED[reason]}")
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Variant:
    """How pairs are made; part of every question's id.

    Attributes:
      ratio: share of the chosen answer that is kept, from 0 up to below 1.
      by: ``tokens``, or ``words`` as released.
      keep_image: the continuation sees the image, too.

    Raises:
      ValueError: a value is out of range; names it.
    """

    ratio: float = 0.5
    by: str = TOKENS
    keep_image: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(
                f"ratio={self.ratio!r}: must be a share from 0 up to, but not, 1"
            )
        if self.by not in UNITS:
            raise ValueError(f"by={self.by!r}: must be one of {', '.join(UNITS)}")

    @property
    def name(self) -> str:
        """For lines and keys, such as ``tokens-0.5-without_image``."""
        image = "with_image" if self.keep_image else "without_image"
        return f"{self.by}-{self.ratio:g}-{image}"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The answer that is preferred.

    Attributes:
      text: whole.
      ids: its tokens as they were said, the stop token left out; None encodes `text`.
      cut_off: it reached the longest answer.
    """

    text: str
    ids: tuple[int, ...] | None = None
    cut_off: bool = False


@dataclasses.dataclass(frozen=True)
class Cut:
    """The beginning that both answers share.

    Attributes:
      ids: its tokens.
      text: of them; the chosen answer begins with it, but for words with the white
        space that it begins with left out, as released.
    """

    ids: tuple[int, ...]
    text: str


def chosen_of(answer: requests.Answer, tokenizer: ChatTokenizer) -> Chosen:
    """The model's own answer.

    Its tokens are taken as they were said, unless one of them stands outside of text
    (a chat or image token): such have no place in the beginning of another answer.
    """
    ids = said_ids(answer)
    outside = {token.id for token in tokenizer.added_tokens()}
    if ids is not None and outside.intersection(ids):
        ids = None
    return Chosen(answer.text, ids, answer.finish_reason == requests.LENGTH)


def said_ids(answer: requests.Answer) -> tuple[int, ...] | None:
    """Tokens of an answer without the stop token; None where nobody told them."""
    if answer.token_ids is None or answer.finish_reason != requests.STOP:
        return answer.token_ids
    return answer.token_ids[:-1]


def cut(chosen: Chosen, variant: Variant, tokenizer: ChatTokenizer) -> Cut:
    """The beginning of an answer.

    Tokens: so many that their share is at most the ratio; where the cut would split a
    character, it moves to the nearest boundary before it, else behind it. Words: what
    stands between single spaces, as released, so that a text without spaces keeps
    nothing.

    Raises:
      Dropped: there is nothing to cut, or nothing is left on one side of it.
      BadRecord: the answer holds a chat or image token.
    """
    if not chosen.text.strip():
        raise Dropped(EMPTY_CHOSEN)
    if _BROKEN in chosen.text:
        raise Dropped(BROKEN_TEXT)
    prompt_lib.check_text({"chosen": chosen.text}, tokenizer)
    if variant.by == WORDS:
        return _cut_words(chosen.text, variant.ratio, tokenizer)
    return _cut_tokens(chosen, variant.ratio, tokenizer)


def _cut_words(text: str, ratio: float, tokenizer: ChatTokenizer) -> Cut:
    words = text.split(" ")
    kept = " ".join(words[: int(len(words) * ratio)]).strip()
    ids = tuple(tokenizer.encode(kept, bos=False, start=False)) if kept else ()
    if tokenizer.decode(ids) != kept:
        raise Dropped(TOKENISATION)
    return Cut(ids, kept)


def _cut_tokens(chosen: Chosen, ratio: float, tokenizer: ChatTokenizer) -> Cut:
    if not ratio:
        return Cut((), "")
    ids = chosen.ids
    if ids is None:
        ids = tuple(tokenizer.encode(chosen.text, bos=False, start=False))
    if tokenizer.decode(ids) != chosen.text:
        raise Dropped(TOKENISATION)
    wanted = int(len(ids) * ratio)
    before = range(wanted, 0, -1)
    behind = range(wanted + 1, len(ids))
    for number in (*before, *behind) if wanted else ():
        text = tokenizer.decode(ids[:number])
        # Half a character decodes to U+FFFD, which the whole text does not hold.
        if chosen.text.startswith(text) and text != chosen.text:
            return Cut(ids[:number], text)
    raise Dropped(TOO_SHORT)


def continued_question(question: str, images: Sequence[str], variant: Variant) -> str:
    """The text that the continuation is asked with.

    Without its image a question loses the placeholder and the newline behind it.

    Raises:
      Dropped: there is no image to leave out, or no question beside it.
    """
    if variant.keep_image:
        return question
    if not images:
        raise Dropped(TEXT_ONLY)
    left = _IMAGE.sub("", question).strip()
    if not left:
        raise Dropped(EMPTY_QUESTION)
    return left


def rejected(
    chosen: Chosen,
    beginning: Cut,
    answer: requests.Answer,
    tokenizer: ChatTokenizer,
) -> str:
    """The rejected answer: the beginning and its continuation, decoded together.

    Args:
      answer: the continuation; where its tokens are not known, its text is taken.

    Raises:
      Dropped: the two would make no pair.
      BadRecord: the text holds a chat or image token, written out.
    """
    if answer.finish_reason == requests.LENGTH and not chosen.cut_off:
        raise Dropped(CUT_OFF)
    if not answer.text.strip():
        raise Dropped(EMPTY_CONTINUATION)
    ids = said_ids(answer)
    if ids is None:
        text = beginning.text + answer.text
    else:
        text = tokenizer.decode((*beginning.ids, *ids))
    if not text.startswith(beginning.text):
        raise Dropped(PREFIX_CHANGED)
    if _BROKEN in text:
        raise Dropped(BROKEN_TEXT)
    if text.strip() == chosen.text.strip():  # templates may strip, so that counts not
        raise Dropped(IDENTICAL)
    prompt_lib.check_text({"rejected": text}, tokenizer)
    return text
