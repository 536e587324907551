"""The two kinds of tokenizer behind a ``ChatTokenizer``: text to ids and back.

Both pickle, so that spawned workers can have them, and both say what decides their ids,
for cache keys.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

import tokenizers

from mpo_jax.inputs import sentencepiece_bpe


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that text is split at before it is tokenised.

    Attributes:
      content, id: its text and id.
      special: whether decoding may leave it out.
      lstrip, rstrip: whether white space before and after it is lost.
    """

    content: str
    id: int
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False


class Backend(Protocol):
    """What a ``ChatTokenizer`` needs of a tokenizer.

    Attributes:
      space_not_before: tokens of Llama's newer rule (``legacy`` false): a text gets one
        space in front, which goes where one of these comes first. None puts none.
    """

    space_not_before: frozenset[str] | None

    def id_of(self, token: str) -> int | None: ...
    def token(self, i: int) -> str: ...
    def size(self) -> int: ...
    def encode(self, text: str, start: bool) -> list[int]: ...
    def decode(self, ids: list[int], skip_special: bool) -> str: ...
    def identity(self) -> bytes: ...
    def added(self) -> list[AddedToken]: ...


class SentencePieceBackend:
    """Upstream's slow tokenizers: text is split at added tokens, the rest is encoded.

    Attributes:
      space_not_before: see :class:`Backend`; where it is None, it is the model file
        that says whether every part of a text gets a space.
    """

    def __init__(
        self,
        bpe: sentencepiece_bpe.SentencePieceBPE,
        added: Mapping[str, AddedToken],
        *,
        space_not_before: frozenset[str] | None = None,
    ):
        self._bpe = bpe
        self._added = dict(added)
        self.space_not_before = space_not_before
        self._ids = {token: entry.id for token, entry in added.items()}
        self._special_ids = {e.id for e in added.values() if e.special}
        self._tokens = {i: token for token, i in self._ids.items()}
        # Longest first, as upstream's trie finds them.
        names = sorted(added, key=lambda token: (-len(token), token))
        self._added_pattern = re.compile("(" + "|".join(map(re.escape, names)) + ")")

    def id_of(self, token: str) -> int | None:
        i = self._ids.get(token)
        return self._bpe.id_of(token) if i is None else i

    def token(self, i: int) -> str:
        return self._tokens[i] if i in self._tokens else self._bpe.pieces[i]

    def size(self) -> int:
        return max(len(self._bpe.pieces), *(i + 1 for i in self._tokens))

    def encode(self, text: str, start: bool) -> list[int]:
        if self.space_not_before is not None:
            # What tokens swallow includes written spaces.
            text = text.replace(sentencepiece_bpe.SPACE, " ")
        parts = self._added_pattern.split(text)
        if start and text and self.space_not_before is not None:
            first = parts[1] if len(parts) > 1 and not parts[0] else None
            parts[0] = parts[0] if first in self.space_not_before else " " + parts[0]
        for number in range(1, len(parts), 2):
            entry = self._added[parts[number]]
            if entry.lstrip:
                parts[number - 1] = parts[number - 1].rstrip()
            if entry.rstrip:
                parts[number + 1] = parts[number + 1].lstrip()
        ids: list[int] = []
        for number, part in enumerate(parts):
            if number % 2:
                ids.append(self._ids[part])
            elif part:
                ids.extend(self._bpe.encode(part))
        return ids

    def decode(self, ids: list[int], skip_special: bool) -> str:
        text: list[str] = []
        run: list[int] = []
        for i in ids:
            if i not in self._tokens:
                run.append(i)
                continue
            text.append(self._bpe.decode(run))
            run = []
            if not (skip_special and i in self._special_ids):
                text.append(self._tokens[i])
        text.append(self._bpe.decode(run))
        joined = "".join(text)
        if self.space_not_before is not None and ids and ids[0] not in self._tokens:
            return joined.removeprefix(" ")
        return joined

    def added(self) -> list[AddedToken]:
        return list(self._added.values())

    def identity(self) -> bytes:
        parts: list[Any] = [sorted(self._ids.items())]
        strips = [
            (entry.id, entry.lstrip, entry.rstrip)
            for entry in self._added.values()
            if entry.lstrip or entry.rstrip
        ]
        # What most tokenizers have none of adds nothing: their caches stay valid.
        if strips:
            parts.append(sorted(strips))
        if self.space_not_before is not None:
            parts.append(sorted(self.space_not_before))
        described = json.dumps(parts[0] if len(parts) == 1 else parts)
        return self._bpe.model + described.encode()


class FastBackend:
    """A tokenizer of the ``tokenizers`` library, mostly byte-level BPE."""

    space_not_before: frozenset[str] | None = None

    def __init__(self, backend: tokenizers.Tokenizer, *, anchor: str):
        """`anchor` is an added token: what follows it goes on after a token."""
        self._backend = backend
        # Some put a space before a text: then one that goes on needs a token before it.
        self._anchor = anchor
        self._anchored = self._ids("a") != self._ids(anchor + "a")[1:]

    def _ids(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def id_of(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def token(self, i: int) -> str:
        token = self._backend.id_to_token(i)
        if token is None:
            raise IndexError(f"token id {i} is not used")
        return token

    def size(self) -> int:
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str, start: bool) -> list[int]:
        if self._anchored and not start:
            return self._ids(self._anchor + text)[1:]
        return self._ids(text)

    def decode(self, ids: list[int], skip_special: bool) -> str:
        return self._backend.decode(ids, skip_special_tokens=skip_special)

    def added(self) -> list[AddedToken]:
        return [
            AddedToken(token.content, i, token.special, token.lstrip, token.rstrip)
            for i, token in self._backend.get_added_tokens_decoder().items()
        ]

    def identity(self) -> bytes:
        return self._backend.to_str().encode()
