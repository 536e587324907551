"""Tokenizers of the released checkpoints, loaded from a directory without its code.

Two layouts are read: a sentencepiece model with added tokens (InternLM2, and Llama's
tokenizer, which Phi-3 has), and byte-level BPE (Qwen2, Qwen2.5 and their like) through
transformers. Both give a :class:`ChatTokenizer`, which knows the image tokens by name
and pickles, so that spawned workers can have it. Which chat tokens there must be is the
template's matter (``template.check_tokenizer``).
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable

from mpo_jax.inputs import tokenizer_files
from mpo_jax.inputs.tokenizer_backends import AddedToken, Backend
from mpo_jax.inputs.tokenizer_files import CONFIG

IMG_START = "<img>"
IMG_END = "</img>"
IMG_CONTEXT = "<IMG_CONTEXT>"

IMAGE_TOKENS = (IMG_START, IMG_END, IMG_CONTEXT)
"""Tokens that mark image slots: they must not occur in the text of a record."""

ADDED_TOKENS = IMAGE_TOKENS + (
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)
"""Tokens that upstream adds to a bare language model's tokenizer, in this order."""

CUT = "\udfff\ud800"
"""Stands in a text where it is tokenised in two parts, so that no token spans them:
surrogates the wrong way round, which Unicode text cannot hold."""


class ChatTokenizer:
    """Text to token ids and back, with the ids that a chat with images needs.

    Attributes:
      vocab_size: number of embedding rows that the ids need (highest id + 1).
      bos_id: id of the begin-of-sequence token, None where there is none.
      pad_id: id that upstream pads with; upstream counts it as "no token".
      img_start_id, img_end_id, img_context_id: ids of :data:`IMAGE_TOKENS`.
      add_bos: whether upstream's tokenizer puts BOS before every text.
    """

    def __init__(
        self, backend: Backend, *, bos: str | None, pad: str | None, add_bos: bool
    ):
        """Look up the named tokens.

        Raises:
          ValueError: one of them is no token of `backend`.
        """
        self._backend = backend
        self.vocab_size = backend.size()
        self.bos_id = None if bos is None else self._named(bos)
        if pad is None:
            raise ValueError(f"{CONFIG} names no pad_token; add one")
        self.pad_id = self._named(pad)
        self.img_start_id = self._named(IMG_START)
        self.img_end_id = self._named(IMG_END)
        self.img_context_id = self._named(IMG_CONTEXT)
        for token in backend.added():
            # Texts are cut at image tokens and encoded in parts.
            if token.content in IMAGE_TOKENS and (token.lstrip or token.rstrip):
                raise ValueError(
                    f"image token {token.content!r} has lstrip or rstrip, which is not "
                    f"supported; set both to false in {CONFIG}"
                )
        if add_bos and self.bos_id is None:
            raise ValueError(f"{CONFIG}: add_bos_token is true without a bos_token")
        self.add_bos = add_bos

    def _named(self, token: str) -> int:
        i = self._backend.id_of(token)
        if i is None:
            raise ValueError(
                f"the tokenizer has no token {token!r}; it must stand in "
                f"added_tokens.json or in added_tokens_decoder of {CONFIG}"
            )
        return i

    def id_of(self, token: str) -> int | None:
        """Id of the text that is one token by itself, None if it is not."""
        ids = self.encode(token, bos=False, start=False)
        return ids[0] if len(ids) == 1 else None

    def encode(self, text: str, *, bos: bool, start: bool = True) -> list[int]:
        """Ids of `text`; the strings of special tokens in it become those tokens.

        Args:
          text: any text; it is never truncated. At every :data:`CUT` a new part begins.
          bos: put the begin-of-sequence token first.
          start: False where `text` goes on after a special token; Llama's tokenizer
            puts a space before a text, but not there.

        Raises:
          ValueError: `bos` without such a token, or text with a lone surrogate
            (a ``UnicodeEncodeError``, which is a ``ValueError``).
        """
        first, *rest = text.split(CUT)
        for part in (first, *rest):
            part.encode("utf-8")  # one error for both back ends
        ids = self._backend.encode(first, start)
        for part in rest:
            ids += self._backend.encode(part, False)
        if not bos:
            return ids
        if self.bos_id is None:
            raise ValueError("this tokenizer has no begin-of-sequence token")
        return [self.bos_id, *ids]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`.

        Bytes that are no UTF-8 become U+FFFD. Ids without a token, which a model with
        padded embedding rows can emit, decode to nothing. Nothing is stripped and no
        space is put around special tokens, unlike in upstream's slow tokenizers.
        """
        known = [int(i) for i in ids if 0 <= i < self.vocab_size]
        return self._backend.decode(known, skip_special)

    def token(self, i: int) -> str:
        """The token of id `i` as the vocabulary spells it.

        Raises:
          IndexError: there is no such id.
        """
        if not 0 <= i < self.vocab_size:
            raise IndexError(f"token id {i} is outside [0, {self.vocab_size})")
        return self._backend.token(i)

    def added_tokens(self) -> list[AddedToken]:
        """Tokens that text is split at first, by id."""
        return sorted(self._backend.added(), key=lambda token: token.id)

    @property
    def space_not_before(self) -> frozenset[str] | None:
        """Tokens that a text may begin with without getting a space in front.

        None where texts get no space, or each part of them gets one.
        """
        return self._backend.space_not_before

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256, hexadecimal, of everything that decides ids; for cache keys."""
        digest = hashlib.sha256(self._backend.identity())
        flags = [self.bos_id, self.pad_id, self.add_bos]
        digest.update(json.dumps(flags).encode())
        return digest.hexdigest()


def load_tokenizer(path: str | pathlib.Path) -> ChatTokenizer:
    """Load the tokenizer of a checkpoint directory; code in it is never run.

    The layouts, first match wins: ``tokenizer.model`` (InternLM2, Llama and Phi-3: the
    ids of the slow tokenizers that upstream trains with), ``tokenizer.json`` (taken as
    it is), ``vocab.json`` + ``merges.txt`` (Qwen2). Image tokens that are missing are
    added behind the last id in upstream's order, :data:`ADDED_TOKENS`.

    One known difference: upstream's slow Qwen2 tokenizer normalises (NFC) before it
    looks for special tokens, here it is after, so that a combining character behind
    a special token cannot break it.

    Raises:
      ValueError: no layout fits, a file cannot be read, or a token is missing.
    """
    path = pathlib.Path(path)
    parts = tokenizer_files.read(path, add=ADDED_TOKENS)
    try:
        return ChatTokenizer(
            parts.backend, bos=parts.bos, pad=parts.pad, add_bos=parts.add_bos
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
