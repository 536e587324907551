"""Schedule and AdamW against transformers and torch; decay, clipping, freezing."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import packed
import pytest
import torch
import transformers

from mpo_jax import config
from mpo_jax.models import adapted, internvl
from mpo_jax.nn import params as params_lib
from mpo_jax.train import optimizer

PARTS = adapted.PARTS


def expected_rates(rate: float, fraction: float, steps: int) -> list[float]:
    """Rates that transformers' Trainer uses, its warm-up rounded up as it does."""
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    schedule = transformers.get_cosine_schedule_with_warmup(
        sgd,
        num_warmup_steps=math.ceil(fraction * steps),
        num_training_steps=steps,
    )
    rates = []
    for _ in range(steps + 1):
        rates.append(schedule.get_last_lr()[0])
        sgd.step()
        schedule.step()
    return rates


def rates_of(cfg: config.OptimConfig, steps: int) -> np.ndarray:
    """Learning rates of all steps and of the one after the last."""
    return np.asarray(jax.vmap(optimizer.schedule(cfg, steps))(np.arange(steps + 1)))


@pytest.mark.parametrize(
    ("fraction", "steps"),
    [(0.03, 320), (0.03, 1), (0.05, 7), (0.0, 11), (0.5, 10), (1.0, 6), (0.0, 1)],
)
def test_schedule_is_that_of_transformers(fraction, steps):
    cfg = config.OptimConfig(learning_rate=5e-6, warmup_fraction=fraction)
    rates = rates_of(cfg, steps)
    wanted = expected_rates(5e-6, fraction, steps)
    # float32 cosine of ours against float64: 1e-6 of the peak.
    np.testing.assert_allclose(rates, wanted, rtol=0, atol=5e-12)


def test_without_warm_up_the_first_step_has_the_full_rate():
    cfg = config.OptimConfig(learning_rate=1e-3, warmup_fraction=0.0)
    rates = rates_of(cfg, 4).tolist()
    assert rates[0] == pytest.approx(1e-3) and rates[4] == pytest.approx(0, abs=1e-9)
    assert rates == sorted(rates, reverse=True)


def draw(rng, scale=1.0):
    shapes = {
        "vision/norm/scale": (6,),
        "vision/fc/kernel": (6, 5),
        "language/q/bias": (5,),
        "language/embedding": (7, 5),
    }
    return params_lib.unflatten(
        {
            path: (scale * rng.normal(size=shape)).astype(np.float32)
            for path, shape in shapes.items()
        }
    )


def torch_run(cfg, start, gradients, rates, decayed):
    """The same updates by torch: clip_grad_norm_ and AdamW in two groups."""
    leaves = {
        path: torch.nn.Parameter(torch.tensor(x))
        for path, x in params_lib.flatten(start)
    }
    adamw = torch.optim.AdamW(
        [
            {
                "params": [p for path, p in leaves.items() if decayed(path) == flag],
                "weight_decay": cfg.weight_decay if flag else 0.0,
            }
            for flag in (True, False)
        ],
        lr=cfg.learning_rate,
        betas=(cfg.b1, cfg.b2),
        eps=cfg.eps,
    )
    for gradient, rate in zip(gradients, rates, strict=True):
        for path, x in params_lib.flatten(gradient):
            leaves[path].grad = torch.tensor(x)
        if cfg.clip_norm:
            torch.nn.utils.clip_grad_norm_(list(leaves.values()), cfg.clip_norm)
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
    return {path: p.detach().numpy() for path, p in leaves.items()}


@pytest.mark.parametrize("decay_all", [True, False])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0, 1e3])
def test_updates_are_those_of_torch(decay_all, clip_norm):
    rng = np.random.default_rng(0)
    cfg = config.OptimConfig(
        learning_rate=1e-2,
        weight_decay=0.5,  # large, so that a spared bias shows
        decay_all=decay_all,
        clip_norm=clip_norm,
        warmup_fraction=0.3,
    )
    steps = 6
    start = draw(rng)
    gradients = [draw(rng, scale=10.0 ** (i - 3)) for i in range(steps)]
    transform, _ = optimizer.build(cfg, steps)

    @jax.jit
    def update(gradient, opt_state, params):
        updates, opt_state = transform.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = start, transform.init(start)
    for gradient in gradients:
        params, opt_state = update(gradient, opt_state, params)
    wanted = torch_run(
        cfg,
        start,
        gradients,
        rates_of(cfg, steps)[:-1].tolist(),
        lambda path: decay_all or path.endswith(("kernel", "embedding")),
    )
    # torch divides by norm + 1e-6 when it clips; else float32 in another order.
    for path, found in params_lib.flatten(params):
        np.testing.assert_allclose(
            found, wanted[path], rtol=2e-6, atol=2e-6, err_msg=path
        )
        moved = np.abs(np.asarray(found) - dict(params_lib.flatten(start))[path])
        assert moved.max() > 1e-3


def test_a_bias_without_gradient_is_decayed_as_released():
    start = {"language": {"q": {"bias": jnp.ones(3)}}}
    zeros = jax.tree.map(jnp.zeros_like, start)
    for decay_all, left in ((True, 1 - 1e-2 * 0.05), (False, 1.0)):
        cfg = config.OptimConfig(
            learning_rate=1e-2, warmup_fraction=0.0, decay_all=decay_all
        )
        transform, _ = optimizer.build(cfg, 10)
        updates, _ = transform.update(zeros, transform.init(start), start)
        (found,) = jax.tree.leaves(optax.apply_updates(start, updates))
        np.testing.assert_allclose(found, left, rtol=1e-6)


def test_clipping_is_by_the_norm_over_all_parameters():
    cfg = config.OptimConfig(clip_norm=1.0, warmup_fraction=0.0)
    transform, _ = optimizer.build(cfg, 10)
    start = {"vision": jnp.zeros(2), "language": jnp.zeros(1)}
    gradient = {"vision": jnp.array([3.0, 0.0]), "language": jnp.array([4.0])}
    _, state = transform.update(gradient, transform.init(start), start)
    # First moment after one step is (1 - b1) * clipped gradient: norm 5 becomes 1.
    moments = optax.tree.get(state, "mu")
    np.testing.assert_allclose(moments["vision"], [0.06, 0.0], rtol=1e-5)
    np.testing.assert_allclose(moments["language"], [0.08], rtol=1e-5)


def test_norms_are_whole_and_per_part():
    gradients = {
        "vision": {"a": jnp.array([3.0]), "b": jnp.array([[0.0]])},
        "language": {"c": jnp.array([4.0])},
    }
    found = optimizer.norms(gradients)
    assert {name: float(value) for name, value in found.items()} == {
        "grad_norm": 5.0,
        "grad_norm/vision": 3.0,
        "grad_norm/language": 4.0,
    }
    assert {value.dtype for value in found.values()} == {jnp.dtype("float32")}


def test_decay_mask_of_a_model_spares_what_is_no_matrix():
    """Per layer: what is stacked over layers has one more dimension than it seems."""
    model = internvl.InternVL(packed.tiny_config())
    shapes = dict(params_lib.flatten(model.shapes))
    axes = dict(params_lib.flatten(model.axes))
    mask = dict(params_lib.flatten(optimizer.decay_mask(model.shapes)))
    assert set(mask) == set(shapes)
    for path, decays in mask.items():
        per_layer = [name for name in axes[path] if name != "layers"]
        if path.endswith("bias"):  # attention biases are [heads, head_dim]
            assert not decays, path
        elif "class_embedding" in path:
            assert not decays, path
        else:
            assert decays == (len(per_layer) > 1), path
    assert {True, False} == set(mask.values())


def test_freezing():
    params = {part: {"w": jnp.ones(1)} for part in PARTS}
    trained = adapted.trained(config.ModelConfig(freeze_vision=True))
    ours, frozen = adapted.partition(params, trained)
    assert set(ours) == {"projector", "language"} and set(frozen) == {"vision"}
    everything = adapted.trained(config.ModelConfig())
    assert adapted.partition(params, everything) == (params, {})
    all_frozen = config.ModelConfig(
        freeze_vision=True, freeze_projector=True, freeze_language=True
    )
    with pytest.raises(ValueError, match="model.freeze_vision.*nothing is left"):
        adapted.trained(all_frozen)
