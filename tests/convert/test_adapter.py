"""Exports of LoRA and partial runs, merged or for PEFT; torch is the judge."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import small_family
import torch
from safetensors import numpy as safetensors_numpy

from mpo_jax import checkpoint, config
from mpo_jax.convert import adapter, hf, hub, table, transforms, verify
from mpo_jax.inputs import tokenizer
from mpo_jax.models import adapted, internvl, network
from mpo_jax.models import config as model_config
from mpo_jax.nn import lora
from mpo_jax.nn import params as params_lib

pytestmark = pytest.mark.slow

FLOAT32 = network.Compute(dtype=jnp.float32, remat="none", attention="reference")


def run_config(source, **changes) -> config.RunConfig:
    cfg = config.RunConfig()
    cfg.model.path, cfg.data.meta = str(source), "meta.json"
    for part in adapted.PARTS:
        setattr(cfg.model, f"freeze_{part}", True)
    for name, value in changes.items():
        group = cfg.model.lora if hasattr(cfg.model.lora, name) else cfg.model
        setattr(group, name, value)
    cfg.validate()
    return cfg


def write_run(workdir, source, cfg):
    """A checkpoint as training leaves it, with random adapters; model and weights."""
    found = model_config.load(source)
    base = internvl.InternVL(found)
    run = internvl.InternVL(found, adapted.of(cfg.model, found))
    tree = jax.jit(run.adapt)(hf.load(source, base), jax.random.key(0))
    rng = np.random.default_rng(1)
    flat = {
        path: jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32)
        if lora.is_adapter(path)
        else jnp.asarray(leaf)
        for path, leaf in params_lib.flatten(tree)
    }
    weights = params_lib.unflatten(flat)
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", cfg.checkpoint)
    meta = {"config": dataclasses.asdict(cfg)}
    checkpoints.save(3, {"params": weights}, meta=meta)
    checkpoints.close()
    return run, weights


def our_logits(model, weights, directory):
    token = hub.files_lib.special_token_id(directory, tokenizer.IMG_CONTEXT)
    ids, tiles = verify.example(model, token)
    is_image = ids == token
    slot = np.where(is_image, np.cumsum(is_image).reshape(ids.shape) - 1, -1)

    @jax.jit
    def look(weights, *inputs):
        return model.bind(weights).logits(*inputs, compute=FLOAT32)

    ours = look(
        weights,
        jnp.asarray(ids, jnp.int32),
        jnp.ones(ids.shape, jnp.int32),
        jnp.asarray(slot, jnp.int32),
        jnp.asarray(tiles),
    )
    return np.asarray(ours), ids, tiles, token


def torch_logits(model, ids, tiles):
    pixels = torch.from_numpy(tiles.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        found = model(input_ids=torch.from_numpy(ids), pixel_values=pixels)
    return found.logits.numpy()


@pytest.mark.parametrize("name", ["internlm2", "qwen2", "phi3"])
def test_merged_model_and_peft_adapter_compute_the_same(
    name,
    tmp_path,
    tokenizer_files,
    script,
):
    source = tmp_path / "source"
    small_family.original(source, name, tokenizer_files)
    cfg = run_config(source, language_rank=3, vision_rank=2, scale=1.5)
    run, weights = write_run(tmp_path / "run", source, cfg)
    expected, ids, tiles, token = our_logits(run, weights, source)
    bound = 1e-5 * np.abs(expected).max()

    script(tmp_path / "run", tmp_path / "merged", layout="native")
    merged = verify.torch_model(tmp_path / "merged", token)
    np.testing.assert_allclose(torch_logits(merged, ids, tiles), expected, atol=bound)

    script(source, tmp_path / "base", layout="native")
    base = verify.torch_model(tmp_path / "base", token)
    before = torch_logits(base, ids, tiles)
    assert np.abs(before - expected).max() > 100 * bound
    said = script(tmp_path / "run", tmp_path / "peft", layout="native", adapter=True)
    assert "PEFT adapter" in said
    modes = {file.stat().st_mode for file in (tmp_path / "peft").iterdir()}
    assert len(modes) == 1  # the weights too are readable by others
    with pytest.raises(FileNotFoundError, match="PEFT adapter without its model"):
        hub.locate(tmp_path / "peft")
    wrapped = peft.PeftModel.from_pretrained(base, str(tmp_path / "peft"))
    np.testing.assert_allclose(torch_logits(wrapped, ids, tiles), expected, atol=bound)
    with wrapped.disable_adapter():
        np.testing.assert_array_equal(torch_logits(wrapped, ids, tiles), before)

    # The original layout has no class in transformers: held to the algebra.
    script(tmp_path / "run", tmp_path / "peft_o", layout="original", adapter=True)
    script(tmp_path / "run", tmp_path / "merged_o", layout="original")
    _check_original(tmp_path, source, run)

    loaded = hub.load_params(hub.locate(tmp_path / "run"), run.base)
    flat = dict(params_lib.flatten(loaded))
    for path, leaf in params_lib.flatten(jax.jit(run.fold_adapters)(weights)):
        found = flat[path]
        np.testing.assert_allclose(found, leaf, atol=1e-6, err_msg=path)


def _check_original(tmp_path, source, run):
    base = safetensors_numpy.load_file(source / "model.safetensors")
    merged = safetensors_numpy.load_file(tmp_path / "merged_o/model.safetensors")
    tensors = safetensors_numpy.load_file(tmp_path / "peft_o" / adapter.WEIGHTS)
    raw = json.loads((tmp_path / "peft_o" / adapter.CONFIG).read_text())
    modules = {name.rsplit(".lora_", 1)[0] for name in tensors}
    names = {module.removeprefix("base_model.model.") for module in modules}
    linear = {n.removesuffix(".weight") for n in table.hf_shapes(run.cfg)}
    assert {n for n in linear if re.fullmatch(raw["target_modules"], n)} == names
    assert len(tensors) == 2 * len(names)
    for module in sorted(names):
        a = tensors[f"base_model.model.{module}.lora_A.weight"]
        b = tensors[f"base_model.model.{module}.lora_B.weight"]
        vision = module.startswith("vision_model")
        assert a.shape[0] == b.shape[1] == (2 if vision else 3)
        wanted = base[f"{module}.weight"].astype(np.float32) + 1.5 * (b @ a)
        found = merged.pop(f"{module}.weight")
        np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=module)
    for name, tensor in merged.items():  # all else is as it was
        np.testing.assert_array_equal(tensor, base[name].astype(np.float32), name)


def test_a_run_of_last_layers_and_head_is_exported_whole(
    tmp_path,
    tokenizer_files,
    script,
):
    source = tmp_path / "source"
    small_family.original(source, "qwen2", tokenizer_files)
    cfg = run_config(source, train_vision_layers=1, train_head=True)
    write_run(tmp_path / "run", source, cfg)
    script(tmp_path / "run", tmp_path / "out", layout="original")
    base = safetensors_numpy.load_file(source / "model.safetensors")
    found = safetensors_numpy.load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == base.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, base[name].astype(np.float32), name)
    with pytest.raises(ValueError, match="trained without adapters.*leave out"):
        script(tmp_path / "run", tmp_path / "peft", adapter=True)


def test_an_adapter_is_refused_where_more_was_trained(
    tmp_path,
    tokenizer_files,
    script,
):
    source = tmp_path / "source"
    small_family.original(source, "qwen2", tokenizer_files)
    cfg = run_config(source, language_rank=2, freeze_projector=False)
    write_run(tmp_path / "run", source, cfg)
    with pytest.raises(ValueError, match="projector was trained besides"):
        script(tmp_path / "run", tmp_path / "peft", adapter=True)
    with pytest.raises(ValueError, match="--verify compares a whole model"):
        script(tmp_path / "run", tmp_path / "peft", adapter=True, verify=True)
    listing = script(tmp_path / "run", None)
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in listing


def test_every_transform_has_a_rule_for_its_outputs():
    """B of an adapter is moved as the rows of the weight are."""
    rng = np.random.default_rng(0)
    move = transforms.Move((12, 10), (3, 4, 2, 5), (2, 3, 0, 1))
    cases = [
        (move, 2),
        (transforms.Split(move, 3), 2),
        (transforms.Fused((move, move)), 2),
        (transforms.PackedHeads(4, 2, 3, (10,)), 1),
    ]
    for transform, inward in cases:
        small = adapter.resized(transform, 2, inward)
        a = rng.normal(size=(10, 2))
        parts = [rng.normal(size=shape) for shape in small.part_shapes]
        kernels = tuple(
            np.tensordot(a, b, 1).reshape(shape)
            for b, shape in zip(parts, transform.part_shapes, strict=True)
        )
        whole = transform.to_hf(kernels)
        for weight, up in zip(whole, small.to_hf(tuple(parts)), strict=True):
            np.testing.assert_allclose(weight, up @ a.T, atol=1e-12)
