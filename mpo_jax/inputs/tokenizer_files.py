"""What the files of a tokenizer say, in the layouts that checkpoints have.

Files are read as data: code beside them is never run.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers

from mpo_jax.inputs import sentencepiece_bpe
from mpo_jax.inputs.tokenizer_backends import (
    AddedToken,
    Backend,
    FastBackend,
    SentencePieceBackend,
)

CONFIG = "tokenizer_config.json"

SPACE_NOT_BEFORE = "space_not_before"
"""Key of a native export's tokenizer_config.json: Llama's newer rule about the space
before a text holds for ``tokenizer.model``, with these exceptions."""

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


class Parts(NamedTuple):
    """What a tokenizer is made of; the fields are those of ``ChatTokenizer``."""

    backend: Backend
    bos: str | None
    pad: str | None
    add_bos: bool


def read(path: pathlib.Path, *, add: Sequence[str]) -> Parts:
    """Read the tokenizer of a directory; the layouts are those of ``load_tokenizer``.

    Args:
      path: the directory.
      add: special tokens; those that are missing follow the last id, in this order.

    Raises:
      ValueError: no layout fits or a file cannot be read; names the place.
    """
    if (path / "tokenizer.model").is_file():
        return _read_sentencepiece(path, add)
    if (path / "tokenizer.json").is_file() or all(
        (path / name).is_file() for name in ("vocab.json", "merges.txt")
    ):
        return _read_fast(path, add)
    raise ValueError(
        f"no tokenizer in {str(path)!r}: looked for tokenizer.model (InternLM2, "
        "Phi-3), tokenizer.json, or vocab.json with merges.txt (Qwen2); set "
        "data.tokenizer to a directory that holds one"
    )


def _read_sentencepiece(path: pathlib.Path, add: Sequence[str]) -> Parts:
    bpe = _read_model(path / "tokenizer.model")
    config = _json_object(path / CONFIG)
    special_map = _json_object(path / "special_tokens_map.json")
    roles = {key: _content(config.get(key, special_map.get(key))) for key in _ROLES}
    decoder = _decoder(path, config)
    ids = _ids(path, decoder)
    # Tokens that have a role or are named as special.
    named = _listed_special(config, special_map)
    for token in roles.values():
        if token is None:
            continue
        named.add(token)
        if (i := bpe.id_of(token)) is not None:
            ids.setdefault(token, i)
    missing = [token for token in add if token not in ids]
    named.update(missing)
    end = max([len(bpe.pieces), *(i + 1 for i in ids.values())])
    ids |= {token: end + n for n, token in enumerate(missing)}
    if len(set(ids.values())) != len(ids):
        raise ValueError(f"{path}: two added tokens share an id: {ids}")

    added = _added_tokens(ids, decoder, special=named | {*add})
    space_not_before = _space_not_before(path, config, named & ids.keys())
    if space_not_before is not None:
        bpe = sentencepiece_bpe.SentencePieceBPE(bpe.model, dummy_prefix=False)
    return Parts(
        SentencePieceBackend(bpe, added, space_not_before=space_not_before),
        bos=roles["bos_token"],
        pad=roles["pad_token"],
        add_bos=_sentencepiece_bos(path, config, roles["bos_token"]),
    )


def _read_model(file: pathlib.Path) -> sentencepiece_bpe.SentencePieceBPE:
    try:
        return sentencepiece_bpe.SentencePieceBPE(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _content(token: Any) -> Any:
    """Text of a token that stands as a string or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def _decoder(path: pathlib.Path, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of ``added_tokens_decoder``, each with its ``id``."""
    entries = []
    for i, entry in config.get("added_tokens_decoder", {}).items():
        if entry.get("single_word"):
            raise ValueError(
                f"{path / CONFIG}: token {entry['content']!r} has single_word=true, "
                "which is not supported"
            )
        entries.append({**entry, "id": int(i)})
    return entries


def _ids(path: pathlib.Path, decoder: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Ids of the added tokens that either file knows; where both do, they agree."""
    ids: dict[str, int] = _json_object(path / "added_tokens.json")
    for entry in decoder:
        content, i = entry["content"], entry["id"]
        if ids.setdefault(content, i) != i:
            raise ValueError(
                f"{path}: token {content!r} has id {ids[content]} in "
                f"added_tokens.json and {i} in {CONFIG}"
            )
    return ids


def _listed_special(
    config: Mapping[str, Any], special_map: Mapping[str, Any]
) -> set[str]:
    # Upstream's loader looks at special_tokens_map.json where the decoder is absent.
    holder = config if "added_tokens_decoder" in config else {**special_map, **config}
    return {_content(t) for t in holder.get("additional_special_tokens") or ()}


def _added_tokens(
    ids: Mapping[str, int],
    decoder: Sequence[Mapping[str, Any]],
    *,
    special: set[str],
) -> dict[str, AddedToken]:
    by_content, added = {entry["content"]: entry for entry in decoder}, {}
    for token, i in ids.items():
        entry = by_content.get(token, {})
        added[token] = AddedToken(
            token,
            i,
            special=token in special or bool(entry.get("special")),
            lstrip=bool(entry.get("lstrip")),
            rstrip=bool(entry.get("rstrip")),
        )
    return added


def _sentencepiece_bos(
    path: pathlib.Path, config: Mapping[str, Any], bos: str | None
) -> bool:
    """Whether upstream's slow tokenizer puts BOS before a text."""
    if "add_bos_token" in config:
        return bool(config["add_bos_token"])
    if (path / "tokenizer.json").is_file():
        # Saved by a version that no longer writes the field: what it saved knows.
        return _begins_with(_load_transformers(path), path) is not None
    return bos is not None  # InternLM2's class adds it unless told otherwise


def _space_not_before(
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
            f"{path / CONFIG}: add_prefix_space=false is not supported for {name}; "
            "remove it if the model was not trained with it"
        )
    return frozenset(named)


def _read_fast(path: pathlib.Path, add: Sequence[str]) -> Parts:
    loaded = _load_transformers(path)
    # The Rust tokenizer alone: faster to call and to pickle than its wrapper.
    backend: tokenizers.Tokenizer = loaded.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    bos = _begins_with(loaded, path)
    missing = [name for name in add if backend.token_to_id(name) is None]
    backend.add_special_tokens(
        [tokenizers.AddedToken(name, normalized=False) for name in missing]
    )
    return Parts(
        FastBackend(backend, anchor=add[0]),
        bos=bos or loaded.bos_token,
        pad=loaded.pad_token,
        add_bos=bos is not None,
    )


def _load_transformers(path: pathlib.Path) -> Any:
    """Transformers' tokenizer of ``tokenizer.json``, or of Qwen2's files.

    Raises:
      ValueError: naming the directory.
    """
    import transformers  # takes seconds; workers get a pickled tokenizer instead

    if (path / "tokenizer.json").is_file():
        kind = transformers.PreTrainedTokenizerFast
    else:
        name = _json_object(path / CONFIG).get("tokenizer_class", "Qwen2Tokenizer")
        if name not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
            raise ValueError(
                f"{path / CONFIG}: tokenizer_class {name!r} with vocab.json and "
                "merges.txt is not supported; save a tokenizer.json"
            )
        kind = transformers.Qwen2Tokenizer
    try:
        return kind.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # malformed files raise anything
        raise ValueError(f"cannot load the tokenizer of {path}: {error}") from error


def _begins_with(loaded: Any, path: pathlib.Path) -> str | None:
    """The token that a tokenizer puts before a text, or None: asked, not looked up.

    No field says it for sure: ``add_bos_token`` is not saved by newer versions, and
    Llama 3's post-processor adds the token without one.

    Raises:
      ValueError: if it adds anything else, which training would leave out.
    """
    whole = loaded("a", add_special_tokens=True).input_ids
    bare = loaded("a", add_special_tokens=False).input_ids
    if whole == bare:
        return None
    if whole[1:] == bare:
        return str(loaded.convert_ids_to_tokens(whole[0]))
    raise ValueError(
        f"{path}: the tokenizer makes {loaded.convert_ids_to_tokens(whole)} of 'a'; "
        "only one token before a text is supported: remove others from post_processor "
        "in tokenizer.json, or add_eos_token from tokenizer_config.json"
    )


def _json_object(path: pathlib.Path) -> dict[str, Any]:
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
