"""Tokens added to a released model: tokenizer files, configuration, rows.

The row of a new token, in the embedding and in the output head, is the mean of the rows
of the old tokens, so that it starts as an average one. Done at conversion, so that
policy and reference start from the same rows.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpo_jax.convert import files
from mpo_jax.inputs import tokenizer
from mpo_jax.models.config import InternVLConfig

# Parameters with a row per token, and the axis of the tokens.
_AXES = {"language/embedding/table": 0, "language/lm_head/kernel": 1}


@dataclasses.dataclass(frozen=True)
class Addition:
    """New tokens of a model.

    Attributes:
      tokens: their texts.
      first: id of the first one, the number of old tokens. Models whose tables are
        longer than their vocabulary (Qwen3) have unused rows, which are taken first.
    """

    tokens: tuple[str, ...] = ()
    first: int = 0

    def rows(self, vocab_size: int) -> int:
        """Rows that tables of `vocab_size` rows have afterwards."""
        return max(vocab_size, self.first + len(self.tokens))


def plan(directory: str | pathlib.Path, tokens: tuple[str, ...]) -> Addition:
    """Give ids to new tokens of a model directory.

    Raises:
      ValueError: if one stands there twice, is empty, or is a token already.
    """
    if not tokens:
        return Addition()
    chat = tokenizer.load_tokenizer(directory)
    known = {token.content for token in chat.added_tokens()}
    for token in tokens:
        if not token.strip() or tokens.count(token) > 1 or token in known:
            raise ValueError(
                f"new token {token!r}: must be a text, stand once, and be no added "
                f"token of {directory} already"
            )
    return Addition(tokens, chat.vocab_size)


def extended(cfg: InternVLConfig, addition: Addition) -> InternVLConfig:
    """The architecture with the new rows."""
    size = addition.rows(cfg.language.vocab_size)
    language = dataclasses.replace(cfg.language, vocab_size=size)
    return dataclasses.replace(cfg, language=language)


def extend(path: str, part: np.ndarray, addition: Addition) -> np.ndarray:
    """A parameter with the new rows; one without a vocabulary as it is.

    The mean is taken in float64 and rounded once to the parameter's dtype.
    """
    axis = _AXES.get(path)
    if axis is None or not addition.tokens:
        return part
    by_token = part if axis == 0 else part.T
    old, count = addition.first, len(addition.tokens)
    total = np.zeros(by_token.shape[1], np.float64)
    step = max(1, 2**24 // by_token.shape[1])
    for start in range(0, old, step):  # no wide copy of the whole
        block = by_token[start : min(old, start + step)]
        total += block.astype(np.float64).sum(axis=0)
    rows = addition.rows(by_token.shape[0])
    out = np.empty((rows, by_token.shape[1]), part.dtype)
    out[: by_token.shape[0]] = by_token
    out[old : old + count] = (total / old).astype(part.dtype)
    return out if axis == 0 else out.T


def write_files(
    directory: str | pathlib.Path, cfg: InternVLConfig, addition: Addition
) -> None:
    """Write the new tokens into the tokenizer files and ``config.json``.

    Args:
      directory: model directory, changed in place.
      cfg: its architecture before.

    Raises:
      ValueError: if the tokenizer, read again, does not know them by their ids.
    """
    if not addition.tokens:
        return
    directory = pathlib.Path(directory)
    ids = {token: addition.first + i for i, token in enumerate(addition.tokens)}
    raw = files.read_json(directory / "config.json")
    section = raw["llm_config" if "llm_config" in raw else "text_config"]
    section["vocab_size"] = addition.rows(cfg.language.vocab_size)
    files.write_json(directory / "config.json", raw)
    add_tokens(directory, ids, special=False)
    chat = tokenizer.load_tokenizer(directory)
    for token, i in ids.items():
        found = chat.encode(token, bos=False, start=False)
        if found != [i]:
            raise ValueError(
                f"{directory}: new token {token!r} should be {i}, but the tokenizer "
                f"reads {found}; add it with transformers and convert that directory"
            )


def add_tokens(
    directory: pathlib.Path, ids: Mapping[str, int], *, special: bool
) -> None:
    """Write added tokens into the tokenizer files of a directory that list such."""
    if not ids:
        return

    def entry(token: str) -> dict[str, Any]:
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        return {"content": token, **flags, "special": special}

    for name in ("added_tokens.json", "tokenizer_config.json", "tokenizer.json"):
        file = directory / name
        if not file.is_file():
            continue
        content = files.read_json(file)
        if name == "added_tokens.json":
            content |= ids
        elif name == "tokenizer.json":
            listed = content.setdefault("added_tokens", [])
            listed += [{"id": i, **entry(token)} for token, i in ids.items()]
        else:
            decoder = content.setdefault("added_tokens_decoder", {})
            decoder |= {str(i): entry(token) for token, i in ids.items()}
        files.write_json(file, content)
