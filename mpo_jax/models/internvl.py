"""``InternVL``: which parameters a model has, and the network that they make."""

from __future__ import annotations

import functools

import jax
from flax import nnx

from mpo_jax.models import adapted
from mpo_jax.models.config import InternVLConfig
from mpo_jax.models.network import Network
from mpo_jax.nn import lora, params


class InternVL:
    """A model without its parameters; these are nested dicts that callers hold.

    ::

        model = InternVL(cfg)
        weights = model.init(key)
        hidden = model.bind(weights).response_hidden(batch, ...)

    Attributes:
      cfg: architecture.
      adaptation: how the parameters differ in structure from those as released.
      shapes: nested dict of ``ShapeDtypeStruct``.
      axes: nested dict of logical axis names (see ``sharding.Rules``), same structure.
    """

    def __init__(
        self, cfg: InternVLConfig, adaptation: adapted.Adaptation = adapted.UNADAPTED
    ):
        self.cfg = cfg
        self.adaptation = adaptation
        self._graphdef, self.shapes, self.axes = params.declare(self._build)

    def _build(self, rngs: nnx.Rngs) -> Network:
        return Network(self.cfg, adaptation=self.adaptation, rngs=rngs)

    def init(self, key: jax.Array) -> params.Params:
        """Initial parameters; call under ``jit`` with ``out_shardings`` to shard."""
        return params.values(self._build(nnx.Rngs(params=key)))

    def bind(self, weights: params.Params) -> Network:
        """The network with these parameters; inside a traced function."""
        return nnx.merge(self._graphdef, weights)

    @functools.cached_property
    def without_adapters(self) -> InternVL:
        """The model of ``adapted.without_adapters`` parameters; itself if it is one."""
        found = self.adaptation.without_adapters
        return self if found == self.adaptation else InternVL(self.cfg, found)

    @functools.cached_property
    def base(self) -> InternVL:
        """The model as released; itself if it is one."""
        return self if self.adaptation == adapted.UNADAPTED else InternVL(self.cfg)

    def adapt(self, base_weights: params.Params, key: jax.Array) -> params.Params:
        """The run's parameters from those of the base; it computes the same.

        Pure: call it under ``jit``. Adapters are drawn, in float32 (``nn/lora.py``).
        """
        weights = adapted.split_tower(
            base_weights, self.without_adapters.shapes, self.adaptation
        )
        if self.without_adapters is self:
            return weights
        drawn = self.init(key)
        return adapted.union(weights, adapted.partition(drawn, lora.is_adapter)[0])

    def fold_adapters(self, weights: params.Params) -> params.Params:
        """Parameters of the base from the run's: adapters folded in. Pure."""
        folded = adapted.fold_adapters(weights, self.adaptation)
        return adapted.join_tower(folded)
