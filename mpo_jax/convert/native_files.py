"""What transformers wants beside native weights: tokenizer, processor, chat template.

Everything is written as JSON that transformers 4.52 and later read; no code is carried.
"""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from mpo_jax.convert import chat_files, files
from mpo_jax.inputs import sentencepiece_bpe, template, tokenizer, tokenizer_files
from mpo_jax.models.config import InternVLConfig
from mpo_jax.models.vit import MEAN, STD

IMAGE_ROLES = {
    "start_image_token": tokenizer.IMG_START,
    "end_image_token": tokenizer.IMG_END,
    "context_image_token": tokenizer.IMG_CONTEXT,
}
# The processor asks for a token that stands for a video. One that the vocabulary has
# already: a new one would have an id without an embedding.
_VIDEO_TOKENS = ("<video>", "<|video_pad|>", "</quad>")


def write(
    source: pathlib.Path,
    target: pathlib.Path,
    cfg: InternVLConfig,
    *,
    trained: bool = False,
) -> list[str]:
    """Write all of them from an original-layout directory; returns notes to print.

    Args:
      trained: a run trained with the prompts of `cfg`, which the chat template must
        then give; else one of the source that knows images may differ.

    Raises:
      ValueError: if there is no tokenizer that can be read; names the directory.
    """
    backend, roles, notes = _tokenizer(source, target, cfg)
    _processors(target, cfg)
    video = next(t for t in _VIDEO_TOKENS if backend.token_to_id(t) is not None)
    return [
        *notes,
        *chat_files.write_template(
            source, target, cfg.template, video=video, roles=roles, trained=trained
        ),
        *chat_files.write_generation(
            source, target, cfg.template, id_of=backend.token_to_id, roles=roles
        ),
    ]


def amend(
    source: pathlib.Path,
    target: pathlib.Path,
    cfg: InternVLConfig,
    tokenizer_dir: pathlib.Path | None,
) -> list[str]:
    """Change the copied files of a native model where a run set otherwise.

    Args:
      target: holds the files of `source`.
      cfg: with the run's template and tile limits.
      tokenizer_dir: the run's tokenizer, where it is not the source's.

    Returns:
      Notes to print.
    """
    notes: list[str] = []
    if tokenizer_dir is not None:
        for name in files.TOKENIZER_FILES:
            (target / name).unlink(missing_ok=True)
        notes = _tokenizer(tokenizer_dir, target, cfg)[2]
    for name, path in _TILE_FIELDS:
        _set_tiles(target / name, path, cfg)
    roles = roles_of(target)
    chat = tokenizer.load_tokenizer(target)
    video = next(t for t in _VIDEO_TOKENS if chat.id_of(t) is not None)
    return [
        *notes,
        *chat_files.write_template(
            source, target, cfg.template, video=video, roles=roles, trained=True
        ),
        *chat_files.write_generation(
            source, target, cfg.template, id_of=chat.id_of, roles=roles
        ),
    ]


# Where image processors keep their tile limits: older files, and those of version 5.
_TILE_FIELDS = (
    ("preprocessor_config.json", ()),
    ("processor_config.json", ("image_processor",)),
)


def _set_tiles(file: pathlib.Path, path: tuple[str, ...], cfg: InternVLConfig) -> None:
    if not file.is_file():
        return
    content = files.read_json(file)
    section: Any = content
    for name in path:
        section = section.get(name)
    wanted = {"min_patches": cfg.min_tiles, "max_patches": cfg.max_tiles}
    if section is not None and not wanted.items() <= section.items():
        section |= wanted
        files.write_json(file, content)


def _tokenizer(
    source: pathlib.Path, target: pathlib.Path, cfg: InternVLConfig
) -> tuple[tokenizers.Tokenizer, dict[str, str], list[str]]:
    """Write the tokenizer; returns it, its named tokens, and notes."""
    backend, roles, chat = _backend(source)
    backend.save(str(target / "tokenizer.json"))
    if (source / "tokenizer.model").is_file():
        # Transformers does not read it here; this project does, for exact ids.
        shutil.copyfile(source / "tokenizer.model", target / "tokenizer.model")
    video = next(t for t in _VIDEO_TOKENS if backend.token_to_id(t) is not None)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": cfg.language.max_position_embeddings,
        "padding_side": "left",
        "processor_class": "InternVLProcessor",
        "add_bos_token": chat.add_bos,
        **roles,
        "added_tokens_decoder": {
            str(i): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for i, token in sorted(backend.get_added_tokens_decoder().items())
        },
        "extra_special_tokens": {**IMAGE_ROLES, "video_token": video},
    }
    if chat.space_not_before is not None:
        settings[tokenizer_files.SPACE_NOT_BEFORE] = sorted(chat.space_not_before)
    files.write_json(target / "tokenizer_config.json", settings)
    return backend, roles, _leading_space(cfg, chat, backend)


def _processors(target: pathlib.Path, cfg: InternVLConfig) -> None:
    files.write_json(
        target / "processor_config.json",
        {
            "processor_class": "InternVLProcessor",
            "image_seq_length": cfg.tokens_per_tile,
        },
    )
    size = {"height": cfg.image_size, "width": cfg.image_size}
    common = {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "resample": 3,
        "size": size,
        "processor_class": "InternVLProcessor",
    }
    files.write_json(
        target / "preprocessor_config.json",
        common
        | {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "crop_to_patches": False,
            "min_patches": cfg.min_tiles,
            "max_patches": cfg.max_tiles,
        },
    )
    files.write_json(
        target / "video_preprocessor_config.json",
        common | {"video_processor_type": "InternVLVideoProcessor"},
    )


def roles_of(directory: pathlib.Path) -> dict[str, str]:
    """Tokens that a tokenizer's files name by their role, e.g. ``eos_token``."""
    config, special_map = (
        files.read_json(directory / name) if (directory / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json")
    )
    roles = {}
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(role, special_map.get(role))
        value = value.get("content") if isinstance(value, dict) else value
        if value is not None:
            roles[role] = value
    return roles


def _backend(
    source: pathlib.Path,
) -> tuple[tokenizers.Tokenizer, dict[str, str], tokenizer.ChatTokenizer]:
    """The fast tokenizer, its named tokens, and ours of the same files."""
    roles = roles_of(source)
    chat = tokenizer.load_tokenizer(source)  # says what is wrong with the files
    if chat.add_bos and chat.bos_id is not None:
        roles.setdefault("bos_token", chat.token(chat.bos_id))
    if (source / "tokenizer.model").is_file():
        return _sentencepiece(source, chat, roles), roles, chat
    if (source / "tokenizer.json").is_file():
        backend = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    else:
        import transformers

        backend = transformers.Qwen2Tokenizer.from_pretrained(
            str(source), local_files_only=True
        ).backend_tokenizer
    added = [t for t in tokenizer.ADDED_TOKENS if backend.token_to_id(t) is None]
    backend.add_special_tokens(
        [tokenizers.AddedToken(token, normalized=False) for token in added]
    )
    return backend, roles, chat


def _sentencepiece(
    source: pathlib.Path, chat: tokenizer.ChatTokenizer, roles: dict[str, str]
) -> tokenizers.Tokenizer:
    """A ``tokenizers`` model of a sentencepiece BPE with byte fallback.

    Merges stand in the order of their pieces' scores. Pieces of equal score get an
    order by id, which the original does not have, so rare words may be cut otherwise.
    """
    bpe = sentencepiece_bpe.SentencePieceBPE((source / "tokenizer.model").read_bytes())
    added = chat.added_tokens()
    # An added token may stand at the id of a piece, which it replaces.
    names = dict(enumerate(bpe.pieces)) | {t.id: t.content for t in added}
    vocab = {names[i]: i for i in range(len(bpe.pieces))}
    merges = [pair for pair in bpe.merges() if {*pair, "".join(pair)} <= vocab.keys()]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token=roles.get("unk_token"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    scheme = "always" if bpe.dummy_prefix else "never"
    if chat.space_not_before is not None:
        scheme = "first"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=sentencepiece_bpe.SPACE, prepend_scheme=scheme, split=False
    )
    steps: list[Any] = [
        decoders.Replace(sentencepiece_bpe.SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if scheme != "never":
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    for token in added:
        entry = tokenizers.AddedToken(
            token.content,
            normalized=False,
            special=token.special,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
        )
        add = backend.add_special_tokens if token.special else backend.add_tokens
        add([entry])
        if backend.token_to_id(token.content) != token.id:
            raise ValueError(
                f"{source}: added token {token.content!r} has id {token.id}; ids must "
                f"follow on from the vocabulary's {len(vocab)} without a gap"
            )
    if chat.add_bos:
        bos = roles["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, backend.token_to_id(bos))],
        )
    return backend


def _leading_space(
    cfg: InternVLConfig, chat: tokenizer.ChatTokenizer, backend: tokenizers.Tokenizer
) -> list[str]:
    """Says so where prompts of the two tokenizers begin otherwise."""
    known = template.TEMPLATES.get(cfg.template)
    if known is None:
        return []
    found = [chat.encode(known.system, bos=False)]
    found += [backend.encode(known.system, add_special_tokens=False).ids]
    if found[0] == found[1]:
        return []
    return [
        f"tokenizer.json begins a prompt with {found[1]}, the original's tokenizer "
        f"with {found[0]}: its chat tokens are not named as special in "
        "tokenizer_config.json, so that it puts a space before the first"
    ]
