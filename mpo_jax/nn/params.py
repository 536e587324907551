"""One declaration per parameter, and the way from modules to nested dicts.

NNX declares modules; only nested dicts of arrays flow after that. ``param`` states
shape, initialiser and logical axes in one call; abstract shapes, shardings and values
are all derived from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Params = dict[str, Any]


def param(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    *,
    axes: tuple[str | None, ...],
    init: Callable[..., jax.Array],
) -> nnx.Param:
    """Declare a float32 parameter.

    Args:
      axes: logical name of every dimension (see ``sharding.Rules``); stacking layers
        adds ``layers`` in front by itself.
    """
    if len(axes) != len(shape):
        raise ValueError(f"axes {axes} do not match shape {shape}")
    return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, leaf)`` of a nested dict, paths joined by ``/``, sorted."""
    for key in sorted(tree):
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(tree[key], Mapping):
            yield from flatten(tree[key], path)
        else:
            yield path, tree[key]


def unflatten(items: Mapping[str, Any]) -> Params:
    """Inverse of :func:`flatten`."""
    tree: Params = {}
    for path, leaf in items.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def count(tree: Mapping[str, Any]) -> int:
    """Number of parameters."""
    return sum(int(leaf.size) for _, leaf in flatten(tree))


def declare(
    build: Callable[[nnx.Rngs], nnx.Module],
) -> tuple[nnx.GraphDef, Params, Params]:
    """What `build` makes, without making it.

    Returns:
      The module's static structure, hashable (``nnx.merge`` makes the module of it and
      a nested dict of arrays); a nested dict of ``ShapeDtypeStruct``; and one of
      logical axis names, same structure.
    """
    module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graphdef, state = nnx.split(module)
    shapes, axes = {}, {}
    for path, leaf in _by_path(state):
        value = leaf.get_value()
        names = tuple(leaf.get_metadata()["axes"])
        shapes[path] = jax.ShapeDtypeStruct(value.shape, value.dtype)
        axes[path] = ("layers",) * (len(value.shape) - len(names)) + names
    return graphdef, unflatten(shapes), unflatten(axes)


def values(module: nnx.Module) -> Params:
    """Parameters of a module as a nested dict of arrays."""
    found = _by_path(nnx.state(module))
    return unflatten({path: leaf.get_value() for path, leaf in found})


def _by_path(state: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in nnx.to_flat_state(state):
        yield "/".join(str(part) for part in path), leaf
