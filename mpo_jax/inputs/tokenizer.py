"""Tokenizers of the released checkpoints, loaded from a directory without its code.

Two layouts are read: a sentencepiece model with added tokens (InternLM2, and Llama's
tokenizer, which Phi-3 has), and byte-level BPE (Qwen2, Qwen2.5 and their like) through
transformers. Both give a :class:`ChatTokenizer`, which knows the image tokens by name
and pickles, so that spawned workers can have it. Which chat tokens there must be is the
template's matter (``template.check_tokenizer``).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import tokenizers

from mpo_jax.inputs import sentencepiece_bpe

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

SPACE_NOT_BEFORE = "space_not_before"
"""Key of a native export's tokenizer_config.json: Llama's newer rule about the space
before a text holds for ``tokenizer.model``, with these exceptions."""

_CONFIG = "tokenizer_config.json"
_AFTER = IMG_END + "a"


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


class _Backend(Protocol):
    """What a :class:`ChatTokenizer` needs of a tokenizer."""

    def id_of(self, token: str) -> int | None: ...
    def token(self, i: int) -> str: ...
    def size(self) -> int: ...
    def encode(self, text: str, start: bool) -> list[int]: ...
    def decode(self, ids: list[int], skip_special: bool) -> str: ...
    def identity(self) -> bytes: ...
    def added(self) -> list[AddedToken]: ...


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
        self.img_start_id = self._named(IMG_START)
        self.img_end_id = self._named(IMG_END)
        self.img_context_id = self._named(IMG_CONTEXT)
        for token in backend.added():
            # Texts are cut at image tokens and encoded in parts.
            if token.content in IMAGE_TOKENS and (token.lstrip or token.rstrip):
                raise ValueError(
                    f"image token {token.content!r} has lstrip or rstrip, which is not "
                    f"supported; set both to false in {_CONFIG}"
                )
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

    def id_of(self, token: str) -> int | None:
        """Id of the text that is one token by itself, None if it is not."""
        ids = self.encode(token, bos=False, start=False)
        return ids[0] if len(ids) == 1 else None

    def encode(self, text: str, *, bos: bool, start: bool = True) -> list[int]:
        """Ids of `text`; the strings of special tokens in it become those tokens.

        Args:
          text: any text; it is never truncated.
          bos: put the begin-of-sequence token first.
          start: False where `text` goes on after a special token; Llama's tokenizer
            puts a space before a text, but not there.

        Raises:
          ValueError: `bos` without such a token, or text with a lone surrogate
            (a ``UnicodeEncodeError``, which is a ``ValueError``).
        """
        text.encode("utf-8")  # one error for both back ends
        ids = self._backend.encode(text, start)
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
        return getattr(self._backend, "spaced", None)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256, hexadecimal, of everything that decides ids; for cache keys."""
        digest = hashlib.sha256(self._backend.identity())
        flags = [self.bos_id, self.pad_id, self.add_bos]
        digest.update(json.dumps(flags).encode())
        return digest.hexdigest()


class _SentencePieceBackend:
    """Upstream's slow tokenizers: text is split at added tokens, the rest is encoded.

    Attributes:
      spaced: tokens of Llama's newer rule (``legacy`` false): a text gets one space in
        front, which goes where one of these comes first. None puts none; then it is
        the model file that says whether every part gets one.
    """

    def __init__(
        self,
        bpe: sentencepiece_bpe.SentencePieceBPE,
        added: Mapping[str, AddedToken],
        *,
        spaced: frozenset[str] | None = None,
    ):
        self._bpe = bpe
        self._entries = dict(added)
        self.spaced = spaced
        self._added = {token: entry.id for token, entry in added.items()}
        self._special_ids = {e.id for e in added.values() if e.special}
        self._tokens = {i: token for token, i in self._added.items()}
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

    def encode(self, text: str, start: bool) -> list[int]:
        if self.spaced is not None:  # what tokens swallow includes written spaces
            text = text.replace(sentencepiece_bpe.SPACE, " ")
        parts = self._split.split(text)
        if start and text and self.spaced is not None:
            alone = not parts[0] and len(parts) > 1 and parts[1] in self.spaced
            parts[0] = parts[0] if alone else " " + parts[0]
        for number in range(1, len(parts), 2):
            entry = self._entries[parts[number]]
            if entry.lstrip:
                parts[number - 1] = parts[number - 1].rstrip()
            if entry.rstrip:
                parts[number + 1] = parts[number + 1].lstrip()
        ids: list[int] = []
        for number, part in enumerate(parts):
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
        whole = "".join(text)
        if self.spaced is not None and ids and ids[0] not in self._tokens:
            return whole.removeprefix(" ")
        return whole

    def added(self) -> list[AddedToken]:
        return list(self._entries.values())

    def identity(self) -> bytes:
        parts: list[Any] = [sorted(self._added.items())]
        strips = [(e.id, e.lstrip, e.rstrip) for e in self._entries.values()]
        parts += [sorted(s)] if (s := [x for x in strips if x[1] or x[2]]) else []
        parts += [] if self.spaced is None else [sorted(self.spaced)]
        described = json.dumps(parts[0] if len(parts) == 1 else parts)
        return self._bpe.model + described.encode()


class _FastBackend:
    """A tokenizer of the ``tokenizers`` library, mostly byte-level BPE."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = backend
        # Some put a space before a text: then one that goes on needs a token before it.
        probe = [backend.encode(t, add_special_tokens=False).ids for t in ("a", _AFTER)]
        self._anchored = probe[0] != probe[1][1:]

    def id_of(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def token(self, i: int) -> str:
        found = self._backend.id_to_token(i)
        if found is None:
            raise IndexError(f"token id {i} is not used")
        return found

    def size(self) -> int:
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str, start: bool) -> list[int]:
        if self._anchored and not start:
            text = IMG_END + text
            return self._backend.encode(text, add_special_tokens=False).ids[1:]
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], skip_special: bool) -> str:
        return self._backend.decode(ids, skip_special_tokens=skip_special)

    def added(self) -> list[AddedToken]:
        return [
            AddedToken(token.content, i, token.special, token.lstrip, token.rstrip)
            for i, token in self._backend.get_added_tokens_decoder().items()
        ]

    def identity(self) -> bytes:
        return self._backend.to_str().encode()


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
    if (path / "tokenizer.model").is_file():
        return _load_sentencepiece(path)
    if (path / "tokenizer.json").is_file() or all(
        (path / name).is_file() for name in ("vocab.json", "merges.txt")
    ):
        return _load_fast(path)
    raise ValueError(
        f"no tokenizer in {str(path)!r}: looked for tokenizer.model (InternLM2, "
        "Phi-3), tokenizer.json, or vocab.json with merges.txt (Qwen2); set "
        "data.tokenizer to a directory that holds one"
    )


def _load_sentencepiece(path: pathlib.Path) -> ChatTokenizer:
    model = path / "tokenizer.model"
    try:
        bpe = sentencepiece_bpe.SentencePieceBPE(model.read_bytes())
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error
    config = _read_json(path / _CONFIG)
    special_map = _read_json(path / "special_tokens_map.json")

    def text_of(value: Any) -> Any:
        return value.get("content") if isinstance(value, dict) else value

    def named(key: str) -> str | None:
        return text_of(config.get(key, special_map.get(key)))

    added: dict[str, int] = dict(_read_json(path / "added_tokens.json"))
    strips: dict[str, dict[str, bool]] = {}
    # Upstream's loader looks at special_tokens_map.json where the decoder is absent.
    holder = config if "added_tokens_decoder" in config else special_map | config
    listed = holder.get("additional_special_tokens") or ()
    named_special = {text_of(token) for token in listed}
    special = {*named_special, *ADDED_TOKENS}
    for i, entry in config.get("added_tokens_decoder", {}).items():
        content = entry["content"]
        if entry.get("single_word"):
            raise ValueError(
                f"{path / _CONFIG}: token {content!r} has single_word=true, which is "
                "not supported"
            )
        strips[content] = {k: bool(entry.get(k)) for k in ("lstrip", "rstrip")}
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
            named_special.add(token)
            if found is not None:
                added.setdefault(token, found)
    after = max(len(bpe.pieces), *(i + 1 for i in added.values()))
    for token in ADDED_TOKENS:
        if token not in added:
            added[token] = after
            named_special.add(token)
            after += 1
    if len(set(added.values())) != len(added):
        raise ValueError(f"{path}: two added tokens share an id: {added}")
    entries = {
        token: AddedToken(token, i, token in special, **strips.get(token, {}))
        for token, i in added.items()
    }
    spaced = _spaced(path, config, named_special & added.keys())
    if spaced is not None:
        bpe = sentencepiece_bpe.SentencePieceBPE(bpe.model, dummy_prefix=False)
    backend = _SentencePieceBackend(bpe, entries, spaced=spaced)
    bos = named("bos_token")
    try:
        return ChatTokenizer(
            backend,
            bos=bos,
            pad=named("pad_token"),
            add_bos=_sentencepiece_bos(path, config, bos),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _sentencepiece_bos(
    path: pathlib.Path, config: Mapping[str, Any], bos: str | None
) -> bool:
    """Whether upstream's slow tokenizer puts BOS before a text."""
    if "add_bos_token" in config:
        return bool(config["add_bos_token"])
    if (path / "tokenizer.json").is_file():
        # Saved by a version that no longer writes the field: what it saved knows.
        return _begins_with(_load_backend(path), path) is not None
    return bos is not None  # InternLM2's class adds it unless told otherwise


def _spaced(
    path: pathlib.Path, config: Mapping[str, Any], named: set[str]
) -> frozenset[str] | None:
    """Llama's newer rule about the space before a text, where that is the rule.

    Args:
      named: special tokens that have a role or are named as special.
    """
    if SPACE_NOT_BEFORE in config:
        return frozenset(config[SPACE_NOT_BEFORE])
    name = str(config.get("tokenizer_class", ""))
    if not name.startswith("Llama") or config.get("legacy", True):
        return None  # the model file says it
    if not config.get("add_prefix_space", True):
        raise ValueError(
            f"{path / _CONFIG}: add_prefix_space=false is not supported for {name}; "
            "remove it if the model was not trained with it"
        )
    return frozenset(named)


def _load_backend(path: pathlib.Path) -> Any:
    """Transformers' tokenizer of ``tokenizer.json``, or of Qwen2's files.

    Raises:
      ValueError: naming the directory.
    """
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
        return kind.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # malformed files raise anything
        raise ValueError(f"cannot load the tokenizer of {path}: {error}") from error


def _load_fast(path: pathlib.Path) -> ChatTokenizer:
    loaded = _load_backend(path)
    # The Rust tokenizer alone: faster to call and to pickle than its wrapper.
    backend: tokenizers.Tokenizer = loaded.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    bos = _begins_with(loaded, path)
    missing = [name for name in ADDED_TOKENS if backend.token_to_id(name) is None]
    backend.add_special_tokens(
        [tokenizers.AddedToken(name, normalized=False) for name in missing]
    )
    try:
        return ChatTokenizer(
            _FastBackend(backend),
            bos=bos or loaded.bos_token,
            pad=loaded.pad_token,
            add_bos=bos is not None,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _begins_with(loaded: Any, path: pathlib.Path) -> str | None:
    """The token that a tokenizer puts before a text, or None: asked, not looked up.

    No field says it for sure: ``add_bos_token`` is not saved by newer versions, and
    Llama 3's post-processor adds the token without one.

    Raises:
      ValueError: if it adds anything else, which training would leave out.
    """
    found = loaded("a", add_special_tokens=True).input_ids
    plain = loaded("a", add_special_tokens=False).input_ids
    if found == plain:
        return None
    if found[1:] == plain:
        return str(loaded.convert_ids_to_tokens(found[0]))
    raise ValueError(
        f"{path}: the tokenizer makes {loaded.convert_ids_to_tokens(found)} of 'a'; "
        "only one token before a text is supported: remove others from post_processor "
        "in tokenizer.json, or add_eos_token from tokenizer_config.json"
    )


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
