"""``InternVL``: a model to load, look into and save, e.g. in a notebook.

::

    model = InternVL.from_pretrained("OpenGVLab/InternVL2-2B", dtype="bfloat16")
    features = model.image_features(tiles)  # [n, I, D]
    logits = model.logits(input_ids, attention_mask, tiles)  # [b, s, V]
    model.save_pretrained("my-model")
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpo_jax.convert import files, hf, hub
from mpo_jax.convert import settings as settings_lib
from mpo_jax.models import internvl, network
from mpo_jax.nn import params as params_lib

IMG_CONTEXT = "<IMG_CONTEXT>"


class InternVL:
    """Weights and architecture, with compiled forward functions.

    Attributes:
      cfg: architecture.
      model: which parameters there are, and the network that they make.
      params: nested dict ``{vision, projector, language}``; may be replaced by one of
        the same shapes.
      files: directory whose config.json, tokenizer and so on belong to it, or None.
      settings: what a training run set otherwise than those files say.
      img_context_token_id: token that image features replace, or None if unknown.
    """

    def __init__(
        self,
        model: internvl.InternVL,
        params: params_lib.Params,
        *,
        files: pathlib.Path | None = None,
        settings: settings_lib.Settings = settings_lib.NONE,
        img_context_token_id: int | None = None,
        dtype: str = "float32",
    ):
        self.model = model
        self.cfg = model.cfg
        self.params = params
        self.files = files
        self.settings = settings
        self.img_context_token_id = img_context_token_id
        compute = network.Compute(dtype=jnp.dtype(dtype), remat="none")

        @jax.jit
        def image_features(weights: params_lib.Params, tiles: Any) -> jax.Array:
            return model.bind(weights).image_features(tiles, compute=compute)

        @jax.jit
        def logits(weights: params_lib.Params, *inputs: Any) -> jax.Array:
            return model.bind(weights).logits(*inputs, compute=compute)

        self._features, self._logits = image_features, logits

    @classmethod
    def from_pretrained(
        cls,
        source: str | pathlib.Path,
        *,
        dtype: str = "float32",
        img_context_token_id: int | None = None,
        revision: str | None = None,
    ) -> InternVL:
        """Load a model.

        Args:
          source: HF directory (either layout), hub id, checkpoint of
            ``scripts/convert_from_hf.py``, or workdir of a training run; directories
            also by address (``gs://…``).
          dtype: ``float32`` or ``bfloat16``, of parameters and computation.
          img_context_token_id: needed only where the directory has no tokenizer.
          revision: branch, tag or commit of a hub id.

        Raises:
          FileNotFoundError: if weights or config.json are absent.
          ValueError: if they are not a supported model; names what is wrong.
        """
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={dtype!r}: use float32 or bfloat16")
        found = hub.locate(source, revision=revision)
        model = internvl.InternVL(found.config())
        if img_context_token_id is None:
            place = found.settings.tokenizer or found.files
            img_context_token_id = files.special_token_id(place, IMG_CONTEXT)
        return cls(
            model,
            hub.load_params(found, model, dtype=dtype),
            files=found.files,
            settings=found.settings,
            img_context_token_id=img_context_token_id,
            dtype=dtype,
        )

    def image_features(self, tiles: Any) -> jax.Array:
        """Language-space features of image tiles.

        Args:
          tiles: ``[n, S, S, 3]``, uint8 RGB, or floats that are normalised already
            (ImageNet mean and standard deviation).

        Returns:
          ``[n, I, D]`` in the model's dtype.

        Raises:
          ValueError: on another shape or dtype.
        """
        return self._features(self.params, self._tiles(tiles))

    def logits(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        tiles: Any = None,
        *,
        img_context_token_id: int | None = None,
    ) -> jax.Array:
        """Next-token logits of ordinary sequences.

        Args:
          input_ids: int ``[b, s]``, every image already ``n * I`` context tokens long.
          attention_mask: ``[b, s]``, 1 for tokens and 0 for padding on either side;
            None is all tokens. Logits at padding have no meaning.
          tiles: ``[n, S, S, 3]`` of the whole batch in reading order, as for
            :meth:`image_features`; None for text only.
          img_context_token_id: overrides the model's.

        Returns:
          float32 ``[b, s, V]``.

        Raises:
          ValueError: if shapes or token ids are wrong, or if the number of image tokens
            is not ``n * I``.
        """
        ids = np.asarray(input_ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"input_ids: {ids.dtype} {ids.shape}, must be integers [b, s]"
            )
        vocab = self.cfg.language.vocab_size
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab:
            raise ValueError(
                f"input_ids lie in [{ids.min()}, {ids.max()}], the vocabulary has "
                f"{vocab} tokens; does the tokenizer belong to this model?"
            )
        limit = self.cfg.language.max_position_embeddings
        if ids.shape[1] > limit:
            raise ValueError(
                f"input_ids are {ids.shape[1]} tokens long, the model was made for "
                f"{limit} (max_position_embeddings)"
            )
        mask = np.ones_like(ids) if attention_mask is None else attention_mask
        mask = np.asarray(mask)
        if mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask {mask.shape} must have the shape of input_ids "
                f"{ids.shape}"
            )
        token = img_context_token_id
        if token is None:
            token = self.img_context_token_id
        if token is None and tiles is not None:
            raise ValueError(
                f"the id of {IMG_CONTEXT} is unknown, as {self.files} has no "
                "tokenizer; pass img_context_token_id"
            )
        is_image = np.zeros(ids.shape, bool) if token is None else ids == token
        pixels = None if tiles is None else self._tiles(tiles)
        count = 0 if pixels is None else pixels.shape[0]
        slots = count * self.cfg.tokens_per_tile
        if int(is_image.sum()) != slots:
            raise ValueError(
                f"input_ids hold {int(is_image.sum())} image tokens (id {token}), "
                f"{count} tiles of {self.cfg.tokens_per_tile} tokens need {slots}"
            )
        order = np.cumsum(is_image.reshape(-1)).reshape(ids.shape) - 1
        image_slot = np.where(is_image, order, -1).astype(np.int32)
        if not count:
            pixels = None
        return self._logits(
            self.params,
            ids.astype(np.int32),
            (mask != 0).astype(np.int32),
            image_slot,
            pixels,
        )

    def save_pretrained(
        self,
        directory: str | pathlib.Path,
        *,
        dtype: str = "bfloat16",
        layout: str | None = None,
        overwrite: bool = False,
    ) -> list[str]:
        """Write a directory for the released code or for transformers.

        Args:
          dtype: of the tensors; ``keep`` is what they had in the source.
          layout: ``original`` or ``native`` (transformers' own InternVL); None is that
            of the files the model came with.
          overwrite: replace a model that is there already.

        Returns:
          Notes: what could not be written as it was meant.

        Raises:
          FileExistsError: if the directory is not empty and `overwrite` is False.
        """
        return hf.save(
            directory,
            self.params,
            self.model,
            dtype=dtype,
            source_dir=self.files,
            settings=self.settings,
            layout=layout,
            overwrite=overwrite,
        )

    def _tiles(self, tiles: Any) -> np.ndarray | jax.Array:
        side = self.cfg.image_size
        array = tiles if isinstance(tiles, jax.Array) else np.asarray(tiles)
        if array.ndim != 4 or array.shape[1:] != (side, side, 3):
            raise ValueError(f"tiles {array.shape}: must be [n, {side}, {side}, 3]")
        if array.dtype != np.uint8 and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"tiles are {array.dtype}: must be uint8, or normalised floats"
            )
        return array.astype(np.float32) if array.dtype == np.float64 else array
