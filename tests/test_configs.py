"""Every recipe loads, is valid, says how it is started, and traces at full size."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from mpo_jax import config, fields, sharding, types
from mpo_jax.losses import mixture
from mpo_jax.models import adapted, internvl
from mpo_jax.models import config as model_config
from mpo_jax.nn import params as params_lib
from mpo_jax.train import optimizer, state, step

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "configs").glob("*.py"))
ABLATIONS = ("mpo", "bco+dpo") + tuple(
    name + suffix
    for name in "dpo rso ipo cdpo robust bco sppo aot trdpo orpo".split()
    for suffix in ("", "+")
)


def load(stem: str):
    """The config file as a module, as the flag library runs it."""
    spec = importlib.util.spec_from_file_location(
        f"configs_{stem}", ROOT / "configs" / f"{stem}.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(cfg: config.RunConfig) -> None:
    """Valid, stored without loss, and with the reference that its loss needs."""
    cfg.validate()
    assert config.from_json(cfg.to_json()) == cfg
    wanted = cfg.mode == types.MPO and mixture.needs_reference(cfg.loss)
    assert wanted == (cfg.reference.mode != "none")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_config_is_valid_and_its_header_starts_it(file):
    module = load(file.stem)
    cfg = module.get_config()
    if isinstance(cfg, config.RunConfig):
        check(cfg)
    else:
        cfg.validate()
    header = module.__doc__ or ""
    assert "Hardware:" in header
    commands = re.findall(r"python (scripts/\w+\.py)((?:[^\n]*\\\n)*[^\n]*)", header)
    assert commands, "no command in the header"
    started = [re.search(r"--config=configs/(\w+)\.py", rest) for _, rest in commands]
    assert file.stem in [found.group(1) for found in started if found]
    for script, rest in commands:
        source = (ROOT / script).read_text("utf-8")
        words = rest.replace("\\\n", " ").split()
        config.check_overrides(words, cfg)
        flags = {word[2:].split("=")[0] for word in words if word.startswith("--")}
        for flag in flags - {name for name in flags if name.startswith("config.")}:
            assert f'"{flag}"' in source, f"{script} has no --{flag}"


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_is_valid(name):
    cfg = load("ablations").get_config(name)
    check(cfg)
    assert cfg.name == f"ablation_{name}"
    assert ("sft" in cfg.loss.terms) == (name in ("mpo", "orpo") or name[-1] == "+")
    assert cfg.reference.mode == {"trdpo": "moving", "orpo": "none"}.get(
        name.removesuffix("+"), "cache"
    )


def test_ablations_differ_in_their_loss_alone():
    module = load("ablations")
    base = fields.flat(json.loads(module.get_config("mpo").to_json()))
    seen = set()
    for name in ABLATIONS:
        flat = fields.flat(json.loads(module.get_config(name).to_json()))
        changed = {field for field in flat if flat[field] != base[field]}
        assert changed <= {
            *("name", "loss.terms", "loss.weights"),
            *("loss.label_smoothing", "reference.mode"),
        }
        seen.add(json.dumps([flat[f] for f in sorted(flat) if f != "name"]))
    assert len(seen) == len(ABLATIONS) - 1  # orpo has its SFT term either way


def test_the_header_names_every_ablation():
    module = load("ablations")
    names = re.search(r"Names: (.*?), each\s+also", module.__doc__ or "", re.S)
    assert names is not None
    assert re.split(r",\s+", names.group(1)) == list(module.LOSSES)
    assert {n.removesuffix("+") for n in ABLATIONS[2:]} == set(module.LOSSES)


@pytest.mark.parametrize("name", ["", "dpo++", "kto", "DPO", "bco+dpo+"])
def test_unknown_ablation_is_refused(name):
    with pytest.raises(ValueError, match="unknown ablation.*known: mpo"):
        load("ablations").get_config(name)


@pytest.mark.parametrize("stage", ["sft", "mpo"])
def test_stages_on_drawings_are_valid(stage):
    cfg = load("quickstart").get_config(stage)
    check(cfg)
    assert cfg.mode == stage


def test_the_small_form_of_the_miniature():
    assert load("miniature").get_config("quickstart").methods == ("mpo",)
    with pytest.raises(ValueError, match="use one of miniature, search, quick"):
        load("miniature").get_config("big")


def test_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="stage='dpo': use sft or mpo"):
        load("quickstart").get_config("dpo")


def _released_1b(shared: pathlib.Path) -> model_config.InternVLConfig:
    """InternVL2-1B: the 300M tower of the 8B, and the decoder of Qwen2-0.5B."""
    del shared
    vision = {
        **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24},
        **{"num_attention_heads": 16, "image_size": 448, "patch_size": 14},
        **{"qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm"},
    }
    language = {
        **{"architectures": ["Qwen2ForCausalLM"], "vocab_size": 151655},
        **{"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24},
        **{"num_attention_heads": 14, "num_key_value_heads": 2, "rope_theta": 1e6},
        **{"max_position_embeddings": 32768, "tie_word_embeddings": False},
    }
    return model_config.from_hf(
        {
            **{"vision_config": vision, "llm_config": language, "ps_version": "v2"},
            **{"force_image_size": 448, "template": "Hermes-2"},
        }
    )


def _released_8b(shared: pathlib.Path) -> model_config.InternVLConfig:
    (path,) = (shared / "data" / "configs").glob("InternVL2-8B.config*.json")
    return model_config.load(path)


def _abstract_batch(cfg: config.RunConfig, shape: types.RowShape, size: int):
    rows = cfg.rows.row_multiple

    def array(*dims: int, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((rows, *dims), dtype)

    tokens, responses, pairs = shape.tokens, shape.response_tokens, shape.pairs
    return types.PackedBatch(
        tokens=array(tokens),
        positions=array(tokens),
        segment_ids=array(tokens),
        labels=array(responses),
        label_mask=array(responses, dtype=jnp.bool_),
        image_slot=array(shape.prompt_tokens),
        tiles=array(shape.tiles, size, size, 3, dtype=jnp.uint8),
        pair_mask=array(pairs, dtype=jnp.bool_),
        record_ids=array(pairs),
        ref_logps=array(pairs, 2, dtype=jnp.float32),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "released", "billions", "shape"),
    [
        ("internvl2_1b_mpo", _released_1b, 0.94, "long"),
        ("internvl2_8b_mpo", _released_8b, 8.08, "short"),
    ],
)
def test_recipe_traces_at_full_size(request, stem, released, billions, shape):
    """Shapes only: nothing is allocated, nothing is compiled."""
    shared = request.getfixturevalue("shared") if released is _released_8b else ROOT
    cfg = load(stem).get_config()
    model = internvl.InternVL(released(shared))
    size = params_lib.count(model.shapes)
    assert size / 1e9 == pytest.approx(billions, abs=0.01)
    transform, schedule = optimizer.build(cfg.optim, 1000)
    trained = adapted.trained(cfg.model)
    mesh = sharding.make_mesh(
        data=cfg.mesh.data, fsdp=cfg.mesh.fsdp, tensor=cfg.mesh.tensor
    )
    before = state.abstract(
        model, transform=transform, trained=trained, moving=False, mesh=mesh
    )
    row = getattr(cfg.rows, shape).build()
    update = step.build_train_step(
        model,
        cfg,
        row,
        transform=transform,
        schedule=schedule,
        out_shardings=state.shardings_of(before),
    )
    batch = _abstract_batch(cfg, row, model.cfg.image_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        after, metrics = jax.eval_shape(update, before, batch, key, None)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
    assert {x.shape for x in jax.tree.leaves(metrics)} == {()}
    assert {"loss", "loss/sigmoid", "loss/bco_pair", "loss/sft"} < set(metrics)
    # Weights and two moments, each sharded like its weight.
    held = [
        params_lib.count(tree)
        for tree in (before.params, *optimizer_moments(before.opt_state))
    ]
    assert held == [size] * 3


def optimizer_moments(opt_state):
    """Both moments of the one Adam in an optimiser state."""
    (adam,) = [s for s in jax.tree.leaves(opt_state, is_leaf=_is_adam) if _is_adam(s)]
    return adam.mu, adam.nu


def _is_adam(node) -> bool:
    return hasattr(node, "mu") and hasattr(node, "nu")
