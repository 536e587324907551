"""Identical layers stacked on axis 0 and scanned, with rematerialisation.

Scanning keeps the program small (one layer) whatever the depth; there is no unrolled
twin. ``JAX_DISABLE_JIT=1`` helps where one wants to step through layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import ad_checkpoint

from mpo_jax.nn import layers

REMAT = ("none", "dots", "attention", "full", "offload")
LAYER_INPUT = "layer_input"


def remat(fn: Callable[..., Any], *, policy: str) -> Callable[..., Any]:
    """Wrap a layer function by name of policy, from most memory to least.

    ``none`` keeps every activation; ``dots`` keeps the outputs of matmuls with weights;
    ``attention`` keeps the layer's input and what the attention kernel returns;
    ``full`` keeps only the layer's input; ``offload`` keeps that in host memory, on
    platforms that have a pinned one (TPU, GPU).

    Raises:
      ValueError: on an unknown name.
    """
    policies = jax.checkpoint_policies
    if policy == "none":
        return fn
    if policy == "dots":
        saved = policies.dots_with_no_batch_dims_saveable
    elif policy == "attention":
        saved = policies.save_from_both_policies(
            policies.save_only_these_names(layers.ATTENTION), _is_cudnn_forward
        )
    elif policy == "full":
        saved = None
    elif policy == "offload":
        saved = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[LAYER_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        raise ValueError(f"model.remat={policy!r}: use one of {REMAT}")
    return jax.checkpoint(fn, policy=saved, prevent_cse=False)


def _is_cudnn_forward(primitive: Any, *_: Any, **__: Any) -> bool:
    """JAX's cuDNN kernel gives its residuals no name, so it is known by its own."""
    return primitive.name.startswith("dot_product_attention_fwd")


class Stack(nnx.Module):
    """``num_layers`` copies of a block, parameters stacked on axis 0 (``layers``)."""

    def __init__(
        self,
        block: Callable[[nnx.Rngs], nnx.Module],
        *,
        num_layers: int,
        rngs: nnx.Rngs,
    ):
        self.blocks = nnx.vmap(block, in_axes=0, out_axes=0)(
            rngs.fork(split=num_layers)
        )

    def __call__(
        self,
        x: jax.Array,
        *args: Any,
        per_layer: Any = None,
        policy: str = "none",
        stop: int | None = None,
    ) -> tuple[jax.Array, Any]:
        """Run the layers in order.

        A block returns its output and what it leaves behind, a pytree or None.

        Args:
          args: passed to every block unchanged.
          per_layer: pytree with a leading layer axis; a block gets its slice.
          policy: see :func:`remat`.
          stop: run only the first `stop` layers; None runs all.

        Returns:
          The last block's output, and what the blocks left behind, stacked on axis 0.
        """
        graphdef, params = nnx.split(self.blocks)
        if stop is not None:
            params, per_layer = jax.tree.map(lambda p: p[:stop], (params, per_layer))

        def layer(carry: jax.Array, scanned: Any) -> tuple[jax.Array, Any]:
            layer_params, extra = scanned
            carry = ad_checkpoint.checkpoint_name(carry, LAYER_INPUT)
            block: Any = nnx.merge(graphdef, layer_params)
            return block(carry, *args, extra)

        return jax.lax.scan(remat(layer, policy=policy), x, (params, per_layer))
