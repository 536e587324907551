"""How many prompts and answers at a time: from lengths and memory, before allocation.

Everything here is a function of the model, the limits and the machine, never of what is
free at the moment or how many questions there are: the same command has the same
geometry when it is started again, and so the same answers.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mpo_jax import sharding
from mpo_jax.generate import cache as cache_lib
from mpo_jax.models.config import InternVLConfig
from mpo_jax.nn import params as params_lib

GROWTH = 1.25
"""Of the ladder of prompt lengths, whose steps are 64 at least: of a prefill of more
than 512 tokens a fourth is padding at most, a ninth in the mean."""
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Habits:
    """What suits a platform.

    Attributes:
      slots: answers at a time and data shard, where memory allows.
      prompt_block, answer_block, steps, prefill_tokens, tiles: of ``cache.Geometry``.
    """

    slots: int
    prompt_block: int
    answer_block: int
    steps: int
    prefill_tokens: int
    tiles: int


CPU = Habits(32, 256, 64, 16, 2048, 1)
"""Blocks that stay in a core's cache; tiles one by one, as none of them is padding."""
TPU = Habits(64, 512, 256, 16, 8192, 8)
GPU = Habits(128, 1024, 256, 16, 8192, 8)
"""A step of a small model takes as long as its launches: fewer blocks, more slots
(docs/benchmarks.md)."""
MOST_SLOTS = 8
"""Answers to one prompt at a time, where there are many prompts: the slots of a group
are free for the next one when its last answer has ended."""


def habits(platform: str) -> Habits:
    """Of a platform by its JAX name."""
    return {"cpu": CPU, "tpu": TPU}.get(platform, GPU)


def rung(tokens: int) -> int:
    """Prompt length on the ladder that takes `tokens`: 64, 128, 192, 256, 320, 448, …

    The same for every engine, so that a prompt's numbers do not depend on the longest.
    """
    size = 64
    while size < tokens:
        size = -(-max(size + 64, int(size * GROWTH)) // 64) * 64
    return size


def rungs(longest: int) -> list[int]:
    """The ladder up to a length."""
    found = [rung(1)]
    while found[-1] < longest:
        found.append(rung(found[-1] + 1))
    return found


def bytes_of(cfg: InternVLConfig, geometry: cache_lib.Geometry, dtype: Any) -> int:
    """Of the cache, over all devices."""
    found = cache_lib.shapes(cfg.language, geometry, dtype)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(found))


def token_bytes(cfg: InternVLConfig, dtype: Any) -> int:
    """Keys and values of one token in all layers."""
    lang = cfg.language
    per_layer = 2 * lang.num_key_value_heads * lang.head_dim
    return lang.num_hidden_layers * per_layer * jnp.dtype(dtype).itemsize


def choose(
    cfg: InternVLConfig,
    *,
    prompts: Iterable[int],
    answer_tokens: int,
    samples: int,
    shards: int,
    memory: int,
    dtype: Any,
    how: Habits,
    slots: int = 0,
    group_slots: int = 0,
) -> cache_lib.Geometry:
    """The geometry for some prompts and answers.

    Args:
      prompts: their lengths in tokens, the last included; or only the longest.
      answer_tokens: longest answer.
      samples: answers to a prompt.
      shards: data shards.
      memory: bytes for the cache, per data shard.
      slots: answers at a time, over all shards; 0 is as many as suit and fit.
      group_slots: of them for one prompt; 0 chooses.

    Raises:
      ValueError: not one answer fits; names what to lower.
    """
    buckets = tuple(sorted({rung(max(length - 1, 1)) for length in prompts}))
    if cfg.language.rope.long_frequencies:  # such sequences are read anew
        short = cfg.language.rope.original_length
        if buckets[-1] < short < buckets[-1] + answer_tokens:
            buckets = (*buckets, rung(short))
    block = min(how.prompt_block, buckets[-1])
    answer_block = min(how.answer_block, rung(answer_tokens))
    geometry = cache_lib.Geometry(
        groups=shards,
        slots=1,
        prompt_tokens=-(-buckets[-1] // block) * block,
        answer_tokens=-(-answer_tokens // answer_block) * answer_block,
        prompt_block=block,
        answer_block=answer_block,
        steps=how.steps,
        buckets=buckets,
        prefill_tokens=how.prefill_tokens,
        tiles=how.tiles,
    )
    wanted = max(1, -(-slots // shards)) if slots else how.slots
    each = group_slots or min(samples, wanted, MOST_SLOTS)
    token = token_bytes(cfg, dtype)
    while each >= 1:
        group = token * (geometry.prompt_tokens + each * geometry.answer_tokens)
        groups = min(max(1, wanted // each), memory // group)
        if groups:
            return dataclasses.replace(geometry, groups=groups * shards, slots=each)
        each //= 2
    needed = token * (geometry.prompt_tokens + geometry.answer_tokens)
    raise ValueError(
        f"one answer of {geometry.answer_tokens} tokens to a prompt of "
        f"{geometry.prompt_tokens} needs {needed / GIB:.2f} GiB for keys and values, "
        f"{memory / GIB:.2f} GiB are free per data shard; lower max_new_tokens, "
        "max_tiles or max_prompt_tokens, use bfloat16, or more devices (tensor)"
    )


def memory_of(device: Any) -> int:
    """Bytes that a device has for this process."""
    stats = device.memory_stats()
    if stats and stats.get("bytes_limit"):
        return int(stats["bytes_limit"])
    # A CPU's devices share the host's memory, as far as the container may use it.
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = file.read().strip()
    except OSError:
        limit = "max"
    if limit.isdecimal():
        host = min(host, int(limit))
    return host // 2 // max(1, jax.local_device_count())


def tensor_shards(
    cfg: InternVLConfig, weights: int, *, device_memory: int, devices: int
) -> int:
    """Fewest devices that share a model so that it takes half of their memory at most.

    Of powers of two that divide the query heads.

    Args:
      weights: bytes of the parameters.
      devices: that there are.
    """
    heads, best = cfg.language.num_attention_heads, 1
    for shards in (1, 2, 4, 8, 16, 32):
        if devices % shards or heads % shards:
            continue
        best = shards
        if weights / shards <= device_memory / 2:
            break
    return best


def make_mesh(
    cfg: InternVLConfig,
    weights: int,
    *,
    devices: Sequence[Any],
    tensor: int = 0,
    device_memory: int = 0,
) -> jax.sharding.Mesh:
    """Copies of a model over ``data``, each over as many devices as it needs.

    Args:
      weights: bytes of the parameters.
      devices: of one process.
      tensor: devices that share one copy; 0 chooses (:func:`tensor_shards`).
      device_memory: bytes of a device; 0 asks it.

    Raises:
      ValueError: `tensor` does not divide the devices.
    """
    shards = tensor or tensor_shards(
        cfg,
        weights,
        device_memory=device_memory or memory_of(devices[0]),
        devices=len(devices),
    )
    if len(devices) % shards:
        raise ValueError(
            f"tensor={shards} does not divide the {len(devices)} devices of this "
            "process; give a divisor, or 0"
        )
    return sharding.make_mesh(data=-1, fsdp=1, tensor=shards, devices=devices)


def free_memory(
    cfg: InternVLConfig,
    weights: params_lib.Params,
    mesh: jax.sharding.Mesh,
    how: Habits,
    *,
    device_memory: int,
    dtype: Any,
) -> int:
    """Bytes for caches per data shard: what weights and temporaries leave.

    Args:
      weights: arrays or ``ShapeDtypeStruct`` with their shardings.

    Raises:
      ValueError: the weights themselves do not fit.
    """
    held = sum(_on_one_device(x) for x in jax.tree.leaves(weights))
    left = device_memory - held - _temporaries(cfg, mesh, how, dtype)
    if left <= 0:
        raise ValueError(
            f"the parameters take {held / GIB:.2f} GiB of the "
            f"{device_memory / GIB:.2f} GiB of a device, and what is computed on the "
            "way needs room too; use bfloat16, or share the model among more devices "
            "(tensor)"
        )
    shared = mesh.shape["tensor"]
    divides = cfg.language.num_key_value_heads % shared == 0
    return left * (shared if divides else 1)


def _on_one_device(x: Any) -> int:
    shape = x.sharding.shard_shape(x.shape)
    size = jnp.dtype(x.dtype).itemsize
    for extent in shape:
        size *= extent
    return size


def _temporaries(
    cfg: InternVLConfig, mesh: jax.sharding.Mesh, how: Habits, dtype: Any
) -> int:
    """Bytes of a device beside weights and cache, on the high side."""
    lang, size = cfg.language, jnp.dtype(dtype).itemsize
    tensor = mesh.shape["tensor"]
    wide = lang.intermediate_size // tensor + 4 * lang.hidden_size
    prefill = how.prefill_tokens * wide * (size + 4)
    divided = tensor if lang.num_key_value_heads % tensor == 0 else 1
    kept = 2 * how.prefill_tokens * token_bytes(cfg, dtype) // divided
    vision = cfg.vision
    patches = (cfg.image_size // vision.patch_size) ** 2 + 1
    tower = how.tiles * patches * (vision.intermediate_size + 8 * vision.hidden_size)
    logits = how.slots * lang.vocab_size * 4 * 6
    # Features of the tiles of a prefill, all shards' on every device.
    tokens = how.prefill_tokens + how.tiles * cfg.tokens_per_tile
    features = sharding.data_shards(mesh) * tokens * lang.hidden_size * size
    return max(prefill + kept, tower * (size + 4), logits) + features + GIB // 4
