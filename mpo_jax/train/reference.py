"""Reference log-probs: computed once, stored beside the index under a key.

The key holds everything that the numbers depend on: reference weights and
architecture, compute dtype, attention back end, and through the index the tokenizer,
template, tile policy and the content of every record. Two float32 per record; 3 million
records are 24 MB.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mpo_jax import config, sharding, types
from mpo_jax.models import config as model_config
from mpo_jax.nn import attention
from mpo_jax.nn import params as params_lib
from mpo_jax.utils import runtime

FORMAT = 2
KEY_FILE = "key.json"


def fingerprint(params: params_lib.Params) -> str:
    """SHA-256 hex over all weights, the same for any sharding and process count.

    Each array is reduced on its devices to two position-weighted sums modulo 2**32
    (integer sums do not depend on their order), so that nothing is gathered.
    """

    @jax.jit
    def digest(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(
                jnp.uint32, x.shape, axis
            )
        mixed = (bits ^ (bits >> 15)) * jnp.uint32(0x85EBCA6B)
        first = jnp.sum(bits * (place * 2 + 1), dtype=jnp.uint32)
        second = jnp.sum(
            (mixed ^ (mixed >> 13)) * (place * jnp.uint32(0x9E3779B1) | 1),
            dtype=jnp.uint32,
        )
        return jnp.stack([first, second])

    whole = hashlib.sha256()
    for path, leaf in params_lib.flatten(params):
        sums = np.asarray(sharding.to_host(digest(leaf)))
        whole.update(f"{path} {tuple(leaf.shape)} {sums[0]} {sums[1]}\n".encode())
    return whole.hexdigest()


def cache_key(
    *,
    tokenizer: str,
    policy: Mapping[str, Any],
    content: str,
    weights: str,
    architecture: model_config.InternVLConfig,
    model: config.ModelConfig,
) -> dict[str, Any]:
    """What the cached numbers depend on, JSON-able.

    Nothing is truncated (a pair that fits no row is left out), so truncation is not
    part of it. Attention ``auto`` is resolved for the platform of the current mesh.

    Args:
      tokenizer: fingerprint of the tokenizer.
      policy: fingerprint of template and tiling.
      content: hash over all records and their images, in order.
      weights: :func:`fingerprint` of the reference.
      architecture: of the reference; weights say nothing of `rope_theta` or an epsilon.
    """
    fields = {
        name: value
        for name, value in architecture.fields().items()
        if name not in _NOT_MATHEMATICS
    }
    as_read_back = json.loads(json.dumps(fields, default=dataclasses.asdict))
    return {
        "format": FORMAT,
        "weights": weights,
        "architecture": as_read_back,
        "dtype": model.dtype,
        "attention": attention.resolve(model.attention, jnp.dtype(model.dtype)),
        "tokenizer": tokenizer,
        "policy": dict(policy),
        "content": content,
    }


# Defaults of prompts and tiles (what a run takes stands in the policy), how weights are
# drawn, and a bound on lengths.
_NOT_MATHEMATICS = frozenset(
    {
        *("template", "min_tiles", "max_tiles", "use_thumbnail"),
        *("vision.initializer_factor", "vision.initializer_range"),
        *("language.initializer_range", "language.max_position_embeddings"),
    }
)


def key_digest(key: Mapping[str, Any]) -> str:
    """SHA-256 hex of a key; names its directory."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def differences(expected: Any, found: Any, prefix: str = "") -> list[str]:
    """Parts in which two keys differ, as ``path: ours, theirs`` lines."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        lines = []
        for name in sorted(set(expected) | set(found)):
            lines += differences(
                expected.get(name), found.get(name), f"{prefix}{name}."
            )
        return lines
    if expected == found:
        return []

    def short(value: Any) -> str:
        text = json.dumps(value)
        return text if len(text) <= 60 else text[:57] + "..."

    return [f"{prefix.rstrip('.')}: {short(expected)} here, {short(found)} there"]


class Cache:
    """Reference log-probs of an index on disk, written in parts.

    Several runs may write to one cache: a part has a name of its own, and a record
    that stands in two parts has the same numbers in both.

    Args:
      directory: of this cache alone.
      key: see :func:`cache_key`.
      size: records of the index.

    Raises:
      ValueError: if the directory holds a cache with another key; names what differs.
    """

    def __init__(
        self, directory: str | pathlib.Path, key: Mapping[str, Any], *, size: int
    ):
        self.directory = pathlib.Path(directory)
        self.size = size
        path = self.directory / KEY_FILE
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            wrong = differences(dict(key), found)
            if wrong:
                shown = "\n  ".join(wrong)
                raise ValueError(
                    f"{self.directory}: the reference cache was made for something "
                    f"else:\n  {shown}\nName another directory in reference.cache (or "
                    "leave it empty), or make it again with scripts/cache_reference.py"
                )
        elif runtime.is_main():
            self.directory.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
            temporary.write_text(json.dumps(dict(key), indent=2), encoding="utf-8")
            temporary.replace(path)

    def load(self) -> np.ndarray:
        """Float32 ``[N, 2]`` (chosen, rejected), NaN where not computed yet."""
        values = np.full((self.size, 2), np.nan, np.float32)
        for path in sorted(self.directory.glob("part-*.parquet")):
            table = pq.read_table(path)
            rows = table.column("record").to_numpy()
            values[rows, 0] = table.column("chosen").to_numpy()
            values[rows, 1] = table.column("rejected").to_numpy()
        return values

    def append(self, record_ids: np.ndarray, logps: np.ndarray) -> None:
        """Write one part, atomically.

        Args:
          record_ids: int ``[n]``. logps: float32 ``[n, 2]``.
        """
        path = self.directory / f"part-{uuid.uuid4().hex}.parquet"
        table = pa.table(
            {
                "record": pa.array(record_ids, pa.int64()),
                "chosen": pa.array(logps[:, 0], pa.float32()),
                "rejected": pa.array(logps[:, 1], pa.float32()),
            }
        )
        temporary = path.with_suffix(".tmp")
        pq.write_table(table, temporary)
        temporary.replace(path)


def compute(
    cache: Cache,
    batches: Iterable[tuple[int, types.PackedBatch]],
    *,
    step: Callable[[types.PackedBatch, int], jax.Array],
    part_batches: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> None:
    """Run the reference over batches and append the results.

    Args:
      batches: ``(n, global batch)``.
      step: gives log-probs ``[B, Q, 2]`` of a global batch.
      part_batches: batches per part; at most this much is lost by a kill.
      on_batch: told the number of pairs after each batch.

    Raises:
      FloatingPointError: if a log-prob is not finite; names the records.
    """
    ids: list[np.ndarray] = []
    values: list[np.ndarray] = []

    def flush() -> None:
        if ids and runtime.is_main():
            cache.append(np.concatenate(ids), np.concatenate(values))
        ids.clear()
        values.clear()

    for n, batch in batches:
        logps = np.asarray(sharding.to_host(step(batch, n)))
        # Of the batch itself: a global array's rows lie as its sharding says, which
        # need not be the order of the plan's.
        numbers = np.asarray(sharding.to_host(batch.record_ids))
        real = numbers >= 0
        bad = ~np.isfinite(logps[real]).all(axis=-1)
        if bad.any():
            raise FloatingPointError(
                f"reference log-probs of records {numbers[real][bad][:10].tolist()} "
                "are not finite; try model.dtype=float32 and look at these records "
                "with scripts/inspect_data.py"
            )
        ids.append(numbers[real])
        values.append(logps[real])
        if on_batch is not None:
            on_batch(int(real.sum()))
        if len(ids) >= part_batches:
            flush()
    flush()
