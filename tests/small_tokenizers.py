"""Tiny tokenizers of every layout, built on the spot: tests need no download."""

from __future__ import annotations

import json
import pathlib

from mpo_jax.inputs import sentencepiece_bpe

SPACE = sentencepiece_bpe.SPACE


def sentencepiece_model(
    pieces: dict[str, float], *, user_defined: tuple[str, ...] = (), **normalizer: bool
) -> bytes:
    """A BPE model: unk, control and byte pieces, then `pieces` with their scores."""
    model = sentencepiece_bpe._model_class()()  # the schema is the module's own
    model.trainer.model_type = 2
    model.trainer.byte_fallback = True
    model.normalizer.add_dummy_prefix = False
    model.normalizer.remove_extra_whitespaces = False
    for name, value in normalizer.items():
        setattr(model.normalizer, name, value)
    model.pieces.add(piece="<unk>", type=2)
    model.pieces.add(piece="<s>", type=3)
    model.pieces.add(piece="</s>", type=3)
    for value in range(256):
        model.pieces.add(piece=f"<0x{value:02X}>", type=6)
    for piece, score in pieces.items():
        model.pieces.add(piece=piece, score=score, type=1)
    for piece in user_defined:
        model.pieces.add(piece=piece, type=4)
    return model.SerializeToString()


def write_internlm2(path: pathlib.Path, extra: tuple[str, ...] = ()) -> pathlib.Path:
    """An InternLM2 directory with a small vocabulary; image tokens must be added."""
    merged = [
        "\n\n",
        "th",
        "he",
        "the",
        SPACE + "the",
        "an",
        "er",
        SPACE + "an",
        "答案",
    ]
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz<>|_/ASIMG.,0123\n答案图" + SPACE))
    scores = {piece: -float(i) for i, piece in enumerate([*extra, *merged, *letters])}
    markers = ("[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_1]")
    model = sentencepiece_model(scores, user_defined=markers)
    count = len(sentencepiece_bpe.SentencePieceBPE(model).pieces)
    path.mkdir()
    (path / "tokenizer.model").write_bytes(model)
    flags = {"special": True, "lstrip": False, "rstrip": False, "normalized": False}
    named = {0: "<unk>", 1: "<s>", 2: "</s>"}
    named |= {count - 2: "<|im_end|>", count - 1: "<|im_start|>"}
    config = {
        "added_tokens_decoder": {
            str(i): {"content": content, **flags} for i, content in named.items()
        },
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]},
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def write_phi3(path: pathlib.Path, **changes: object) -> pathlib.Path:
    """A Phi-3 directory: Llama's tokenizer, whose chat tokens swallow white space."""
    merged = ["th", "he", "the", SPACE + "the", "an", SPACE + "an", SPACE * 2, "答案"]
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz<>|_/ASIMG.,0123答案图" + SPACE))
    scores = {piece: -float(i) for i, piece in enumerate([*merged, *letters])}
    model = sentencepiece_model(scores, add_dummy_prefix=True)
    first = len(sentencepiece_bpe.SentencePieceBPE(model).pieces)
    path.mkdir()
    (path / "tokenizer.model").write_bytes(model)
    chat = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    names = {0: "<unk>", 1: "<s>", 2: "</s>"} | dict(enumerate(chat, first))
    stripping = ("</s>", *chat[1:])
    plain = {"lstrip": False, "normalized": False, "single_word": False}
    config = {
        "added_tokens_decoder": {
            str(i): {"content": content, **plain, "special": content != "</s>"}
            | {"rstrip": content in stripping}
            for i, content in names.items()
        },
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
        "legacy": False,
        "tokenizer_class": "LlamaTokenizer",
        **changes,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def write_qwen2(path: pathlib.Path) -> pathlib.Path:
    """A Qwen2 directory with byte tokens and a few merges; "!" has id 0."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(value) for value in printable]
    characters += [chr(256 + i) for i in range(256 - len(printable))]
    newline, space = chr(256 + 10), chr(256 + 32)
    merges = [(newline, newline), ("t", "h"), ("th", "e"), (space, "the")]
    tokens = characters + [left + right for left, right in merges]
    path.mkdir()
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = "\n".join(" ".join(merge) for merge in merges)
    (path / "merges.txt").write_text(f"#version: 0.2\n{lines}\n", encoding="utf-8")
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    config = {
        "added_tokens_decoder": {
            str(len(tokens) + i): {"content": name, "special": True}
            for i, name in enumerate(names)
        },
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path
