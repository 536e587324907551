"""What a training run set of its prompts, and the files of a model that must say so.

An export takes its files from the model that a run started from. Template, tiles and
tokenizer are fields of the run, though, and whoever serves the export must find there
what was trained with, not what the starting point had.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp

from mpo_jax import config as config_lib
from mpo_jax.convert import files, vocabulary
from mpo_jax.inputs import tokenizer as tokenizer_lib
from mpo_jax.models import config, native_config

_TOKENIZER_CODE = "tokenization_*.py"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What overrides the files beside the weights; the default overrides nothing.

    Attributes:
      template: chat template, "" where that of the files holds. A run always has one.
      min_tiles, max_tiles: tile limits of an image; 0 where those of the files hold.
      tokenizer: directory of another tokenizer than that of the files, or None.
    """

    template: str = ""
    min_tiles: int = 0
    max_tiles: int = 0
    tokenizer: pathlib.Path | None = None

    def describe(self) -> dict[str, Any]:
        """JSON-able, with the state of the tokenizer's files; for records of a job."""
        out = dataclasses.asdict(self)
        if self.tokenizer is not None:
            out["tokenizer"] = [str(self.tokenizer), files.fingerprint(self.tokenizer)]
        return out

    def of_model(self, cfg: config.InternVLConfig) -> config.InternVLConfig:
        """The model as these settings describe it."""
        return dataclasses.replace(
            cfg,
            template=self.template or cfg.template,
            min_tiles=self.min_tiles or cfg.min_tiles,
            max_tiles=self.max_tiles or cfg.max_tiles,
        )

    def into_config(self, raw: dict[str, Any]) -> None:
        """Change the content of an original-layout ``config.json`` where it differs."""
        if self == NONE:
            return
        stated = config.from_hf(raw)
        wanted = self.of_model(stated)
        if wanted.template != stated.template:
            raw["template"] = wanted.template
        limits = (wanted.min_tiles, wanted.max_tiles)
        if limits != (stated.min_tiles, stated.max_tiles):
            raw["min_dynamic_patch"], raw["max_dynamic_patch"] = limits
            raw["dynamic_image_size"] = True

    def into_native_config(self, raw: dict[str, Any]) -> None:
        """The same for the native layout, which keeps an original's content."""
        if self == NONE:
            return
        original = native_config.to_original(raw)
        before = dict(original)
        self.into_config(original)
        if native_config.KEPT not in raw or original != before:
            raw[native_config.KEPT] = original
        if self.tokenizer is not None:
            chat = tokenizer_lib.load_tokenizer(self.tokenizer)
            raw["image_token_id"] = chat.img_context_id

    def into_tokenizer(self, directory: pathlib.Path) -> None:
        """Put the run's tokenizer in place of a model directory's own.

        Image tokens that it gets only when it is loaded are written into its files:
        released code looks for them there.
        """
        if self.tokenizer is None:
            return
        for name in files.TOKENIZER_FILES:
            (directory / name).unlink(missing_ok=True)
            if (self.tokenizer / name).is_file():
                shutil.copyfile(self.tokenizer / name, directory / name)
        for file in self.tokenizer.glob(_TOKENIZER_CODE):
            shutil.copyfile(file, directory / file.name)
        chat = tokenizer_lib.load_tokenizer(directory)
        vocabulary.add_tokens(
            directory,
            {
                token.content: token.id
                for token in chat.added_tokens()
                if token.content in tokenizer_lib.ADDED_TOKENS
                and files.special_token_id(directory, token.content) is None
            },
            special=True,
        )


NONE = Settings()


def of_run(
    data: config_lib.DataConfig,
    files_dir: pathlib.Path,
    *,
    template: str,
    tokenizer: pathlib.Path | None,
) -> Settings:
    """Settings of a run.

    Args:
      data: of its config.
      files_dir: directory of the files that its exports start from.
      template: chat template that it trains with.
      tokenizer: directory of the tokenizer that it trains with; None is `files_dir`.
    """
    if tokenizer is not None and tokenizer.resolve() == files_dir.resolve():
        tokenizer = None
    return Settings(template, data.min_tiles, data.max_tiles, tokenizer)


def stated_dtype(kinds: Collection[str], stated: str | None) -> str:
    """The dtype that a ``config.json`` should name for tensors of these kinds.

    Of several kinds the one that it names already, else the narrowest that holds all.
    """
    if stated in kinds:
        return str(stated)
    wide = jnp.dtype(next(iter(kinds)))
    for kind in kinds:
        wide = jnp.promote_types(wide, jnp.dtype(kind))
    return jnp.dtype(wide).name


def state_weights(raw: dict[str, Any], kinds: Collection[str]) -> None:
    """Make a ``config.json`` say what the written weights are, where it says it.

    Their dtype, in every section; and that the head is a tensor of its own: a file that
    ties it to the embedding would make a reader drop it.

    Args:
      raw: content of either layout, changed in place.
      kinds: dtypes of the tensors.
    """
    names = [name for name in ("torch_dtype", "dtype") if raw.get(name)]
    stated = next((str(raw[name]) for name in names), None)
    kind = stated_dtype(kinds, stated)
    for name in names:
        raw[name] = kind
    if raw.get("tie_word_embeddings") or (
        native_config.is_native(raw) and "tie_word_embeddings" not in raw
    ):
        raw["tie_word_embeddings"] = False
    for name in ("vision_config", "llm_config", "text_config", native_config.KEPT):
        section = raw.get(name)
        if isinstance(section, dict):
            _state_section(section, kind)


def _state_section(section: dict[str, Any], kind: str) -> None:
    for name, value in section.items():
        if isinstance(value, dict):
            _state_section(value, kind)
        elif name in ("torch_dtype", "dtype") and value:
            section[name] = kind
        elif name == "tie_word_embeddings" and value:
            section[name] = False
