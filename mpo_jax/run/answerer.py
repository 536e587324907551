"""A model that answers, loaded onto the devices of this process."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mpo_jax import sharding
from mpo_jax.convert import files, hub
from mpo_jax.generate import cache as cache_lib
from mpo_jax.generate import capacity, prompts, requests
from mpo_jax.generate import engine as engine_lib
from mpo_jax.generate import local as local_lib
from mpo_jax.generate import speaker as speaker_lib
from mpo_jax.inputs import prompt as prompt_lib
from mpo_jax.inputs import template
from mpo_jax.inputs import tokenizer as tokenizer_lib
from mpo_jax.models import internvl, network
from mpo_jax.nn import params as params_lib

ADAPTERS = ("merged", "beside")
DTYPES = ("auto", "bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Model:
    """A loaded model and what its questions are made with.

    Attributes:
      source: where it came from.
      speaker: makes its engines.
      weights: on the speaker's mesh.
      policy: how questions are encoded.
      device_memory: bytes of a device that it may count on; 0 asks the device.
      trained: says which weights these are where no file has them.
    """

    source: hub.Source
    speaker: speaker_lib.Speaker
    weights: params_lib.Params
    tokenizer: tokenizer_lib.ChatTokenizer
    policy: prompt_lib.PromptPolicy
    device_memory: int = 0
    trained: Mapping[str, Any] | None = None

    def local(
        self,
        questions: Sequence[requests.Question],
        sampling: requests.Sampling,
        *,
        slots: int = 0,
    ) -> local_lib.Local:
        """The model ready for some questions, which are measured first.

        Raises:
          BadRecord: one of them cannot be asked.
          ValueError: nothing fits in memory.
        """
        lengths = [
            prompts.length_of(question, tokenizer=self.tokenizer, policy=self.policy)
            for question in questions
        ]
        return self.local_for(lengths, sampling, slots=slots)

    def local_for(
        self,
        lengths: Sequence[int],
        sampling: requests.Sampling,
        *,
        slots: int = 0,
    ) -> local_lib.Local:
        """The model ready for prompts of these lengths.

        Raises:
          ValueError: nothing fits in memory; names what to lower.
        """
        geometry = self.speaker.geometry(
            self.weights,
            prompts=lengths,
            answer_tokens=sampling.max_new_tokens,
            samples=sampling.n,
            slots=slots,
            device_memory=self.device_memory,
        )
        return local_lib.Local(
            self.speaker.engine(self.weights, geometry),
            tokenizer=self.tokenizer,
            policy=self.policy,
            described=self.describe(),
        )

    def with_tiles(self, max_tiles: int) -> Model:
        """The same with another limit of tiles for a prompt's images."""
        fewest = min(self.policy.min_tiles, max_tiles)
        policy = dataclasses.replace(self.policy, min_tiles=fewest, max_tiles=max_tiles)
        return dataclasses.replace(self, policy=policy)

    def describe(self) -> dict[str, Any]:
        """What answers depend on, as JSON values."""
        compute, adaptation = self.speaker.compute, self.speaker.model.adaptation
        return {
            "model": str(self.source.weights),
            "weights": self.trained or _state_of(self.source.weights),
            "dtype": jnp.dtype(compute.dtype).name,
            "adapters": dataclasses.asdict(adaptation),
            "tokenizer": self.tokenizer.fingerprint,
            "prompts": self.policy.fingerprint(),
        }


def _state_of(weights: str | pathlib.Path) -> Any:
    """Names, sizes and times of a model's files: another model has others."""
    return json.loads(json.dumps(files.fingerprint(weights), default=str))


@dataclasses.dataclass(frozen=True)
class Loaded:
    """An engine for requests that are not known yet, with what it stands on."""

    model: Model
    engine: engine_lib.Engine
    name: str

    @property
    def tokenizer(self) -> tokenizer_lib.ChatTokenizer:
        return self.model.tokenizer

    @property
    def policy(self) -> prompt_lib.PromptPolicy:
        return self.model.policy

    def words(self) -> str:
        """What is there, for people."""
        return words(self.model, self.engine.geometry)


def words(model: Model, geometry: cache_lib.Geometry) -> str:
    """A geometry for people."""
    cfg, dtype = model.speaker.model.cfg, model.speaker.compute.dtype
    size = capacity.bytes_of(cfg, geometry, dtype) / capacity.GIB
    return (
        f"{geometry.groups} prompts with {geometry.slots} answers each at a time, "
        f"prompts of up to {geometry.buckets[-1] + 1} tokens, answers of up to "
        f"{geometry.answer_tokens}; keys and values take {size:.2f} GiB"
    )


def locate(source: str) -> tuple[hub.Source, tokenizer_lib.ChatTokenizer]:
    """A model's files and its tokenizer, which must fit; no weights are read.

    Raises:
      FileNotFoundError, ValueError: saying what is missing or does not fit.
    """
    found = hub.locate(source)
    cfg = found.config()
    place = found.settings.tokenizer or found.files
    chat = tokenizer_lib.load_tokenizer(place)
    if chat.vocab_size > cfg.language.vocab_size:
        raise ValueError(
            f"tokenizer {place} has {chat.vocab_size} tokens, the model "
            f"{cfg.language.vocab_size} embeddings; it belongs to another model"
        )
    if cfg.template:
        chosen = template.get_template(cfg.template)
        template.check_tokenizer(chosen, chat, where=str(place))
    return found, chat


def load(
    source: str,
    *,
    dtype: str,
    tensor: int = 0,
    max_tiles: int = 0,
    adapters: str = "merged",
) -> Model:
    """Load a model onto this process's devices.

    Args:
      source: directory, workdir of a run, or hub id (``convert.hub.locate``).
      dtype: ``bfloat16`` or ``float32``, of parameters and computation; ``auto`` is
        the latter on a CPU, which computes it faster, else the former.
      tensor: devices that share one copy; 0 is as few as it fits on.
      max_tiles: of a prompt's images; 0 is the model's.
      adapters: of a LoRA run, ``merged`` into the weights or ``beside`` them.

    Raises:
      FileNotFoundError, ValueError: saying what is wrong and what to do.
    """
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    found, chat = locate(source)
    base = internvl.InternVL(found.config())
    policy = speaker_lib.prompt_policy(base.cfg, max_tiles=max_tiles)
    model = hub.run_model(found, base) if adapters == "beside" else base
    mesh = capacity.make_mesh(
        model.cfg,
        params_lib.count(model.shapes) * jnp.dtype(dtype).itemsize,
        devices=jax.local_devices(),
        tensor=tensor,
    )
    places = sharding.shardings(base.shapes, base.axes, mesh)
    if model is base:
        weights = hub.load_params(found, base, dtype=dtype, shardings=places)
    else:
        kinds = {path: dtype for path, _ in params_lib.flatten(base.shapes)}
        weights = hub.load_run_params(found, model, kinds=kinds, shardings=places)
    speaker = speaker_lib.Speaker(
        model,
        mesh=mesh,
        compute=network.Compute(dtype=jnp.dtype(dtype), remat="none"),
        tokenizer=chat,
    )
    return Model(found, speaker, weights, chat, policy)


def load_engine(
    source: str,
    *,
    dtype: str,
    max_prompt_tokens: int,
    max_new_tokens: int,
    samples: int,
    slots: int,
    tensor: int,
    max_tiles: int,
    adapters: str,
) -> Loaded:
    """An engine for any prompts up to a length; every program is compiled.

    Args:
      max_prompt_tokens: longest prompt; 0 is what the tiles take and 2,048 of text.
      samples: answers to one prompt at a time.
      slots: answers at a time; 0 is as many as suit and fit.

    Raises:
      FileNotFoundError, ValueError: saying what is wrong and what to do.
    """
    model = load(
        source, dtype=dtype, tensor=tensor, max_tiles=max_tiles, adapters=adapters
    )
    cfg = model.speaker.model.cfg
    tiles = model.policy.max_tiles + model.policy.use_thumbnail
    longest = max_prompt_tokens or tiles * cfg.tokens_per_tile + 2048
    longest = min(longest, cfg.language.max_position_embeddings - 1)
    rungs = capacity.rungs(longest - 1)
    geometry = model.speaker.geometry(
        model.weights,
        prompts=[rung + 1 for rung in rungs],
        answer_tokens=min(max_new_tokens, cfg.language.max_position_embeddings),
        samples=samples,
        slots=slots,
        group_slots=samples,
    )
    engine = model.speaker.engine(model.weights, geometry)
    engine.max_prompt_tokens = longest  # programs are compiled for rounder lengths
    return Loaded(model, engine, pathlib.PurePath(source.rstrip("/")).name)
