"""First weights of a run and of its reference, straight into their shardings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from mpo_jax import sharding
from mpo_jax.convert import health, hub
from mpo_jax.models import adapted, internvl
from mpo_jax.nn import params as params_lib
from mpo_jax.run import setup
from mpo_jax.train import state
from mpo_jax.utils import progress


def initial_params(run: setup.Setup) -> params_lib.Params:
    """The policy's first weights on the mesh: the run's starting point, adapters drawn.

    Straight into their sharding; with ``model.init=random`` they are drawn there.

    Raises:
      ValueError: if weights that are read hold NaN or infinite values.
    """
    return _adapted(run, run.model, _base_params(run, ""))


def reference_params(run: setup.Setup, path: str = "") -> params_lib.Params:
    """Weights of a reference, without adapters: of `path`, or of the starting point."""
    return _adapted(run, run.model.without_adapters, _base_params(run, path))


def _base_params(run: setup.Setup, path: str) -> params_lib.Params:
    cfg, model = run.cfg.model, run.model.base
    placed = sharding.shardings(model.shapes, model.axes, run.mesh)
    dtypes = _dtypes(run)
    if cfg.init == "random" and not path:

        def draw(key: jax.Array) -> params_lib.Params:
            drawn = model.init(key)
            return jax.tree.map(lambda x, kind: x.astype(kind), drawn, dtypes)

        return jax.jit(draw, out_shardings=placed)(jax.random.key(run.cfg.seed))
    source = hub.locate(path) if path else run.source
    params = hub.load_params(source, model, dtype=dtypes, shardings=placed)
    for note in health.check(params, where=str(source.weights)):
        progress.console().print(f"note: {note}")
    return params


def _dtype_of(run: setup.Setup) -> Callable[[str], Any]:
    """Dtype of a parameter of the run, by its path."""
    trained, kinds = adapted.trained(run.cfg.model), state.dtypes(run.cfg.model)
    return lambda path: kinds["param_dtype" if trained(path) else "frozen_dtype"]


def _dtypes(run: setup.Setup) -> params_lib.Params:
    """Dtype of every base parameter; of a stack that is cut, that of trained ones."""
    trained, dtype_of = adapted.trained(run.cfg.model), _dtype_of(run)
    found: dict[str, Any] = {}
    for path, _ in params_lib.flatten(run.model.without_adapters.shapes):
        base = adapted.base_path(path)
        if trained(path) or base not in found:
            found[base] = dtype_of(path).name
    return params_lib.unflatten(found)


def _adapted(
    run: setup.Setup, model: internvl.InternVL, base: params_lib.Params
) -> params_lib.Params:
    """The tree of `model` from the base's; where they are one, the base itself."""
    if model is model.base:
        return base
    dtype_of = _dtype_of(run)
    # Another key than that of random weights.
    key = jax.random.fold_in(jax.random.key(run.cfg.seed), 1)

    def adapt(base: params_lib.Params) -> params_lib.Params:
        flat = params_lib.flatten(model.adapt(base, key))
        return params_lib.unflatten(
            {path: leaf.astype(dtype_of(path)) for path, leaf in flat}
        )

    shapes, axes = model.shapes, model.axes
    placed = sharding.shardings(shapes, axes, run.mesh)
    return adapted.rebuild(adapt, base, shapes=shapes, shardings=placed)
