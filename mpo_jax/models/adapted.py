"""What of a model is trained: parts, last layers, adapters; one tree, one predicate.

A run whose training is partial has parameters of another structure than its base, the
model as released: adapters stand beside their kernels (``lora_a``, ``lora_b``), and the
vision tower's last layers may be a stack of their own (``vision/last_layers``), so that
every leaf is trained or frozen as a whole. Then :func:`trained` tells them apart by
path, for gradients, optimiser, reference and export alike.

Three trees: the *base's*, as released; the run's *without adapters*, which differs from
it in the tower's stacks alone; and the run's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mpo_jax import config
from mpo_jax.models.config import InternVLConfig
from mpo_jax.nn import lora, params

PARTS = ("vision", "projector", "language")
Predicate = Callable[[str], bool]
_FIRST, _LAST = "vision/layers/", "vision/last_layers/"
# Maps that stand in one weight in released files, with its name there.
_FUSED = {
    "internlm2": {"attention.wqkv": ("q", "k", "v")},
    "phi3": {
        "self_attn.qkv_proj": ("q", "k", "v"),
        "mlp.gate_up_proj": ("gate", "up"),
    },
}


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """How a run's parameters differ in structure from the base's.

    Attributes:
      language, vision: adapters of either tower's layers.
      vision_layers: last layers of the vision tower in a stack of their own.
    """

    language: lora.Adapters = lora.NONE
    vision: lora.Adapters = lora.NONE
    vision_layers: int = 0

    @property
    def without_adapters(self) -> Adaptation:
        """The same without adapters."""
        return Adaptation(vision_layers=self.vision_layers)


UNADAPTED = Adaptation()


def of(cfg: config.ModelConfig, model: InternVLConfig) -> Adaptation:
    """Structure that a run's config asks for.

    Raises:
      ValueError: if maps that are one weight in released files are adapted apart; an
        export could not hold that.
    """
    ours = cfg.lora
    language = vision = lora.NONE
    if ours.language_rank:
        fused = _FUSED.get(model.language.kind, {})
        for name, maps in fused.items():
            targeted = set(maps) & set(ours.language_targets)
            if targeted and targeted != set(maps):
                raise ValueError(
                    f"model.lora.language_targets={ours.language_targets!r}: "
                    f"{', '.join(maps)} are one weight of this model ({name}); "
                    "name all of them or none"
                )
        sharing = {name for _, *later in fused.values() for name in later}
        language = lora.Adapters(
            ours.language_rank,
            float(ours.scale),
            tuple(ours.language_targets),
            tuple(name for name in ours.language_targets if name in sharing),
        )
    if ours.vision_rank:
        targets = tuple(ours.vision_targets)
        vision = lora.Adapters(ours.vision_rank, float(ours.scale), targets)
    return Adaptation(language, vision, cfg.train_vision_layers)


def all_trained(_: str) -> bool:
    """The predicate of a run that trains all it has."""
    return True


def trained(cfg: config.ModelConfig) -> Predicate:
    """Is the parameter with this path trained?

    Raises:
      ValueError: if nothing is.
    """
    frozen = {
        "vision": cfg.freeze_vision,
        "projector": cfg.freeze_projector,
        "language": cfg.freeze_language,
    }
    more = cfg.train_vision_layers or cfg.train_head or cfg.lora.used
    if all(frozen.values()) and not more:
        raise ValueError(
            "model.freeze_vision, freeze_projector and freeze_language are all True: "
            "nothing is left to train; free a part, or set model.lora, "
            "model.train_vision_layers or model.train_head"
        )

    def predicate(path: str) -> bool:
        if lora.is_adapter(path) or not frozen[path.split("/", 1)[0]]:
            return True
        if path.startswith(_LAST):
            return bool(cfg.train_vision_layers)
        return cfg.train_head and path.startswith("language/lm_head/")

    return predicate


def partition(
    tree: Mapping[str, Any], is_trained: Predicate
) -> tuple[params.Params, params.Params]:
    """Split a tree into its trained and its frozen leaves."""
    sides: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for path, leaf in params.flatten(tree):
        sides[0 if is_trained(path) else 1][path] = leaf
    return params.unflatten(sides[0]), params.unflatten(sides[1])


def union(*trees: Mapping[str, Any]) -> params.Params:
    """Inverse of :func:`partition`; of leaves that stand in several, the last."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat |= dict(params.flatten(tree))
    return params.unflatten(flat)


def without_adapters(tree: Mapping[str, Any]) -> params.Params:
    """The tree without adapters, which switches them off."""
    return partition(tree, lora.is_adapter)[1]


def kept_by_reference(tree: Mapping[str, Any], is_trained: Predicate) -> params.Params:
    """Leaves that a reference needs of its own: trained ones that are no adapters.

    All else it shares with the policy, whose adapters it leaves out. Where adapters
    alone are trained that is nothing.
    """
    return partition(without_adapters(tree), is_trained)[0]


def base_path(path: str) -> str:
    """Path in the base's tree of a parameter that is no adapter."""
    return _FIRST + path.removeprefix(_LAST) if path.startswith(_LAST) else path


def split_tower(
    base_weights: Mapping[str, Any], shapes: Mapping[str, Any], adaptation: Adaptation
) -> params.Params:
    """The run's tree without adapters: the tower's last layers in their own stack.

    Args:
      base_weights: the base's arrays.
      shapes: of the result.
    """
    if not adaptation.vision_layers:
        return params.unflatten(dict(params.flatten(base_weights)))
    wanted = dict(params.flatten(shapes))
    flat: dict[str, Any] = {}
    for path, leaf in params.flatten(base_weights):
        if not path.startswith(_FIRST):
            flat[path] = leaf
            continue
        at = wanted[path].shape[0]
        flat[path] = leaf[:at]
        flat[_LAST + path.removeprefix(_FIRST)] = leaf[at:]
    return params.unflatten(flat)


def join_tower(tree: Mapping[str, Any]) -> params.Params:
    """Inverse of :func:`split_tower`: the base's tree."""
    flat = dict(params.flatten(tree))
    for path in [p for p in flat if p.startswith(_LAST)]:
        first = base_path(path)
        flat[first] = jnp.concatenate([flat[first], flat.pop(path)])
    return params.unflatten(flat)


def fold_adapters(tree: Mapping[str, Any], adaptation: Adaptation) -> params.Params:
    """The tree without adapters, their products added to their kernels.

    Products and sums are in float32, results in the kernels' dtypes.
    """
    flat = dict(params.flatten(tree))
    folded = {}
    for path, leaf in flat.items():
        found = lora.paths(path, flat)
        if found is not None:
            a, b = (flat[name].astype(jnp.float32) for name in found)
            scale = scale_of(path, adaptation)
            delta = jax.vmap(
                lambda a, b: jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
            )(a, b)
            leaf = (leaf.astype(jnp.float32) + scale * delta).astype(leaf.dtype)
        if not lora.is_adapter(path):
            folded[path] = leaf
    return params.unflatten(folded)


def rebuild(
    build: Callable[[params.Params], params.Params],
    tree: Mapping[str, Any],
    *,
    shapes: Mapping[str, Any],
    shardings: Any,
) -> params.Params:
    """``build(tree)`` in one program; arrays that keep their shape are donated.

    Args:
      shapes, shardings: of the result.
    """
    wanted = {path: leaf.shape for path, leaf in params.flatten(shapes)}
    held = {path: leaf.shape for path, leaf in params.flatten(tree)}
    donated, kept = partition(tree, lambda path: wanted.get(path) == held[path])
    function = jax.jit(
        lambda donated, kept: build(union(donated, kept)),
        out_shardings=shardings,
        donate_argnums=0,
    )
    return function(donated, kept)


def scale_of(path: str, adaptation: Adaptation) -> float:
    """Factor of the adapter at a path."""
    part = path.split("/", 1)[0]
    return (adaptation.vision if part == "vision" else adaptation.language).scale


def locate(
    path: str, layer: int | None, shapes: Mapping[str, Any]
) -> tuple[str, int | None]:
    """Where a layer of a base parameter stands in a run's tree.

    Args:
      shapes: flat, path to shape or array of the run's tree.
    """
    last = _LAST + path.removeprefix(_FIRST)
    if layer is None or not path.startswith(_FIRST) or last not in shapes:
        return path, layer
    first = shapes[path].shape[0]
    return (path, layer) if layer < first else (last, layer - first)


def describe(
    shapes: Mapping[str, Any], is_trained: Predicate
) -> Iterator[tuple[str, int, int]]:
    """Per part: its name, its parameters, and how many of them are trained."""
    for part in PARTS:
        tree = {part: shapes[part]}
        yield part, params.count(tree), params.count(partition(tree, is_trained)[0])
