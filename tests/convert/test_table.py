"""The conversion table: names, shapes, order, and transforms as exact inverses."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo_jax.convert import table, transforms, writer
from mpo_jax.models import config, internvl
from mpo_jax.nn import params

GOLDENS = (
    *("internvl2-internlm2", "internvl2-qwen2", "internvl1_5-style"),
    *("internvl2-llama", "internvl2-phi3"),
)


def small(architecture: str, *, large_vit: bool, **language) -> config.InternVLConfig:
    """A tiny configuration with numbers that do not divide each other by accident."""
    vision = {
        "hidden_size": 30,
        "num_attention_heads": 5,
        "intermediate_size": 14,
        "num_hidden_layers": 2,
        "patch_size": 7,
        "image_size": 28,
    }
    if not large_vit:
        vision |= {"qkv_bias": True, "qk_normalization": False}
        vision |= {"norm_type": "layer_norm"}
    llm = {
        "architectures": [architecture],
        "vocab_size": 11,
        "hidden_size": 18,
        "intermediate_size": 22,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }
    raw = {"vision_config": vision, "llm_config": llm | language}
    return config.from_hf(raw)


ALL = [
    small("InternLM2ForCausalLM", large_vit=False, bias=False),
    small("InternLM2ForCausalLM", large_vit=True, bias=True),
    small("Qwen2ForCausalLM", large_vit=True),
    small("LlamaForCausalLM", large_vit=False, head_dim=4),
    small("LlamaForCausalLM", large_vit=True, attention_bias=True),
    small("Qwen3ForCausalLM", large_vit=False, head_dim=4),
    small("Phi3ForCausalLM", large_vit=True),
]
LAYOUTS = (table.ORIGINAL, table.NATIVE, table.NATIVE_NEW)


def test_real_8b_names_order_and_shards(shared):
    """The released 8B: its 573 keys, its bytes, and where each file is cut."""
    raw = json.loads(
        (shared / "data/configs/InternVL2-8B.config.transcribed.json").read_text()
    )
    cfg = config.from_hf(raw)
    index = json.loads(
        (
            shared / "data/weight_maps/InternVL2_5-8B.model.safetensors.index.json"
        ).read_text()
    )
    shapes = table.hf_shapes(cfg)
    assert len(shapes) == 573
    sizes = {name: 2 * math.prod(shape) for name, shape in shapes.items()}
    assert sum(sizes.values()) == index["metadata"]["total_size"]
    # Equal only if names, shapes and their order are the released ones.
    assert writer.plan_shards(sizes) == index["weight_map"]


def test_real_8b_module_shapes(shared):
    raw = json.loads(
        (shared / "data/configs/InternVL2-8B.config.transcribed.json").read_text()
    )
    shapes = table.hf_shapes(config.from_hf(raw))
    text = (shared / "data/weight_maps/InternVL2_5-8B.module_print.txt").read_text()
    linears = re.findall(
        r"\((\w+)\): Linear\(in_features=(\d+), out_features=(\d+), bias=(\w+)\)", text
    )
    assert len(linears) == 12
    for leaf, inward, out, bias in linears:
        names = [n for n in shapes if n.endswith(f".{leaf}.weight")]
        if leaf in ("1", "3"):  # of the projector; layers have numbers too
            names = [f"mlp1.{leaf}.weight"]
        assert names
        for name in names:
            assert shapes[name] == (int(out), int(inward))
            has_bias = name.replace(".weight", ".bias") in shapes
            assert has_bias == (bias == "True")
    assert shapes["language_model.model.tok_embeddings.weight"] == (92553, 4096)
    assert shapes["vision_model.embeddings.patch_embedding.weight"] == (
        (1024, 3, 14, 14)
    )


def test_real_26b_parameters(shared):
    """The 6B tower and InternLM2-20B have the released total."""
    raw = json.loads(
        (shared / "data/configs/InternVL2-26B.config.transcribed.json").read_text()
    )
    shapes = table.hf_shapes(config.from_hf(raw))
    vision = [n for n in shapes if n.startswith("vision_model.")]
    assert len(vision) == 589
    assert sum(math.prod(s) for s in shapes.values()) == 25_514_186_112


def test_numbers_of_vision_tensors():
    """300M style has 4 + 14 per layer, 6B style 4 + 13 per layer."""
    for large, per_layer in ((False, 14), (True, 13)):
        cfg = small("LlamaForCausalLM", large_vit=large)
        names = [n for n in table.hf_shapes(cfg) if n.startswith("vision_model.")]
        assert len(names) == 4 + 2 * per_layer


@pytest.mark.parametrize("cfg", ALL, ids=lambda c: c.language.kind)
def test_table_fills_the_model(cfg):
    table.check(cfg, internvl.InternVL(cfg).shapes)


def test_check_names_what_differs():
    cfg = ALL[0]
    flat = dict(params.flatten(internvl.InternVL(cfg).shapes))
    flat["vision/new/kernel"] = flat.pop("projector/fc2/bias")
    flat["language/norm/scale"] = np.zeros((19,))
    with pytest.raises(ValueError, match="disagree") as error:
        table.check(cfg, params.unflatten(flat))
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 3 * 3  # in every layout
    for path in ("vision/new/kernel", "projector/fc2/bias", "language/norm/scale"):
        assert path in str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cfg", ALL, ids=lambda c: c.language.kind)
def test_every_transform_is_an_exact_inverse(cfg, layout):
    rows = [row for group in table.groups(cfg, layout) for row in group.rows]
    names = [name for row in rows for name in row.names]
    assert len(set(names)) == len(names)
    for row in rows:
        shapes = row.transform.hf_shapes
        tensors = tuple(
            1000 * i + np.arange(math.prod(shape)).reshape(shape)
            for i, shape in enumerate(shapes)
        )
        parts = row.transform.to_parts(tensors)
        assert [part.shape for part in parts] == list(row.transform.part_shapes)
        assert sum(p.size for p in parts) == sum(t.size for t in tensors)
        back = row.transform.to_hf(parts)
        for tensor, again in zip(tensors, back, strict=True):
            np.testing.assert_array_equal(again, tensor)


@pytest.mark.parametrize("cfg", ALL, ids=lambda c: c.language.kind)
def test_layouts_are_told_from_names(cfg):
    for layout in LAYOUTS:
        shapes = table.hf_shapes(cfg, layout)
        assert table.detect(shapes) == layout
        total = sum(math.prod(shape) for shape in shapes.values())
        assert total == sum(math.prod(s) for s in table.hf_shapes(cfg).values())


def test_wqkv_first_rows():
    """Where heads lie in the packed rows of 6 query and 2 key/value heads of 3."""
    rows = np.arange(30)
    packed = transforms.PackedHeads(heads=6, kv_heads=2, head_dim=3, rest=())
    query, key, value = packed.to_parts((rows,))
    assert query[:, 0].tolist() == [0, 3, 6, 15, 18, 21]
    assert key[:, 0].tolist() == [9, 24]
    assert value[:, 0].tolist() == [12, 27]


@given(
    kv_heads=st.integers(1, 4),
    groups=st.integers(1, 4),
    head_dim=st.integers(1, 5),
    width=st.integers(1, 6),
)
def test_wqkv_projects_the_same(kv_heads, groups, head_dim, width):
    """Query, key and value of an input equal the released rule's, head by head."""
    rng = np.random.default_rng(0)
    rows = kv_heads * (groups + 2) * head_dim
    weight, x = rng.integers(-9, 9, (rows, width)), rng.integers(-9, 9, width)
    packed = transforms.PackedHeads(kv_heads * groups, kv_heads, head_dim, (width,))
    query, key, value = packed.to_parts((weight,))
    out = (weight @ x).reshape(kv_heads, groups + 2, head_dim)
    for head in range(kv_heads * groups):
        expected = out[head // groups, head % groups]
        np.testing.assert_array_equal(x @ query[:, head], expected)
    np.testing.assert_array_equal(np.einsum("d,dkh->kh", x, key), out[:, -2])
    np.testing.assert_array_equal(np.einsum("d,dkh->kh", x, value), out[:, -1])


def test_linear_and_conv_orientation():
    """A kernel maps an input as torch's ``weight @ x`` does."""
    cfg = small("Qwen2ForCausalLM", large_vit=False)
    rows = {row.names[0]: row for group in table.groups(cfg) for row in group.rows}
    rng = np.random.default_rng(1)

    qkv = rows["vision_model.encoder.layers.{layer}.attn.qkv.weight"].transform
    weight, x = rng.integers(-9, 9, qkv.hf_shapes[0]), rng.integers(-9, 9, 30)
    (kernel,) = qkv.to_parts((weight,))
    np.testing.assert_array_equal(
        np.einsum("d,dcnh->cnh", x, kernel), (weight @ x).reshape(3, 5, 6)
    )

    out = rows["language_model.model.layers.{layer}.self_attn.o_proj.weight"].transform
    weight, heads = rng.integers(-9, 9, out.hf_shapes[0]), rng.integers(-9, 9, (6, 3))
    (kernel,) = out.to_parts((weight,))
    np.testing.assert_array_equal(
        np.einsum("nh,nhd->d", heads, kernel), weight @ heads.reshape(-1)
    )

    conv = rows["vision_model.embeddings.patch_embedding.weight"].transform
    weight = rng.integers(-9, 9, conv.hf_shapes[0])
    patch = rng.integers(-9, 9, (7, 7, 3))
    (kernel,) = conv.to_parts((weight,))
    np.testing.assert_array_equal(
        np.einsum("yxc,yxco->o", patch, kernel),
        np.einsum("ocyx,yxc->o", weight, patch),
    )


@pytest.mark.parametrize("name", GOLDENS)
def test_order_is_that_of_the_state_dict(shared, name):
    directory = shared / "goldens" / name
    with np.load(directory / "golden.npz") as stored:
        order = list(json.loads(str(stored["grad_norms"])))
    ours = [n for n in table.hf_shapes(config.load(directory)) if n in set(order)]
    assert ours == order
