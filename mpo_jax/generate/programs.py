"""The programs of a geometry, compiled before the first request, and their cache.

They are compiled ahead of time for exact shapes and shardings; a call with other ones
is an error, so that nothing can be compiled while requests wait.
"""

from __future__ import annotations

import functools
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpo_jax import sharding
from mpo_jax.generate import cache as cache_lib
from mpo_jax.generate import requests, sampler
from mpo_jax.models import internvl, network
from mpo_jax.nn import params as params_lib

STOPS = requests.MAX_STOP_IDS
"""Room for the stop tokens of a slot."""

_COMPILING = 4
"""Programs that are compiled at a time; each takes some memory of the host."""


def placed(tree: Any, axes: Any, mesh: jax.sharding.Mesh) -> Any:
    """``ShapeDtypeStruct`` with the shardings that logical axes give."""
    places = sharding.shardings(tree, axes, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, places
    )


def everywhere(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """``ShapeDtypeStruct`` that every device holds whole."""
    whole = sharding.replicated(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree
    )


def by_rows(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """``ShapeDtypeStruct`` of arrays whose first axis is rows or groups."""
    axes = jax.tree.map(lambda x: ("act_batch", *(None,) * (x.ndim - 1)), tree)
    return placed(tree, axes, mesh)


class Shapes:
    """Abstract arguments of all programs of a geometry on a mesh."""

    def __init__(
        self,
        model: internvl.InternVL,
        geometry: cache_lib.Geometry,
        *,
        mesh: jax.sharding.Mesh,
        dtype: Any,
        tile_dtype: Any = jnp.uint8,
    ):
        cfg, shards = model.cfg, sharding.data_shards(mesh)
        self.shards = shards
        kept = cache_lib.kept_as(dtype, mesh.devices.flat[0].platform)
        cache = cache_lib.shapes(cfg.language, geometry, kept)
        self.cache = cache_lib.placed(cache, mesh)
        self.slots = by_rows(sampler.slots_shapes(geometry, STOPS), mesh)
        self.prompts = {
            bucket: by_rows(
                sampler.prompts_shapes(geometry.rows(bucket, shards) * shards, bucket),
                mesh,
            )
            for bucket in geometry.buckets
        }
        side, struct = cfg.image_size, jax.ShapeDtypeStruct
        tiles = struct((geometry.tiles * shards, side, side, 3), jnp.dtype(tile_dtype))
        self.tiles = by_rows(tiles, mesh)
        most = max(
            geometry.rows(bucket, shards) * shards * (bucket // cfg.tokens_per_tile)
            for bucket in geometry.buckets
        )
        width = cfg.language.hidden_size
        buffer = struct((most + tiles.shape[0], cfg.tokens_per_tile, width), dtype)
        self.features = everywhere(buffer, mesh)
        self.start = everywhere(struct((), jnp.int32), mesh)


class Lowering:
    """The programs of a geometry, traced for its mesh; none is compiled yet.

    The mesh may be that of a slice that is not there (``plan/``).

    Attributes:
      model, geometry, mesh: what they are for.
      shapes: of their arguments.
      options: of the compiler.
    """

    def __init__(
        self,
        model: internvl.InternVL,
        weights: params_lib.Params,
        geometry: cache_lib.Geometry,
        *,
        mesh: jax.sharding.Mesh,
        compute: network.Compute,
        tile_dtype: Any = jnp.uint8,
    ):
        """
        Args:
          weights: arrays or ``ShapeDtypeStruct``, with their shardings on `mesh`.
          tile_dtype: uint8, or that of normalised tiles.

        Raises:
          ValueError: the geometry does not fit mesh or model.
        """
        _check(model, geometry, shards=sharding.data_shards(mesh))
        self.model, self.geometry, self.mesh = model, geometry, mesh
        self.shapes = Shapes(
            model, geometry, mesh=mesh, dtype=compute.dtype, tile_dtype=tile_dtype
        )
        self.options: dict[str, str | bool] = dict(sharding.compiler_options(mesh))
        self._compute = compute
        self._weights = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            weights,
        )
        self._whole = sharding.replicated(mesh)
        self._kept = jax.tree.map(lambda x: x.sharding, self.shapes.cache)

    def encode(self) -> jax.stages.Lowered:
        """Of ``sampler.encode``."""
        found = self.shapes
        args = (found.features, found.tiles, found.start)
        return self._lower(sampler.encode, *args, out=self._whole)

    def prefill(self, bucket: int) -> jax.stages.Lowered:
        """Of ``sampler.prefill``."""
        found = self.shapes
        args = (found.cache, found.features, found.prompts[bucket])
        return self._lower(sampler.prefill, *args, out=self._kept)

    def decode(self) -> jax.stages.Lowered:
        """Of ``sampler.decode``."""
        found, whole = self.shapes, self._whole
        decode = functools.partial(_decode, self.geometry)
        out = (self._kept, whole, whole, whole)
        return self._lower(decode, found.cache, found.slots, out=out)

    def _lower(self, fn: Any, *args: Any, out: Any) -> jax.stages.Lowered:
        """The first argument after the weights is given up for the result."""
        jitted = jax.jit(
            functools.partial(fn, self.model, self._compute),
            donate_argnums=(1,),
            out_shardings=out,
        )
        with jax.set_mesh(self.mesh):
            return jitted.lower(self._weights, *args)


class Programs:
    """Compiled functions; :mod:`sampler` says what each does.

    Attributes:
      model, geometry, mesh: what they are for.
      shapes: of their arguments.
      encode, decode: compiled.
      prefill: compiled, by bucket.
    """

    def __init__(
        self,
        model: internvl.InternVL,
        weights: params_lib.Params,
        geometry: cache_lib.Geometry,
        *,
        mesh: jax.sharding.Mesh,
        compute: network.Compute,
        tile_dtype: Any = jnp.uint8,
    ):
        """Compile everything; arguments and errors as :class:`Lowering`'s."""
        lowering = Lowering(
            model,
            weights,
            geometry,
            mesh=mesh,
            compute=compute,
            tile_dtype=tile_dtype,
        )
        self.model, self.geometry, self.mesh = model, geometry, mesh
        self.shapes = lowering.shapes

        def compiled(lowered: jax.stages.Lowered) -> Any:
            with jax.set_mesh(mesh):
                return lowered.compile(lowering.options)

        # The compiler lets other threads run, so programs come side by side.
        with futures.ThreadPoolExecutor(_COMPILING) as pool:
            encode = pool.submit(compiled, lowering.encode())
            decode = pool.submit(compiled, lowering.decode())
            prefill = {
                bucket: pool.submit(compiled, lowering.prefill(bucket))
                for bucket in geometry.buckets
            }
            self.encode, self.decode = encode.result(), decode.result()
            self.prefill = {bucket: done.result() for bucket, done in prefill.items()}

    def new_cache(self) -> tuple[cache_lib.Cache, Any]:
        """An empty cache and buffer of features.

        Zeros: what was never written is read under weight 0, and must be finite.
        """

        def zeros(x: Any) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                return np.zeros(
                    [
                        len(range(*i.indices(n)))
                        for i, n in zip(index, x.shape, strict=True)
                    ],
                    x.dtype,
                )

            return jax.make_array_from_callback(x.shape, x.sharding, part)

        return jax.tree.map(zeros, (self.shapes.cache, self.shapes.features))

    def put(self, tree: Any, shapes: Any) -> Any:
        """Host arrays onto the devices, as `shapes` say."""
        return jax.device_put(tree, jax.tree.map(lambda x: x.sharding, shapes))


def _check(
    model: internvl.InternVL, geometry: cache_lib.Geometry, *, shards: int
) -> None:
    if geometry.groups % shards:
        raise ValueError(
            f"{geometry.groups} groups do not divide over {shards} data shards"
        )
    rope = model.cfg.language.rope
    longest = geometry.buckets[-1] + geometry.answer_tokens
    if rope.long_frequencies and geometry.buckets[-1] < rope.original_length < longest:
        raise ValueError(
            f"buckets={geometry.buckets}: sequences of up to {longest} tokens are read "
            f"anew at {rope.original_length}, which must fit; add such a bucket"
        )


def _decode(geometry: cache_lib.Geometry, model: Any, compute: Any, *args: Any) -> Any:
    return sampler.decode(model, compute, geometry, *args)
