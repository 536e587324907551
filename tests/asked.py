"""Engines on small models, and what they answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpo_jax import api, sharding
from mpo_jax.generate import cache, engine, requests, speaker
from mpo_jax.models import internvl, network
from mpo_jax.nn import params as params_lib


def geometry(**changes: Any) -> cache.Geometry:
    """Small sizes with several blocks, buckets and chunks of everything."""
    sizes: dict[str, Any] = {
        **{"groups": 2, "slots": 2, "prompt_tokens": 64, "answer_tokens": 32},
        **{"prompt_block": 16, "answer_block": 8, "steps": 6, "buckets": (16, 64)},
        **{"prefill_tokens": 64, "tiles": 2},
    }
    return cache.Geometry(**sizes | changes)


def speaker_of(
    model: internvl.InternVL,
    *,
    mesh: jax.sharding.Mesh | None = None,
    image_token: int | None = None,
    dtype: Any = jnp.float32,
) -> speaker.Speaker:
    """A speaker without tokenizer, by default on the first device."""
    if mesh is None:
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
    compute = network.Compute(dtype=jnp.dtype(dtype), remat="none")
    return speaker.Speaker(model, mesh=mesh, compute=compute, image_token=image_token)


def placed(
    model: internvl.InternVL, weights: params_lib.Params, mesh: jax.sharding.Mesh
) -> params_lib.Params:
    """Parameters as the rules lay them on a mesh."""
    return jax.device_put(weights, sharding.shardings(model.shapes, model.axes, mesh))


def engine_of(ours: api.InternVL, sizes: cache.Geometry) -> engine.Engine:
    """An engine for normalised tiles on a loaded model."""
    made = speaker_of(ours.model, image_token=ours.img_context_token_id)
    weights = placed(ours.model, ours.params, made.mesh)
    return made.engine(weights, sizes, tile_dtype=jnp.float32)


@dataclasses.dataclass
class Said:
    """One answer, put together from its updates."""

    ids: list[int] = dataclasses.field(default_factory=list)
    logps: list[float] = dataclasses.field(default_factory=list)
    text: str = ""
    reason: str | None = None


Everything = dict[tuple[Any, int], Said]


def take(found: Everything, updates: Iterable[requests.Update]) -> None:
    """Add updates; none may come after an answer's last."""
    for update in updates:
        said = found.setdefault((update.key, update.sample), Said())
        assert said.reason is None and len(update.ids) == len(update.logps)
        said.ids += update.ids
        said.logps += update.logps
        said.text += update.text
        said.reason = update.finish_reason


def ask(asked: engine.Engine, *given: requests.Request) -> Everything:
    """Every answer to some requests by key and sample, added in this order."""
    for request in given:
        asked.add(request)
    found: Everything = {}
    while asked.busy:
        take(found, asked.step())
    assert all(said.reason for said in found.values())
    wanted = [(request.key, k) for request in given for k in request.wanted]
    assert sorted(found, key=str) == sorted(wanted, key=str)
    return found


def request(
    key: Any,
    ids: Any,
    tiles: np.ndarray,
    *,
    answer_start: int | None = None,
    samples: tuple[int, ...] | None = None,
    **how: Any,
) -> requests.Request:
    ids = np.asarray(ids, np.int32)
    start = len(ids) if answer_start is None else answer_start
    sampling = requests.Sampling(**how)
    return requests.Request(key, ids, tiles, start, sampling, samples)
