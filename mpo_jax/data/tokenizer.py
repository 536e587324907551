"""Tokenizers of the released checkpoints, loaded from a directory without its code.

Two layouts are read: InternLM2's sentencepiece model with added tokens, and byte-level
BPE (Qwen2, Qwen2.5 and their like) through transformers. Both give a
:class:`ChatTokenizer`, which knows the chat and image tokens by name and pickles, so
that spawned workers can have it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import tokenizers

from mpo_jax.data import sentencepiece_bpe

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

_CONFIG = "tokenizer_config.json"


class _Backend(Protocol):
    """What a :class:`ChatTokenizer` needs of a tokenizer."""

    def id_of(self, token: str) -> int | None: ...
    def token(self, i: int) -> str: ...
    def size(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int], skip_special: bool) -> str: ...
    def identity(self) -> bytes: ...
    def added(self) -> list[tuple[str, int, bool]]: ...


class ChatTokenizer:
    """Text to token ids and back, with the ids that a chat with images needs.

    Attributes:
      vocab_size: number of embedding rows that the ids need (highest id + 1).
      bos_id: id of the begin-of-sequence token, None where there is none.
      pad_id: id that upstream pads with; upstream counts it as "no token".
      im_start_id, im_end_id: ids of ``<|im_start|>`` and ``<|im_end|>``.
      img_start_id, img_end_id, img_context_id: ids of :data:`IMAGE_TOKENS`.
      add_bos: whether upstream's tokenizer puts BOS before every text.
    """

    def __init__(
        self, backend: _Backend, *, bos: str | None, pad: str | None, add_bos: bool
    ):
        """Look up the named tokens.

        Raises:
          ValueError: one of them is no token of `backend`.
        """
        self._backend = backend
        self.vocab_size = backend.size()
        self.bos_id = None if bos is None else self._named(bos)
        if pad is None:
            raise ValueError(f"{_CONFIG} names no pad_token; add one")
        self.pad_id = self._named(pad)
        self.im_start_id = self._named("<|im_start|>")
        self.im_end_id = self._named("<|im_end|>")
        self.img_start_id = self._named(IMG_START)
        self.img_end_id = self._named(IMG_END)
        self.img_context_id = self._named(IMG_CONTEXT)
        if add_bos and self.bos_id is None:
            raise ValueError(f"{_CONFIG}: add_bos_token is true without a bos_token")
        self.add_bos = add_bos

    def _named(self, token: str) -> int:
        found = self._backend.id_of(token)
        if found is None:
            raise ValueError(
                f"the tokenizer has no token {token!r}; it must stand in "
                f"added_tokens.json or in added_tokens_decoder of {_CONFIG}"
            )
        return found

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """Ids of `text`; the strings of special tokens in it become those tokens.

        Args:
          text: any text; it is never truncated.
          bos: put the begin-of-sequence token first.

        Raises:
          ValueError: `bos` without such a token, or text with a lone surrogate
            (a ``UnicodeEncodeError``, which is a ``ValueError``).
        """
        text.encode("utf-8")  # one error for both back ends
        ids = self._backend.encode(text)
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

    def added_tokens(self) -> list[tuple[str, int, bool]]:
        """Tokens that text is split at first: (token, id, special), by id."""
        return sorted(self._backend.added(), key=lambda token: token[1])

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256, hexadecimal, of everything that decides ids; for cache keys."""
        digest = hashlib.sha256(self._backend.identity())
        flags = [self.bos_id, self.pad_id, self.add_bos]
        digest.update(json.dumps(flags).encode())
        return digest.hexdigest()


class _SentencePieceBackend:
    """Upstream's slow tokenizer: text is split at added tokens, the rest is encoded."""

    def __init__(
        self,
        bpe: sentencepiece_bpe.SentencePieceBPE,
        added: Mapping[str, int],
        special: frozenset[str],
    ):
        self._bpe = bpe
        self._added = dict(added)
        self._special_ids = {added[token] for token in special}
        self._tokens = {i: token for token, i in added.items()}
        # Longest first, as upstream's trie finds them.
        names = sorted(added, key=lambda token: (-len(token), token))
        self._split = re.compile("(" + "|".join(map(re.escape, names)) + ")")

    def id_of(self, token: str) -> int | None:
        found = self._added.get(token)
        return self._bpe.id_of(token) if found is None else found

    def token(self, i: int) -> str:
        return self._tokens[i] if i in self._tokens else self._bpe.pieces[i]

    def size(self) -> int:
        return max(len(self._bpe.pieces), *(i + 1 for i in self._tokens))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(self._split.split(text)):
            if number % 2:
                ids.append(self._added[part])
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
        return "".join(text)

    def added(self) -> list[tuple[str, int, bool]]:
        return [(t, i, i in self._special_ids) for t, i in self._added.items()]

    def identity(self) -> bytes:
        return self._bpe.model + json.dumps(sorted(self._added.items())).encode()


class _ByteLevelBackend:
    """Byte-level BPE of the ``tokenizers`` library."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = backend

    def id_of(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def token(self, i: int) -> str:
        found = self._backend.id_to_token(i)
        if found is None:
            raise IndexError(f"token id {i} is not used")
        return found

    def size(self) -> int:
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], skip_special: bool) -> str:
        return self._backend.decode(ids, skip_special_tokens=skip_special)

    def added(self) -> list[tuple[str, int, bool]]:
        decoder = self._backend.get_added_tokens_decoder()
        return [(token.content, i, token.special) for i, token in decoder.items()]

    def identity(self) -> bytes:
        return self._backend.to_str().encode()


def load_tokenizer(path: str | pathlib.Path) -> ChatTokenizer:
    """Load the tokenizer of a checkpoint directory; code in it is never run.

    The layouts, first match wins: ``tokenizer.model`` (InternLM2, the ids of the
    slow tokenizer that upstream trains with), ``tokenizer.json`` (taken as it is),
    ``vocab.json`` + ``merges.txt`` (Qwen2). Image tokens that are missing are added
    behind the last id in upstream's order, :data:`ADDED_TOKENS`.

    One known difference: upstream's slow Qwen2 tokenizer normalises (NFC) before it
    looks for special tokens, here it is after, so that a combining character behind
    a special token cannot break it.

    Raises:
      ValueError: no layout fits, a file cannot be read, or a token is missing.
    """
    path = pathlib.Path(path)
    if (path / "tokenizer.model").is_file():
        return _load_sentencepiece(path)
    if (path / "tokenizer.json").is_file() or all(
        (path / name).is_file() for name in ("vocab.json", "merges.txt")
    ):
        return _load_byte_level(path)
    raise ValueError(
        f"no tokenizer in {str(path)!r}: looked for tokenizer.model (InternLM2), "
        "tokenizer.json, or vocab.json with merges.txt (Qwen2); set data.tokenizer "
        "to a directory that holds one"
    )


def _load_sentencepiece(path: pathlib.Path) -> ChatTokenizer:
    model = path / "tokenizer.model"
    try:
        bpe = sentencepiece_bpe.SentencePieceBPE(model.read_bytes())
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error
    config = _read_json(path / _CONFIG)
    special_map = _read_json(path / "special_tokens_map.json")

    def named(key: str) -> str | None:
        value = config.get(key, special_map.get(key))
        return value.get("content") if isinstance(value, dict) else value

    added: dict[str, int] = dict(_read_json(path / "added_tokens.json"))
    special = {*config.get("additional_special_tokens", ()), *ADDED_TOKENS}
    for i, entry in config.get("added_tokens_decoder", {}).items():
        content = entry["content"]
        # These change the text around a token, which no InternLM2 release does.
        for flag in ("lstrip", "rstrip", "single_word"):
            if entry.get(flag):
                raise ValueError(
                    f"{path / _CONFIG}: token {content!r} has {flag}=true, which is "
                    "not supported"
                )
        if added.setdefault(content, int(i)) != int(i):
            raise ValueError(
                f"{path}: token {content!r} has id {added[content]} in "
                f"added_tokens.json and {i} in {_CONFIG}"
            )
        if entry.get("special"):
            special.add(content)
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = named(key)
        found = None if token is None else bpe.id_of(token)
        if token is not None:
            special.add(token)
            if found is not None:
                added.setdefault(token, found)
    after = max(len(bpe.pieces), *(i + 1 for i in added.values()))
    for token in ADDED_TOKENS:
        if token not in added:
            added[token] = after
            after += 1
    if len(set(added.values())) != len(added):
        raise ValueError(f"{path}: two added tokens share an id: {added}")
    backend = _SentencePieceBackend(bpe, added, frozenset(special & added.keys()))
    bos = named("bos_token")
    try:
        return ChatTokenizer(
            backend,
            bos=bos,
            pad=named("pad_token"),
            # InternLM2's class adds BOS unless its config says otherwise.
            add_bos=bool(config.get("add_bos_token", bos is not None)),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load_byte_level(path: pathlib.Path) -> ChatTokenizer:
    import transformers  # takes seconds; workers get a pickled tokenizer instead

    if (path / "tokenizer.json").is_file():
        kind = transformers.PreTrainedTokenizerFast
    else:
        name = _read_json(path / _CONFIG).get("tokenizer_class", "Qwen2Tokenizer")
        if name not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
            raise ValueError(
                f"{path / _CONFIG}: tokenizer_class {name!r} with vocab.json and "
                "merges.txt is not supported; save a tokenizer.json"
            )
        kind = transformers.Qwen2Tokenizer
    try:
        loaded: Any = kind.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # malformed files raise anything
        raise ValueError(f"cannot load the tokenizer of {path}: {error}") from error
    # The Rust tokenizer alone: faster to call and to pickle than its wrapper.
    backend: tokenizers.Tokenizer = loaded.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    missing = [name for name in ADDED_TOKENS if backend.token_to_id(name) is None]
    backend.add_special_tokens(
        [tokenizers.AddedToken(name, normalized=False) for name in missing]
    )
    try:
        return ChatTokenizer(
            _ByteLevelBackend(backend),
            bos=loaded.bos_token,
            pad=loaded.pad_token,
            add_bos=bool(getattr(loaded, "add_bos_token", False)),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in `path`; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content
