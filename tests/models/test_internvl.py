"""What parameters a model says it has, and what it makes of them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import packed
import pytest

from mpo_jax.models import adapted, internvl
from mpo_jax.nn import lora, params

ADAPTED = adapted.Adaptation(
    language=lora.Adapters(2, 0.5, ("q", "v")),
    vision=lora.Adapters(2, 0.5, ("qkv",)),
    vision_layers=1,
)


@pytest.mark.parametrize("adaptation", [adapted.UNADAPTED, ADAPTED])
def test_shapes_and_axes_are_those_of_initial_parameters(adaptation):
    model = internvl.InternVL(packed.tiny_config(), adaptation)
    drawn = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.structure(drawn) == jax.tree.structure(model.shapes)
    axes = dict(params.flatten(model.axes))
    for path, leaf in params.flatten(drawn):
        stated = dict(params.flatten(model.shapes))[path]
        assert (leaf.shape, leaf.dtype) == (stated.shape, stated.dtype)
        assert len(axes[path]) == len(leaf.shape)
        assert ("layers" in axes[path]) == ("layers/blocks" in path)


def test_bind_hands_out_the_parameters_it_got():
    model = internvl.InternVL(packed.tiny_config())
    rng = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype("float32"), model.shapes
    )
    bound = model.bind(weights)
    np.testing.assert_array_equal(
        bound.lm_head(), weights["language"]["lm_head"]["kernel"]
    )
    again = params.values(bound)
    assert jax.tree.structure(again) == jax.tree.structure(weights)
    jax.tree.map(np.testing.assert_array_equal, again, weights)


def test_each_of_the_three_models_knows_the_others():
    cfg = packed.tiny_config()
    model = internvl.InternVL(cfg, ADAPTED)
    without = model.without_adapters
    assert without.adaptation == adapted.Adaptation(vision_layers=1)
    assert without.without_adapters is without
    assert without.base is not without and without.base.adaptation == adapted.UNADAPTED
    base = model.base
    assert base.base is base and base.without_adapters is base
    only = dataclasses.replace(ADAPTED, vision_layers=0)
    assert internvl.InternVL(cfg, only).without_adapters.adaptation == adapted.UNADAPTED


def test_the_tower_is_split_and_joined():
    cfg = packed.tiny_config()
    model = internvl.InternVL(cfg, adapted.Adaptation(vision_layers=1))
    rng = np.random.default_rng(0)
    released = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype("float32"),
        internvl.InternVL(cfg).shapes,
    )
    split = adapted.split_tower(released, model.shapes, model.adaptation)
    jax.tree.map(
        lambda a, b: np.testing.assert_equal(a.shape, b.shape), split, model.shapes
    )
    scale = split["vision"]["last_layers"]["blocks"]["ls1"]
    np.testing.assert_array_equal(
        scale, released["vision"]["layers"]["blocks"]["ls1"][-1:]
    )
    joined = adapted.join_tower(split)
    jax.tree.map(np.testing.assert_array_equal, joined, released)
