"""A model that can be asked: tokenizer, prompts, programs by geometry."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mpo_jax import sharding
from mpo_jax.generate import cache as cache_lib
from mpo_jax.generate import capacity, engine, programs
from mpo_jax.inputs import prompt as prompt_lib
from mpo_jax.inputs.tokenizer import ChatTokenizer
from mpo_jax.models import config as model_config
from mpo_jax.models import internvl, network
from mpo_jax.nn import params as params_lib

MAX_IMAGE_PIXELS = 89_478_485
"""Larger pictures are refused, as in training by default."""
_KEPT = 8


def prompt_policy(
    cfg: model_config.InternVLConfig, *, max_tiles: int = 0
) -> prompt_lib.PromptPolicy:
    """How a model's questions are encoded, by its configuration.

    Args:
      max_tiles: of a prompt's images; 0 is the model's.

    Raises:
      ValueError: it names no template.
    """
    if not cfg.template:
        raise ValueError("config.json names no template; add one, or export the run")
    most = max_tiles or cfg.max_tiles
    return prompt_lib.PromptPolicy(
        template=cfg.template,
        image_size=cfg.image_size,
        tokens_per_tile=cfg.tokens_per_tile,
        min_tiles=min(cfg.min_tiles, most),
        max_tiles=most,
        use_thumbnail=cfg.use_thumbnail,
        max_image_pixels=MAX_IMAGE_PIXELS,
    )


class Speaker:
    """Makes engines for a model; programs are kept and shared by them.

    Attributes:
      model, mesh, compute: what the programs are compiled for.
      tokenizer: None where only token ids are asked; may be set later.
    """

    def __init__(
        self,
        model: internvl.InternVL,
        *,
        mesh: jax.sharding.Mesh,
        compute: network.Compute,
        tokenizer: ChatTokenizer | None = None,
        image_token: int | None = None,
    ):
        """
        Args:
          image_token: id of ``<IMG_CONTEXT>``; None takes the tokenizer's.
        """
        self.model, self.mesh, self.compute = model, mesh, compute
        self.tokenizer = tokenizer
        if image_token is None and tokenizer is not None:
            image_token = tokenizer.img_context_id
        self._image_token = image_token
        self._programs: collections.OrderedDict[Any, programs.Programs] = (
            collections.OrderedDict()
        )

    def geometry(
        self,
        weights: params_lib.Params,
        *,
        prompts: Iterable[int],
        answer_tokens: int,
        samples: int,
        slots: int = 0,
        group_slots: int = 0,
        device_memory: int = 0,
    ) -> cache_lib.Geometry:
        """What fits beside the parameters, see ``capacity.choose``.

        Args:
          device_memory: bytes of a device; 0 asks it.

        Raises:
          ValueError: nothing fits; names what to lower.
        """
        device = self.mesh.devices.flat[0]
        how = capacity.habits(device.platform)
        cfg, dtype = self.model.cfg, self.compute.dtype
        memory = capacity.free_memory(
            cfg,
            weights,
            self.mesh,
            how,
            device_memory=device_memory or capacity.memory_of(device),
            dtype=dtype,
        )
        return capacity.choose(
            cfg,
            prompts=prompts,
            answer_tokens=answer_tokens,
            samples=samples,
            shards=sharding.data_shards(self.mesh),
            memory=memory,
            dtype=dtype,
            how=how,
            slots=slots,
            group_slots=group_slots,
        )

    def engine(
        self,
        weights: params_lib.Params,
        geometry: cache_lib.Geometry,
        *,
        tile_dtype: Any = jnp.uint8,
    ) -> engine.Engine:
        """An engine with a cache of its own."""
        key = (geometry, str(jnp.dtype(tile_dtype)))
        if key not in self._programs:
            self._programs[key] = programs.Programs(
                self.model,
                weights,
                geometry,
                mesh=self.mesh,
                compute=self.compute,
                tile_dtype=tile_dtype,
            )
            if len(self._programs) > _KEPT:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return engine.Engine(
            self._programs[key],
            weights,
            decode=self._text,
            image_token=self._image_token,
        )

    def _text(self, ids: Any) -> str:
        return "" if self.tokenizer is None else self.tokenizer.decode(ids)


def answer(engine: engine.Engine, request: Any) -> dict[int, list[int]]:
    """Token ids of every answer to one request, by sample."""
    ids: dict[int, list[int]] = {sample: [] for sample in request.wanted}
    engine.add(request)
    while engine.busy:
        for update in engine.step():
            ids[update.sample] += update.ids
    return ids
