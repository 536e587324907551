"""Parity with the reference implementation's numbers (../shared/goldens), float32.

Every array is compared relative to its largest value, every scalar to itself. Reached
on XLA CPU: features 5e-7, logits 7e-7, log-probs and losses 4e-7, gradient norms 7e-7,
full gradients 1.6e-6; what remains is the order of float32 sums. The bounds leave a
factor of three for other CPUs.
"""

from __future__ import annotations

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpo_jax import api, config, types
from mpo_jax.convert import hf
from mpo_jax.losses import mixture, reward_shift
from mpo_jax.models import network

GOLDENS = (
    "internvl2-internlm2",
    "internvl2-qwen2",
    "internvl1_5-style",
    "internvl2-llama",
    "internvl2-phi3",
)
COMPUTE = network.Compute(dtype=jnp.float32, remat="none")
FORWARD = 2e-6
GRADIENT = 5e-6
# Compiling is nearly all the time of these tests; run time does not matter.
QUICK = {"xla_backend_optimization_level": 0}


class Golden:
    """A golden model, its numbers and its batch, images standing once per pair."""

    def __init__(self, directory: pathlib.Path):
        with np.load(directory / "golden.npz") as stored:
            self.numbers = dict(stored)
        self.token = int(self.numbers["img_context_token_id"])
        self.loaded = api.InternVL.from_pretrained(
            directory, img_context_token_id=self.token
        )
        self.model = self.loaded.model
        self.tiles = self.numbers["pixel_values"].transpose(0, 2, 3, 1)
        self.ids = self.numbers["input_ids"].astype(np.int32)
        self.mask = self.numbers["attention_mask"].astype(np.int32)
        # Rows are the chosen sides, then the rejected ones, of the same images.
        tokens = self.model.cfg.tokens_per_tile
        is_image = self.ids == self.token
        assert is_image.sum() == 2 * len(self.tiles) * tokens
        order = (np.cumsum(is_image.ravel()) - 1) % (len(self.tiles) * tokens)
        self.slot = np.where(is_image, order.reshape(is_image.shape), -1)
        # Mask of labels, and labels, of the position before each.
        labels = self.numbers["labels"][:, 1:]
        self.trained = labels != -100
        self.labels = np.where(self.trained, labels, 0)

    @functools.cached_property
    def results(self):
        """``(loss, (logits, token log-probs, metrics)), gradient``: compiled once."""
        step = jax.jit(
            jax.value_and_grad(self.loss, has_aux=True), compiler_options=QUICK
        )
        return step(self.loaded.params)

    def logits(self, params):
        return self.model.bind(params).logits(
            jnp.asarray(self.ids),
            jnp.asarray(self.mask),
            jnp.asarray(self.slot),
            jnp.asarray(self.tiles),
            compute=COMPUTE,
        )

    def loss(self, params):
        """Total loss, and (logits, token log-probs, metrics)."""
        logits = self.logits(params)
        logps = jax.nn.log_softmax(logits[:, :-1], axis=-1)
        logps = jnp.take_along_axis(logps, self.labels[:, :, None], axis=2)[:, :, 0]
        logps = jnp.where(self.trained, logps, 0.0)
        pairs = len(self.ids) // 2
        counts = self.trained.sum(1).astype(np.float32)
        policy = types.PairLogps(
            chosen=logps.sum(1)[:pairs],
            rejected=logps.sum(1)[pairs:],
            chosen_tokens=counts[:pairs],
            rejected_tokens=counts[pairs:],
        )
        reference = self.numbers["ref_logps"]
        # The stored delta is that of a first step: the mean reward of this batch.
        loss, (metrics, _) = mixture.mixed_loss(
            policy,
            jnp.stack([reference[:pairs], reference[pairs:]], axis=1),
            jnp.ones((pairs,), bool),
            reward_shift.init(),
            config=config.LossConfig(beta=float(self.numbers["beta"])),
        )
        return loss, (logits, logps, metrics)


@pytest.fixture(scope="module", params=GOLDENS)
def golden(request: pytest.FixtureRequest, shared: pathlib.Path) -> Golden:
    return Golden(shared / "goldens" / request.param)


def _error(ours, theirs) -> float:
    """Largest difference, relative to the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def test_vision_features(golden: Golden):
    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params, tiles):
        bound = golden.model.bind(params)
        return bound.vision(tiles), bound.image_features(tiles, compute=COMPUTE)

    hidden, features = run(golden.loaded.params, golden.tiles)
    stored = golden.numbers["vit_last_hidden"]
    if golden.model.cfg.select_layer == -1:  # else the stored layer is another one
        assert _error(hidden, stored[:, 1:]) < FORWARD
    assert _error(features, golden.numbers["image_features"]) < FORWARD


def test_logits(golden: Golden):
    (_, (logits, _, _)), _ = golden.results
    real = golden.mask.astype(bool)
    assert _error(logits[real], golden.numbers["logits"][real]) < FORWARD


def test_losses(golden: Golden):
    numbers = golden.numbers
    (total, (_, logps, metrics)), _ = golden.results
    means = {name: float(a / b) for name, (a, b) in metrics.items()}
    assert _error(logps, numbers["token_logps"]) < FORWARD
    assert _error(logps.sum(1), numbers["sum_logps"]) < FORWARD
    # Rewards are small differences of log-probs near 100: an absolute bound.
    assert means["delta"] == pytest.approx(float(numbers["bco_delta"]), abs=2e-6)
    assert means["loss/sigmoid"] == pytest.approx(numbers["dpo"].mean(), rel=FORWARD)
    assert means["loss/bco_pair"] == pytest.approx(numbers["bco"].mean(), rel=FORWARD)
    sft = float(numbers["sft_sequence_mean"])
    assert means["loss/sft"] == pytest.approx(sft, rel=FORWARD)
    assert float(total) == pytest.approx(float(numbers["total"]), rel=FORWARD)
    tokens = golden.trained[: len(golden.ids) // 2].sum()
    token_mean = -float(logps[: len(golden.ids) // 2].sum()) / tokens
    assert token_mean == pytest.approx(float(numbers["sft_token_mean"]), rel=FORWARD)


def test_gradients(golden: Golden):
    _, gradient = golden.results
    ours = dict(hf.to_hf(gradient, golden.model))
    norms = json.loads(str(golden.numbers["grad_norms"]))
    full = {
        name.removeprefix("grad/"): value
        for name, value in golden.numbers.items()
        if name.startswith("grad/")
    }
    assert len(full) >= 15
    for name, norm in norms.items():
        wide = ours[name].astype(np.float64)
        assert np.linalg.norm(wide) == pytest.approx(norm, rel=GRADIENT), name
    for name, value in full.items():
        assert _error(ours[name], value) < GRADIENT, name
    # The only tensors without a gradient are those of layers that nothing reads.
    unused = ours.keys() - norms.keys()
    assert bool(unused) == (golden.model.cfg.select_layer != -1)
    assert all(not ours[name].any() for name in unused)
    layers = {name.split(".")[3] for name in unused}
    last = golden.model.cfg.vision.num_hidden_layers - 1
    assert layers <= {str(last)}
