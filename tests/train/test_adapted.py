"""Adapters, last layers and frozen parts: what is computed, trained and kept."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest
from test_step import LAYOUT, assert_same, pairs, rows_of, run_config

from mpo_jax import config, sharding
from mpo_jax.models import adapted, flops, internvl
from mpo_jax.models.config import InternVLConfig
from mpo_jax.nn import lora
from mpo_jax.nn import params as params_lib
from mpo_jax.plan import hlo, schedule
from mpo_jax.train import optimizer
from mpo_jax.train import state as state_lib
from mpo_jax.train import step as step_lib

TERMS = ("loss", "loss/sigmoid", "loss/bco_pair", "loss/sft", "grad_norm")
FROZEN = {f"model__freeze_{part}": True for part in adapted.PARTS}


def made(kind: str = "qwen2", **vision) -> InternVLConfig:
    """A tiny model with three vision layers and a decoder of this kind."""
    cfg = packed.tiny_config()
    tower = dataclasses.replace(cfg.vision, num_hidden_layers=3, **vision)
    language = dataclasses.replace(cfg.language, kind=kind)
    return dataclasses.replace(cfg, vision=tower, language=language)


def lora_config(*, language=4, vision=0, scale=2.0, **changes) -> config.RunConfig:
    cfg = run_config(**(FROZEN | changes))
    cfg.model.lora.language_rank, cfg.model.lora.vision_rank = language, vision
    cfg.model.lora.scale = scale
    return cfg


def drawn(model: internvl.InternVL, *, seed: int = 0, b: float = 0.1):
    """Random parameters, adapters included (their ``B`` times `b`)."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, leaf in params_lib.flatten(model.shapes):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path.endswith(("scale", "ls1", "ls2")):
            flat[path] = 1 + 0.1 * noise
        else:
            flat[path] = (b if path.endswith(lora.B) else 0.1) * noise
    return params_lib.unflatten(flat)


def batch_of(seed: int = 0, *, refs: bool = True):
    examples = pairs(seed=seed)
    rows, ids = rows_of(examples, LAYOUT)
    found = {i: (-20.0 - i / 3, -21.0 + i / 5) for i in range(len(examples))}
    return packed.batch(rows, ids=ids, refs=found if refs else None)


class Run:
    """A run's state and step, after the config alone."""

    def __init__(self, cfg: config.RunConfig, model_cfg=None, *, sizes=(1, 1, 1)):
        cfg.model.path, cfg.data.meta = "model", "meta.json"
        cfg.validate()
        self.cfg, model_cfg, self.looks = cfg, model_cfg or made(), {}
        self.model = internvl.InternVL(model_cfg, adapted.of(cfg.model, model_cfg))
        self.trained = adapted.trained(cfg.model)
        devices = jax.devices()[: int(np.prod(sizes))]
        self.mesh = sharding.make_mesh(
            data=sizes[0], fsdp=sizes[1], tensor=sizes[2], devices=devices
        )
        cfg.optim.warmup_fraction = 0.0
        self.transform, rate = optimizer.build(cfg.optim, 10)
        self.abstract = state_lib.abstract(
            self.model,
            transform=self.transform,
            trained=self.trained,
            moving=cfg.reference.mode == "moving",
            mesh=self.mesh,
            **state_lib.dtypes(cfg.model),
        )
        self.step = step_lib.build_train_step(
            self.model,
            cfg,
            packed.SHAPE,
            transform=self.transform,
            schedule=rate,
            out_shardings=state_lib.shardings_of(self.abstract),
        )

    def start(self, weights) -> state_lib.TrainState:
        made = state_lib.create(
            weights,
            transform=self.transform,
            trained=self.trained,
            moving=self.cfg.reference.mode == "moving",
        )
        return jax.tree.map(
            lambda x, like: jax.device_put(jnp.asarray(x, like.dtype), like.sharding),
            made,
            self.abstract,
        )

    def update(self, weights, batch=None, *, reference=None):
        batch = batch_of() if batch is None else batch
        with jax.set_mesh(self.mesh):
            after, metrics = self.step(
                self.start(weights),
                sharding.to_global(batch, self.mesh),
                jax.random.key(1),
                reference,
            )
        means = {k: float(s) / float(w) for k, (s, w) in metrics.items() if float(w)}
        return jax.tree.map(np.asarray, after), means

    def logps(self, model, weights, batch):
        if model not in self.looks:
            self.looks[model] = step_lib.build_logps_step(
                model, self.cfg.model, packed.SHAPE, self.mesh
            )
        with jax.set_mesh(self.mesh):
            found = self.looks[model](weights, sharding.to_global(batch, self.mesh))
            return np.asarray(found)


def moment(state: state_lib.TrainState):
    """First moments, in the structure of what is trained."""
    return dict(params_lib.flatten(optimizer.optax.tree.get(state.opt_state, "mu")))


def changed(before, after) -> set[str]:
    flat = dict(params_lib.flatten(before))
    return {
        path
        for path, leaf in params_lib.flatten(after)
        if not np.array_equal(leaf, flat[path])
    }


@pytest.mark.parametrize("kind", ["qwen2", "phi3"])
def test_a_fresh_adapter_changes_nothing_and_a_folded_one_nothing_more(kind):
    run = Run(lora_config(vision=3), made(kind))
    base = drawn(run.model.base)
    fresh = run.model.adapt(base, jax.random.key(0))
    batch = batch_of(refs=False)
    expected = run.logps(run.model.base, base, batch)
    np.testing.assert_array_equal(run.logps(run.model, fresh, batch), expected)
    assert_same(run.model.fold_adapters(fresh), base, rtol=0)

    weights = drawn(run.model, b=0.3)
    found = run.logps(run.model, weights, batch)
    folded = run.model.fold_adapters(weights)
    # Sums of some thirty log-probs, float32 in another order.
    np.testing.assert_allclose(
        run.logps(run.model.base, folded, batch), found, rtol=1e-5
    )
    released = run.model.fold_adapters(adapted.without_adapters(weights))
    without = run.logps(run.model.base, released, batch)
    real = batch.pair_mask
    assert np.abs(found - without)[real].min() > 1e-3


def test_a_is_drawn_as_in_peft_and_b_is_zero():
    run = Run(lora_config(vision=3))
    fresh = run.model.adapt(drawn(run.model.base), jax.random.key(0))
    adapters = adapted.partition(fresh, lora.is_adapter)[0]
    for path, leaf in params_lib.flatten(adapters):
        if path.endswith(lora.B):
            assert not np.any(leaf), path
            continue
        inputs = int(np.prod(leaf.shape[1:-1]))
        bound = inputs**-0.5
        assert np.abs(leaf).max() <= bound and np.abs(leaf).max() > 0.9 * bound
        # Uniform: standard deviation bound / sqrt(3); some hundred draws.
        assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=0.15), path


def test_fused_weights_share_their_a():
    paths = dict(params_lib.flatten(Run(lora_config()).model.shapes))
    own = {p.split("/")[-2] for p in paths if p.endswith(lora.A)}
    assert own == {"q", "k", "v", "o", "gate", "up", "down"}
    for kind, sharing in (("internlm2", {"k", "v"}), ("phi3", {"k", "v", "up"})):
        model = Run(lora_config(), made(kind)).model
        paths = dict(params_lib.flatten(model.shapes))
        without_a = {
            p.split("/")[-2]
            for p in paths
            if p.endswith(lora.B) and p.replace(lora.B, lora.A) not in paths
        }
        assert without_a == sharing
    cfg = lora_config()
    cfg.model.lora.language_targets = ("q", "v")
    Run(cfg)
    with pytest.raises(ValueError, match="q, k, v are one weight.*attention.wqkv"):
        Run(cfg, made("internlm2"))


def test_targets_and_scale_are_read():
    cfg = lora_config(vision=2)
    cfg.model.lora.language_targets = ("q", "down")
    cfg.model.lora.vision_targets = ("fc1",)
    run = Run(cfg)
    weights = drawn(run.model, b=0.3)
    owners = {
        p.rsplit("/", 2)[1]
        for p, _ in params_lib.flatten(weights)
        if lora.is_adapter(p)
    }
    assert owners == {"q", "down", "fc1"}
    batch = batch_of(refs=False)
    one = run.logps(run.model, weights, batch)
    cfg = lora_config(vision=2, scale=1.0)
    cfg.model.lora.language_targets = ("q", "down")
    cfg.model.lora.vision_targets = ("fc1",)
    half = Run(cfg)
    doubled = {
        path: leaf * (2 if path.endswith(lora.B) else 1)
        for path, leaf in params_lib.flatten(weights)
    }
    other = half.logps(half.model, params_lib.unflatten(doubled), batch)
    np.testing.assert_allclose(other, one, rtol=1e-6)
    assert np.abs(half.logps(half.model, weights, batch) - one).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["internlm2"])
def test_gradients_of_adapters_are_those_of_the_folded_weight(kind):
    """By the chain rule: dA = scale · dW Bᵀ, dB = scale · Aᵀ dW, at every map."""
    run = Run(lora_config(vision=3), made(kind))
    weights = drawn(run.model, b=0.3)
    whole = Run(run_config(), made(kind))
    folded = run.model.fold_adapters(weights)
    run_after, means = run.update(weights)
    whole_after, expected = whole.update(folded)
    assert means["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    # Moments are clipped gradients times 1 - b1: undo the two clippings.
    clip = {
        id(after): min(1.0, 1.0 / found["grad_norm"])
        for after, found in ((run_after, means), (whole_after, expected))
    }
    ours = {p: g / clip[id(run_after)] for p, g in moment(run_after).items()}
    full = {p: g / clip[id(whole_after)] for p, g in moment(whole_after).items()}
    flat = dict(params_lib.flatten(weights))
    assert set(ours) == {path for path in flat if lora.is_adapter(path)}
    wanted = {path: np.zeros_like(leaf) for path, leaf in ours.items()}
    for kernel in full:
        found = lora.paths(kernel, flat)
        if found is None:
            continue
        a, b = (flat[name] for name in found)
        for layer in range(len(a)):
            d = full[kernel][layer]
            out = d.ndim - (a.ndim - 2)
            wanted[found[0]][layer] += 2.0 * np.tensordot(
                d, b[layer], (range(d.ndim - out, d.ndim), range(1, b.ndim - 0)[:out])
            )
            inward = a.ndim - 2
            wanted[found[1]][layer] += 2.0 * np.tensordot(
                a[layer], d, (range(inward), range(inward))
            )
    for path, expected_gradient in wanted.items():
        np.testing.assert_allclose(
            ours[path],
            expected_gradient,
            rtol=0,
            atol=1e-4 * np.abs(expected_gradient).max() + 1e-7,
            err_msg=path,
        )


CASES = {
    "adapters": (lora_config, {}, lambda p: lora.is_adapter(p)),
    "adapters and projector": (
        lora_config,
        {"model__freeze_projector": False},
        lambda p: lora.is_adapter(p) or p.startswith("projector/"),
    ),
    "adapters of both": (lora_config, {"vision": 3}, lora.is_adapter),
    "last vision layer": (
        run_config,
        {**FROZEN, "model__train_vision_layers": 1},
        lambda p: p.startswith("vision/last_layers/"),
    ),
    "head": (
        run_config,
        {**FROZEN, "model__train_head": True},
        lambda p: p.startswith("language/lm_head/"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_only_what_is_trained_has_moments_and_moves(case):
    build, changes, wanted = CASES[case]
    run = Run(build(**changes))
    weights = drawn(run.model)
    after, means = run.update(weights)
    paths = {path for path in dict(params_lib.flatten(weights)) if wanted(path)}
    assert paths and set(moment(after)) == paths
    assert changed(weights, after.params) == paths
    parts = {path.split("/")[0] for path in paths}
    norms = {name for name in means if name.startswith("grad_norm/")}
    assert norms == {f"grad_norm/{part}" for part in parts}


@pytest.mark.slow
def test_last_layers_have_the_gradients_of_the_whole_tower():
    changes = {"model__drop_path": 0.5}  # each layer keeps its own factors
    part = Run(
        run_config(**changes, model__freeze_vision=True, model__train_vision_layers=2)
    )
    whole = Run(run_config(**changes))
    base = drawn(whole.model)
    tree = part.model.adapt(base, jax.random.key(0))
    assert_same(part.model.fold_adapters(tree), base, rtol=0)
    found, means = part.update(tree)
    expected, wanted = whole.update(base)
    assert means["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
    scale = min(1, 1 / wanted["grad_norm"]) / min(1, 1 / means["grad_norm"])
    full = moment(expected)
    for path, gradient in moment(found).items():
        other = full[adapted.base_path(path)] / scale
        if path.startswith("vision/"):
            other = other[1:]
        np.testing.assert_allclose(
            gradient, other, rtol=0, atol=1e-4 * np.abs(other).max() + 1e-8
        )


def test_as_many_layers_as_run_are_refused():
    cfg = run_config(model__freeze_vision=True, model__train_vision_layers=3)
    with pytest.raises(ValueError, match="train_vision_layers=3: the tower runs 3"):
        Run(cfg)


@pytest.mark.slow
def test_the_reference_of_adapters_is_the_policy_without_them():
    """Nothing is copied, and its log-probs are the base's, without drop path."""
    cfg = lora_config(vision=3, reference__mode="online", model__drop_path=0.5)
    run = Run(cfg)
    weights = drawn(run.model, b=0.3)
    assert adapted.kept_by_reference(weights, run.trained) == {}
    batch = batch_of(refs=False)
    refs = run.logps(run.model.base, adapted.without_adapters(weights), batch)
    cached = dataclasses.replace(batch, ref_logps=refs)
    after, online = run.update(weights, batch, reference={})
    other, expected = run.update(weights, cached)
    for name in (*TERMS, "rewards/chosen", "rewards/margins"):
        np.testing.assert_allclose(online[name], expected[name], rtol=1e-5, atol=1e-6)
    assert abs(expected["rewards/chosen"]) > 1e-3  # the adapter matters
    for path, leaf in moment(after).items():
        np.testing.assert_allclose(leaf, moment(other)[path], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "moving"])
def test_a_reference_keeps_only_what_is_trained(mode):
    changes = {"model__freeze_vision": True, "model__train_vision_layers": 1}
    cfg = run_config(**changes, reference__mode=mode, reference__moving_every=1)
    run = Run(cfg)
    weights = drawn(run.model)
    kept = adapted.kept_by_reference(weights, run.trained)
    assert "vision/layers/blocks/fc1/kernel" not in dict(params_lib.flatten(kept))
    batch = batch_of(refs=False)
    after, means = run.update(
        weights, batch, reference=kept if mode == "online" else None
    )
    assert means["rewards/margins"] == pytest.approx(0, abs=1e-5)
    if mode == "moving":
        new = adapted.partition(after.params, run.trained)[0]
        mixed = jax.tree.map(lambda old, new: old + 0.6 * (new - old), kept, new)
        assert_same(after.reference, mixed, rtol=1e-5)


@functools.cache
def on_one_device(case: str):
    build, changes, _ = CASES[case]
    run = Run(build(**changes), made("internlm2"))
    return run.update(drawn(run.model, b=0.3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        ("adapters of both", (2, 2, 2)),
        ("adapters of both", (1, 2, 4)),
        ("last vision layer", (2, 4, 1)),
    ],
    ids=str,
)
def test_meshes_change_nothing(case, sizes):
    build, changes, _ = CASES[case]
    one, means = on_one_device(case)
    run = Run(build(**changes), made("internlm2"), sizes=sizes)
    many, found = run.update(drawn(run.model, b=0.3))
    for name in TERMS:
        np.testing.assert_allclose(found[name], means[name], rtol=1e-5)
    expected = moment(one)
    bound = 1e-5 * max(np.abs(gradient).max() for gradient in expected.values())
    for path, gradient in moment(many).items():
        np.testing.assert_allclose(
            gradient, expected[path], rtol=0, atol=bound, err_msg=path
        )


def test_adapters_lie_where_the_rules_say():
    run = Run(lora_config(vision=3), sizes=(1, 2, 4))
    placed = dict(params_lib.flatten(run.abstract.params))
    q = "language/layers/blocks/attn/q"
    assert placed[f"{q}/lora_a"].sharding.spec[1] == "fsdp"
    assert placed[f"{q}/lora_b"].sharding.spec[2] == "tensor"
    down = "language/layers/blocks/mlp/down"
    assert placed[f"{down}/lora_a"].sharding.spec[1] == "tensor"
    assert placed[f"{down}/lora_b"].sharding.spec[2] == "fsdp"


@pytest.mark.slow
def test_frozen_weights_have_their_dtype_and_lose_nothing():
    plain = Run(lora_config())
    small = Run(lora_config(model__frozen_dtype="bfloat16"))
    for path, leaf in params_lib.flatten(small.abstract.params):
        assert leaf.dtype == ("float32" if lora.is_adapter(path) else "bfloat16")
    weights = jax.tree.map(
        lambda x: np.asarray(jnp.asarray(x, "bfloat16"), "float32"),
        drawn(plain.model, b=0.3),
    )
    _, wanted = plain.update(weights)
    found, means = small.update(weights)
    for name in TERMS:
        np.testing.assert_allclose(means[name], wanted[name], rtol=1e-5)
    for path, leaf in params_lib.flatten(found.params):
        assert leaf.dtype == ("float32" if lora.is_adapter(path) else "bfloat16")


@pytest.mark.slow
def test_the_logged_rate_is_the_one_applied():
    """AdamW's first update of a weight is the rate itself, where nothing is decayed."""
    cfg = lora_config(optim__weight_decay=0.0)
    run = Run(cfg)
    weights = drawn(run.model, b=0.3)
    after, means = run.update(weights)
    rate = means["learning_rate"]
    assert rate == pytest.approx(cfg.optim.learning_rate, rel=1e-6)
    flat = dict(params_lib.flatten(weights))
    moved = np.concatenate(
        [
            np.abs(leaf - flat[path]).ravel()
            for path, leaf in params_lib.flatten(after.params)
            if lora.is_adapter(path)
        ]
    )
    # Weights near 0.1 are stored in steps of 7e-9.
    assert np.median(moved) == pytest.approx(rate, rel=5e-3)
    with jax.set_mesh(run.mesh):
        batch = sharding.to_global(batch_of(), run.mesh)
        state = run.start(weights)
        rates = []
        for _ in range(3):
            state, metrics = run.step(state, batch, jax.random.key(1), None)
            rates.append(float(metrics["learning_rate"][0]))
    peak = cfg.optim.learning_rate
    expected = [peak * (1 + np.cos(np.pi * step / 10)) / 2 for step in range(3)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("delta", ["cumulative", "previous"])
def test_accumulation_keeps_dtypes_and_the_program(delta):
    """Gradients are summed in float32, whatever the dtypes of what is frozen."""
    cfg = lora_config(
        loss__delta=delta,
        model__frozen_dtype="bfloat16",
        optim__accumulation=2,
        rows__row_multiple=2,
    )
    run = Run(cfg)
    state = run.start(drawn(run.model))

    def kinds(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)

    before = kinds(state)
    assert before == kinds(run.abstract)
    with jax.set_mesh(run.mesh):
        batch = sharding.to_global(batch_of(), run.mesh)
        for _ in range(2):
            state, _ = run.step(state, batch, jax.random.key(1), None)
            assert kinds(state) == before
    assert run.step._cache_size() == 1


SCHEDULED = {
    "adapters": (lora_config, {}),
    "vision adapters": (lora_config, {"language": 0, "vision": 3}),
    "last vision layer": (run_config, {**FROZEN, "model__train_vision_layers": 1}),
    "head": (run_config, {**FROZEN, "model__train_head": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SCHEDULED)
def test_no_gradient_is_computed_for_what_is_frozen(case):
    """Products in the compiled step are those of the formula, and no more."""
    build, changes = SCHEDULED[case]
    cfg = build(**changes, model__vocab_chunk=16, model__attention="reference")
    run = Run(cfg)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch_of())
    with jax.set_mesh(run.mesh):
        lowered = run.step.lower(run.abstract, batch, jax.random.key(0), None)
        text = lowered.compile().as_text()
    found = schedule.totals(hlo.parse(text))
    assert found.unresolved == ()
    budget = flops.of_budget(packed.SHAPE, attention="square") * len(LAYOUT)
    trained = flops.of_run(cfg.model, run.model.cfg, run.model.shapes)
    expected = flops.training(run.model.cfg, budget, trained=trained)
    # The head's logits are computed again in its gradient.
    again = flops.forward(run.model.cfg, budget).head
    assert found.flops == pytest.approx(expected.total + again, rel=0.03)
